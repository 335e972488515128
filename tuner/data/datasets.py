"""Load the official images of a data set: find, download, decode once and cache them.

Images that take long to decode are cached next to their source or in the data folder; see
``tuner.data.cache``.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from tuner.config import DATA_DIR, DataConfig, Resize
from tuner.data.cache import Decoded, Images, cached, find_cached, keep, make_decoded, sha256
from tuner.data.decoding import (
    CUT,
    Met,
    ValueRange,
    channels_first,
    decode_all,
    default_resize,
    image_suffixes,
    is_deep,
)
from tuner.data.known import (
    KNOWN,
    NOISY_SIZE,
    OfficialPart,
    decode_cifar,
    load_digits,
    load_noisy_digits,
)
from tuner.data.layouts import find_listing
from tuner.data.listing import Item, Listing, Part
from tuner.data.manifests import told_broken
from tuner.data.names import listed
from tuner.data.stratified import TEST_SHARE, stratified
from tuner.data.trees import CACHE, Opener
from tuner.errors import DataError
from tuner.schema import did_you_mean, plural
from tuner.storage.paths import check_path, expanded

FAR_LARGER = 4
"""Multiple of ``image_size`` from which photographs lose detail that the user may want."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPart:
    """The training or the test images of a data set, as its authors divided them."""

    images: Images
    classes: tuple[str, ...]
    fingerprint: str
    """SHA-256 of images, labels and classes."""
    names: tuple[str, ...] = ()
    """The user's own file of each image; empty for the data sets that are known by name."""
    val: np.ndarray | None = None
    """Positions of the data set's own validation images; ``None`` if it has none."""
    num_whole: int | None = None
    """Number of images that ``val_fraction`` refers to; ``None`` for those of this part."""
    has_test: bool = True
    """Whether the data set has test images."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Files left out because they cannot be read, with the reason."""
    met: Met = field(default_factory=Met)
    """Statistics of the files; empty for data sets that are known by name."""
    notes: tuple[str, ...] = ()
    """Notes to show to the user unasked."""


def find_source(word: str) -> str:
    """Return a data set's name unchanged, or a path in absolute form.

    Raises:
        UsageError: If it is no path.
    """
    check_path(word)
    path = expanded(word)
    return str(path.absolute()) if word not in KNOWN and path.exists() else word


def load_official(config: DataConfig, data_dir: Path, part: OfficialPart) -> DatasetPart:
    """Load the training or the test images without opening an image of the other part.

    Raises:
        DataError: If images are missing or unreadable.
    """
    source = config.source
    if source == "digits":
        return _known(load_digits(part, config.image_size or 8))
    if source == "noisy-digits":
        decoded, val = load_noisy_digits(part, config.image_size or NOISY_SIZE)
        return replace(_known(decoded), val=val if part == "train" else None)
    size = config.image_size or 32
    if source in KNOWN:
        decoded = cached(
            [data_dir / source],
            f"{part}-{size}.safetensors",
            key=source,
            decode=lambda: decode_cifar(source, part, size, data_dir),
        )
        is_elsewhere = part == "test" and data_dir != DATA_DIR
        notes = (f"the test images of {source} come from {data_dir}",) if is_elsewhere else ()
        return replace(_known(decoded), notes=notes)
    listing = find_files(source)
    return _load_files(listing, config, data_dir, part)


def find_files(source: str, *, needs_train: bool = True) -> Listing:
    """Find the images of a folder, an archive or a manifest.

    Args:
        source: Its path.
        needs_train: As for ``find_listing``.

    Raises:
        DataError: If there is none, or it is not laid out in any known way.
    """
    path = expanded(source)
    if not source or not path.exists():
        raise DataError(
            f"unknown dataset {source!r}{did_you_mean(source, KNOWN) or '.'} Give "
            f"{', '.join(KNOWN)} or a folder, an archive or a manifest of images. If a run's "
            "images were moved, name their new place with --data."
        )
    return find_listing(path, needs_train=needs_train)


def items_of(listing: Listing, part: OfficialPart) -> list[Item]:
    """Return the images of a part; validation images follow those to train on."""
    if not listing.is_whole:
        parts = listing.parts
        return [*parts["train"], *parts.get("val", ())] if part == "train" else [*parts["test"]]
    items = listing.parts["train"]
    labels = np.array([item.label for item in items])
    is_test = np.zeros(len(items), dtype=bool)
    num_test = max(round(TEST_SHARE * len(items)), len(listing.classes))
    is_test[stratified(labels, num_test)] = True
    return [item for item, test in zip(items, is_test, strict=True) if test == (part == "test")]


def validation_positions(
    labels: np.ndarray, num_whole: int, val_fraction: float, source: str
) -> np.ndarray:
    """Choose the positions of validation images in a data set without a validation part.

    Args:
        labels: Labels of all images except test images, shape (N,).
        num_whole: Number of images that ``val_fraction`` is a share of.
        val_fraction: As in ``DataConfig``.
        source: The data set, for messages.

    Raises:
        DataError: If too few are left to train on, of all or of one class.
    """
    num_classes = int(labels.max()) + 1
    num_val = max(round(val_fraction * num_whole), num_classes)
    positions = stratified(labels, min(num_val, len(labels)))
    if len(np.unique(np.delete(labels, positions))) < num_classes:
        raise DataError(
            f"val_fraction {val_fraction:g} leaves too few of the {len(labels)} training images of "
            f"{source} to train {num_classes} classes on; give less"
        )
    return positions


def _load_files(
    listing: Listing, config: DataConfig, data_dir: Path, part: OfficialPart
) -> DatasetPart:
    has_test = listing.is_whole or bool(listing.parts.get("test"))
    if part == "test" and "test" not in listing.parts and not has_test:
        raise DataError(f"{listing.base}: has no test images.")
    check_counts(listing, part)
    items = items_of(listing, part)
    decoded = _decoded_files(listing, items, config, data_dir, part)
    broken = _broken(listing, items, decoded.met)
    if broken and not config.skip_broken:
        raise DataError(_say_broken(listing, broken))
    kept = [item for index, item in enumerate(items) if index not in decoded.met.broken]
    if decoded.met.broken:
        _check_left(listing, {items[index] for index in decoded.met.broken}, part)
    val = None
    if part == "train" and listing.parts.get("val"):
        first = len(listing.parts["train"])
        before = sum(index < first for index in decoded.met.broken)
        val = np.arange(first - before, len(kept))
    return DatasetPart(
        images=decoded.images,
        classes=decoded.classes,
        fingerprint=decoded.fingerprint,
        names=tuple(listing.shown(item) for item in kept),
        val=val,
        num_whole=len(listing.parts["train"]) if listing.is_whole else None,
        has_test=has_test,
        broken=broken,
        met=decoded.met,
        notes=tuple(_notes(listing, config, decoded.met, part, items, broken)),
    )


def check_listing(listing: Listing, config: DataConfig) -> None:
    """Refuse what loading would refuse, as far as it can be checked without opening an image.

    Raises:
        DataError: If there are too few images of a class to train on, or files that cannot be read.
    """
    check_counts(listing, "train")
    if listing.broken and not config.skip_broken:
        raise DataError(_say_broken(listing, _broken(listing, (), Met())))


def check_counts(listing: Listing, part: OfficialPart) -> None:
    """Check that every class has enough images.

    Args:
        listing: The images.
        part: The part to be read.

    Raises:
        DataError: If there are too few of one.
    """
    if listing.is_whole:
        _check_needed(listing, "train", 3, ", to train, to validate and to test")
    elif part == "test":
        _check_needed(listing, "test", 1, "")
    elif listing.parts.get("val"):
        _check_needed(listing, "train", 1, "")
        _check_needed(listing, "val", 1, "")
    else:
        _check_needed(listing, "train", 2, ", to train and to validate")


def _check_left(listing: Listing, broken: set[Item], part: OfficialPart) -> None:
    """Check that every class has enough images without the broken ones."""
    left = {
        name: [item for item in items if item not in broken]
        for name, items in listing.parts.items()
    }
    check_counts(replace(listing, parts=left), part)


def _check_needed(listing: Listing, part: Part, count: int, why: str) -> None:
    labels = [item.label for item in listing.parts[part]]
    counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(listing.classes))
    for index, found in enumerate(counts.tolist()):
        if found < count:
            raise DataError(
                f"{listing.class_shown(part, index)}: needs at least {plural(count, 'image')}{why},"
                f" has {found}. Images end in {' '.join(sorted(image_suffixes()))}."
                f"{told_broken(listing.tree, listing.broken_of(part))}"
            )


def _decoded_files(
    listing: Listing, items: Sequence[Item], config: DataConfig, data_dir: Path, part: OfficialPart
) -> Decoded:
    size = config.image_size or 32
    path = listing.source
    resolved = path.resolve()
    folders = [data_dir / f"{resolved.name}-{sha256(os.fsencode(resolved))[:8]}"]
    if path.is_dir():
        folders.insert(0, path / CACHE)
    digest = sha256(os.fsencode("\n".join([*listing.classes, *listing.stamps(items)])))

    def place(resize: Resize, value_range: ValueRange | None) -> dict[str, str]:
        suffix = "" if resize == "squash" else f"-{resize}"
        return {
            "name": f"{part}-{size}{suffix}.safetensors",
            "key": f"{digest}:{size}:{resize}:{value_range}",
        }

    resize, value_range = config.resize, _recorded_range(config) if part == "test" else None
    if part == "test" and resize == "auto":
        met = load_official(config, data_dir, "train").met
        resize, value_range = met.resize, met.value_range
    choices: tuple[Resize, ...] = ("crop", "squash") if resize == "auto" else (resize,)
    for choice in choices:
        found = find_cached(folders, **place(choice, value_range))
        if found is not None and (resize != "auto" or choice == default_resize(found.met.aspect)):
            return found
    decoded = _decode(listing, items, size, resize, value_range, measures=part == "train")
    if part == "test" and value_range is None and any(map(is_deep, decoded.met.modes)):
        # Not earlier, because this reads the training images.
        value_range = load_official(config, data_dir, "train").met.value_range
        decoded = _decode(listing, items, size, resize, value_range, measures=False)
    if not decoded.met.broken or config.skip_broken:
        keep(folders, **place(decoded.met.resize, value_range), decoded=decoded)
    return decoded


def _recorded_range(config: DataConfig) -> ValueRange | None:
    return None if config.black is None or config.white is None else (config.black, config.white)


def _decode(
    listing: Listing,
    items: Sequence[Item],
    size: int,
    resize: Resize,
    value_range: ValueRange | None,
    *,
    measures: bool,
) -> Decoded:
    def again(positions: Sequence[int]) -> Iterator[tuple[int, Opener]]:
        for index, opener in listing.read([items[position] for position in positions]):
            yield positions[index], opener

    pixels, met = decode_all(
        listing.read(items),
        again,
        len(items),
        size,
        resize,
        value_range,
        measures=measures,
    )
    labels = torch.tensor([item.label for item in items])
    images = channels_first(pixels)
    if met.broken:
        kept = np.setdiff1d(np.arange(len(items)), list(met.broken))
        images, labels = images[kept], labels[kept]
    return make_decoded(images, labels, listing.classes, met)


def _broken(listing: Listing, items: Sequence[Item], met: Met) -> dict[str, str]:
    """Return the path of every file that cannot be read, with the reason."""
    found = {listing.tree.shown(name): why for name, why in listing.broken.items()}
    found |= {listing.shown(items[index]): why for index, why in met.broken.items()}
    return dict(sorted(found.items()))


def _say_broken(listing: Listing, broken: dict[str, str]) -> str:
    if len(broken) == 1:
        ((path, why),) = broken.items()
        return (
            f"{path}: cannot be read as an image ({why}). Repair or remove it, or give "
            "--skip-broken to continue without it."
        )
    lines = (f"{path}: {why}" for path, why in broken.items())
    return (
        f"{listing.base}: {plural(len(broken), 'file')} cannot be read as images. Repair or remove "
        f"them, or give --skip-broken to continue without them.{listed(lines, 100)}"
    )


def _notes(
    listing: Listing,
    config: DataConfig,
    met: Met,
    part: OfficialPart,
    items: Sequence[Item],
    broken: dict[str, str],
) -> Iterator[str]:
    if broken:
        lines = (f"{path}: {why}" for path, why in broken.items())
        yield f"left out: {plural(len(broken), 'file')} that cannot be read{listed(lines)}"
    if met.clipped:
        assert met.value_range is not None
        named = (listing.shown(items[index]) for index in met.clipped)
        yield (
            f"{plural(len(met.clipped), 'image')} beyond the values of the training images, "
            f"{met.value_range[0]:g} to {met.value_range[1]:g}, which are cut off{listed(named)}"
        )
    if part == "test":
        return
    yield from listing.notes
    if cut := sum(count for mode, count in met.modes.items() if mode.endswith(CUT)):
        yield (
            f"{plural(cut, 'image')} with 16 bits a colour, or a grey with transparency: their "
            "upper 8 bits are read; if they use fewer than 16, scale them before"
        )
    size = config.image_size or 32
    width, height = met.median
    if (short := min(width, height)) >= FAR_LARGER * size:
        better = min(short // 32 * 32, 128 if size < 128 else 224)
        more = f"; --image-size {better} keeps more of them" if better > size else ""
        yield (
            f"images are {width} x {height} at the median and are shrunk to {size} x {size}{more}"
        )
    if met.resize == "crop" and config.resize == "auto":
        yield (
            f"sides differ by a factor of {met.aspect:.2f} at the median, so images are cropped "
            "to squares from their middle; --resize squash or pad keeps their margins"
        )
    if met.value_range is not None:
        yield f"values from {met.value_range[0]:g} to {met.value_range[1]:g} are scaled to 8 bits"


def _known(decoded: Decoded) -> DatasetPart:
    return DatasetPart(
        images=decoded.images, classes=decoded.classes, fingerprint=decoded.fingerprint
    )
