"""Archives of images: zip and tar files with the interface of a folder.

An archive is read in place. None of it is written to disk, so no name in it leads anywhere, and its
unpacked size is limited.
"""

import contextlib
import functools
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Self, TypeVar

from tuner.data.trees import DAMAGE, MOST_DEPTH, FolderTree, Opener, Tree, check_num_files, stamp
from tuner.errors import DataError
from tuner.storage.paths import MOST_PATH

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
MOST_BYTES = 2**30
"""The most bytes of one file, of all names, and of a table of contents in an archive."""
MOST_RATIO = 200
"""The most times its own size that an archive may unpack to; images are hardly compressible."""
MOST_HEADER = 2**20
"""The most bytes of a tar member's headers, which hold its name and are read at once."""

Member = TypeVar("Member")


class _Archive(Tree, Generic[Member]):
    """What zip and tar have in common."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stamp = stamp(path)
        self._most = max(MOST_BYTES, MOST_RATIO * path.stat().st_size)
        self._unpacked = 0
        self._num_letters = 0
        self._members: dict[str, Member] = {}

    def stamp(self, name: str) -> str:
        """Return the stamp of the whole archive."""
        return self._stamp

    def why_missing(self, name: str) -> str | None:
        """Return why a name is not a file that can be read; ``None`` if it is one."""
        if name in self._members:
            return None
        return self.broken.get(name, "no such file in the archive")

    def _enter(self, name: str, size: int, why_broken: str | None, member: Member) -> None:
        """Add a member: to the files that can be read, to the broken or to the hidden ones."""
        check_num_files(self.path, len(self.files) + len(self.broken) + self.num_hidden + 1)
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
            return
        plain = name if name.startswith("/") else "/".join(parts)
        if len(name) > MOST_PATH or len(parts) > MOST_DEPTH:
            plain, why_broken = f"{plain[:100]}...", "its name is too long, or in too many folders"
        elif name.startswith("/") or ".." in parts:
            why_broken = "its name leads out of the archive"
        elif plain in self._members:
            why_broken = "the archive holds two files of this name"
        elif size > MOST_BYTES:
            why_broken = f"larger than {MOST_BYTES // 2**20} MiB"
        if why_broken:
            self.broken[plain] = why_broken
            return
        self._enter_folders(parts[:-1])
        self.add(plain)
        self._members[plain] = member

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


class ZipTree(_Archive[zipfile.ZipInfo]):
    """A zip file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _explaining(path), _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    self._enter(_zip_name(info), info.file_size, _why_no_member(info), info)

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, Opener]]:
        """Yield members, in order."""
        with zipfile.ZipFile(self.path) as archive:
            for index, name in enumerate(names):
                info = self._members[name]
                yield index, functools.partial(_zip_member, archive, info)


class TarTree(_Archive[tarfile.TarInfo]):
    """A tar file, compressed or not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        regular: dict[str, tarfile.TarInfo] = {}
        with _explaining(path), _open_tar(path) as archive:
            for info in _tar_members(archive):
                # The archive has to be unpacked up to here, whatever sizes its members state.
                self._check_room(archive.offset)
                if info.isdir():
                    continue
                target = regular.get(_plain(info.linkname)) if info.islnk() else info
                if target is None:
                    self._enter(info.name, 0, "a link to no file of the archive", info)
                    continue
                why = None if target.isreg() else "a link" if info.issym() else "a device or a pipe"
                if target.issparse():
                    why = "a sparse file; pack it without --sparse"
                if why is None:
                    regular[_plain(info.name)] = target
                self._enter(info.name, target.size, why, target)

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
        check_num_files(Path(str(self.name)), data.count(b"PK\1\2"))
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
