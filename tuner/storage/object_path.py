"""Files and folders of an object store, with the interface of those on disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from glob import has_magic
from pathlib import Path
from typing import Any, Literal

from tuner.errors import StorageError, UsageError
from tuner.storage.object_store import store_of

MOST_TEXT = 64 * 2**20
"""Maximum size in bytes of a file that is read whole."""
CONCURRENT = 16
"""Maximum number of questions at once about the files of a folder."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was below a folder of a store at one moment."""

    files: Mapping[str, object]
    """Address of each file -> its etag."""
    contents: Mapping[str, bytes]
    """Contents of the files that were read."""


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A file or folder of a store; folders exist only through the files in them."""

    uri: str
    """``SCHEME://BUCKET/...`` without a slash at the end."""
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)
    """Answers instead of the store, if set; a folder passes it to its files."""

    def __str__(self) -> str:
        return self.uri

    def __reduce__(self) -> tuple[type["ObjectPath"], tuple[str]]:
        # A snapshot is outdated elsewhere, and may be large.
        return ObjectPath, (self.uri,)

    def __truediv__(self, name: str) -> "ObjectPath":
        return replace(self, uri=f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """The folder that contains it."""
        return replace(self, uri=self.uri.rpartition("/")[0])

    def absolute(self) -> "ObjectPath":
        """Return the path itself: a URI means the same everywhere."""
        return self

    def exists(self) -> bool:
        """Whether this file exists, or a file below this folder; with a snapshot, only files."""
        if self.snapshot:
            return self.uri in self.snapshot.files
        return bool(self._ask("exists", self.uri))

    def read_bytes(self) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.snapshot and self.uri in self.snapshot.contents:
            return self.snapshot.contents[self.uri]
        if self.snapshot and self.uri not in self.snapshot.files:
            raise FileNotFoundError(self.uri)
        return bytes(self._ask("cat_file", self.uri))

    def size(self) -> int:
        """Return the size of a file in bytes; 0 for a folder.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.snapshot and self.uri in self.snapshot.contents:
            return len(self.snapshot.contents[self.uri])
        if self.snapshot and self.uri not in self.snapshot.files:
            raise FileNotFoundError(self.uri)
        return int(self._ask("info", self.uri)["size"])

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield the files and folders in a folder."""
        if self.snapshot:
            inside = f"{self.uri}/"
            files = (uri for uri in self.snapshot.files if uri.startswith(inside))
            below = (uri.removeprefix(inside) for uri in files)
            names = {rest.partition("/")[0] for rest in below}
        else:
            names = {entry.rstrip("/").rpartition("/")[2] for entry in self._list("ls")}
        yield from (self / name for name in sorted(names))

    def files(self) -> list["ObjectPath"]:
        """Return all files below a folder, at any depth."""
        return [replace(self, uri=self._full(key)) for key in self._list("find")]

    def mkdir(self, *, parents: bool = True) -> None:
        """Make sure that nothing exists here: folders come with their first file.

        Raises:
            FileExistsError: If there is something.
        """
        if self.exists():
            raise FileExistsError(self.uri)

    def unlink(self, *, missing_ok: Literal[True]) -> None:
        """Remove a file, if it exists: not every store reports whether it did."""
        if self.snapshot and self.uri not in self.snapshot.files:
            return
        self._check_writable()
        with suppress(FileNotFoundError):
            self._ask("rm_file", self.uri)

    def write_bytes(self, content: bytes) -> None:
        """Write a file; see ``upload``."""
        self._check_writable()
        with self._explaining_bucket():
            self._ask("pipe_file", self.uri, content)

    def upload(self, file: Path) -> None:
        """Upload a local file: readers find the old content or the new one, never a part."""
        self._check_writable()
        with self._explaining_bucket():
            self._ask("put_file", str(file), self.uri)

    def create(self, content: bytes) -> None:
        """Write a file that does not exist yet; of several concurrent writers one succeeds.

        Raises:
            FileExistsError: If it is there.
        """
        with self._explaining_bucket():
            self._patiently(lambda fs: _create(fs, self.uri, content))

    def download(self, file: Path) -> None:
        """Write the content to a local file."""
        self._ask("get_file", self.uri, str(file))

    def copy_to(self, other: "ObjectPath") -> None:
        """Let the store copy a file."""
        other._check_writable()
        self._ask("cp_file", self.uri, other.uri)

    def with_snapshot(self, names: Sequence[str]) -> "ObjectPath":
        """List everything below a folder at once, and read the files with the given names.

        Those above ``MOST_TEXT`` are not read.
        """
        found = {self._full(key): info for key, info in self._list("find").items()}
        wanted = [
            uri
            for uri, info in found.items()
            if uri.rpartition("/")[2] in names and info["size"] <= MOST_TEXT
        ]
        contents = self._patiently(lambda fs: _read_all(fs, wanted)) if wanted else {}
        etags = {uri: _etag(info) for uri, info in found.items()}
        return replace(self, snapshot=Snapshot(etags, contents))

    def existing(self, uris: Sequence[str]) -> list[str]:
        """Return which of many files exist, asked concurrently."""
        return self._patiently(lambda fs: _existing(fs, uris)) if uris else []

    def etag(self) -> object:
        """Return a value that changes with the file; ``None`` if there is none."""
        if self.snapshot:
            return self.snapshot.files.get(self.uri)
        try:
            return _etag(self._ask("info", self.uri))
        except FileNotFoundError:
            return None

    def modified(self) -> float:
        """Return when a file was written, in seconds since 1970."""
        return float(self._ask("modified", self.uri).timestamp())

    def guard_writing(self, why_not: Callable[[], str]) -> None:
        """Refuse to write or remove anything in this folder while a function has a reason to.

        Args:
            why_not: Called before each write; returns why it is refused, or an empty text.
        """
        store_of(self._bucket).guards[self.uri] = why_not

    def end_guard(self) -> None:
        """Undo ``guard_writing``."""
        store_of(self._bucket).guards.pop(self.uri, None)

    def _check_writable(self) -> None:
        for folder, why_not in list(store_of(self._bucket).guards.items()):
            if self.uri.startswith(f"{folder}/") and (reason := why_not()):
                raise StorageError(f"{folder}: {reason}; nothing more is written there")

    def _full(self, key: str) -> str:
        return f"{self.uri.partition('://')[0]}://{key.lstrip('/')}"

    def _list(self, how: str) -> Any:
        """List a folder; one without files has no entries."""
        try:
            return self._ask(how, self.uri, detail=how == "find")
        except FileNotFoundError:
            self._require_bucket()
            return {}

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._patiently(lambda fs: getattr(fs, method)(*arguments, **options))

    def _patiently(self, question: Callable[[Any], Any]) -> Any:
        return store_of(self._bucket).answer(question)

    @property
    def _bucket(self) -> str:
        return "/".join(self.uri.split("/", 3)[:3])

    def _require_bucket(self) -> None:
        if not self._patiently(lambda fs: _has_bucket(fs, self._bucket)):
            raise UsageError(f"{self}: there is no {self._bucket}. Make it, or correct --storage.")

    @contextmanager
    def _explaining_bucket(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self._require_bucket()
            raise StorageError(f"{self.uri}: cannot be written: {error}") from error


def _existing(fs: Any, uris: Sequence[str]) -> list[str]:
    with ThreadPoolExecutor(CONCURRENT) as pool:
        return [
            uri for uri, is_there in zip(uris, pool.map(fs.exists, uris), strict=True) if is_there
        ]


def _read_all(fs: Any, uris: Sequence[str]) -> dict[str, bytes]:
    # To cat, a bracket, * or ? in a name makes it a pattern.
    plain = [uri for uri in uris if not has_magic(uri)]
    found = fs.cat(plain, on_error="return") if plain else {}
    contents = {}
    for uri in uris:
        content = _read_one(fs, uri) if has_magic(uri) else found[fs._strip_protocol(uri)]
        if isinstance(content, bytes):
            contents[uri] = content
        elif not isinstance(content, FileNotFoundError):
            raise content
    return contents


def _read_one(fs: Any, uri: str) -> bytes | FileNotFoundError:
    try:
        return bytes(fs.cat_file(uri))
    except FileNotFoundError as error:
        return error


def _has_bucket(fs: Any, bucket: str) -> bool:
    try:
        fs.info(bucket)
    except FileNotFoundError:
        return False
    except PermissionError:
        # So it exists. Whoever may access only a part of it is refused the whole.
        return True
    return True


def _create(fs: Any, uri: str, content: bytes) -> None:
    try:
        fs.pipe_file(uri, content, mode="create")
    except OSError as error:
        # s3fs raises the same error as for any other fault.
        if fs.exists(uri):
            raise FileExistsError(uri) from error
        raise


def _etag(info: Mapping[str, Any]) -> object:
    """Return a value that changes with a file, from the fields of any store; times are coarse."""
    marks = ("ETag", "etag", "LastModified", "updated", "created", "mtime", "size")
    return tuple(str(info.get(mark)) for mark in marks)
