"""What a search's driver announces to all its workers: to save, to end, to end at a step.

The notice is in the key-value store of Ray's head node, which each process of the cluster can read:
0.2 ms from a worker on two cores. Ray has no public way that is as cheap; an actor would need its
own process.
"""

import contextlib
import time
from dataclasses import dataclass

from ray.exceptions import RayError

from tuner.schema import from_json, to_json
from tuner.tuning.ray_backend.private import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)

NAMESPACE = "cifar-tune"
LOOK_SECONDS = 0.5
"""Seconds between two looks at the notice in mid-epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What applies to the workers of a search."""

    is_ending: bool = False
    """Whether trials end after their current epoch."""
    is_over: bool = False
    """Whether the budget is spent: trials end after their current step."""
    leaving: tuple[str, ...] = ()
    """Nodes whose trials are saved after each epoch, because they will continue elsewhere."""


@dataclass(frozen=True, slots=True)
class NoticeBoard:
    """Where the notice of a search is stored."""

    key: str
    """Unique among the searches of the cluster, and among the sessions of one search."""

    def post(self, notice: Notice) -> None:
        """Replace the notice."""
        text = to_json(notice)
        _internal_kv_put(self.key, text, overwrite=True, namespace=NAMESPACE)

    def read(self) -> Notice | None:
        """Return the notice, if there is one."""
        text = _internal_kv_get(self.key, namespace=NAMESPACE)
        return from_json(Notice, text) if text else None

    def close(self) -> None:
        """Remove the notice, after the last worker has ended."""
        _internal_kv_del(self.key, namespace=NAMESPACE)


class NoticeReader:
    """Reads the notice for a trial in training."""

    def __init__(self, board: NoticeBoard, node: str) -> None:
        self._board = board
        self._node = node
        self._last = Notice()
        self._looked = time.monotonic()

    def look(self) -> Notice:
        """Return the current notice."""
        self._looked = time.monotonic()
        # If the head does not answer, because it is gone or busy, the last notice still applies.
        with contextlib.suppress(RayError):
            self._last = self._board.read() or self._last
        return self._last

    @property
    def should_migrate(self) -> bool:
        """Whether the trial is to continue on another node, as of the last look."""
        return self._node in self._last.leaving

    def is_over(self) -> bool:
        """Whether the budget is spent; looks at most once every ``LOOK_SECONDS``."""
        if not self._last.is_over and time.monotonic() - self._looked >= LOOK_SECONDS:
            self.look()
        return self._last.is_over
