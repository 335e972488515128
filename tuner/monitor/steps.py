"""Show progress while there is no table: a spinner on a terminal, lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.text import Text

from tuner.monitor.terminal import is_live, tell

MOMENT = 0.1
"""Seconds after which a step is reported if there is no spinner; shorter steps are not."""
PULSE = 10.0
"""Maximum seconds without a line if there is no live display."""


@contextmanager
def step(
    console: Console, text: str, *, first: float | None = None
) -> Iterator[Callable[[str], None]]:
    """Show what a long block does; yield a function that changes the text.

    Args:
        console: The console.
        text: Such as ``Starting Ray``.
        first: Seconds after which it is reported without a spinner; ``None`` for ``MOMENT``.
    """
    if is_live(console):
        spinner = "line" if console.options.ascii_only else "dots"
        # Text, because rich would look for markup and emojis in a string.
        with console.status(Text(f"{text} ..."), spinner=spinner) as status:
            yield lambda text: status.update(Text(f"{text} ..."))
        return
    began = time.monotonic()

    def change(new: str) -> None:
        nonlocal text
        text = new

    def line() -> str:
        seconds = time.monotonic() - began
        return f"{text} ... {f'{seconds:.0f} s so far' if seconds >= PULSE else ''}".rstrip()

    with Pulse(console, line, first=MOMENT if first is None else first):
        yield change


def loading(console: Console, what: str) -> AbstractContextManager[object]:
    """Report that the block loads libraries; at once, because imports block our other threads."""
    return step(console, f"Loading {what}", first=None if "torch" in sys.modules else 0.0)


class Pulse:
    """Prints a line after ``PULSE`` seconds without one, in a ``with`` block.

    Args:
        console: The console.
        line: Returns the line to print.
        first: Seconds before the first line; 0 prints it when the block begins.
    """

    def __init__(self, console: Console, line: Callable[[], str], *, first: float = PULSE) -> None:
        self._console = console
        self._line = line
        self._first = first
        self._due = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._due = time.monotonic() + self._first
        if not self._first:
            self._tell()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def rest(self) -> None:
        """Record that a line has just been printed."""
        self._due = time.monotonic() + PULSE

    def _beat(self) -> None:
        while not self._ended.wait(max(0.0, self._due - time.monotonic())):
            if time.monotonic() >= self._due:
                self._tell()

    def _tell(self) -> None:
        self.rest()
        is_file = not self._console.is_terminal
        self._console.print(self._line(), markup=False, soft_wrap=is_file)


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints lines; show progress while the last one stays for long.

    Args:
        console: The console.
    """
    if is_live(console):
        with console.status("") as status:

            def show(line: str) -> None:
                tell(console, line)
                status.update(Text(f"{line} ..."))

            yield show
        return
    last, began = "Choosing", time.monotonic()

    def say(line: str) -> None:
        nonlocal last, began
        last, began = line, time.monotonic()
        tell(console, line)
        pulse.rest()

    pulse = Pulse(
        console, lambda: f"{last} ... {time.monotonic() - began:.0f} s so far", first=PULSE
    )
    with pulse:
        yield say
