"""An object store as seen by fsspec, with retries while it does not answer."""

import errno
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from tuner.errors import StorageError, UsageError, how_to_get
from tuner.storage.patience import LONGEST_PAUSE, is_unwritable

FIRST_SECONDS = 20.0
"""Seconds for which a store that has never answered this process is retried."""
PATIENCE_SECONDS = 900.0
"""Seconds for which a store that has answered is retried."""
EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme -> extra of this package that brings what it needs."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        # One connection per file: otherwise each read requests its size first.
        "max_concurrency": 1,
        # Give up on a dead server soon: it is retried here.
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 30,
            "retries": {"max_attempts": 1},
        },
    },
}
"""Scheme -> options of its file system; others come from the environment and fsspec's files."""


class Store:
    """A bucket as seen by fsspec, retried until it answers.

    Attributes:
        place: Its address, ``SCHEME://BUCKET``.
        guards: Folder -> returns why this process may not write there; empty if it may.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.guards: dict[str, Callable[[], str]] = {}
        self._fs = _file_system(place.partition("://")[0])
        self._has_answered = False
        self._silent_since: float | None = None
        self._lock = threading.Lock()

    def answer(self, question: Callable[[Any], Any]) -> Any:
        """Return the result of ``question``, retried while there is no answer.

        Raises:
            FileNotFoundError: As the file system does.
            FileExistsError: Likewise.
            OSError: If a disk of this machine is full, or cannot be written.
            UsageError: If access is refused.
            StorageError: If it is refused later, or there is no answer for too long. An outage is
                waited out once, however many questions are asked in it.
        """
        pause, began = 0.2, time.monotonic()
        while True:
            try:
                found = question(self._fs)
            except (FileNotFoundError, FileExistsError):
                self._hear()
                raise
            except (TypeError, AttributeError, NotImplementedError):
                raise  # Our own mistakes, which waiting does not fix.
            except Exception as error:
                # Each library has its own errors for a server that is gone or unwell.
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                if isinstance(error, PermissionError) or "credentials" in reason.lower():
                    # Access that was granted before and is refused now has expired.
                    kind = StorageError if self._has_answered else UsageError
                    raise kind(
                        f"{self.place}: access is refused ({reason}). The storage takes the "
                        "credentials and the endpoint that its own tools find, such as those of "
                        "AWS_PROFILE and AWS_ENDPOINT_URL."
                    ) from error
                if is_unwritable(error):
                    raise  # By this machine's own disk.
                if isinstance(error, OSError) and error.errno == errno.EINVAL:
                    # s3fs uses this number for what a store will never do.
                    raise StorageError(f"{self.place}: it will not do that: {reason}") from error
                self._miss(reason, error, began)
            else:
                self._hear()
                return found
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _hear(self) -> None:
        self._has_answered = True
        if self._silent_since is None:
            return
        with self._lock:
            since, self._silent_since = self._silent_since, None
        if since is not None:
            _tell(f"{self.place} answers again, after {time.monotonic() - since:.0f} s.")

    def _miss(self, reason: str, error: Exception, began: float) -> None:
        limit = PATIENCE_SECONDS if self._has_answered else FIRST_SECONDS
        now = time.monotonic()
        with self._lock:
            is_first = self._silent_since is None
            # A question may be slow to fail: there was no answer since it was asked.
            since = began if self._silent_since is None else self._silent_since
            self._silent_since = since
        if is_first:
            _tell(f"{self.place} does not answer ({reason}); trying again for {limit:.0f} s.")
        # Other questions may be answered in the meantime: a full bucket can still be read.
        if now - min(since, began) > limit:
            advice = (
                "What was saved before is kept; once it answers, a search continues with --resume."
                if self._has_answered
                else "Check that its endpoint is right, and can be reached from this machine."
            )
            raise StorageError(
                f"{self.place}: no answer for {limit:.0f} s: {reason}. {advice}"
            ) from error


@cache
def store_of(place: str) -> Store:
    """Return the one store of ``SCHEME://BUCKET`` in this process."""
    return Store(place)


def _file_system(scheme: str) -> Any:
    import fsspec  # It takes a while; local runs should not wait for it.

    own = OPTIONS.get(scheme, {})
    users = fsspec.config.conf.get(scheme, {})
    nested = {key: own[key] | users.get(key, {}) for key in own if isinstance(own[key], dict)}
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, **own | nested)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        needed = how_to_get(extra) if extra else str(error)
        raise UsageError(
            f"--storage {scheme}://: needs a package that is not installed: {needed}"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"--storage {scheme}://: there is no such kind of storage; use s3:// or gs://"
        ) from error


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
