"""What signals do to a search: it ends after the running epochs, and Ray's processes live on."""

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
"""``timeout`` sends its signal twice within this, and so do a shell and its closed terminal."""


@contextmanager
def sheltering_children() -> Iterator[None]:
    """Have processes that start in the block not get SIGTERM and SIGHUP, which are for this one.

    A terminal that closes and ``timeout`` send them to the process group, systemd and Slurm to all
    processes of a unit or step. A blocked signal stays blocked in what is started; Ray 2.60 does
    the same with SIGINT. The handler that it sets for SIGTERM is taken back.
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
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        raise KeyboardInterrupt

    with _handled(dict.fromkeys(ENDING[1:], interrupt)):
        yield


@contextmanager
def drained_by_signals(drain: Callable[[], None], is_over: Callable[[], bool]) -> Iterator[None]:
    """Call ``drain`` on the first signal; have the second one raise KeyboardInterrupt.

    Args:
        drain: Has no trial start any more.
        is_over: Whether already the first one is to raise.
    """
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGHUP:
            leave_terminal()
        # Nobody presses Ctrl-C for somebody else.
        is_repeated = number != signal.SIGINT and time.monotonic() - first < REPEATED_SECONDS
        if is_over() or (first and not is_repeated):
            raise KeyboardInterrupt
        first = first or time.monotonic()
        drain()

    with _handled(dict.fromkeys(ENDING, handle)):
        yield


def leave_terminal() -> None:
    """Write to nowhere what would go to a terminal that is closed, or to who ran there, too."""
    for number in (1, 2):
        # A file that the output goes to stays. A closed terminal is no tty any more.
        if not stat.S_ISREG(os.fstat(number).st_mode):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals for a while; outside the main thread, where Python handles none, do nothing.

    One that is ignored stays so: ``nohup`` wants that.
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
