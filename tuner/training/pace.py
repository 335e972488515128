"""Limits how far the host runs ahead of the device, and measures the seconds of a step."""

import statistics
from collections import deque

import torch

AHEAD_SECONDS = 0.25
"""Maximum seconds of queued work, so that a training ends soon after it is stopped."""
MIN_SAMPLES = 8
"""Number of timed steps before their length counts as known."""
MOST_AHEAD = 64
"""Maximum number of queued steps; a few dozen small graphs hide all other work of the host."""


class Pace:
    """Holds the host back between steps while the device has enough work."""

    def __init__(self) -> None:
        self._queued: deque[torch.cuda.Event] = deque()
        self._last: torch.cuda.Event | None = None
        self._seconds: deque[float] = deque(maxlen=32)

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of the latest steps on the device; ``None`` if there are too few."""
        return statistics.median(self._seconds) if len(self._seconds) >= MIN_SAMPLES else None

    def after_step(self) -> None:
        """Record that a step was queued on the current stream; wait if too many are queued."""
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
        """Forget the times: the next steps take different ones, or follow a break."""
        self._seconds.clear()
        self.pause()

    def pause(self) -> None:
        """Exclude the time between the last step and the next one."""
        self._queued.clear()
        self._last = None
