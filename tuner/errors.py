"""The mistakes that a user can mend; each knows the exit code it ends the program with.

TunerError              1  failed while running
├── StorageError        1  a storage that is full, gone, or does not answer
├── UsageError          2  wrong usage or configuration
│   ├── SpaceError         a search space that cannot be read
│   ├── DataError          images that are missing or unreadable
│   └── UntrustedCodeError somebody else's code that nobody said to run
├── NoUsableTrials      3  a run without the trials that were asked for
└── ClusterError        4  the cluster or its resources
"""

from typing import ClassVar


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; empty if it has none."""
    return (str(error).splitlines() or [""])[0]


def how_to_get(extra: str) -> str:
    """Return how an extra of this package is installed; no index of packages has it."""
    return f"pip install -e '.[{extra}]', in the clone"


class TunerError(Exception):
    """A mistake that a user can mend; the message says where, what, and how to mend it."""

    exit_code: ClassVar[int] = 1


class StorageError(TunerError):
    """A storage that is full, gone, or does not answer any more."""


class UsageError(TunerError):
    """Wrong usage or configuration."""

    exit_code = 2


class SpaceError(UsageError):
    """A search space that cannot be read."""


class DataError(UsageError):
    """Images that are missing or unreadable."""


class UntrustedCodeError(UsageError):
    """Code that came with a run, is not known here, and would be run."""


class NoUsableTrials(TunerError):
    """A run without a trial that an ensemble could use."""

    exit_code = 3


class ClusterError(TunerError):
    """A cluster that does not answer, or lacks what was asked for."""

    exit_code = 4
