"""A storage that fails for a while: a full disk, a quota, a share that is gone.

Within ``patient``, writes to a storage are retried for ``PATIENCE_SECONDS``, once for the whole
outage, before a ``StorageError`` reports that it is given up. Buckets have their own patience, in
``object_store``.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from tuner.errors import StorageError
from tuner.storage.protocol import AnyPath

PATIENCE_SECONDS = 60.0
LONGEST_PAUSE = 5.0
"""Maximum number of seconds between two attempts."""
FAULTS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
        *(errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO),
    }
)
"""Error numbers that mean a fault of the storage, whatever the operation."""
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Error numbers that only a write to a disk raises: no read does, and no object store."""

Found = TypeVar("Found")


class Patience:
    """How long to wait for the storage of a run.

    Args:
        home: The folder that has to exist.
        say: Prints a line for the user.
        is_hurried: Whether waiting makes no sense any more.

    Attributes:
        problem: What has been wrong with the storage for too long; empty if nothing.
    """

    def __init__(
        self,
        home: AnyPath,
        say: Callable[[str], None],
        is_hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self.problem = ""
        self._home = home
        self._say = say
        self._is_hurried = is_hurried
        self._since: float | None = None
        self._pause = 0.0

    def call(self, action: Callable[[], Found]) -> Found:
        """Return the result of ``action``, retried while the storage fails.

        Raises:
            StorageError: If it fails for too long.
        """
        while True:
            try:
                self.check_home()
                found = action()
            except Exception as error:
                if not storage_fault(error):
                    raise
                self.wait(error)
            else:
                self.hear()
                return found

    def check_home(self) -> None:
        """Make sure that the folder exists: a write would create another one in its place.

        Raises:
            OSError: If it is gone.
        """
        if isinstance(self._home, Path) and not self._home.is_dir():
            raise OSError(errno.ESTALE, "the folder is gone")

    def wait(self, error: BaseException) -> None:
        """Wait a little after a fault of the storage.

        Raises:
            StorageError: If there was one for too long.
        """
        reason = storage_fault(error)
        now = time.monotonic()
        if self._since is None:
            self._since, self._pause = now, 0.2
            if not self.problem:
                self._say(
                    f"{self._home}: cannot be used ({reason}); trying again for "
                    f"{PATIENCE_SECONDS:.0f} s."
                )
        if self.problem or now - self._since >= PATIENCE_SECONDS or self._is_hurried():
            self.give_up(reason)
            raise StorageError(f"{self._home}: cannot be used ({self.problem})") from error
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def hear(self) -> None:
        """Note that the storage works."""
        if self._since is not None and not self.problem:
            seconds = time.monotonic() - self._since
            self._say(f"{self._home} can be used again, after {seconds:.0f} s.")
        self._since = None

    def give_up(self, reason: str) -> None:
        """Stop waiting, and record why in ``problem``."""
        self.problem = self.problem or reason

    def blame(self, error: BaseException | None) -> bool:
        """Stop waiting for the storage if it caused an error; return whether that has happened."""
        while error is not None:
            if reason := storage_fault(error):
                self.give_up(reason)
            error = error.__cause__ or error.__context__
        return bool(self.problem)


_patience: ContextVar[Patience | None] = ContextVar("patience", default=None)


@contextmanager
def patient(patience: Patience) -> Iterator[Patience]:
    """Wait for the storage in this block, in this thread."""
    token = _patience.set(patience)
    try:
        yield patience
    finally:
        _patience.reset(token)


def present_patience() -> Patience | None:
    """Return the patience of this thread, if it has any."""
    return _patience.get()


def persevere(action: Callable[[], Found]) -> Found:
    """Return the result of ``action``, with the patience of this thread."""
    patience = _patience.get()
    return patience.call(action) if patience else action()


def storage_fault(error: BaseException) -> str:
    """Return what is wrong with the storage, in the system's words; empty for any other error.

    Args:
        error: Raised by a read or a write.
    """
    number = fault_number(error)
    if number is None:
        return ""
    own = error.strerror if isinstance(error, OSError) and error.strerror else ""
    return own or os.strerror(number)


def is_unwritable(error: BaseException) -> bool:
    """Whether a disk is full, or read-only: nothing is wrong with a file that is copied there."""
    return fault_number(error) in UNWRITABLE


def fault_number(error: BaseException) -> int | None:
    """Return the system's number of a fault of the storage; ``None`` for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    # Safetensors has its own error, and NumPy reports no number where a disk is full.
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    elif isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC
    return number if number in FAULTS else None
