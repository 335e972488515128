"""Starts processes of ``worker.py`` and sends them commands."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.benchmarks.gpu_parts import Settings
from tests.benchmarks.gpu_parts.images import arrays_of

SCRIPT = Path(__file__).with_name("worker.py")
REPOSITORY = Path(__file__).parents[3]


class WorkerError(Exception):
    """A worker failed, died, or did not answer in time."""


class WorkerProcess:
    """A worker process, which ends with the ``with`` block.

    Args:
        settings: Settings of the part.
        name: Name of its log file.
        checkout: Checkout whose ``tuner`` it imports.
        environment: Variables added to this process's environment.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        checkout: Path = REPOSITORY,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._log = Path(settings.scratch) / f"{name}.log"
        paths = [str(checkout), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        others = [path for path in paths[1:] if path and Path(path).resolve() != REPOSITORY]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SCRIPT), str(arrays_of(settings)), settings.device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=settings.scratch,
                env={
                    **os.environ,
                    **environment,
                    "PYTHONPATH": os.pathsep.join([paths[0], *others]),
                },
            )
        self._unread = b""

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the worker has loaded the images."""
        self.answer(seconds)

    def tell(self, do: str, **arguments: Any) -> None:
        """Send the worker a command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(f"the worker ended: {self._last_words()}") from None

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait for an answer; return it.

        Raises:
            WorkerError: If it does not come in time, or reports a failure.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise WorkerError(f"no answer in {seconds:.0f} s: {self._last_words()}")
            read = os.read(descriptor, 1 << 16)
            if not read:
                raise WorkerError(f"the worker ended: {self._last_words()}")
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"].strip()[-1500:])
        return answer

    def ask(self, do: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Send the worker a command and wait for the answer."""
        self.tell(do, **arguments)
        return self.answer(seconds)

    def end(self) -> None:
        """Kill the worker."""
        self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip()[-1500:]

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *details: object) -> None:
        self.end()
