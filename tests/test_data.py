"""Data sets load as they are on disk, split the same way every time, and explain what is amiss."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.datasets import CIFAR10, CIFAR100

from tuner.config import DataConfig
from tuner.data.cache import fingerprint_of, keep, make_decoded, sha256
from tuner.data.datasets import DatasetPart, find_files, find_source, validation_positions
from tuner.data.splits import Splits, load_splits, load_test, located
from tuner.data.stratified import stratified
from tuner.errors import DataError, UsageError

COLOURS = {"blue": (10, 20, 200), "red": (200, 20, 10), "white": (250, 220, 250)}


def write_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return 20 training and 3 test images of each colour, each a shade of its own."""
    for part, count in (("train", 20), ("test", 3)):
        for name, (red, green, blue) in COLOURS.items():
            for number in range(count):
                path = tmp_path / "images" / part / name / f"{number:02}.png"
                write_image(path, (red, green + number, blue))
    return tmp_path / "images"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def of(
    folder: Path | str, image_size: int | None = 8, train_limit: int | None = None
) -> DataConfig:
    return DataConfig(source=str(folder), image_size=image_size, train_limit=train_limit)


def colours(splits: Splits) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """Tell the training and the validation images apart by their first pixel."""
    train, val = (part.images[:, :, 0, 0].tolist() for part in (splits.train, splits.val))
    return set(map(tuple, train)), set(map(tuple, val))


def test_digits_come_with_fixed_parts_that_share_no_position(data_dir: Path) -> None:
    splits, test = (
        load_splits(of("digits", None), data_dir),
        load_test(of("digits", None), data_dir),
    )
    assert len(splits.train) + len(splits.val) + len(test.images) == 1797
    assert splits.image_shape == (1, 8, 8)
    assert splits.classes == test.classes == tuple("0123456789")
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.images.max() == 255
    for part, share in ((test.images, 0.2), (splits.val, 0.08)):
        counts = part.labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 3
        assert len(part) / 1797 == pytest.approx(share, abs=0.001)
    assert load_splits(of("digits", None), data_dir).fingerprint == splits.fingerprint
    assert not data_dir.exists()


def test_digits_can_be_enlarged(data_dir: Path) -> None:
    splits = load_splits(of("digits", 16), data_dir)
    assert splits.image_shape == (1, 16, 16)
    assert splits.fingerprint != load_splits(of("digits", 8), data_dir).fingerprint


def test_a_folder_gives_its_pixels_and_classes(folder: Path, data_dir: Path) -> None:
    splits, test = load_splits(of(folder), data_dir), load_test(of(folder), data_dir)
    assert splits.classes == test.classes == ("blue", "red", "white")
    assert splits.image_shape == (3, 8, 8)
    assert splits.num_classes == 3
    assert len(splits.train) == 54
    assert splits.val.labels.bincount().tolist() == [2, 2, 2]
    train, val = colours(splits)
    assert (len(train), len(val), len(train & val)) == (54, 6, 0)
    for part in (splits.train, splits.val, test.images):
        assert part.images.is_contiguous()
        for image, label in zip(part.images, part.labels, strict=True):
            red, green, blue = COLOURS[splits.classes[label]]
            assert image[0].eq(red).all()
            assert image[2].eq(blue).all()
            assert 0 <= int(image[1, 0, 0]) - green < 20


def test_mean_and_std_are_those_of_the_training_images(folder: Path, data_dir: Path) -> None:
    splits = load_splits(of(folder), data_dir)
    scaled = splits.train.images.double() / 255
    assert splits.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist())
    expected = scaled.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    assert splits.std == pytest.approx(expected.tolist())


def test_a_channel_without_contrast_can_still_be_divided_by_its_std(
    tmp_path: Path, data_dir: Path
) -> None:
    for number, name in enumerate(
        ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png")
    ):
        write_image(tmp_path / name, (0, 50 * number, 0))
    red, green, blue = load_splits(of(tmp_path), data_dir).std
    assert (red, blue) == (1 / 255, 1 / 255)
    assert green > 0.05


def test_images_without_any_contrast_are_refused(tmp_path: Path, data_dir: Path) -> None:
    for name in ("train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png"):
        write_image(tmp_path / name, (9, 9, 9))
    with pytest.raises(DataError, match="have no contrast: all are of the same colour"):
        load_splits(of(tmp_path), data_dir)


def test_images_of_any_mode_and_size_become_square_rgb(tmp_path: Path, data_dir: Path) -> None:
    for name in ("a", "b"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
        Image.new("L", (5, 90), 100).save(tmp_path / "train" / name / "grey.JPG")
        Image.new("RGBA", (40, 30), (1, 2, 3, 128)).save(tmp_path / "train" / name / "clear.webp")
        Image.new("P", (32, 32)).save(tmp_path / "train" / name / "palette.gif")
        Image.new("1", (64, 64), 1).save(tmp_path / "train" / name / "bit.tif")
        (tmp_path / "train" / name / "notes.txt").write_text("no image")
        (tmp_path / "train" / name / ".hidden.png").write_text("no image either")
    splits = load_splits(of(tmp_path, None), data_dir)
    assert splits.image_shape == (3, 32, 32)
    assert len(splits.train) + len(splits.val) == 8


def test_large_photographs_shrink_without_aliasing(tmp_path: Path, data_dir: Path) -> None:
    checks = np.indices((400, 600)).sum(axis=0) % 2 * 255
    for name, dark in (("a", 1), ("b", 2)):
        photograph = Image.fromarray((checks // dark).astype(np.uint8)).convert("RGB")
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in ("0.jpg", "1.png"):
            photograph.save(tmp_path / "train" / name / file)
    train = load_splits(of(tmp_path), data_dir).train
    for image, label in zip(train.images, train.labels, strict=True):
        assert (image.float() - (127.5, 63.5)[label]).abs().max() < 3


def test_class_folders_may_be_links(folder: Path, data_dir: Path, tmp_path: Path) -> None:
    (folder / "train" / "red").rename(tmp_path / "elsewhere")
    (folder / "train" / "red").symlink_to(tmp_path / "elsewhere")
    assert len(load_splits(of(folder), data_dir).train) == 54


def test_loading_the_splits_never_opens_a_test_image(folder: Path, data_dir: Path) -> None:
    for path in (folder / "test").rglob("*.png"):
        path.write_text("damaged")
    assert len(load_splits(of(folder), data_dir).train) == 54
    assert not (folder / ".cifar-tune" / "test-8.safetensors").exists()
    with pytest.raises(DataError, match=r"9 files cannot be read .*\n.*test/blue/00\.png"):
        load_test(of(folder), data_dir)


def test_the_second_start_reads_no_image(folder: Path, data_dir: Path) -> None:
    first = load_splits(of(folder), data_dir)
    written = (folder / ".cifar-tune" / "train-8.safetensors").stat()
    second = load_splits(of(folder), data_dir)
    # Decoding would have replaced the file.
    assert (folder / ".cifar-tune" / "train-8.safetensors").stat() == written
    assert torch.equal(second.train.images, first.train.images)
    assert second.fingerprint == first.fingerprint
    assert second.split_fingerprint == first.split_fingerprint
    assert not data_dir.exists()


def test_a_changed_image_is_read_anew(folder: Path, data_dir: Path) -> None:
    first = load_splits(of(folder), data_dir)
    write_image(folder / "train" / "red" / "03.png", (0, 0, 0), size=(9, 9))
    second = load_splits(of(folder), data_dir)
    assert second.fingerprint != first.fingerprint
    assert (0, 0, 0) in set.union(*colours(second))


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "noise", "pixel", "label", "met", "depth", "a label too few"]
)
def test_a_damaged_cache_is_made_anew(folder: Path, data_dir: Path, damage: str) -> None:
    first = load_splits(of(folder), data_dir)
    cache = folder / ".cifar-tune" / "train-8.safetensors"
    whole = cache.read_bytes()
    with safe_open(cache, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in ("images", "labels")}
    if damage == "pixel":
        tensors["images"][7, 1, 2, 3] += 1
    elif damage == "label":
        tensors["labels"][7] = 3
        described = json.dumps([*tensors["images"].shape, *first.classes]).encode()
        arrays = (tensors["images"].numpy().data, tensors["labels"].numpy().data)
        metadata["fingerprint"] = sha256(*arrays, described)
    elif damage == "met":
        metadata["met"] = "[]"
    elif damage == "depth":
        metadata["classes"] = "[" * 100_000
    elif damage == "a label too few":
        tensors["labels"] = tensors["labels"][:-1].clone()
        images, labels = tensors["images"], tensors["labels"]
        metadata["fingerprint"] = fingerprint_of(images, labels, first.classes)
    if damage not in ("empty", "cut", "noise"):
        save_file(tensors, cache, metadata)
    else:
        noise = os.urandom(len(whole))
        cache.write_bytes({"empty": b"", "cut": whole[:-100], "noise": noise}[damage])
    second = load_splits(of(folder), data_dir)
    assert torch.equal(second.train.images, first.train.images)
    assert cache.stat().st_size == len(whole)


def test_sizes_are_cached_apart(folder: Path, data_dir: Path) -> None:
    small, large = load_splits(of(folder, 4), data_dir), load_splits(of(folder, 16), data_dir)
    assert (small.image_shape, large.image_shape) == ((3, 4, 4), (3, 16, 16))
    assert torch.equal(load_splits(of(folder, 4), data_dir).val.images, small.val.images)


def test_a_folder_that_cannot_be_written_is_cached_in_the_data_dir(
    folder: Path, data_dir: Path
) -> None:
    (folder / ".cifar-tune").write_text("a file where the cache would go")
    first = load_splits(of(folder), data_dir)
    assert len(list(data_dir.glob("images-*/train-8.safetensors"))) == 1
    assert load_splits(of(folder), data_dir).fingerprint == first.fingerprint


def test_a_cache_that_fits_nowhere_is_refused(folder: Path, data_dir: Path) -> None:
    (folder / ".cifar-tune").write_text("in the way")
    data_dir.write_text("in the way, too")
    with pytest.raises(DataError, match=r"cannot be kept .* Give a --data-dir"):
        load_splits(of(folder), data_dir)


def test_several_loaders_at_once_get_the_same(folder: Path, data_dir: Path) -> None:
    results: list[Splits] = []
    loaders = [
        threading.Thread(target=lambda: results.append(load_splits(of(folder), data_dir)))
        for _ in range(8)
    ]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
    assert len({splits.fingerprint for splits in results}) == 1
    assert all(torch.equal(splits.train.images, results[0].train.images) for splits in results)
    assert len(results) == 8
    assert [path.name for path in (folder / ".cifar-tune").iterdir()] == ["train-8.safetensors"]


def test_a_train_limit_leaves_the_validation_images_alone(folder: Path, data_dir: Path) -> None:
    whole = load_splits(of(folder), data_dir)
    part = load_splits(of(folder, train_limit=12), data_dir)
    smaller = load_splits(of(folder, train_limit=6), data_dir)
    assert torch.equal(part.val.images, whole.val.images)
    assert part.train.labels.bincount().tolist() == [4, 4, 4]
    assert colours(smaller)[0] <= colours(part)[0] <= colours(whole)[0]
    assert part.fingerprint == whole.fingerprint
    assert part.split_fingerprint != whole.split_fingerprint


@pytest.mark.parametrize("limit", [2, 55])
def test_a_train_limit_must_fit(folder: Path, data_dir: Path, limit: int) -> None:
    message = f"train_limit {limit} must lie between the 3 classes and the 54 training images"
    with pytest.raises(DataError, match=message):
        load_splits(of(folder, train_limit=limit), data_dir)


@pytest.mark.parametrize("val_fraction", [0.6, 0.95])
def test_a_class_of_which_nothing_is_left_to_train_on_is_refused(val_fraction: float) -> None:
    labels = np.array([0, 0] + [1] * 30)
    assert len(validation_positions(labels, len(labels), 0.4, "photos")) == 13
    with pytest.raises(DataError, match=f"val_fraction {val_fraction} leaves too few of the 32"):
        validation_positions(labels, len(labels), val_fraction, "photos")


@given(
    sizes=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stratified_choice_takes_each_class_by_its_share(
    sizes: list[int], share: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = max(len(sizes), round(share * len(labels)))
    chosen = stratified(labels, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen], minlength=len(sizes))
    assert counts.min() >= 1
    # One cut through the classes' ranks: no two shares differ by more than one image of each.
    shares = counts / sizes
    assert (np.abs(shares[:, None] - shares) <= 1 / np.minimum.outer(sizes, sizes) + 1e-9).all()
    assert np.isin(stratified(labels, len(sizes)), chosen).all()


def test_the_split_is_the_same_on_every_machine_and_version() -> None:
    # Stored validation probabilities of older runs would mean other images, were this to change.
    assert stratified(np.arange(30) % 3, 6).tolist() == [6, 14, 22, 23, 24, 25]


def empty(folder: Path, keep: int = 0) -> None:
    for path in sorted(folder.iterdir())[keep:]:
        path.unlink()


def keep_one_class(folder: Path) -> None:
    for name in ("train/blue", "train/red", "test/blue", "test/red"):
        shutil.rmtree(folder / name)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda folder: (folder / "train").rename(folder / "val"),
            r"images/train: no such folder, next to test, val. Give a folder with train/<class>/",
        ),
        (
            lambda folder: shutil.rmtree(folder / "train" / "red"),
            r"images/train: has no folder 'red', which test has",
        ),
        (
            lambda folder: shutil.rmtree(folder / "test" / "red"),
            r"images/test: has no folder 'red', which train has",
        ),
        (keep_one_class, r"images/train: needs at least 2 class folders, has 1"),
        (
            lambda folder: empty(folder / "train" / "red"),
            r"train/red: needs at least 2 images, to train and to validate, has 0",
        ),
        (
            lambda folder: empty(folder / "train" / "red", keep=1),
            r"train/red: needs at least 2 images.* has 1",
        ),
        (
            lambda folder: (folder / "train" / "red" / "05.png").write_text("no image"),
            r"train/red/05\.png: cannot be read as an image .* Repair or remove it",
        ),
        (
            lambda folder: cut_short(folder / "train" / "red" / "05.png"),
            r"train/red/05\.png: cannot be read as an image .* Repair or remove it",
        ),
    ],
)
def test_what_is_amiss_in_a_folder_is_named(
    folder: Path, data_dir: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(folder)
    with pytest.raises(DataError, match=message):
        load_splits(of(folder), data_dir)


def test_a_test_class_without_an_image_is_named(folder: Path, data_dir: Path) -> None:
    empty(folder / "test" / "red")
    with pytest.raises(DataError, match="test/red: needs at least 1 image, has 0"):
        load_test(of(folder), data_dir)


def test_an_unknown_dataset_gets_a_suggestion(data_dir: Path) -> None:
    with pytest.raises(
        DataError, match=r"unknown dataset 'cifar11'; did you mean 'cifar10'\? Give"
    ):
        load_splits(of("cifar11"), data_dir)
    with pytest.raises(DataError, match=r"unknown dataset '/no/where'. Give cifar10, cifar100"):
        load_splits(of("/no/where"), data_dir)


def test_an_empty_word_is_no_dataset() -> None:
    with pytest.raises(UsageError, match="is empty"):
        find_source("")
    with pytest.raises(DataError, match=r"unknown dataset ''\. Give cifar10, cifar100"):
        find_files("")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what would go out to a port of this machine that nobody listens on."""
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("archive", ["absent", "damaged", "another"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_network_and_copy_the_file_to_put_is_named(
    data_dir: Path, name: str, archive: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir.mkdir()
    file = data_dir / f"cifar-{name.removeprefix('cifar')}-python.tar.gz"
    if archive == "damaged":
        file.write_bytes(b"cut short")
    elif archive == "another":
        with tarfile.open(file, "w:gz"):
            pass
    with pytest.raises(DataError) as refusal:
        load_splits(of(name), data_dir)
    message = str(refusal.value)
    assert message.startswith(f"no intact {name} in {data_dir}, and it could not be fetched (")
    assert f"Put {file.name} (MD5 " in message
    assert message.endswith(
        "or name its folder with --data-dir; a search with --data digits needs no network."
    )
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def put_small_archive(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Put an archive of five images a class and batch where the official one would be.

    torchvision gets its checksums; all else of its reading is real. What should be the test images
    cannot be decoded.
    """
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    random = np.random.default_rng(0)
    written = {}
    data_dir.mkdir()

    def checksum(data: bytes) -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    with tarfile.open(data_dir / source.filename, "w:gz") as archive:

        def add(filename: str, data: bytes) -> str:
            info = tarfile.TarInfo(f"{source.base_folder}/{filename}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            return checksum(data)

        checksums = []
        for filename, _ in source.train_list:
            pixels = random.integers(256, size=(50, 3072), dtype=np.uint8)
            labels = random.permutation(np.arange(50) % 10).tolist()
            written[filename] = (pixels, labels)
            key = "labels" if name == "cifar10" else "fine_labels"
            checksums.append([filename, add(filename, pickle.dumps({"data": pixels, key: labels}))])
        monkeypatch.setattr(source, "train_list", checksums)
        test_name = source.test_list[0][0]
        monkeypatch.setattr(source, "test_list", [[test_name, add(test_name, b"no pickle")]])
        names = {source.meta["key"]: [f"class {number}" for number in range(10)]}
        meta = add(source.meta["filename"], pickle.dumps(names))
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": meta})
    md5 = checksum((data_dir / source.filename).read_bytes())
    monkeypatch.setattr(source, "tgz_md5", md5)
    return written


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_in_the_data_dir_is_read_once(
    name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = put_small_archive(name, data_dir, monkeypatch)
    splits = load_splits(of(name, None), data_dir)
    assert splits.classes == tuple(f"class {number}" for number in range(10))
    assert len(splits.train) + len(splits.val) == 50 * len(batches)
    labels = {
        pixels.tobytes(): label
        for batch in batches.values()
        for pixels, label in zip(*batch, strict=True)
    }
    for part in (splits.train, splits.val):
        for image, label in zip(part.images, part.labels, strict=True):
            assert labels.pop(image.numpy().tobytes()) == label

    for path in data_dir.rglob("*batch*"):
        path.rename(f"{path}-gone")
    (data_dir / f"cifar-{name.removeprefix('cifar')}-python.tar.gz").unlink()
    again = load_splits(of(name, None), data_dir)
    assert torch.equal(again.train.images, splits.train.images)
    assert load_splits(of(name, None, train_limit=10), data_dir).fingerprint == splits.fingerprint


def test_fetched_images_are_not_taken_from_beside_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"relative data folder, 'data', .* cifar10 .* --data-dir"):
        located(of("cifar10"), "data", None, None)
    assert located(of("cifar10"), "data", None, "data")[1] == Path("data").absolute()
    assert located(of("cifar10"), tmp_path, None, None)[1] == tmp_path
    assert located(of("digits"), "data", None, None)[1] == Path("data").absolute()


def test_the_folder_that_fetched_test_images_come_from_is_told(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = make_decoded(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), "ab")
    keep([data_dir / "cifar10"], "test-8.safetensors", key="cifar10", decoded=decoded)
    assert load_test(of("cifar10"), data_dir).notes == (
        f"the test images of cifar10 come from {data_dir}",
    )
    monkeypatch.setattr("tuner.data.datasets.DATA_DIR", data_dir)
    assert load_test(of("cifar10"), data_dir).notes == ()


@pytest.fixture(scope="module")
def real_images() -> Path:
    if not (name := os.environ.get("CIFAR_TUNE_TEST_IMAGES")):
        pytest.skip("CIFAR_TUNE_TEST_IMAGES names no folder with the real images")
    return Path(name)


@pytest.mark.cifar
def test_the_real_images_load_in_seconds_the_second_time(real_images: Path, data_dir: Path) -> None:
    config = of(real_images, None)
    first, test = load_splits(config, data_dir), load_test(config, data_dir)
    start = time.perf_counter()
    second = load_splits(config, data_dir)
    # Two at most where nothing else runs; to decode them takes many times as long.
    assert time.perf_counter() - start < 6
    assert second.fingerprint == first.fingerprint
    assert second.split_fingerprint == first.split_fingerprint

    def rows(part: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in part}

    assert first.image_shape == (3, 32, 32)
    assert first.train.labels.bincount().tolist() == [4500] * 10
    assert first.val.labels.bincount().tolist() == [500] * 10
    assert test.images.labels.bincount().tolist() == [1000] * 10
    assert isinstance(test, DatasetPart)
    everything = (first.train.images, first.val.images, test.images.images)
    assert len(set.union(*map(rows, everything))) > 59_900
