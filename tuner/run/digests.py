"""``digests.json`` of a trial: the SHA-256 of its other files, to detect changed ones.

The worker that trains a trial writes it last. If the worker is killed before that, files are newer
than their digests, and their content has to show whether they belong to the trial. Whether they are
newer is decided by the epochs in them: the clocks of nodes differ, and copying changes file times.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from tuner.config import Amount
from tuner.errors import StorageError, TunerError
from tuner.run.layout import CHECKPOINT, CONFIG, DIGESTS, HISTORY, STATE, check_trial, number_of
from tuner.run.trial import read_history
from tuner.schema import build, parse_json, to_json
from tuner.storage.files import write_text
from tuner.storage.object_path import ObjectPath
from tuner.storage.paths import AnyPath, read_bytes, read_text, sha256_of
from tuner.storage.patience import is_unwritable
from tuner.storage.records import explaining_damage

REMOVED = frozenset({CHECKPOINT, STATE})
"""Files that are removed once a trial has ended or is not among the best."""
Origin = Literal["recorded", "unknown", "other"]
"""Whether a file is what its worker recorded. It is ``unknown`` if there is no digest of it, as in
runs of earlier versions, or if it may be newer than its digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Digests:
    """The content of ``digests.json``."""

    files: dict[str, str]
    """Name of a file -> its SHA-256."""
    trial: Amount | None = None
    """The trial that the files belong to."""
    epochs: Amount | None = None
    """Number of epochs trained when it was written; ``None`` if it was not recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A problem with a file of a run."""

    file: str
    problem: str
    """The problem without the file's name; it may end with how to fix it."""
    trial: int | None = None
    """The trial that the file belongs to, if any."""

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"

    @classmethod
    def of(cls, error: TunerError, folder: AnyPath, trial: int | None = None) -> "Damage":
        """Make a ``Damage`` from an error whose message begins with the file.

        Args:
            error: The error.
            folder: The folder that holds the file, or the file itself. The path may have a colon
                in it, as in ``exp: 1``.
            trial: The trial that the file belongs to, if any.

        Raises:
            StorageError: If that is the error: an outage is not damage of a file.
        """
        if isinstance(error, StorageError):
            raise error
        place = str(folder) if str(error).startswith(str(folder)) else ""
        name, _, problem = str(error).removeprefix(place).partition(": ")
        return cls(file=place + name, problem=problem, trial=trial)


class DamagedError(TunerError):
    """Files of a run that are damaged, or are not what was written.

    Args:
        damage: The problems, one line each.
        mend: How to fix them, appended to each line.
    """

    def __init__(self, damage: Iterable[Damage], mend: str) -> None:
        self.damage = tuple(one_a_file(damage))
        super().__init__("\n".join(f"{str(entry).rstrip('.')}. {mend}" for entry in self.damage))


def one_a_file(damage: Iterable[Damage]) -> list[Damage]:
    """Return the first damage of each file."""
    first: dict[str, Damage] = {}
    for entry in damage:
        first.setdefault(entry.file, entry)
    return list(first.values())


def write_digests(path: AnyPath, files: Mapping[str, str], epochs: int | None = None) -> None:
    """Write ``digests.json`` of a trial.

    Args:
        path: The trial's folder.
        files: Name of a file -> its SHA-256.
        epochs: Number of epochs in ``history.csv`` now.
    """
    digests = Digests(files=dict(files), trial=number_of(path), epochs=epochs)
    # Not flushed: 0.2 ms instead of 0.3 to 4 on a busy disk, and a file damaged by a power loss is
    # no worse than none.
    write_text(path / DIGESTS, to_json(digests, indent=2) + "\n", flush=False)


def read_digests(path: AnyPath) -> dict[str, str]:
    """Read the SHA-256 of a trial's files; empty without a file, or if a power loss emptied it.

    Raises:
        TunerError: If it is damaged, or another trial's.
    """
    return _read(path).files


def _read(path: AnyPath) -> Digests:
    with explaining_damage(path / DIGESTS):
        try:
            text = read_text(path / DIGESTS)
        except FileNotFoundError:
            return Digests(files={})
        plain = parse_json(text) if text.strip("\0") else {}
        if isinstance(plain, dict) and "files" not in plain:
            # The format of earlier versions.
            plain = {"files": plain}
        digests = build(Digests, plain)
        check_trial(path, digests.trial)
    return digests


def origin_of(path: AnyPath, name: str, found: str) -> Origin:
    """Return whether a file is what the trial's worker recorded.

    Args:
        path: The trial's folder.
        name: Name of the file.
        found: Its SHA-256.

    Raises:
        TunerError: If ``digests.json`` is damaged.
    """
    return _origin(path, name, found, _read(path))


def _origin(path: AnyPath, name: str, found: str, digests: Digests) -> Origin:
    recorded = digests.files.get(name)
    if recorded is None:
        return "unknown"
    if recorded == found:
        return "recorded"
    # The configuration was written before the first digest.
    return "unknown" if name != CONFIG and _is_ahead(path, name, digests.epochs) else "other"


def _is_ahead(path: AnyPath, name: str, epochs: int | None) -> bool:
    """Whether a trial has been trained further than its digests say."""
    if not (path / STATE).exists():
        # It has ended, and its digests were written last.
        return False
    if epochs is None:
        return True
    from tuner.run.checkpoint import load_progress  # Imports PyTorch, needed only here.

    # An epoch that diverged is in history.csv alone.
    told = len(read_history(path)) if name == HISTORY else 0
    return max(len(load_progress(path / STATE)[0]), told) > epochs


def damage_of_files(path: AnyPath, *names: str) -> list[Damage]:
    """Return the damage of those files of a trial that are not what its worker recorded.

    Args:
        path: The trial's folder.
        names: Names of the files.
    """
    if damage := _damage_of_files(path, names):
        # A search may have written the files, or their digests, between two reads.
        now = replace(path, snapshot=None) if isinstance(path, ObjectPath) else path
        damage = _damage_of_files(now, names)
    return damage


def _damage_of_files(path: AnyPath, names: Iterable[str]) -> list[Damage]:
    try:
        digests = _read(path)
    except TunerError as error:
        return [Damage.of(error, path, number_of(path))]
    damage = []
    for name in names:
        try:
            if _origin(path, name, _sha256(path, name), digests) == "other":
                damage.append(changed(path, name))
        except FileNotFoundError:
            if name in digests.files and name not in REMOVED:
                damage.append(_damage(path, name, "is missing"))
        except TunerError as error:
            damage.append(Damage.of(error, path, number_of(path)))
        except OSError as error:
            if is_unwritable(error):
                raise  # By the disk to which it is fetched from a bucket.
            damage.append(_damage(path, name, f"damaged or unreadable: {error}"))
    return damage


def _sha256(path: AnyPath, name: str) -> str:
    """Return the SHA-256 of a trial's file; a snapshot may hold the content of small files."""
    is_small = not name.endswith((".safetensors", ".npy"))
    file = path / name
    return hashlib.sha256(read_bytes(file)).hexdigest() if is_small else sha256_of(file)


def changed(path: AnyPath, name: str) -> Damage:
    """Return the damage of a file that is not the one that was recorded."""
    return _damage(
        path, name, f"is not what the trial's worker wrote (its SHA-256 is not that in {DIGESTS})"
    )


def _damage(path: AnyPath, name: str, problem: str) -> Damage:
    return Damage(file=str(path / name), problem=problem, trial=number_of(path))
