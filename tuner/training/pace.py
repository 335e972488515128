"""How far the host runs ahead of the device, and how long the device takes for a step."""

import statistics
from collections import deque

import torch

AHEAD_SECONDS = 0.25
"""Work that the host queues at most, so that a training ends soon after it is told to."""
MIN_SAMPLES = 8
"""Steps that are timed before their length counts as known."""
MOST_AHEAD = 64
"""Steps queued at most; a few dozen small graphs hide whatever the host does besides."""


class Pace:
    """Holds the host back, between two steps, while the device has enough to do."""

    def __init__(self) -> None:
        self._queued: deque[torch.cuda.Event] = deque()
        self._last: torch.cuda.Event | None = None
        self._seconds: deque[float] = deque(maxlen=32)

    @property
    def step_seconds(self) -> float | None:
        """Seconds that the device takes for a step, the median of the latest; ``None`` of few."""
        return statistics.median(self._seconds) if len(self._seconds) >= MIN_SAMPLES else None

    def after_step(self) -> None:
        """Note that a step was queued on the current stream; wait where too many are."""
        # Without blocking=True, a wait keeps a CPU core busy.
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        self._queued.append(event)
        seconds = self.step_seconds
        ahead = 1 if seconds is None else int(AHEAD_SECONDS / max(seconds, 1e-6))
        while len(self._queued) > max(1, min(ahead, MOST_AHEAD)):
            done = self._queued.popleft()
            done.synchronize()
            if self._last is not None:
                self._seconds.append(self._last.elapsed_time(done) / 1000)
            self._last = done

    def restart(self) -> None:
        """Forget the times: what comes next takes others, or begins after a break."""
        self._seconds.clear()
        self.pause()

    def pause(self) -> None:
        """Leave out of the times what lies between the last step and the next one."""
        self._queued.clear()
        self._last = None
