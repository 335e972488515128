"""Processes that share a GPU side by side, through NVIDIA's Multi-Process Service (MPS).

Without MPS, processes that share a GPU take turns on it. As clients of an MPS server they run at
the same time. CUDA looks for the server's control daemon once, when a process first uses it.

Each node has at most one daemon per user. Every process that uses it holds a lock, which the kernel
releases however the process ends. A keeper, this file run as a program, ends the daemon when nobody
has held the lock for a while. So neither a killed search nor a killed worker leaves one behind, and
concurrent searches share one.

Only the standard library is imported here: the keeper starts fast and needs no environment.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

PROGRAM = "nvidia-cuda-mps-control"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
LOG = "CUDA_MPS_LOG_DIRECTORY"
SWITCH = "CIFAR_TUNE_MPS"
"""Environment variable; ``0`` turns MPS off on the node."""
DEFAULT_PIPE = Path("/tmp/nvidia-mps")
"""Where CUDA looks for a daemon unless the environment names another folder."""
DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Device files of NVIDIA's driver, on Linux and on the Windows Subsystem for Linux."""
LONGEST_SOCKET = 107
"""Maximum length in bytes of the path of a UNIX socket."""
START_SECONDS = 10.0
TRY_SECONDS = 30.0
"""A server first creates contexts on all GPUs; after a fault it waits for its clients to end."""
QUIT_SECONDS = 10.0
IDLE_SECONDS = 10.0
"""A worker's process may end before the next one starts."""
FAILURE_SECONDS = 600.0
"""Seconds during which nobody tries again after a daemon could not be started."""
IS_TEMPORARY = 75
"""Exit code of a client that may be accepted later."""

CLIENT = f"""
import ctypes, sys

cuda = ctypes.CDLL("libcuda.so.1")
device, is_client, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()

def check(error):
    if error:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(error, ctypes.byref(text))
        print(f"CUDA error {{error}}: {{(text.value or b'').decode()}}", file=sys.stderr)
        sys.exit({IS_TEMPORARY} if error == 46 or 805 <= error <= 810 else 1)

check(cuda.cuInit(0))
check(cuda.cuDeviceGet(ctypes.byref(device), 0))
# CU_DEVICE_ATTRIBUTE_MPS_ENABLED, which drivers before CUDA 12.1 do not know.
if not cuda.cuDeviceGetAttribute(ctypes.byref(is_client), 133, device) and not is_client.value:
    sys.exit("CUDA finds no MPS daemon there")
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
"""
"""Uses the first visible GPU; where MPS cannot work, CUDA fails, hangs or runs without it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """How processes share a GPU of this node."""

    how: Literal["side by side", "by turns"]
    reason: str = ""
    """Why by turns; empty without an NVIDIA GPU, or in a process that stays apart."""
    is_broken: bool = False
    """Whether MPS is installed but does not work."""
    pipe: str | None = None
    """The ``CUDA_MPS_PIPE_DIRECTORY`` that a process needs; ``None`` to leave it unchanged."""

    def __str__(self) -> str:
        if self.how == "by turns":
            return f"trials that share a GPU take turns: {self.reason}"
        return "trials that share a GPU run side by side (MPS)"


@cache
def join() -> Sharing:
    """Let this process, which has not used CUDA yet, share its GPU side by side if it can.

    Starts the node's daemon if none runs. Failures are part of the result, and never raised.
    """
    with contextlib.ExitStack() as stack:
        sharing = _share(os.environ, stack)
        if sharing.how == "side by side":
            _held.append(stack.pop_all())
    if sharing.pipe is not None:
        os.environ[PIPE] = sharing.pipe
    return sharing


_held: list[contextlib.ExitStack] = []
"""The lock that this process holds on the daemon until it ends."""


def stay_apart() -> None:
    """Let this process take turns, unless it has already joined."""
    if not _held:
        os.environ[PIPE] = _nowhere()


def examine() -> Sharing:
    """Find out how processes would share a GPU of this node, by trying the first one."""
    # A folder that belongs to somebody else is reported below.
    with contextlib.suppress(OSError):
        (find_folder() / "failure").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if "VISIBLE_DEVICES" not in key}
    with contextlib.ExitStack() as stack:
        return _share(environment, stack)


def _share(environment: Mapping[str, str], stack: contextlib.ExitStack) -> Sharing:
    """Find or start a daemon and briefly be its client; ``stack`` gets the lock on it."""
    if not any(file.exists() for file in DEVICE_FILES):
        return Sharing(how="by turns")
    if environment.get(PIPE) == _nowhere():
        # This process stays apart, whatever it trains next.
        return Sharing(how="by turns")
    if environment.get(SWITCH) == "0":
        return Sharing(how="by turns", reason=f"{SWITCH} is 0", pipe=_nowhere())
    if (theirs := environment.get(PIPE)) or find_daemon(DEFAULT_PIPE):
        return _share_theirs(environment, theirs or str(DEFAULT_PIPE))
    if not shutil.which(PROGRAM):
        return Sharing(how="by turns", reason=f"{PROGRAM} is not installed")
    try:
        pipe, problem = _share_ours(environment, stack)
    except (OSError, subprocess.SubprocessError) as error:
        pipe, problem = None, str(error)
    if problem:
        return Sharing(how="by turns", reason=problem, is_broken=True, pipe=_nowhere())
    return Sharing(how="side by side", pipe=pipe)


def _share_theirs(environment: Mapping[str, str], pipe: str) -> Sharing:
    """Use a daemon that the user or the machine's owner runs, which is not ours to end."""
    if problem := _try_client(environment, pipe):
        reason = f"the daemon of {pipe} is not ours and does not serve us: {problem}"
        return Sharing(how="by turns", reason=reason, is_broken=True, pipe=_nowhere())
    return Sharing(how="side by side", pipe=pipe)


def _share_ours(
    environment: Mapping[str, str], stack: contextlib.ExitStack
) -> tuple[str | None, str]:
    """Return the pipe directory of the user's own daemon, and its problem, if any."""
    folder = make_folder()
    pipe = folder / "pipe"
    # Waits while the keeper ends the daemon.
    fcntl.flock(stack.enter_context((folder / "users").open("w")), fcntl.LOCK_SH)
    with (folder / "start").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not find_daemon(pipe):
            failure = folder / "failure"
            if failure.exists() and time.time() - failure.stat().st_mtime < FAILURE_SECONDS:
                return None, failure.read_text()
            try:
                problem = _start(folder, environment)
            except (OSError, subprocess.SubprocessError) as error:
                problem = str(error)
            if problem:
                failure.write_text(problem)
                end_daemon(pipe)
                return None, problem
        _have_kept(folder)
    return str(pipe), _try_client(environment, str(pipe))


def find_folder() -> Path:
    """Return the folder of the user's own daemon on this node, whether it exists or not."""
    node = zlib.crc32(socket.gethostname().encode())
    return Path(tempfile.gettempdir()) / f"cifar-tune-mps-{os.getuid()}-{node:08x}"


def make_folder() -> Path:
    """Return the folder of the user's own daemon on this node, which nobody else may enter.

    Raises:
        OSError: If it belongs to somebody else, or its path is too long for sockets.
    """
    folder = find_folder()
    if len(os.fsencode(folder / "pipe" / "control_privileged")) > LONGEST_SOCKET:
        raise OSError(f"{folder} is too long a path for sockets; set TMPDIR to a shorter one")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_ours or status.st_mode & 0o077:
        raise OSError(f"{folder} is open to others; remove it")
    return folder


def _nowhere() -> str:
    """Return a folder without a daemon, so that CUDA runs without MPS."""
    return str(find_folder() / "none")


def find_daemon(pipe: Path) -> int | None:
    """Return the process ID of the daemon of a pipe directory; ``None`` if none runs."""
    try:
        pid = int((pipe / f"{PROGRAM}.pid").read_text())
        # Empty for a zombie process.
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if PROGRAM.encode() in command else None


def _start(folder: Path, environment: Mapping[str, str]) -> str:
    """Start the daemon and check that it serves; return what is wrong, if anything."""
    if _has_mig():
        return "MPS would need a daemon for each MIG device"
    pipe, log = folder / "pipe", folder / "log"
    for part in (pipe, log):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    # The daemon sees all GPUs, so that its numbers match those that Ray gives to the clients.
    own = {key: value for key, value in environment.items() if key != "CUDA_VISIBLE_DEVICES"}
    own |= {PIPE: str(pipe), LOG: str(log)}
    # Not a pipe: the daemon may keep it open.
    with (folder / "said").open("w+") as said:
        code = subprocess.run(
            [PROGRAM, "-d"],
            env=own,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            timeout=START_SECONDS,
            check=False,
        ).returncode
        said.seek(0)
        words = said.read().strip().splitlines()
    if code:
        return f"{PROGRAM} ended with {code}" + (f": {words[-1]}" if words else "")
    end = time.monotonic() + START_SECONDS
    while not (find_daemon(pipe) and (pipe / "control").exists()):
        if time.monotonic() > end:
            return f"{PROGRAM} did not start in {START_SECONDS:g} s; see {log}"
        time.sleep(0.02)
    return _try_client(environment, str(pipe))


def _has_mig() -> bool:
    if not (program := shutil.which("nvidia-smi")):
        return False
    query = [program, "--query-gpu=mig.mode.current", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=TRY_SECONDS, check=False)
    return "Enabled" in answer.stdout


def _try_client(environment: Mapping[str, str], pipe: str) -> str:
    """Run a client briefly, again while the server is not ready; return its problem, if any.

    A server can refuse or fail in ways that a daemon does not report, and to PyTorch, a GPU that
    refuses it is no GPU at all.
    """
    end = time.monotonic() + TRY_SECONDS
    command = [sys.executable, "-I", "-S", "-c", CLIENT]
    while True:
        try:
            answer = subprocess.run(
                command,
                env={**environment, PIPE: pipe},
                capture_output=True,
                text=True,
                timeout=max(1.0, end - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the server does not answer in {TRY_SECONDS:g} s"
        if answer.returncode == 0:
            return ""
        if answer.returncode != IS_TEMPORARY or time.monotonic() > end:
            words = answer.stderr.strip().splitlines()
            return words[-1] if words else f"a client ended with {answer.returncode}"
        time.sleep(0.5)


def end_daemon(pipe: Path) -> None:
    """End the daemon of a pipe directory, with its server; do nothing if none runs."""
    if not (pid := find_daemon(pipe)):
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [PROGRAM],
            input="quit\n",
            env={**os.environ, PIPE: str(pipe)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=QUIT_SECONDS,
            check=False,
        )
    if not _has_ended(pipe, pid):
        # It waits for its child, a server that hangs.
        for process in (*_find_children(pid), pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _has_ended(pipe, pid)


def _has_ended(pipe: Path, pid: int) -> bool:
    """Wait a moment for a daemon to end; return whether it has."""
    end = time.monotonic() + 1
    while find_daemon(pipe) == pid:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _find_children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _have_kept(folder: Path) -> None:
    """Start the keeper of the user's own daemon, unless it already runs."""
    with (folder / "keeper").open("w") as file:
        if not _take(file):
            return
    subprocess.run(
        [sys.executable, "-I", "-S", __file__, str(folder), str(IDLE_SECONDS)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A Ctrl-C in the search's terminal is not meant for it.
        start_new_session=True,
        check=True,
    )


def keep(folder: Path, idle_seconds: float) -> None:
    """End the daemon when nobody has used it for a while; return when it has ended."""
    with (folder / "keeper").open("w") as mine:
        if not _take(mine):
            return
        used = time.monotonic()
        while find_daemon(folder / "pipe"):
            time.sleep(idle_seconds / 10)
            with (folder / "users").open("w") as users:
                if not _take(users):
                    used = time.monotonic()
                elif time.monotonic() - used >= idle_seconds:
                    # Any new process waits for the lock, and starts another daemon.
                    end_daemon(folder / "pipe")


def _take(file: IO[str]) -> bool:
    """Lock a file for this process alone; return whether nobody else has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    # Ray kills the children of a worker's process when it ends, so this must not be one.
    if os.fork():
        os._exit(0)
    keep(Path(sys.argv[1]), float(sys.argv[2]))
