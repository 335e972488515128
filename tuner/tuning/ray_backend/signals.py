"""How signals affect a search: it ends after the running epochs, and Ray's processes survive."""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED_SECONDS = 1.0
"""``timeout`` sends its signal twice within this time, as do a shell and its closed terminal."""


@contextmanager
def sheltering_children() -> Iterator[None]:
    """Keep SIGTERM and SIGHUP, meant for this process, from the processes started in the block.

    A terminal that closes and ``timeout`` send them to the process group, systemd and Slurm to all
    processes of a unit or step. A blocked signal stays blocked in started processes; Ray 2.60
    blocks SIGINT in the same way. The handler that it sets for SIGTERM is undone.
    """
    if not _is_main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        raise KeyboardInterrupt

    with _handled(dict.fromkeys(ENDING[1:], interrupt)):
        yield


@contextmanager
def drained_by_signals(drain: Callable[[], None], is_over: Callable[[], bool]) -> Iterator[None]:
    """Call ``drain`` on the first signal, and raise KeyboardInterrupt on the second one.

    Args:
        drain: Keeps further trials from starting.
        is_over: Whether the first signal already raises.
    """
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGHUP:
            leave_terminal()
        # Only the user presses Ctrl-C, so a second one is not a repeated first one.
        is_repeated = number != signal.SIGINT and time.monotonic() - first < REPEATED_SECONDS
        if is_over() or (first and not is_repeated):
            raise KeyboardInterrupt
        first = first or time.monotonic()
        drain()

    with _handled(dict.fromkeys(ENDING, handle)):
        yield


def leave_terminal() -> None:
    """Discard output that would go to a closed terminal, or to a process that ran in it."""
    for number in (1, 2):
        # Output to a file is kept. A closed terminal is no longer a tty.
        if not stat.S_ISREG(os.fstat(number).st_mode):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals during the block; outside the main thread, where Python cannot, do nothing.

    Ignored signals stay ignored: ``nohup`` wants that.
    """
    if not _is_main_thread():
        yield
        return
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
