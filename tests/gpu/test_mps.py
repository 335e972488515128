"""Processes on one GPU through NVIDIA's own daemon of MPS; no setting of the card is changed."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tuner.tuning.ray_backend import mps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CLIENT_SECONDS = 30

CLIENT = """
import sys
from tuner.tuning.ray_backend import mps
from tuner.tuning.ray_backend.device_fault import is_device_fault
mps.IDLE_SECONDS = 2.0
print(mps.join(), flush=True)

import torch

def work():
    tensor = torch.full((512, 512), 1 / 512, device="cuda")
    for _ in range(100):
        tensor = tensor @ tensor
    return round(tensor.sum().item())

print(work(), flush=True)
for line in sys.stdin:
    try:
        if line == "fault\\n":
            # An index out of range trips an assertion on the device.
            torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")].sum().item()
        if line == "queue\\n":
            tensor = torch.zeros(4096, 4096, device="cuda")
            for _ in range(1000):
                tensor = tensor @ tensor
            print("queued", flush=True)
        else:
            print(work(), flush=True)
    except RuntimeError as error:
        kind = "fault" if is_device_fault(error) else "error"
        print(kind, str(error).splitlines()[0], flush=True)
"""


class Client:
    """A process that joins the others and then works when it is told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def tell(self, word: str) -> str:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        return self.read()

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        try:
            self._process.communicate(timeout=CLIENT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def start_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Client]]:
    """Start clients of a daemon of this test's own; all have ended, and it too, afterwards."""
    if not shutil.which(mps.PROGRAM):
        pytest.skip(f"{mps.PROGRAM} is not installed")
    if mps.PIPE in os.environ or mps.find_daemon(mps.DEFAULT_PIPE):
        pytest.skip("a daemon that is not ours runs")
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with ExitStack() as stack:

            def start() -> Client:
                client = Client()
                stack.callback(client.end)
                assert client.read() == "trials that share a GPU run side by side (MPS)", logs()
                assert client.read() == "512", logs()
                return client

            yield start
        try:
            wait_for_end()
        finally:
            mps.end_daemon(pipe())


def pipe() -> Path:
    return mps.find_folder() / "pipe"


def logs() -> str:
    files = sorted((mps.find_folder() / "log").glob("*.log"))
    return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in files)


def wait_for_end() -> None:
    end = time.monotonic() + 60
    while mps.find_daemon(pipe()):
        assert time.monotonic() < end, f"the daemon was left behind\n{logs()}"
        time.sleep(0.1)


def ask(command: str) -> list[int]:
    answer = subprocess.run(
        [mps.PROGRAM],
        input=f"{command}\n",
        env={**os.environ, mps.PIPE: str(pipe())},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return [int(word) for word in answer.stdout.split() if word.isdigit()]


def test_processes_are_clients_of_one_server_that_ends_with_them(
    start_client: Callable[[], Client],
) -> None:
    clients = [start_client() for _ in range(2)]
    (server,) = ask("get_server_list")
    assert {client.pid for client in clients} <= set(ask(f"get_client_list {server}"))
    assert [client.tell("work") for client in clients] == ["512", "512"]
    for client in clients:
        client.end()
    wait_for_end()
    # Empty, or no file, where the process has ended.
    command = Path(f"/proc/{server}/cmdline")
    assert not command.exists() or b"mps-server" not in command.read_bytes()


def test_a_fault_is_told_by_all_it_reaches_and_new_clients_are_served(
    start_client: Callable[[], Client],
) -> None:
    guilty, neighbour = start_client(), start_client()
    words = guilty.tell("fault")
    assert words.startswith("fault "), words
    # What reaches a neighbour depends on the driver: nothing, or an error of one of these kinds.
    answer = neighbour.tell("work")
    print(f"guilty: {words}\nneighbour: {answer}\n{logs()}")
    assert answer == "512" or answer.startswith("fault "), answer
    guilty.end()
    if answer != "512":
        neighbour.end()
    assert start_client().tell("work") == "512"


def test_a_client_that_is_killed_at_work_harms_no_other(
    start_client: Callable[[], Client],
) -> None:
    killed, neighbour = start_client(), start_client()
    assert killed.tell("queue") == "queued"
    killed.kill()
    assert neighbour.tell("work") == "512", logs()
    assert start_client().tell("work") == "512", logs()


def test_a_kernel_that_fails_is_found_where_the_words_do_not_tell() -> None:
    code = """
import os
import torch
from tuner.tuning.ray_backend.device_fault import is_device_fault
assert not is_device_fault(RuntimeError("cuBLAS failed")), "nothing has used the device"
torch.zeros(1, device="cuda")
assert not is_device_fault(RuntimeError("cuBLAS failed"))
torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]
assert is_device_fault(RuntimeError("cuBLAS failed"))
# CUDA's own end of a process whose device failed may be an abort.
os._exit(0)
"""
    # In a process of its own, whose GPU nobody needs afterwards.
    subprocess.run([sys.executable, "-c", code], timeout=CLIENT_SECONDS, check=True)
