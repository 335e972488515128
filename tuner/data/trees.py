"""Folders and archives with one interface: the files in them, by name, and their bytes.

An archive is read in place. None of it is written to disk, so no name in it leads anywhere, and its
unpacked size is limited.
"""

import contextlib
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
from pathlib import Path, PurePosixPath
from typing import Any, Self

from tuner.data.decoding import Source
from tuner.data.names import shown
from tuner.errors import DataError
from tuner.storage.paths import MOST_PATH

MOST_FILES = 5_000_000
"""The most files of a folder or an archive, and rows of tables; a whole disk has more."""
MOST_AGAIN = 100_000
"""How often links may lead to a folder seen before; few links to links make endless paths."""
MOST_BYTES = 2**30
"""The most bytes of one file, of all names, and of a table of contents in an archive."""
MOST_RATIO = 200
"""The most times its own size that an archive may unpack to; images are hardly compressible."""
MOST_HEADER = 2**20
"""The most bytes of a tar member's headers, which hold its name and are read at once."""
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
        if len(self.files) == MOST_FILES:
            raise _too_many(self.path)
        self.files.append(name)


def _too_many(path: Path) -> DataError:
    return DataError(
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


class _Archive(Tree):
    """What zip and tar have in common."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stamp = stamp(path)
        self._most = max(MOST_BYTES, MOST_RATIO * path.stat().st_size)
        self._unpacked = 0
        self._num_letters = 0
        self._seen: set[str] = set()

    def stamp(self, name: str) -> str:
        """Return the stamp of the whole archive."""
        return self._stamp

    def why_missing(self, name: str) -> str | None:
        """Return why a name is not a file that can be read; ``None`` if it is one."""
        return None if name in self._seen else self.broken.get(name, "no such file in the archive")

    def _enter(self, name: str, size: int, why_broken: str | None) -> bool:
        """Add a member; return whether it is a file that can be read."""
        if len(self.files) + len(self.broken) + self.num_hidden == MOST_FILES:
            raise _too_many(self.path)
        self._unpacked += size
        self._check_room(self._unpacked)
        self._num_letters += len(name)
        if self._num_letters > MOST_BYTES:
            raise DataError(
                f"{self.path}: the names of its files take more than {MOST_BYTES // 2**20} MiB. If "
                "you trust it, unpack it and give the folder."
            )
        parts = _parts(name)
        if any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts:
            self.num_hidden += 1
            return False
        plain = name if name.startswith("/") else "/".join(parts)
        if len(name) > MOST_PATH or len(parts) > MOST_DEPTH:
            plain, why_broken = f"{plain[:100]}...", "its name is too long, or in too many folders"
        elif name.startswith("/") or ".." in parts:
            why_broken = "its name leads out of the archive"
        elif plain in self._seen:
            why_broken = "the archive holds two files of this name"
        elif size > MOST_BYTES:
            why_broken = f"larger than {MOST_BYTES // 2**20} MiB"
        if why_broken:
            self.broken[plain] = why_broken
            return False
        self._seen.add(plain)
        self._enter_folders(parts[:-1])
        self.add(plain)
        return True

    def _enter_folders(self, parts: Sequence[str]) -> None:
        while parts and (folder := "/".join(parts)) not in self.folders:
            self.folders.add(folder)
            self._num_letters += len(folder)
            parts = parts[:-1]

    def _check_room(self, size: int) -> None:
        """Check that the archive may unpack to this many bytes."""
        if size > self._most:
            raise DataError(
                f"{self.path}: unpacks to more than {MOST_RATIO} times its size, as an archive "
                "made to fill disks does. If you trust it, unpack it and give the folder."
            )


class ZipTree(_Archive):
    """A zip file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        with _explaining(path), _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir() and self._enter(
                    _zip_name(info), info.file_size, _why_no_member(info)
                ):
                    self._members[self.files[-1]] = info

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Opener]]:
        """Yield members, in order."""
        with zipfile.ZipFile(self.path) as archive:
            for index, name in enumerate(names):
                info = self._members[name]
                yield index, functools.partial(_zip_member, archive, info)


class TarTree(_Archive):
    """A tar file, compressed or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._members: dict[str, tarfile.TarInfo] = {}
        regular: dict[str, tarfile.TarInfo] = {}
        with _explaining(path), _open_tar(path) as archive:
            for info in _tar_members(archive):
                # The archive has to be unpacked up to here, whatever sizes its members state.
                self._check_room(archive.offset)
                if info.isdir():
                    continue
                target = regular.get(_plain(info.linkname)) if info.islnk() else info
                if target is None:
                    self._enter(info.name, 0, "a link to no file of the archive")
                    continue
                why = None if target.isreg() else "a link" if info.issym() else "a device or a pipe"
                if target.issparse():
                    why = "a sparse file; pack it without --sparse"
                if why is None:
                    regular[_plain(info.name)] = target
                if self._enter(info.name, target.size, why):
                    self._members[self.files[-1]] = target

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Opener]]:
        """Yield members in the order of the archive: a compressed one is read once, forwards."""
        members = [self._members[name] for name in names]
        order = sorted(range(len(names)), key=lambda index: members[index].offset)
        with _open_tar(self.path) as archive:
            for index in order:
                info = members[index]
                yield index, functools.partial(_tar_member, archive, info)


class _ZipFile(io.FileIO):
    """A zip file whose table of contents, which is read at once, is limited."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_BYTES:
            raise ValueError(f"a table of contents of more than {MOST_BYTES // 2**20} MiB")
        data = super().read(size)
        if data.count(b"PK\1\2") > MOST_FILES:
            raise _too_many(Path(str(self.name)))
        return data


def _why_no_member(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link"
    # bzip2 and LZMA are unpacked at once, whatever size is requested.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed by another method than deflate; pack it with deflate"
    return None


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BytesIO:
    with archive.open(info) as file:
        # Without a size, up to 1 GiB is unpacked before the excess is cut off.
        return io.BytesIO(file.read(info.file_size))


def _open_tar(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, tarinfo=_TarInfo)


def _is_tar(path: Path) -> bool:
    """Whether a file is a tar file; ``tarfile.is_tarfile`` would read a header of any size."""
    try:
        _open_tar(path).close()
    except tarfile.TarError:
        return False
    return True


def _tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file in constant memory."""
    end = 0
    while (info := archive.next()) is not None:
        if archive.offset <= end:
            raise ValueError("a header leads back to an earlier one")
        end = archive.offset
        # Global headers would be copied into every member.
        archive.pax_headers, info.pax_headers = {}, {}
        archive.members = []  # type: ignore[attr-defined]
        yield info


class _TarInfo(tarfile.TarInfo):
    """A member of a tar file whose headers are read up to a limit."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next member; if a header is followed by another, this is called again."""
        file = archive.fileobj
        if isinstance(file, _Headers):
            return super().fromtarfile(archive)
        archive.fileobj = headers = _Headers(file)
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            # After the first member, tarfile treats a damaged header as the end.
            if archive.offset and headers.last.strip(b"\0"):
                raise ValueError(f"a damaged header at byte {archive.offset}") from error
            raise
        finally:
            archive.fileobj = file


class _Headers(io.RawIOBase):
    """The headers of one member, as they are read from the unpacked tar file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = MOST_HEADER
        self.last = b""
        """The bytes that were read last."""

    def read(self, size: int = -1, /) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise ValueError(f"a header of more than {MOST_HEADER // 2**20} MiB")
        self.last = bytes(self._file.read(size))
        return self.last

    def tell(self) -> int:
        return int(self._file.tell())


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> io.BytesIO:
    file = archive.extractfile(info)
    assert file is not None
    return io.BytesIO(file.read(info.size))


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


def _plain(name: str) -> str:
    """Return the name of a member without redundant parts such as ``./``."""
    return "/".join(_parts(name))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; macOS writes UTF-8 without setting its flag."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn errors about damaged archives into a ``DataError``."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"{path}: cannot be read to its end ({error}). Fetch or make it again."
        ) from error


ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def open_tree(path: Path) -> Tree | None:
    """Open the folder or archive at ``path``; return ``None`` if it is neither.

    Raises:
        DataError: If it cannot be read, or holds too much.
    """
    if path.is_dir():
        return FolderTree(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or a device, not a file. Name another.")
    try:
        if zipfile.is_zipfile(path):
            return ZipTree(path)
        if _is_tar(path):
            return TarTree(path)
    except DAMAGE as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}. Mend it.") from error
    return None


def parent_of(name: str) -> str:
    """Return the folder of a name."""
    return name.rpartition("/")[0]


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, with its dot."""
    last = name.rpartition("/")[2]
    dot = last.rfind(".")
    return last[dot:].lower() if dot > 0 else ""
