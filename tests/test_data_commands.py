"""``data info``, ``data prepare`` and ``data split``: what is found is told, and can be written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.disks import small_disk
from tuner.cli import cli
from tuner.config import DataConfig
from tuner.data.splits import load_splits, load_test
from tuner.errors import DataError, UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a flat folder of two classes, 20 images each, and what does not belong to them."""
    folder = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            size = (12, 8) if number < 8 else (16, 16)
            mode = "L" if number % 4 else "RGB"
            grey = 100 * label + number
            colour = grey if mode == "L" else (grey, grey, grey)
            Image.new(mode, size, colour).save(folder / name / f"{number:02}.png")
    (folder / "cat" / "notes.txt").write_text("words")
    (folder / "dog" / "torn.jpg").write_bytes(b"\xff\xd8")
    (folder / "dog" / ".hidden").write_text("words")
    return folder


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, ["data", *words])


def document(*words: str) -> Any:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_info_tells_what_was_found_and_what_was_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "torn.jpg").unlink()
    (photos / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    place = (str(photos), "--data-dir", str(tmp_path / "data"))
    info = document("info", *place)
    assert info["layout"] == "class folders, split by a seed"
    assert info["images"] == {
        "cat": {"train": 14, "val": 2, "test": 4},
        "dog": {"train": 14, "val": 2, "test": 4},
    }
    assert info["test_images"] == 8
    assert sum(info["modes"].values()) == 32
    assert set(info["modes"]) == {"L", "RGB"}
    assert info["sizes"]["smallest"] == [12, 8]
    assert info["sizes"]["largest"] == [16, 16]
    assert info["resize"] == "squash"
    assert info["left_out"] == {"not an image (.txt)": ["cat/notes.txt"]}
    assert info["hidden_files"] == 1
    assert [Path(name).name for name in info["broken"]] == ["gone.jpg"]
    text = invoke("info", *place).stdout
    for words in ("smallest 12 x 8", "cat/notes.txt", "gone.jpg: a broken link", "cannot be read"):
        assert words in text


@pytest.mark.parametrize("is_parted", [True, False])
def test_info_finds_the_test_images_that_cannot_be_read(
    photos: Path, tmp_path: Path, is_parted: bool
) -> None:
    (photos / "dog" / "torn.jpg").unlink()
    place = (str(photos), "--data-dir", str(tmp_path / "data"))
    if is_parted:
        for part in ("train", "test"):
            shutil.copytree(photos / "dog", tmp_path / "parts" / part / "dog")
            shutil.copytree(photos / "cat", tmp_path / "parts" / part / "cat")
        place = (str(tmp_path / "parts"), *place[1:])
    test = load_test(DataConfig(source=place[0]), tmp_path / "data")
    torn = Path(test.names[0])
    torn.write_bytes(b"\xff\xd8")
    info = document("info", *place)
    assert info["test_images"] == len(test.images) - 1
    assert info["images"][torn.parent.name]["test"] == len(test.images) // 2 - 1
    assert [*info["broken"]] == [str(torn)]
    assert f"{torn.name}: " in invoke("info", *place).stdout


def test_a_split_is_written_as_a_search_would_divide(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "torn.jpg").unlink()
    out = tmp_path / "split"
    assert document("split", str(photos), str(out))["images"] == {"train": 28, "val": 4, "test": 8}
    pairs = [
        (load_splits(config, tmp_path / "data"), load_test(config, tmp_path / "data"))
        for config in (DataConfig(source=str(place), image_size=8) for place in (photos, out))
    ]
    for one, other in zip(*pairs, strict=True):
        for part in ("train", "val") if one is pairs[0][0] else ("images",):
            first, second = getattr(one, part), getattr(other, part)
            assert (first.images == second.images).all()
            assert (first.labels == second.labels).all()
    again = invoke("split", str(photos), str(out))
    assert "is there already. Name a new folder." in str(again.exception)


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpeg"), ("JPEG2000", "jp2")])
def test_images_in_a_table_are_written_as_files(tmp_path: Path, kind: str, suffix: str) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    def picture(grey: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), grey).save(buffer, format=kind)
        return buffer.getvalue()

    table = {"image": [picture(grey) for grey in range(40)], "label": ["a", "b"] * 20}
    pq.write_table(pa.table(table), tmp_path / "all.parquet")
    counts = document("split", str(tmp_path / "all.parquet"), str(tmp_path / "out"))["images"]
    assert counts == {"train": 28, "val": 4, "test": 8}
    files = sorted((tmp_path / "out").rglob(f"*.{suffix}"))
    assert len(files) == 40
    for file in files:
        row = int(file.stem.rpartition("-")[2])
        assert file.read_bytes() == picture(row)
        assert file.parent.name == "ab"[row % 2]
    assert load_splits(DataConfig(source=str(tmp_path / "out")), tmp_path / "data").has_test


def test_prepare_refuses_what_is_broken_and_says_what_it_skips(
    photos: Path, tmp_path: Path
) -> None:
    place = (str(photos), "--data-dir", str(tmp_path / "data"))
    assert "torn.jpg: cannot be read" in str(invoke("prepare", *place).exception)
    result = invoke("prepare", *place, "--skip-broken")
    assert result.exit_code == 0
    assert "is ready: 40 images" in result.stdout
    assert "torn.jpg" in result.stderr


@pytest.mark.parametrize("label", ["../../../evil", "{out}/evil", ".hidden", "b/c"])
def test_a_split_is_written_nowhere_else(tmp_path: Path, label: str) -> None:
    label = label.format(out=tmp_path)
    rows = ["path,label"]
    for number in range(12):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{(label, 'b')[number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    result = invoke("split", str(tmp_path / "labels.csv"), str(tmp_path / "out"))
    assert isinstance(result.exception, DataError)
    assert "can be no folder of its own" in str(result.exception)
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out").exists()


def test_what_a_manifest_names_is_found_again_in_its_split(tmp_path: Path) -> None:
    rows = ["path,label"]
    for number in range(12):
        name = ("image-{}", ".{}.png")[number % 2].format(number)
        Image.new("L", (8, 8), 20 * number).save(tmp_path / name, format="PNG")
        rows.append(f"{name},{'ab'[number // 6]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    result = invoke("split", str(tmp_path / "labels.csv"), str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    found = document("info", str(tmp_path / "out"))
    assert found["left_out"] == {}
    assert sum(sum(counts.values()) for counts in found["images"].values()) == 12


def test_no_file_of_a_split_takes_the_place_of_another(tmp_path: Path) -> None:
    """Names meet where they lose their folders, and are given a suffix or a number."""
    rows, pictures = ["path,label"], set()
    for number in range(72):
        name = f"{number}/{('a', 'a.png', f'{number % 24}-a.png')[number % 3]}"
        (tmp_path / name).parent.mkdir()
        Image.new("L", (8, 8), number).save(tmp_path / name, format="PNG")
        pictures.add((tmp_path / name).read_bytes())
        rows.append(f"{name},{'ab'[number // 36]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    document("split", str(tmp_path / "labels.csv"), str(tmp_path / "out"))
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*.png")]
    assert len(written) == 72
    assert set(written) == pictures


@pytest.mark.parametrize(
    ("counts", "lacking"),
    [
        ({"cat": 1, "dog": 1}, "cat: needs at least 3 images"),
        ({"dog": 10, "zebra": 1}, "zebra: needs at least 3 images"),
        ({"train/cat": 1, "train/dog": 2}, "train/cat: needs at least 2 images"),
        (
            {"train/cat": 2, "train/dog": 2, "test/cat": 0, "test/dog": 1},
            "test/cat: needs at least 1 image",
        ),
    ],
)
def test_a_split_has_enough_of_each_class_for_a_search(
    tmp_path: Path, counts: dict[str, int], lacking: str
) -> None:
    for name, count in counts.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(tmp_path / "photos" / name / f"{number}.png")
    result = invoke("split", str(tmp_path / "photos"), str(tmp_path / "out"))
    assert isinstance(result.exception, DataError)
    assert lacking in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_home_of_nobody_is_no_place(tmp_path: Path) -> None:
    assert isinstance(invoke("info", "~nobody-here/photos").exception, DataError)


def test_a_split_that_finds_no_room_blames_no_image(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "torn.jpg").unlink()
    with small_disk(tmp_path / "disk", "16k"):
        result = invoke("split", str(photos), str(tmp_path / "disk" / "out"))
    assert isinstance(result.exception, UsageError)
    assert "out: cannot be written (No space left on device)" in str(result.exception)
