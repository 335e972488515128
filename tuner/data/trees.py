"""Folders and archives have one interface: the files in them, by name, and their bytes.

Folders are read here, archives in ``tuner.data.archives``.
"""

import functools
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tuner.data.decoding import Source
from tuner.data.names import shown
from tuner.errors import DataError

MOST_FILES = 5_000_000
"""The most files of a folder or an archive, and rows of tables; a whole disk has more."""
MOST_AGAIN = 100_000
"""How often links may lead to a folder seen before; few links to links make endless paths."""
MOST_DEPTH = 100
"""The most folders inside each other; folders of images are rarely ten deep."""
MOST_TEXT = 2**29
"""The most bytes of a text table, and letters of all tables; 5 million rows of 100 bytes."""
CACHE = ".cifar-tune"
"""Name of the folder of decoded images."""

DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, OverflowError),
    *(NotImplementedError, RecursionError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)
"""Exceptions that damaged archives, or archives of an unknown kind, raise."""

Opener = Callable[[], Source]
"""Returns a path or the bytes of a file; raises what the reading raises."""


class Tree(ABC):
    """The files below a folder or in an archive.

    Names are relative, with ``/`` between their parts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[str] = []
        """Regular files, without hidden ones."""
        self.folders: set[str] = set()
        self.broken: dict[str, str] = {}
        """Entries that exist and cannot be read as a file, with the reason."""
        self.num_hidden = 0
        """Number of files whose name, or that of a folder above, begins with a dot."""

    def shown(self, name: str) -> str:
        """Return the path of a file as the user would write it."""
        return shown(f"{self.path}/{name}") if name else shown(str(self.path))

    @abstractmethod
    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Opener]]:
        """Yield each file's position in ``names``, in the fastest order, and its opener."""

    @abstractmethod
    def why_missing(self, name: str) -> str | None:
        """Return why a name is not a file that can be read; ``None`` if it is one."""

    @abstractmethod
    def stamp(self, name: str) -> str:
        """Return a text that changes when a file is modified or replaced."""

    def open(self, name: str) -> Source:
        """Return the path or the bytes of one file."""
        for _, opener in self.read([name]):
            return opener()
        raise AssertionError(name)

    def bytes_of(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            DataError: If it cannot be read, or is too large for a table of text.
        """
        try:
            source = self.open(name)
            if isinstance(source, io.BytesIO):
                size, read = len(source.getbuffer()), source.getvalue
            else:
                size, read = Path(source).stat().st_size, Path(source).read_bytes
            if size <= MOST_TEXT:
                return read()
        except DAMAGE as error:
            raise DataError(f"{self.shown(name)}: cannot be read ({error}). Mend it.") from error
        raise DataError(
            f"{self.shown(name)}: is larger than {MOST_TEXT // 2**20} MiB, the most that is read. "
            "Leave out columns that are not needed, or divide it."
        )

    def add(self, name: str) -> None:
        """Add a regular file."""
        check_num_files(self.path, len(self.files) + 1)
        self.files.append(name)


def check_num_files(path: Path, count: int) -> None:
    """Check that a folder or an archive may hold this many files.

    Raises:
        DataError: If it may not.
    """
    if count > MOST_FILES:
        raise DataError(
            f"{path}: holds more than {MOST_FILES:,} files. Name the folder of the images."
        )


class Visits:
    """The folders that a walk which follows links has visited.

    Args:
        path: Where the walk starts.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._seen: set[tuple[int, int]] = set()
        self._num_again = 0

    def enter(self, status: os.stat_result, depth: int) -> tuple[int, int]:
        """Visit a folder, and return its identity.

        Args:
            status: Status of the folder.
            depth: Number of folders above it, up to where the walk started.

        Raises:
            DataError: If it lies too deep, or links have led to folders again too often.
        """
        if depth > MOST_DEPTH:
            raise DataError(
                f"{shown(str(self._path))}: more than {MOST_DEPTH} folders lie inside each other "
                "in it. Name the folder of the images."
            )
        identity = (status.st_dev, status.st_ino)
        self._num_again += identity in self._seen
        self._seen.add(identity)
        if self._num_again > MOST_AGAIN:
            raise DataError(
                f"{shown(str(self._path))}: links in it lead to the same folders more than "
                f"{MOST_AGAIN:,} times. Name the folder of the images."
            )
        return identity


class FolderTree(Tree):
    """A folder on disk; links are followed, but not in circles.

    Args:
        path: The folder.
        is_walked: Whether to look for its files; if not, their names come from elsewhere.
    """

    def __init__(self, path: Path, *, is_walked: bool = True) -> None:
        super().__init__(path)
        if is_walked:
            self._visits = Visits(path)
            self._walk(str(path), "", ())

    def _walk(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            status = os.stat(folder)  # noqa: PTH116  Millions of these, and str is faster.
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            self.broken[prefix or "."] = error.strerror or str(error)
            return
        identity = self._visits.enter(status, len(above))
        if identity in above:
            self.broken[prefix] = "a link to a folder that it lies in"
            return
        if prefix:
            self.folders.add(prefix)
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.name.startswith("."):
                self.num_hidden += entry.name != CACHE
                continue
            try:
                is_file, is_folder = entry.is_file(), entry.is_dir()
            except OSError as error:  # Such as a link to itself.
                self.broken[name] = error.strerror or str(error)
                continue
            if is_file:
                self.add(name)
            elif is_folder:
                self._walk(entry.path, name, (*above, identity))
            else:
                self.broken[name] = _why_no_file(entry)

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Opener]]:
        """Yield the paths of files, in order."""
        for index, name in enumerate(names):
            yield index, functools.partial(self._at, name)

    def stamp(self, name: str) -> str:
        """Return size, times and inode: a file moved over another keeps its own."""
        return stamp(self._at(name))

    def shown(self, name: str) -> str:
        """Return the path of a file as the user would write it."""
        return shown(self._at(name)) if name else shown(str(self.path))

    def why_missing(self, name: str) -> str | None:
        """Return why a name is not a file that can be read; ``None`` if it is one."""
        try:
            is_file = stat.S_ISREG(os.stat(self._at(name)).st_mode)  # noqa: PTH116
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        return None if is_file else "no regular file"

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)  # noqa: PTH118


def stamp(path: str | Path) -> str:
    """Return size, times and inode of a file.

    Raises:
        DataError: If it is gone.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  Millions of these, and str is faster.
    except OSError as error:
        raise DataError(f"{shown(str(path))}: {error.strerror}. Put it back.") from error
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _why_no_file(entry: "os.DirEntry[str]") -> str:
    try:
        mode = os.stat(entry.path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        return "a broken link"
    except OSError as error:
        return error.strerror or str(error)
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((word for is_kind, word in kinds.items() if is_kind(mode)), "a device")


def parent_of(name: str) -> str:
    """Return the folder of a name."""
    return name.rpartition("/")[0]


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, with its dot."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return last[dot:].lower() if dot > 0 else ""
