"""The storage in a bucket of objects."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

from tuner.storage.lease import leased
from tuner.storage.local_storage import MOST_TENSORS
from tuner.storage.object_path import MOST_TEXT, ObjectPath
from tuner.storage.patience import fault_number, storage_fault
from tuner.storage.temporary import TemporaryFolder


class ObjectStorage:
    """Buckets of S3, Google Cloud Storage and the like; see ``Storage``."""

    def check_file(self, path: ObjectPath, *, most: int, is_own: bool = False) -> None:
        """Make sure that a file is not too large; objects are always plain files."""
        if (size := path.size()) > most:
            raise OSError(f"{path.name} has {size} bytes, more than the {most} that are read")

    def check_no_link(self, folder: ObjectPath) -> None:
        """Do nothing: buckets have no links."""

    def etag(self, path: ObjectPath) -> object:
        """Return a value that changes with a file; ``None`` if there is none."""
        return path.etag()

    def modified(self, path: ObjectPath) -> float:
        """Return when a file was written, in seconds since 1970."""
        return path.modified()

    def with_snapshot(self, folder: ObjectPath, *names: str) -> ObjectPath:
        """Return a folder that answers from its present content."""
        return folder.with_snapshot(names)

    def folders_with(self, folder: ObjectPath, name: str) -> list[ObjectPath]:
        """Return the folders in ``folder`` with a file of this name, sorted by their names."""
        found = folder.existing([f"{path.uri}/{name}" for path in folder.iterdir()])
        return [ObjectPath(uri).parent for uri in found]

    @contextmanager
    def on_disk(self, path: ObjectPath) -> Iterator[Path]:
        """Yield a local copy that exists during the block."""
        self.check_file(path, most=MOST_TENSORS)
        with TemporaryFolder() as folder:
            copy = Path(folder) / path.name
            with _explaining_disk(folder):
                path.download(copy)
            yield copy

    @contextmanager
    def replacing(self, path: ObjectPath, *, flush: bool) -> Iterator[Path]:
        """Yield a path on disk whose file is uploaded at the end."""
        with TemporaryFolder() as folder, _explaining_disk(folder):
            temporary = Path(folder) / path.name
            yield temporary
            path.upload(temporary)

    def append(self, path: ObjectPath, content: bytes) -> None:
        """Rewrite a file with more at its end: of two concurrent writers, one may lose its part."""
        before = b""
        if path.exists():
            self.check_file(path, most=MOST_TEXT)
            before = path.read_bytes()
        path.write_bytes(before + content)

    def put(self, file: Path, target: ObjectPath) -> None:
        """Upload a file."""
        target.upload(file)

    def copy(self, source: ObjectPath, target: ObjectPath) -> None:
        """Let the bucket copy a file."""
        source.copy_to(target)

    def replace_folder(self, new: Path, folder: ObjectPath, *, last: str = "") -> None:
        """Upload a folder in place of another one, with the file ``last`` at the end."""
        if last:
            (folder / last).unlink(missing_ok=True)
        self.remove_folder(folder)
        names = [path.relative_to(new) for path in sorted(new.rglob("*")) if path.is_file()]
        for name in sorted(names, key=lambda name: name == Path(last)):
            (folder / name.as_posix()).upload(new / name)

    def remove_folder(self, folder: ObjectPath) -> None:
        """Remove all files of a folder."""
        for file in folder.files():
            file.unlink(missing_ok=True)

    def remove_leftovers(self, folder: ObjectPath) -> None:
        """Do nothing: a file exists only once it is complete."""

    def remove_abandoned(self, folder: ObjectPath) -> None:
        """Do nothing: nobody can tell whether the process of a folder's files is gone."""

    @contextmanager
    def scratch(self, beside: ObjectPath, prefix: str) -> Iterator[ObjectPath]:
        """Yield a folder in the folder ``beside`` that exists during the block."""
        folder = beside / f"{prefix}{uuid4().hex[:8]}"
        try:
            yield folder
        finally:
            self.remove_folder(folder)

    def locked(self, folder: ObjectPath) -> AbstractContextManager[None]:
        """Keep other searches out of a run folder; see ``leased``."""
        return leased(folder)


@contextmanager
def _explaining_disk(folder: str) -> Iterator[None]:
    """Report that it is this machine's own disk that fails, on the way to or from a bucket.

    Raises:
        OSError: If it fails, with the number of the fault.
    """
    try:
        yield
    except Exception as error:
        if (number := fault_number(error)) is None:
            raise
        place = f"{Path(folder).parent} on this machine"
        told = f"{storage_fault(error)} in {place}, which files pass through"
        raise OSError(number, told, folder) from error
