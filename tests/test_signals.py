"""What signals do to a search, and who gets them; when Ray counts as gone."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tuner.tuning.ray_backend import signals
from tuner.tuning.ray_backend.signals import (
    drained_by_signals,
    interrupted_by_signals,
    sheltering_children,
)
from tuner.tuning.ray_backend.watch import Address


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_first_signal_drains_and_a_second_ctrl_c_interrupts() -> None:
    drained: list[int] = []
    with drained_by_signals(lambda: drained.append(1), lambda: False):
        send(signal.SIGINT)
        assert drained == [1]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert drained == [1]


def test_a_sigterm_that_is_sent_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[int] = []
    with drained_by_signals(lambda: drained.append(1), lambda: False):
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
        monkeypatch.setattr(signals, "REPEATED_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_a_signal_interrupts_at_once_where_ray_is_lost() -> None:
    with (
        drained_by_signals(lambda: None, lambda: True),
        pytest.raises(KeyboardInterrupt),
    ):
        send(signal.SIGTERM)


def test_before_and_after_its_trials_a_search_is_interrupted_by_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupted_by_signals(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_has_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with drained_by_signals(lambda: None, lambda: True):
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def blocked_in(process: subprocess.Popen[bytes]) -> set[int]:
    """Return the numbers of the signals that a process does not get."""
    (line,) = [
        line
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("SigBlk")
    ]
    bits = int(line.split()[1], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def test_sheltered_processes_get_neither_sigterm_nor_sighup() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sheltering_children():
        # As ray.init() does.
        signal.signal(signal.SIGTERM, lambda *_: None)
        sheltered = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert {signal.SIGTERM, signal.SIGHUP} <= blocked_in(sheltered)
        assert not {signal.SIGTERM, signal.SIGHUP} & blocked_in(other)
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        for process in (sheltered, other):
            process.kill()
            process.wait()


def test_a_process_that_no_longer_listens_is_gone_when_patience_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        strict, patient = Address(host, port), Address(host, port, patience=60.0)
        assert not strict.is_gone()
        assert not patient.is_gone()
    assert strict.is_gone()
    assert not patient.is_gone()
