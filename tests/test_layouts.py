"""Images are found in every usual layout, and what is not part of a data set is said, not dropped.

Each layout is made here: folders, manifests, Parquet, saved data sets, and archives of them.
"""

import csv
import gzip
import io
import json
import os
import tarfile
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tuner.config import DataConfig
from tuner.data.archives import MOST_BYTES
from tuner.data.datasets import find_files
from tuner.data.layouts import find_listing
from tuner.data.listing import Listing
from tuner.data.splits import Splits, load_splits, load_test
from tuner.deploy.stream import find_images
from tuner.errors import DataError


def png(value: int) -> bytes:
    """Return an image of 8 x 8 pixels of one grey."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, format="PNG")
    return buffer.getvalue()


def put(root: Path, names: Iterable[str], start: int = 0) -> None:
    """Write images of a grey each, in the order of their names."""
    for value, name in enumerate(names, start):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))


def numbered(*folders: str, count: int) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


def load(source: Path, **settings: object) -> Splits:
    config = DataConfig(source=str(source), image_size=8, **settings)  # type: ignore[arg-type]
    return load_splits(config, source.parent / "data")


def count(listing: Listing) -> dict[str, list[int]]:
    """Return the number of images of each class, by part."""
    return {
        part: [sum(item.label == label for item in items) for label in range(len(listing.classes))]
        for part, items in listing.parts.items()
    }


def greys(images: object) -> set[int]:
    return set(images[:, 0, 0, 0].tolist())  # type: ignore[index]


def test_class_folders_alone_are_split_by_a_seed(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, numbered("cat", "dog", count=50))
    splits = load(root)
    test = load_test(DataConfig(source=str(root), image_size=8), tmp_path / "data")
    parts = [splits.train.images, splits.val.images, test.images.images]
    assert [len(part) for part in parts] == [70, 10, 20]
    assert set.union(*map(greys, parts)) == set(range(100))
    for part in (splits.train, splits.val, test.images):
        assert part.labels.bincount().tolist() == [len(part) // 2] * 2
        assert all(
            int(x) // 50 == y for x, y in zip(part.images[:, 0, 0, 0], part.labels, strict=True)
        )
    again = load(root)
    assert again.split_fingerprint == splits.split_fingerprint
    assert again.fingerprint == splits.fingerprint
    wider = load(root, val_fraction=0.3)
    assert len(wider.val) == 30
    assert wider.fingerprint == splits.fingerprint


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Valid"])
@pytest.mark.parametrize("has_test", [False, True])
def test_validation_folders_are_used_as_they_are(tmp_path: Path, name: str, has_test: bool) -> None:
    root = tmp_path / "photos"
    put(root, numbered("train/cat", "train/dog", count=5))
    put(root, numbered(f"{name}/cat", f"{name}/dog", count=2), start=100)
    if has_test:
        put(root, numbered("test/cat", "test/dog", count=1), start=200)
    splits = load(root)
    assert greys(splits.train.images) == set(range(10))
    assert greys(splits.val.images) == set(range(100, 104))
    assert splits.val.labels.tolist() == [0, 0, 1, 1]
    assert splits.has_test == has_test
    both = load(root, all_data=True)
    assert len(both.train) == 14
    assert both.fingerprint == splits.fingerprint


def test_training_images_alone_have_no_test_images(tmp_path: Path) -> None:
    put(tmp_path / "photos", numbered("train/cat", "train/dog", count=5))
    assert not load(tmp_path / "photos").has_test
    with pytest.raises(DataError, match="photos: has no test images"):
        load_test(DataConfig(source=str(tmp_path / "photos")), tmp_path / "data")


def test_two_folders_that_could_be_one_part_are_not_guessed(tmp_path: Path) -> None:
    put(tmp_path, numbered("train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b", count=2))
    with pytest.raises(DataError, match="val and valid could both be the val images"):
        find_listing(tmp_path)


def test_nested_classes_are_joined_and_said(tmp_path: Path) -> None:
    put(tmp_path, numbered("animals/cat", "animals/dog", "plants/oak", count=3))
    listing = find_listing(tmp_path)
    assert listing.classes == ("animals/cat", "animals/dog", "plants/oak")
    assert any("'animals/cat'" in note for note in listing.notes)


def test_a_folder_around_all_and_one_within_each_class_name_nothing(tmp_path: Path) -> None:
    put(tmp_path, numbered("set/train/cat/images", "set/train/dog/images", count=3))
    (tmp_path / "set" / "README.md").write_text("words")
    listing = find_listing(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert count(listing) == {"train": [3, 3]}


def test_images_beside_folders_of_images_are_not_guessed(tmp_path: Path) -> None:
    put(tmp_path, [*numbered("train/cat", "train/cat/kitten", "train/dog", count=3)])
    with pytest.raises(DataError, match=r"cat holds images, and so does cat/kitten\. If that is"):
        find_listing(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, numbered("bus", "plane", "train", count=3))
    listing = find_listing(tmp_path)
    assert listing.classes == ("bus", "plane", "train")
    assert any("'train' is read as a class" in note for note in listing.notes)


def test_test_images_without_labels_are_left_out_and_said(tmp_path: Path) -> None:
    put(tmp_path, [*numbered("train/cat", "train/dog", count=3), "test/1.png", "test/2.png"])
    listing = find_listing(tmp_path)
    assert count(listing) == {"train": [3, 3]}
    assert "left out: 2 files in no class folder, so without a label" in listing.notes


def test_other_folders_beside_the_parts_are_left_out_and_said(tmp_path: Path) -> None:
    put(tmp_path, numbered("train/cat", "train/dog", "unlabelled/x", count=3))
    assert "left out: 3 files next to train" in find_listing(tmp_path).notes


def write_csv(path: Path, rows: Iterable[Iterable[object]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


FILES = numbered("images", count=12)
ROWS = [
    (name, ("oak", "elm")[number % 2], ("train", "train", "val", "test")[number // 2 % 4])
    for number, name in enumerate(FILES)
]


@pytest.mark.parametrize("suffix", [".csv", ";csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("named", [False, True])
def test_a_manifest_is_read_by_its_rows(tmp_path: Path, suffix: str, named: bool) -> None:
    root = tmp_path / "photos"
    put(root, FILES)
    columns = ("path", "label", "split")
    path = root / f"labels{suffix.replace(';', '.')}"
    if "csv" in suffix:
        write_csv(path, [columns, *ROWS], ";" if suffix == ";csv" else ",")
    elif suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(columns, r, strict=True))) + "\n" for r in ROWS)
        )
    else:
        table = dict(zip(columns, map(list, zip(*ROWS, strict=True)), strict=True))
        pq.write_table(pa.table(table), path)
    source = path if named else root
    listing = find_listing(source)
    assert listing.classes == ("elm", "oak")
    assert count(listing) == {"train": [4, 4], "val": [1, 1], "test": [1, 1]}
    splits = load(source)
    assert greys(splits.val.images) == {4, 5}
    assert [int(x) % 2 == 0 for x in splits.val.images[:, 0, 0, 0]] == [
        y == 1 for y in splits.val.labels
    ]


def test_a_manifest_without_a_split_is_split_by_a_seed(tmp_path: Path) -> None:
    put(tmp_path / "photos", FILES)
    rows = [(name, number % 2) for number, name in enumerate(FILES)]
    write_csv(tmp_path / "photos" / "labels.csv", [("file_name", "class"), *rows])
    splits = load(tmp_path / "photos")
    assert splits.classes == ("0", "1")
    assert (len(splits.train), len(splits.val)) == (8, 2)


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    put(tmp_path, FILES)
    rows = [(name, 2 * (number % 6)) for number, name in enumerate(FILES)]
    write_csv(tmp_path / "labels.csv", [("path", "label"), *rows])
    assert find_listing(tmp_path).classes == ("0", "2", "4", "6", "8", "10")
    # Beyond the digits that Python makes numbers of, they are words.
    rows[-1] = (FILES[-1], "9" * 5000)
    write_csv(tmp_path / "labels.csv", [("path", "label"), *rows])
    assert find_listing(tmp_path).classes[:3] == ("0", "10", "2")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("path", "label"), ("images/0.png",)],
            r"labels\.csv:2: has 1 cell, and the first line 2",
        ),
        ([("path", "label"), (FILES[0], "a"), (FILES[0], "b")], r":3: names images/0.png, as .*:2"),
        ([("path", "label", "split"), (FILES[0], "a", "trian")], r":2: the split 'trian' is none"),
        ([("path", "label"), (FILES[0], "a")], "needs at least 2 classes, has 1"),
        (
            [("path", "label", "split"), *((f, f[-5] in "135", "test") for f in FILES)],
            "no image is of the split 'train'",
        ),
        (
            [
                ("path", "label", "split"),
                *((f, f[-5], "train") for f in FILES[:6]),
                (FILES[6], 0, "test"),
            ],
            "class '1' has images in train and none in test",
        ),
        # Of label and class, the former is taken.
        ([("path", "label", "class"), (FILES[0], "a", "b")], "needs at least 2 classes"),
        ([("file", "image", "label"), (FILES[0], "a", "b")], "'file' and 'image' could both"),
    ],
)
def test_a_manifest_that_is_amiss_is_told_by_line(
    tmp_path: Path, rows: list[tuple[object, ...]], message: str
) -> None:
    put(tmp_path, FILES)
    write_csv(tmp_path / "labels.csv", rows)
    with pytest.raises(DataError, match=message):
        find_listing(tmp_path)


def test_a_file_that_a_manifest_names_and_is_missing_is_told_and_others_too(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, FILES)
    rows = [(name, number % 2) for number, name in enumerate([*FILES, "gone.png"])]
    write_csv(root / "labels.csv", [("path", "label"), *rows])
    (root / FILES[3]).write_bytes(b"no image")
    with pytest.raises(DataError) as refusal:
        load(root)
    message = str(refusal.value)
    assert "2 files cannot be read as images" in message
    assert "gone.png: No such file or directory" in message
    assert "images/3.png: no image of a known format" in message
    splits = load(root, skip_broken=True)
    assert 3 not in greys(splits.train.images) | greys(splits.val.images)
    assert any("gone.png" in note and "images/3.png" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ((0, 1, 2, 3, 8, 9, 10, 11), "no image is of the split 'train'"),
        ((6,), "class 'oak' has images in train and none in test"),
        ((4, 6), "class 'oak' has images in train and none in (val|test)"),
    ],
)
def test_the_missing_files_of_a_part_are_named_with_what_it_lacks(
    tmp_path: Path, missing: tuple[int, ...], message: str
) -> None:
    put(tmp_path, (name for number, name in enumerate(FILES) if number not in missing))
    write_csv(tmp_path / "labels.csv", [("path", "label", "split"), *ROWS])
    with pytest.raises(DataError, match=message) as refusal:
        find_listing(tmp_path)
    for number in missing:
        assert f"images/{number}.png: No such file" in str(refusal.value)


def test_the_missing_files_of_a_class_are_named_with_what_it_lacks(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, FILES[1:4])
    rows = [(name, ("oak", "elm")[number % 2], "train") for number, name in enumerate(FILES[:4])]
    write_csv(root / "labels.csv", [("path", "label", "split"), *rows])
    with pytest.raises(DataError, match=r"'oak': needs at least 2 images.*\n.*0\.png: No such"):
        load(root)


def test_other_tables_beside_class_folders_are_no_manifests(tmp_path: Path) -> None:
    put(tmp_path, numbered("cat", "dog", count=3))
    write_csv(tmp_path / "notes.csv", [("date", "weather"), ("monday",)])
    listing = find_listing(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert listing.left_out == {"not an image (.csv)": ("notes.csv",)}


def features(**names: list[str]) -> dict[str, object]:
    """Return the schema's metadata that ``datasets`` writes."""
    labels = {key: {"names": value, "_type": "ClassLabel"} for key, value in names.items()}
    info = {"info": {"features": {"image": {"_type": "Image"}, **labels}}}
    return {"huggingface": json.dumps(info)}


def images_table(values: Iterable[int], classes: list[str], label: str = "label") -> pa.Table:
    values = list(values)
    table = pa.table(
        {
            "image": [{"bytes": png(value), "path": None} for value in values],
            label: [value % len(classes) for value in values],
        }
    )
    return table.replace_schema_metadata(features(**{label: classes}))


@pytest.mark.parametrize("folder", ["", "data/"])
def test_parquet_files_hold_images_by_part(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "photos"
    (root / folder).mkdir(parents=True)
    classes = ["zebra", "ant"]
    for number, part in enumerate(("train", "validation", "test")):
        for shard in range(2):
            start = number * 60 + shard * 30
            table = images_table(range(start, start + 30), classes)
            name = f"{folder}{part}-0000{shard}-of-00002.parquet"
            pq.write_table(table, root / name, row_group_size=7)
    splits = load(root)
    assert splits.classes == ("zebra", "ant")
    assert greys(splits.train.images) == set(range(60))
    assert greys(splits.val.images) == set(range(60, 120))
    for part in (splits.train, splits.val):
        assert [int(x) % 2 for x in part.images[:, 0, 0, 0]] == part.labels.tolist()
    test = load_test(DataConfig(source=str(root), image_size=8), tmp_path / "data")
    assert greys(test.images.images) == set(range(120, 180))
    assert test.names[0].endswith("test-00000-of-00002.parquet row 0")


def test_one_parquet_file_of_plain_bytes_is_split_by_a_seed(tmp_path: Path) -> None:
    table = {"image": [png(value) for value in range(100)], "label": [v % 2 for v in range(100)]}
    pq.write_table(pa.table(table), tmp_path / "all.parquet")
    splits = load(tmp_path / "all.parquet")
    assert (len(splits.train), len(splits.val)) == (70, 10)
    test = load_test(
        DataConfig(source=str(tmp_path / "all.parquet"), image_size=8), tmp_path / "data"
    )
    assert greys(splits.train.images) | greys(splits.val.images) | greys(test.images.images) == set(
        range(100)
    )


def test_two_columns_of_labels_are_not_guessed(tmp_path: Path) -> None:
    table = images_table(range(10), ["a", "b"], "fine_label")
    table = table.append_column("coarse_label", table["fine_label"])
    table = table.replace_schema_metadata(features(fine_label=["a", "b"], coarse_label=["a", "b"]))
    pq.write_table(table, tmp_path / "all.parquet")
    with pytest.raises(DataError, match="fine_label and coarse_label could all be the labels"):
        find_listing(tmp_path / "all.parquet")


def save_to_disk(folder: Path, table: pa.Table) -> None:
    """Write what ``datasets.Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize("parts", [(), ("train", "test"), ("train", "validation", "unlabelled")])
def test_saved_data_sets_are_read(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = tmp_path / "saved"
    table = images_table(range(40), ["zebra", "ant"])
    if parts:
        root.mkdir()
        (root / "dataset_dict.json").write_text(json.dumps({"splits": parts}))
        for part in parts:
            save_to_disk(root / part, table)
    else:
        save_to_disk(root, table)
    splits = load(root)
    assert splits.classes == ("zebra", "ant")
    assert splits.has_test == ("validation" not in parts)
    expected = {0: (28, 4), 2: (36, 4), 3: (40, 40)}[len(parts)]
    assert (len(splits.train), len(splits.val)) == expected
    for part in (splits.train, splits.val):
        assert [int(x) % 2 for x in part.images[:, 0, 0, 0]] == part.labels.tolist()


@pytest.mark.parametrize("kind", ["Parquet", "Arrow"])
def test_rows_that_name_files_are_read_like_lines_of_a_manifest(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "photos"
    images = [
        {"bytes": None if value % 2 else png(value), "path": f"files/{value}.png"}
        for value in range(80)
    ]
    table = pa.table({"image": images, "label": ["ab"[value // 2 % 2] for value in range(80)]})
    if kind == "Arrow":
        save_to_disk(root, table)
    else:
        root.mkdir()
        pq.write_table(table, root / "all.parquet", row_group_size=7)
    put(root, (f"files/{value}.png" for value in range(80)))
    splits = load(root)
    assert (len(splits.train), len(splits.val)) == (56, 8)
    for part in (splits.train, splits.val):
        assert [int(x) // 2 % 2 for x in part.images[:, 0, 0, 0]] == part.labels.tolist()
    one = min(value for value in greys(splits.train.images) if value % 2)
    file = root / "files" / f"{one}.png"
    file.write_bytes(png(200))
    assert greys(load(root).train.images) - greys(splits.train.images) == {200}
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=rf"{one}\.png: .*no regular file \(.* row {one}\)"):
        load(root)


NO_STATES = {
    "nothing": b"{}",
    "no list": b'{"_data_files": null}',
    "no names": b'{"_data_files": ["x"]}',
    "no files": b'{"_data_files": []}',
    "a list": b"[]",
    "no JSON": b"{",
    "no UTF-8": b"\xff",
}


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [*NO_STATES.values(), None], ids=[*NO_STATES, "a folder"])
def test_files_of_other_programs_make_no_saved_data_set(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    put(tmp_path, numbered("cat", "dog", count=3))
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    assert find_listing(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("content", NO_STATES.values(), ids=NO_STATES)
def test_a_saved_data_set_without_its_state_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    save_to_disk(tmp_path / "saved", images_table(range(9), ["zebra", "ant"]))
    (tmp_path / "saved" / "state.json").write_bytes(content)
    with pytest.raises(DataError, match=r"state\.json: (does not name|is no)"):
        find_listing(tmp_path / "saved")


def pack(folder: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, f"w:{archive.suffix.lstrip('.').replace('tar', '')}") as file:
            file.add(folder, folder.name)
    return archive


def as_folders(root: Path) -> None:
    put(root, numbered("train/cat", "train/dog", count=20))
    put(root, numbered("test/cat", "test/dog", count=2), start=100)


def as_manifest(root: Path) -> None:
    put(root, FILES)
    write_csv(root / "labels.csv", [("path", "label", "split"), *ROWS])


def as_saved(root: Path) -> None:
    save_to_disk(root, images_table(range(40), ["zebra", "ant"]))


def as_parquet(root: Path) -> None:
    root.mkdir()
    pq.write_table(images_table(range(40), ["zebra", "ant"]), root / "train.parquet")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
@pytest.mark.parametrize("write", [as_folders, as_manifest, as_saved, as_parquet])
def test_archives_are_read_where_they_are(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    root = tmp_path / "photos"
    write(root)
    archive = pack(root, tmp_path / name)
    plain, packed = load(root), load(archive)
    assert packed.fingerprint == plain.fingerprint
    assert packed.split_fingerprint == plain.split_fingerprint
    assert packed.val_names[0].startswith(f"{archive}/photos/")
    # Nothing was unpacked.
    kept = sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert kept == ["train-8.safetensors"]
    if plain.has_test:
        tests = [
            load_test(DataConfig(source=str(source), image_size=8), tmp_path / "data")
            for source in (root, archive)
        ]
        assert tests[0].fingerprint == tests[1].fingerprint


def test_names_that_lead_out_of_an_archive_and_links_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(99))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in numbered("cat", "dog", count=3):
            file.writestr(name, png(0))
        file.writestr("../secret.png", png(1))
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, str(secret))
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in numbered("cat", "dog", count=3):
            info = tarfile.TarInfo(name)
            info.size = len(png(0))
            file.addfile(info, io.BytesIO(png(0)))
        info = tarfile.TarInfo("/cat/secret.png")
        file.addfile(info)
        info = tarfile.TarInfo("cat/link.png")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        file.addfile(info)
    for archive, other in (("a.zip", "../secret.png"), ("a.tar", "/cat/secret.png")):
        listing = find_listing(tmp_path / archive)
        assert listing.broken[other] == "its name leads out of the archive"
        assert listing.broken["cat/link.png"] == "a link"
        with pytest.raises(DataError, match="2 files cannot be read"):
            load(tmp_path / archive)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_an_archive_that_fills_disks_is_refused(tmp_path: Path, name: str) -> None:
    class Zeros(io.RawIOBase):
        left = MOST_BYTES + 2**20

        def read(self, size: int = -1) -> bytes:
            taken = min(size, self.left)
            self.left -= taken
            return bytes(taken)

    if name == "a.zip":
        # The directory alone is read, and it may say anything.
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for number in range(3):
                info = zipfile.ZipInfo(f"cat/{number}.bmp")
                file.writestr(info, b"")
                info.file_size = MOST_BYTES
    else:
        with tarfile.open(tmp_path / name, "w:gz", compresslevel=1) as file:
            info = tarfile.TarInfo("cat/0.bmp")
            info.size = Zeros.left
            file.addfile(info, Zeros())
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its size.* unpack it"):
        find_listing(tmp_path / name)


def peak_of(act: Callable[[], object]) -> int:
    """Return the most bytes of memory that Python takes for something."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_of_a_zip_takes_no_more_memory_than_it_says(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        for name in numbered("cat", "dog", count=3):
            file.writestr(name, png(0), zipfile.ZIP_DEFLATED)
        file.writestr("cat/large.png", bytes(2**26))
        file.getinfo("cat/large.png").file_size = 1000
    listing = find_listing(tmp_path / "a.zip")
    if method != zipfile.ZIP_DEFLATED:
        assert listing.broken["cat/large.png"].startswith("compressed by another method")
        return

    def read() -> None:
        with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
            listing.tree.open("cat/large.png")

    assert peak_of(read) < 2**20


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


def block(kind: bytes, size: int = 0, *, is_extended: bool = False) -> bytes:
    """Return the header of a tar file's member of some kind."""
    info = tarfile.TarInfo("cat/x.png")
    info.type, info.size = kind, size
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[482] = is_extended
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize("place", ["first", "later"])
@pytest.mark.parametrize("kind", ["long name", "pax", "global", "sparse", "chain", "backwards"])
def test_headers_of_a_tar_file_are_limited(tmp_path: Path, kind: str, place: str) -> None:
    large = 2**25
    odd = {
        "long name": block(tarfile.GNUTYPE_LONGNAME, large) + b"x" * large,
        "pax": block(tarfile.XHDTYPE, large) + b"33554432 comment=" + bytes(large - 17),
        "global": block(tarfile.XGLTYPE, large) + b"33554432 comment=" + bytes(large - 17),
        "sparse": block(tarfile.GNUTYPE_SPARSE, is_extended=True)
        + (b"00000000001 00000000001 " * 21 + b"\1" + bytes(7)) * 20_000,
        "chain": block(tarfile.XHDTYPE) * 1500,
        "backwards": block(tarfile.XHDTYPE, 17) + b"17 size=-0002560\n".ljust(512, b"\0"),
    }[kind]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in numbered("cat", "dog", count=3):
            add(archive, name, png(0))
    member = buffer.getvalue()[:1024]
    before, after = (b"", buffer.getvalue()) if place == "first" else (member, buffer.getvalue())
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(before + odd + after)

    def find() -> None:
        with pytest.raises(DataError, match=r"a\.tar\.gz: "):
            find_listing(tmp_path / "a.tar.gz")

    assert peak_of(find) < 2**23


def test_what_a_tar_file_says_of_all_members_is_not_kept_for_each(tmp_path: Path) -> None:
    words = {f"comment.{number}": "" for number in range(5000)}
    with tarfile.open(tmp_path / "a.tar", "w", pax_headers=words) as archive:
        for name in numbered("cat", "dog", count=3):
            add(archive, name, png(0))
        for number in range(1000):
            add(archive, f"empty/{number}", type=tarfile.DIRTYPE)
    assert peak_of(lambda: find_listing(tmp_path / "a.tar")) < 2**23


def test_a_damaged_header_is_not_the_end_of_a_tar_file(tmp_path: Path) -> None:
    as_folders(tmp_path / "photos")
    archive = pack(tmp_path / "photos", tmp_path / "a.tar")
    whole = bytearray(archive.read_bytes())
    whole[whole.index(b"photos/train/cat/7.png") + 8] ^= 1
    archive.write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read to its end \(a damaged header at"):
        find_listing(archive)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_links_within_a_tar_file_are_read_and_count_as_what_they_lead_to(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    put(root, numbered("cat", "dog", count=20))
    put(root, ["a/.store/large.png"])
    for name in ("cat/0.png", "cat/1.png"):
        (root / name).unlink()
        (root / name).hardlink_to(root / "a" / ".store" / "large.png")
    archive = pack(root, tmp_path / f"a{suffix}")
    with tarfile.open(archive) as file:
        assert sum(info.islnk() for info in file) == 2
    assert load(archive).fingerprint == load(root).fingerprint
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        add(file, "cat/0.png", bytes(3000))
        for number in range(1, 50):
            add(file, f"cat/{number}.png", type=tarfile.LNKTYPE, linkname="cat/0.png")
        add(file, "cat/x.png", type=tarfile.LNKTYPE, linkname="nowhere.png")
        add(file, "dog/0.png", png(0))
    assert find_listing(tmp_path / "b.tar").broken == {
        "cat/x.png": "a link to no file of the archive"
    }
    monkeypatch.setattr("tuner.data.archives.MOST_BYTES", 100_000)
    monkeypatch.setattr("tuner.data.archives.MOST_RATIO", 1)
    with pytest.raises(DataError, match="unpacks to more than"):
        find_listing(tmp_path / "b.tar")


def test_a_sparse_member_is_told_with_the_way(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in numbered("cat", "dog", count=3):
            add(file, name, png(0))
        add(file, "cat/x.png", png(0), pax_headers={"GNU.sparse.map": "0,8,512,8"})
    broken = find_listing(tmp_path / "a.tar").broken
    assert broken == {"cat/x.png": "a sparse file; pack it without --sparse"}


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_long_names_and_many_members_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(names: Iterable[str]) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for entry in names:
                file.writestr(entry, png(0))
        with tarfile.open(tmp_path / "a.tar", "w") as file:
            for entry in names:
                add(file, entry, png(0))

    plain = numbered("cat", "dog", count=3)
    write([*plain, "cat/" + "a/" * 32_000 + "x.png", "cat/" + "b/" * 150 + "x.png"])
    peak = peak_of(lambda: find_listing(tmp_path / name))
    assert peak < 2**24
    tree = find_listing(tmp_path / name).tree
    assert tree.folders == {"cat", "dog"}
    assert set(tree.broken.values()) == {"its name is too long, or in too many folders"}
    assert max(map(len, tree.broken)) < 110

    write([*plain, *(f"cat/.{number}.png" for number in range(9))])
    monkeypatch.setattr("tuner.data.trees.MOST_FILES", 10)
    with pytest.raises(DataError, match="holds more than 10 files"):
        find_listing(tmp_path / name)
    monkeypatch.setattr("tuner.data.trees.MOST_FILES", 1000)
    write([*plain, *(f"{number}/" + "d/" * 90 + "x.png" for number in range(4))])
    assert len(find_listing(tmp_path / name).tree.folders) == 2 + 4 * 91
    monkeypatch.setattr("tuner.data.archives.MOST_BYTES", 20_000)
    with pytest.raises(DataError, match="the names of its files take more than"):
        find_listing(tmp_path / name)


def test_the_folders_of_a_zip_are_counted_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in [*numbered("cat", "dog", count=3), *(f"{n}/" for n in range(9))]:
            file.writestr(name, b"")
    monkeypatch.setattr("tuner.data.trees.MOST_FILES", 10)
    with pytest.raises(DataError, match=r"a\.zip: holds more than 10 files"):
        find_listing(tmp_path / "a.zip")
    monkeypatch.undo()
    monkeypatch.setattr("tuner.data.archives.MOST_BYTES", 100)
    with pytest.raises(DataError, match="a table of contents of more than"):
        find_listing(tmp_path / "a.zip")


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    as_folders(tmp_path / "photos")
    archive = pack(tmp_path / "photos", tmp_path / "a.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"a\.tar\.gz: cannot be read to its end"):
        find_listing(archive)


def test_a_damaged_member_is_one_broken_file(tmp_path: Path) -> None:
    as_folders(tmp_path / "photos")
    archive = pack(tmp_path / "photos", tmp_path / "a.zip")
    whole = archive.read_bytes()
    member = (tmp_path / "photos" / "train" / "dog" / "7.png").read_bytes()
    at = whole.index(member)
    archive.write_bytes(whole[: at + 50] + b"\0\1\2" + whole[at + 53 :])
    with pytest.raises(DataError, match=r"a\.zip/photos/train/dog/7\.png: .*Bad CRC-32"):
        load(archive)


def test_names_in_archives_of_macos_are_utf8(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in numbered("café", "dog", count=3):
            file.writestr(name, png(0))
        file.writestr("__MACOSX/dog/._0.png", b"resource fork")
    data = bytearray(buffer.getvalue())
    # The flag that says so is left out there.
    for signature, offset in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] &= ~0x08
    (tmp_path / "a.zip").write_bytes(data)
    assert find_listing(tmp_path / "a.zip").classes == ("café", "dog")


def test_what_cannot_be_read_is_told_in_one_message_or_skipped(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, numbered("train/cat", "train/dog", count=8))
    (root / "train/cat/0.png").write_bytes(b"")
    (root / "train/cat/1.png").write_bytes(png(1)[:-30])
    (root / "train/cat/broken.png").symlink_to(tmp_path / "nowhere")
    (root / "train/cat/a.HEIC").write_bytes(b"heic")
    os.mkfifo(root / "train/dog/pipe.png")
    (root / "train/dog/circle").symlink_to(root / "train")
    (root / "train/dog/notes.txt").write_text("words")
    with pytest.raises(DataError) as refusal:
        load(root)
    message = str(refusal.value)
    assert "6 files cannot be read as images" in message
    for name, why in {
        "cat/0.png": "no image of a known format",
        "cat/1.png": "truncated",
        "cat/broken.png": "a broken link",
        "cat/a.HEIC": r"images of this kind (.heic) are not read; convert it",
        "dog/pipe.png": "a pipe",
        "dog/circle": "a link to a folder that it lies in",
    }.items():
        (line,) = (line for line in message.splitlines() if f"{name}:" in line)
        assert why in line
    splits = load(root, skip_broken=True)
    assert len(splits.train) + len(splits.val) == 14
    assert sum(name in "".join(splits.notes) for name in ("0.png", "pipe.png", "a.HEIC")) == 3
    assert "left out: 1 file not an image (.txt)" in splits.notes
    # The copy of what could be read serves no one who asked for all.
    with pytest.raises(DataError, match="6 files cannot be read"):
        load(root)
    assert load(root, skip_broken=True).fingerprint == splits.fingerprint


def test_a_class_that_is_broken_through_and_through_is_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, numbered("train/cat", "train/dog", count=4))
    for number in range(3):
        (root / f"train/dog/{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/dog: needs at least 2 images.* has 1"):
        load(root, skip_broken=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((b"caf\xe9", b"tea"), r"the class name 'caf\\xe9' is not UTF-8\. .*convmv"),
        ((b"a\x1b[2J", b"b"), r"the class name 'a\\x1b\[2J' is empty or holds control characters"),
        ((b"a\nb", b"b"), r"the class name 'a\\x0ab' is empty or holds control"),
        ((b"Cat", b"cat"), "'Cat' and 'cat' differ in case or spaces alone"),
        (
            tuple(unicodedata.normalize(form, "café").encode() for form in ("NFC", "NFD")),
            "differ in Unicode's normal form alone",
        ),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, names: tuple[bytes, ...], message: str
) -> None:
    for name in names:
        put(tmp_path / "train", numbered(os.fsdecode(name), count=3))
    with pytest.raises(DataError, match=message):
        find_listing(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_may_be_written_in_another_unicode_form_in_another_part(
    tmp_path: Path, form: str
) -> None:
    own = unicodedata.normalize(form, "café")
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "café")
    names = (f"train/{own}", "train/dog", f"test/{other}", "test/dog")
    put(tmp_path / "folders", numbered(*names, count=3))
    listing = find_listing(tmp_path / "folders")
    assert listing.classes == (own, "dog")
    assert count(listing) == {"train": [3, 3], "test": [3, 3]}
    put(tmp_path / "table", FILES)
    rows = [
        (name, (own, other, "dog")[number % 3], ("train", "test")[number // 6])
        for number, name in enumerate(FILES)
    ]
    write_csv(tmp_path / "table" / "labels.csv", [("path", "label", "split"), *rows])
    listing = find_listing(tmp_path / "table")
    assert listing.classes == (own, "dog")
    assert count(listing) == {"train": [4, 2], "test": [4, 2]}


def test_file_names_that_are_no_utf8_are_read_and_shown_escaped(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    put(root, [*numbered("train/a", "train/b", count=3), os.fsdecode(b"train/a/\xe9\x1b.png")])
    listing = find_listing(root)
    names = [listing.shown(item) for item in listing.parts["train"]]
    assert rf"{root}/train/a/\xe9\x1b.png" in names
    assert len(load(root).train) == 5


def test_files_that_trade_places_are_seen(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name, value in (("cat", 10), ("dog", 200)):
        for number in range(4):
            path = root / "train" / name / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), value + number).save(path)
            os.utime(path, (0, 0))
    first = load(root)
    one, other = root / "train/cat/1.bmp", root / "train/dog/1.bmp"
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    second = load(root)
    assert second.fingerprint != first.fingerprint
    by_label = [greys(second.train.images[second.train.labels == label]) for label in (0, 1)]
    assert by_label[0] | greys(second.val.images) >= {201}
    assert 201 not in by_label[1]


def test_links_are_followed_more_than_once_but_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "pool", numbered("cat", "dog", count=3))
    root = tmp_path / "photos"
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        for name in ("cat", "dog"):
            (root / part / name).symlink_to(tmp_path / "pool" / name)
    assert count(find_listing(root)) == {"train": [3, 3], "test": [3, 3]}
    monkeypatch.setattr("tuner.data.trees.MOST_AGAIN", 1000)
    # A thousand million ways lead from the first of these folders to the last.
    for number in range(31):
        (root / f"d{number}").mkdir()
        for name in ("a", "b"):
            (root / f"d{number}" / name).symlink_to(root / f"d{number + 1}")
    for find in (find_listing, lambda path: list(find_images([str(path)]))):
        with pytest.raises(DataError, match="photos: links in it lead to the same folders more"):
            find(root)


def test_folders_inside_each_other_without_end_are_told(tmp_path: Path) -> None:
    put(tmp_path / "photos", numbered("cat", "dog", count=3))
    folder = tmp_path / "photos"
    for _ in range(120):
        folder /= "d"
        folder.mkdir()
    for find in (find_listing, lambda path: list(find_images([str(path)]))):
        with pytest.raises(DataError, match="photos: more than 100 folders lie inside each other"):
            find(tmp_path / "photos")


def test_a_file_or_a_place_without_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no images that can be read\. Images end"):
        find_files(str(tmp_path / "empty"))
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"a\.txt: is not a folder, archive .* or manifest"):
        find_files(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match=r"holds no images that can be read, only 1 .txt"):
        find_files(str(tmp_path))
    put(tmp_path / "loose", ["1.png", "2.png"])
    with pytest.raises(DataError, match=r"needs at least 2 class folders, has 0.* a labels.csv"):
        find_files(str(tmp_path / "loose"))


# What lies beside, and what only looks like something else


@pytest.mark.parametrize("count_of_rows", [128, 250])
def test_rows_of_parts_may_lie_in_any_order(tmp_path: Path, count_of_rows: int) -> None:
    values = range(count_of_rows)
    table = {
        "image": [png(value) for value in values],
        "label": [value % 2 for value in values],
        "Split": ["val" if value % 5 == 0 else "train" for value in values],
    }
    pq.write_table(pa.table(table), tmp_path / "all.parquet")
    splits = load(tmp_path / "all.parquet")
    assert splits.val.images[:, 0, 0, 0].tolist() == list(range(0, count_of_rows, 5))
    assert [v % 2 for v in splits.val.images[:, 0, 0, 0].tolist()] == splits.val.labels.tolist()
    assert greys(splits.train.images) == {value for value in values if value % 5}


@pytest.mark.parametrize("stray", ["notes.csv", "logo.png"])
@pytest.mark.parametrize("inside", ["data/", "a/b/"])
def test_a_file_beside_the_folder_around_all_names_no_class(
    tmp_path: Path, stray: str, inside: str
) -> None:
    put(
        tmp_path,
        numbered(
            *(f"{inside}{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")),
            count=3,
        ),
    )
    (tmp_path / stray).write_bytes(png(9) if stray.endswith("png") else b"kind,value\n1,2\n")
    listing = find_listing(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert count(listing) == {"train": [3, 3], "test": [3, 3]}


def test_parts_beside_other_images_are_not_guessed(tmp_path: Path) -> None:
    put(tmp_path, numbered("data/train/cat", "data/test/cat", "docs/figures", count=3))
    with pytest.raises(DataError, match=r"data: is divided into test and train, and there are"):
        find_listing(tmp_path)


@pytest.mark.parametrize("head", [("Path", "Label", "Split"), ("file_name", "class", " split ")])
def test_a_split_is_found_by_any_spelling(tmp_path: Path, head: tuple[str, ...]) -> None:
    put(tmp_path, numbered("a", count=8))
    rows = [(f"a/{n}.png", str(n % 2), "train" if n < 4 else "test") for n in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(map(",".join, [head, *rows])))
    assert count(find_listing(tmp_path)) == {"train": [2, 2], "test": [2, 2]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_parts_in_a_column_of_another_name_are_said(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, FILES)
    file = tmp_path / f"labels{suffix}"

    def notes_on(**columns: list[str]) -> tuple[str, ...]:
        table = {"path": FILES, "label": ["oak", "elm"] * 6, **columns}
        rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        if suffix == ".csv":
            write_csv(file, [table, *(row.values() for row in rows)])
        elif suffix == ".jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        else:
            pq.write_table(pa.table(table), file)
        return find_listing(file).notes

    parts = ["Train", "Train", "test"] * 4
    told = "the column 'Subset' holds test, train and is not used; call it 'split' to divide the"
    assert notes_on(Subset=parts) == (f"{told} images by it",)
    assert notes_on(Subset=parts, split=["train", "train", "test", "test"] * 3) == ()
    assert notes_on(Subset=["test", *"abcdefghijk"], comment=parts) == ()


def test_lines_of_json_may_leave_out_what_others_have(tmp_path: Path) -> None:
    put(tmp_path, numbered("a", count=8))
    rows = [
        {"path": f"a/{n}.png", "note": "\u2028", "label": n % 2, "split": "train"} for n in range(8)
    ]
    del rows[0]["label"]
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert count(find_listing(file)) == {"train": [3, 4]}
    del rows[1]["split"]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="some rows have a split and some have none"):
        find_listing(file)


def test_several_labels_of_an_image_are_refused(tmp_path: Path) -> None:
    put(tmp_path, numbered("a", count=4))
    file = tmp_path / "labels.jsonl"
    rows = [{"path": f"a/{n}.png", "label": ["cat", "dog"][: n % 2 + 1]} for n in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"labels\.jsonl:1: has several labels"):
        find_listing(file)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow"])
def test_a_table_has_no_more_rows_than_a_folder_has_files(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"a/{number}.png" for number in range(60)]
    table = pa.table({"path": paths, "label": pa.nulls(60)})
    for part in ("train", "test"):
        file = tmp_path / f"{part}.{kind}"
        match kind:
            case "csv":
                write_csv(file, [("path", "label"), *((path, "a") for path in paths)])
            case "jsonl":
                rows = [{"path": path, "label": "a"} for path in paths]
                file.write_text("\n".join(map(json.dumps, rows)))
            case "parquet":
                pq.write_table(table, file)
            case "arrow":
                with pa.ipc.new_stream(str(file), table.schema) as stream:
                    stream.write_table(table)
    for most, place in ((50, tmp_path / f"train.{kind}"), (100, tmp_path)):
        monkeypatch.setattr("tuner.data.tables.MOST_FILES", most)
        with pytest.raises(DataError, match=rf"has more than {most} rows. Keep fewer."):
            find_listing(place)


def test_tables_that_unpack_to_too_much_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "labels.csv"
    text.write_text("path,label\n")
    os.truncate(text, 2**30)
    with pytest.raises(DataError, match=r"labels\.csv: is larger than 512 MiB, the most"):
        find_listing(text)
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 500), pa.array(["x" * 1000]))
    (tmp_path / "many").mkdir()
    for part in ("train", "test"):
        paths = [f"{part}/{number}.png" for number in range(500)]
        file = tmp_path / "many" / f"{part}.parquet"
        pq.write_table(pa.table({"path": paths, "label": labels}), file)
    for most, place in ((2**18, file), (2**19, tmp_path / "many")):
        monkeypatch.setattr("tuner.data.tables.MOST_TEXT", most)
        with pytest.raises(DataError, match=f"labels and paths have more than {most:,} letters"):
            find_listing(place)
    pq.write_table(pa.table({"path": ["a.png"], "label": [["cat", "dog"]]}), file)
    with pytest.raises(DataError, match="'label' holds several values a row"):
        find_listing(file)
    pq.write_table(pa.table({f"column {number}": [1] for number in range(5000)}), file)
    with pytest.raises(DataError, match=r"only column 0, .*, column 19 and 4,980 more") as refusal:
        find_listing(file)
    assert len(str(refusal.value)) < 1000


def test_an_arrow_file_whose_numbers_lead_out_of_it_is_told(tmp_path: Path) -> None:
    table = pa.table({"image": [png(value) for value in range(40)], "label": ["cat", "dog"] * 20})
    file = tmp_path / "train.arrow"
    with pa.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)
    assert find_listing(file).classes == ("cat", "dog")
    ends = pa.array(range(0, 123, 3), pa.int32()).buffers()[1].to_pybytes()[:164]
    data = bytearray(file.read_bytes())
    at = data.index(ends)
    data[at + 80 : at + 84] = (2**30).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.arrow: cannot be read \(.*Make it again"):
        find_listing(file)


def test_what_datasets_wrote_into_a_table_may_be_nonsense(tmp_path: Path) -> None:
    table = images_table(range(100), ["a", "b"])
    for nonsense in (b"[" * 100_000, b"no JSON", b"[]"):
        table = table.replace_schema_metadata({"huggingface": nonsense})
        pq.write_table(table, tmp_path / "all.parquet")
        assert find_listing(tmp_path / "all.parquet").classes == ("0", "1")


def test_names_that_begin_alike_are_not_taken_for_one_another(tmp_path: Path) -> None:
    put(tmp_path / "one", numbered("defect", "defect-free", "defect/old", count=3))
    with pytest.raises(DataError, match="defect holds images, and so does defect/old"):
        find_listing(tmp_path / "one")
    put(tmp_path / "two", numbered("photos/cat", "photos/dog", count=3))
    (tmp_path / "two" / "photos_test").mkdir()
    assert find_listing(tmp_path / "two").classes == ("cat", "dog")


def test_a_folder_without_images_in_that_of_a_class_is_none(tmp_path: Path) -> None:
    put(tmp_path, numbered("train/cat", "train/dog", count=3))
    (tmp_path / "train" / "cat" / "notes").mkdir()
    assert find_listing(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a null path", "row 1: 'path' is not a path"),
        ("names of nothing", r"has 0\. 2 files cannot be read:\n.*a\.png: No such file"),
        ("a cut archive", r"a\.tar\.gz: "),
        ("a torn manifest", r"labels\.csv: cannot be read"),
        ("a torn table", r"train\.parquet: cannot be read"),
        ("an encrypted archive", "1 file cannot be read:\n.*encrypted"),
        ("a broken link", "1 file cannot be read:\n.*a broken link"),
    ],
)
def test_damage_of_any_kind_is_told(tmp_path: Path, kind: str, message: str) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    match kind:
        case "a null path":
            place /= "labels.parquet"
            table = pa.table({"path": ["a.png", None], "label": ["a", "b"]})
            pq.write_table(table, place)
        case "names of nothing":
            place /= "labels.jsonl"
            place.write_text('{"path": "a.png", "label": 0}\n{"path": "b.png", "label": 1}')
        case "a cut archive":
            put(place, numbered("cat", "dog", count=3))
            place = pack(place, tmp_path / "a.tar.gz")
            place.write_bytes(place.read_bytes()[:20])
        case "a broken link":
            (place / "x.png").symlink_to("nowhere.png")
        case _:
            place = tmp_path / "a.zip"
            name = {"a torn manifest": "labels.csv", "a torn table": "train.parquet"}.get(
                kind, "x.png"
            )
            content = b"path,label\na.png,a\n" * 99
            if name.endswith("parquet"):
                buffer = io.BytesIO()
                pq.write_table(images_table(range(9), ["a", "b"]), buffer)
                content = buffer.getvalue()
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(name, content)
            raw = bytearray(place.read_bytes())
            if kind == "an encrypted archive":
                raw[raw.index(b"PK\x01\x02") + 8] |= 1
            else:
                start = 30 + len(name)
                raw[start : start + 10] = b"\xff" * 10
            place.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        load(place)
