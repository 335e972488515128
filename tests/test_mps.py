"""The daemon of MPS, with a program in the place of NVIDIA's that does what is seen of it here."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from tests.conftest import wait_until
from tuner.tuning.ray_backend import mps

PROGRAM = f"""#!{sys.executable}
import os, pathlib, signal, socket, sys

pipe = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
control, pid_file = pipe / "control", pipe / "nvidia-cuda-mps-control.pid"
words = pathlib.Path(__file__).parent
if sys.argv[1:] != ["-d"]:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        client.connect(str(control))
    except OSError:
        sys.exit("Cannot find MPS control daemon process")
    client.send(sys.stdin.read().strip().encode())
    client.recv(100)
    sys.exit()
if (words / "broken").exists():
    sys.exit("MPS cannot start here")
with (words / "starts").open("a") as starts:
    print(os.environ.get("CUDA_VISIBLE_DEVICES", "all"), file=starts)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(str(control))
listener.listen()
if pid := os.fork():
    pid_file.write_text(str(pid))
    sys.exit()
os.setsid()
if (words / "hangs").exists():
    if not (server := os.fork()):
        signal.pause()
    (words / "server").write_text(str(server))
for number in range(3):
    os.close(number)
while True:
    client, _ = listener.accept()
    asked = client.recv(100)
    if asked == b"quit":
        if (words / "hangs").exists():
            continue
        pid_file.unlink()
    client.send(b"no" if (words / "refuses").exists() else b"yes")
    client.close()
    if asked == b"quit":
        os._exit(0)
"""

CLIENT = f"""
import os, socket, sys
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    client.connect(os.environ["CUDA_MPS_PIPE_DIRECTORY"] + "/control")
except OSError:
    sys.exit("CUDA finds no MPS daemon there")
client.send(b"client")
if client.recv(100) != b"yes":
    print("CUDA error 807: MPS server is not ready", file=sys.stderr)
    sys.exit({mps.IS_TEMPORARY})
"""

USER = f"""
import os, sys
from pathlib import Path
from tuner.tuning.ray_backend import mps
mps.DEVICE_FILES, mps.CLIENT, mps.IDLE_SECONDS = (Path("/dev/null"),), {CLIENT!r}, 0.5
print(mps.join().how, os.environ.get(mps.PIPE, ""), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder of the program, on a node that has a GPU and no daemon."""
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp") as name:
        folder = Path(name)
        program = folder / mps.PROGRAM
        program.write_text(PROGRAM)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.delenv(mps.PIPE, raising=False)
        monkeypatch.setattr(mps, "DEFAULT_PIPE", folder / "nvidia-mps")
        monkeypatch.setattr(mps, "DEVICE_FILES", (Path("/dev/null"),))
        monkeypatch.setattr(mps, "CLIENT", CLIENT)
        monkeypatch.setattr(mps, "TRY_SECONDS", 1.0)
        monkeypatch.setattr(mps, "IDLE_SECONDS", 0.5)
        yield folder
        mps.end_daemon(mps.find_folder() / "pipe")
        mps.end_daemon(mps.DEFAULT_PIPE)
        wait_for_keeper()


@pytest.fixture
def start_user(programs: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Start processes that share a GPU and run until their input ends."""
    with ExitStack() as stack:

        def start() -> "subprocess.Popen[str]":
            # Ray names the devices of a worker.
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": "1"}
            process = subprocess.Popen(
                [sys.executable, "-c", USER],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def said(user: "subprocess.Popen[str]") -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def ours() -> Path:
    return mps.find_folder() / "pipe"


def wait_for_keeper() -> None:
    """Wait until it has seen that there is no daemon to keep."""
    if (lock := mps.find_folder() / "keeper").exists():
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def wait_for_end(pid: int | None) -> None:
    wait_until(lambda: mps.find_daemon(ours()) != pid, seconds=15)


def test_processes_share_one_daemon_which_ends_after_the_last(
    programs: Path, start_user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    users = [start_user() for _ in range(3)]
    assert {said(user) for user in users} == {f"side by side {ours()}"}
    assert (programs / "starts").read_text() == "all\n", "one, which sees all devices"
    assert mps.find_folder().stat().st_mode & 0o777 == 0o700
    pid = mps.find_daemon(ours())
    for user in users[:2]:
        user.communicate()
    time.sleep(1.5)
    assert mps.find_daemon(ours()) == pid, "it has a user"
    users[2].send_signal(signal.SIGKILL)
    wait_for_end(pid)
    assert said(start_user()) == f"side by side {ours()}", "the next search starts another"
    assert (programs / "starts").read_text() == "all\nall\n"


def test_a_daemon_that_lost_its_keeper_is_used_and_ended(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mps, "_have_kept", lambda folder: None)
        assert mps.examine().how == "side by side"
    pid = mps.find_daemon(ours())
    time.sleep(1.5)
    assert mps.find_daemon(ours()) == pid
    assert mps.examine().how == "side by side"
    assert (programs / "starts").read_text() == "all\n"
    wait_for_end(pid)


def test_the_folder_of_a_daemon_that_was_killed_is_used_again(programs: Path) -> None:
    assert mps.examine().how == "side by side"
    pid = mps.find_daemon(ours())
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert (ours() / f"{mps.PROGRAM}.pid").exists()
    assert (ours() / "control").exists()
    assert mps.examine().how == "side by side"


def test_what_fails_is_told_and_has_processes_take_turns(
    programs: Path, start_user: Callable[[], "subprocess.Popen[str]"]
) -> None:
    (programs / "broken").touch()
    sharing = mps.examine()
    assert sharing.is_broken
    assert str(sharing) == (
        "trials that share a GPU take turns: nvidia-cuda-mps-control ended with 1: "
        "MPS cannot start here"
    )
    (programs / "broken").unlink()
    assert said(start_user()) == f"by turns {mps.find_folder() / 'none'}", "a failure is noted"
    assert mps.examine().how == "side by side", "and tried again when it is asked for"


def test_a_server_that_does_not_serve_is_waited_for_and_then_ended(programs: Path) -> None:
    (programs / "refuses").touch()
    began = time.monotonic()
    sharing = mps.examine()
    assert 1.0 < time.monotonic() - began < 10
    assert sharing.reason == "CUDA error 807: MPS server is not ready"
    assert mps.find_daemon(ours()) is None


def test_a_daemon_whose_server_hangs_is_ended_with_it(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "hangs").touch()
    assert mps.examine().how == "side by side"
    monkeypatch.setattr(mps, "QUIT_SECONDS", 0.5)
    mps.end_daemon(ours())
    assert mps.find_daemon(ours()) is None
    server = Path("/proc") / (programs / "server").read_text() / "cmdline"
    assert not server.exists() or not server.read_bytes(), "it has ended"


def test_a_daemon_of_somebody_else_is_used_and_not_ended(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mps.DEFAULT_PIPE.mkdir()
    subprocess.run(
        [mps.PROGRAM, "-d"], env=os.environ | {mps.PIPE: str(mps.DEFAULT_PIPE)}, check=True
    )
    assert mps.examine() == mps.Sharing(how="side by side", pipe=str(mps.DEFAULT_PIPE))
    time.sleep(1.5)
    assert mps.find_daemon(mps.DEFAULT_PIPE)
    assert not mps.find_folder().exists()
    (programs / "refuses").touch()
    assert mps.examine().pipe == str(mps.find_folder() / "none"), "CUDA would try it otherwise"
    monkeypatch.setenv(mps.PIPE, "/nowhere")
    assert mps.examine().reason == (
        "the daemon of /nowhere is not ours and does not serve us: CUDA finds no MPS daemon there"
    )


def test_nodes_without_mps_say_why(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mps.SWITCH, "0")
    assert mps.examine().reason == "CIFAR_TUNE_MPS is 0"
    monkeypatch.delenv(mps.SWITCH)
    monkeypatch.setenv("PATH", "/nowhere")
    assert mps.examine().reason == "nvidia-cuda-mps-control is not installed"
    assert not mps.examine().is_broken
    monkeypatch.setattr(mps, "DEVICE_FILES", ())
    assert mps.examine() == mps.Sharing(how="by turns"), "no GPU, and nothing to say"


def test_devices_cut_into_parts_take_turns(programs: Path) -> None:
    program = programs / "nvidia-smi"
    program.write_text("#!/bin/sh\necho Disabled\necho Enabled\n")
    program.chmod(0o755)
    assert mps.examine().reason == "MPS would need a daemon for each MIG device"
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert mps.examine().how == "side by side"


def test_a_folder_that_others_could_enter_is_not_used(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mps.find_folder().mkdir(mode=0o755)
    assert "is open to others" in mps.examine().reason
    mps.find_folder().rmdir()
    mps.find_folder().write_text("")
    assert mps.find_folder().name in mps.examine().reason
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + 80 * "x")
    assert "too long a path for sockets" in mps.examine().reason


@pytest.mark.ray
@pytest.mark.slow
def test_the_daemon_outlives_the_worker_that_started_it(programs: Path) -> None:
    def work(source: str) -> tuple[int, int | None]:
        exec(source.replace("sys.stdin.read()", ""))
        return os.getpid(), mps.find_daemon(mps.find_folder() / "pipe")

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(work)
        worker, daemon = ray.get(task.remote(USER))
        time.sleep(1.5)
        assert daemon is not None
        assert mps.find_daemon(ours()) == daemon, "the worker idles, and would be used again"
        os.kill(worker, signal.SIGTERM)
        assert mps.find_daemon(ours()) == daemon, "another worker may follow"
        wait_for_end(daemon)
    finally:
        ray.shutdown()
