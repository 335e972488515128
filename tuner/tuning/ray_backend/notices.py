"""What the driver of a search tells all its workers at once: to save, to end, to end at a step.

The notice lies in the key-value store of Ray's head node, which each process of the cluster can
read: 0.2 ms from a worker on two cores. Ray has no public way as cheap; an actor would take a
process of its own.
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
"""Between two looks at the notice in mid-epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What holds for the workers of a search."""

    is_ending: bool = False
    """Trials end after their epoch under way."""
    is_over: bool = False
    """The budget is spent: trials end after their step under way."""
    leaving: tuple[str, ...] = ()
    """Nodes whose trials are to be saved after each epoch, for they go on elsewhere."""


@dataclass(frozen=True, slots=True)
class NoticeBoard:
    """Where the notice of a search is found."""

    key: str
    """No other search's on the cluster, nor that of an earlier session of the same one."""

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
    """Reads the notice for a trial that trains."""

    def __init__(self, board: NoticeBoard, node: str) -> None:
        self._board = board
        self._node = node
        self._last = Notice()
        self._looked = time.monotonic()

    def look(self) -> Notice:
        """Return the notice as it is now."""
        self._looked = time.monotonic()
        # Where the head does not answer, for it is gone or busy, the notice holds that was read.
        with contextlib.suppress(RayError):
            self._last = self._board.read() or self._last
        return self._last

    @property
    def should_migrate(self) -> bool:
        """Whether the trial is to go on on another node, as of the last look."""
        return self._node in self._last.leaving

    def is_over(self) -> bool:
        """Whether the budget is spent; looks at most each ``LOOK_SECONDS``."""
        if not self._last.is_over and time.monotonic() - self._looked >= LOOK_SECONDS:
            self.look()
        return self._last.is_over
