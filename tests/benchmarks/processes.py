"""Run a search or a refit as a process of its own, and kill it with all that it has started."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

PROGRAM = Path(sys.executable).with_name("cifar-tune")
LINGER_SECONDS = 90.0
"""Seconds that processes left over by a kill are given to end by themselves."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process, distinguished by its start from a later one with the same number."""

    pid: int
    parent: int
    started: int
    """Start in clock ticks after boot."""
    name: str
    """Name in the kernel, at most 15 characters."""

    def is_alive(self) -> bool:
        """Return whether the process still runs; a zombie does not."""
        found = _read(self.pid)
        return found is not None and found.started == self.started

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal if the process still runs."""
        if self.is_alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def _read(pid: int) -> Process | None:
    """Read a living process from /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may contain spaces and parentheses itself.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    if fields[0] in "ZX":
        return None
    name = head.partition("(")[2]
    return Process(pid=pid, parent=int(fields[1]), started=int(fields[19]), name=name)


def descendants(pid: int) -> list[Process]:
    """Return all living descendants of ``pid``, parents first."""
    children: dict[int, list[Process]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and (process := _read(int(path.name))):
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [pid]
    while parents:
        grown = [child for parent in parents for child in children.get(parent, [])]
        found += grown
        parents = [child.pid for child in grown]
    return found


def alive(processes: Iterable[Process]) -> list[Process]:
    """Return the processes that still run."""
    return [process for process in processes if process.is_alive()]


def environment() -> dict[str, str]:
    """Return the user's environment, without what Ray in this process adds for tokens."""
    return {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}


class Search:
    """``cifar-tune search``, or another ``command``, in a process and a session of its own.

    Args:
        folder: Working folder; its runs are in ``runs`` there.
        arguments: Arguments of the command.
        command: Name of the command.
        more: Variables added to this process's environment.

    Attributes:
        process: The driver.
        began: When the process started, in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        command: str = "search",
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._errors = folder / "stderr.txt"
        self._output = folder / "stdout.txt"
        self.began = time.time()
        with self._errors.open("w") as errors, self._output.open("w") as output:
            self.process = subprocess.Popen(
                [str(PROGRAM), command, "--storage", str(folder / "runs"), *arguments],
                cwd=folder,
                env=environment() | more,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def errors(self) -> str:
        """Text written to stderr so far."""
        return self._errors.read_text()

    @property
    def output(self) -> str:
        """Text written to stdout so far."""
        return self._output.read_text()

    def wait(self, seconds: float) -> int | None:
        """Wait up to ``seconds`` for its end; return the exit code, or None if it still runs."""
        try:
            return self.process.wait(max(0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def kill_driver(self) -> list[Process]:
        """Kill the driver alone; return the processes that it had started."""
        orphans = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        return orphans

    def kill_everything(self) -> list[Process]:
        """Kill the driver and all processes that it has started; return the latter."""
        started = descendants(self.process.pid)
        self.process.kill()
        for process in started:
            process.kill()
        self.process.wait()
        return started

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *details: object) -> None:
        if self.process.poll() is None:
            self.kill_everything()


class Reaper(threading.Thread):
    """Waits for processes left over by a kill, and kills them after ``LINGER_SECONDS``."""

    def __init__(self, left_over: Sequence[Process]) -> None:
        super().__init__(daemon=True)
        self._left_over = left_over
        self._began = time.monotonic()
        self._seconds = 0.0
        self.start()

    def run(self) -> None:
        """Check ten times a second whether they still run."""
        while alive(self._left_over) and self._seconds < LINGER_SECONDS:
            time.sleep(0.1)
            self._seconds = time.monotonic() - self._began
        for process in self._left_over:
            process.kill()

    def seconds(self) -> float:
        """Wait for the end; return how many seconds the last process lived on."""
        self.join()
        return self._seconds
