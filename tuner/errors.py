"""The errors that a user can fix; each defines the exit code of the program.

TunerError              1  failed while running
├── StorageError        1  a storage that is full, gone, or does not answer
├── UsageError          2  wrong usage or configuration
│   ├── SpaceError         a search space that cannot be read
│   ├── DataError          images that are missing or unreadable
│   └── UntrustedCodeError foreign code that the user has not trusted
├── NoUsableTrials      3  a run without the requested trials
└── ClusterError        4  the cluster or its resources
"""

from typing import ClassVar


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; empty if it has none."""
    return (str(error).strip().splitlines() or [""])[0]


def how_to_get(extra: str) -> str:
    """Return the command that installs an extra of this package, which is on no package index."""
    return f"pip install -e '.[{extra}]', in the clone"


class TunerError(Exception):
    """An error that a user can fix; the message says where, what, and how to fix it."""

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
    """Code that came with a run, is not known here, and would have to be run."""


class NoUsableTrials(TunerError):
    """A run without a trial that an ensemble could use."""

    exit_code = 3


class ClusterError(TunerError):
    """A cluster that does not answer, or lacks the requested resources."""

    exit_code = 4
