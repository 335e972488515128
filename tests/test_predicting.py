"""The ``predict`` command, and the stream of files behind it."""

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tuner
from tests.conftest import Call
from tuner.deploy.predictor import Ensemble
from tuner.deploy.stream import find_images, predict_paths
from tuner.run.run import Run
from tuner.storage.files import write_json


@pytest.fixture(scope="module")
def loaded(run_with_ensemble: Run) -> Ensemble:
    return tuner.load_ensemble(run_with_ensemble.path / "ensembles" / "all", device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 40 real digits, in folders, beside what is no image or hidden."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("photos")
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:40], digits.target, strict=False)):
        place = folder / f"of {label}"
        place.mkdir(exist_ok=True)
        image = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))
        image.save(place / f"{number:02d}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    shutil.copyfile(folder / "of 0" / "00.png", folder / ".hidden" / "00.png")
    shutil.copyfile(folder / "of 0" / "00.png", folder / "of 0" / ".00.png")
    return folder


@pytest.fixture
def call(call: Call, run_with_ensemble: Run) -> Call:
    """Return a function that calls ``predict`` with some words."""
    at = ("--device", "cpu", "--storage", str(run_with_ensemble.path.parent))
    return lambda *words: call("predict", *map(str, words), *at)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("of */[!.]*.png"))


# What is written


def test_a_folder_is_classified_in_order_and_to_the_last_file(
    call: Call, photos: Path, loaded: Ensemble
) -> None:
    code, out, err = call(photos, "--format", "csv", "--top", "2", "--reject", "0.5")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    files = files_of(photos)
    assert len(files) == 40
    assert [row["path"] for row in rows] == list(map(str, files))
    head = "path,class,confidence,class_2,confidence_2,disagreement,rejected"
    assert out.splitlines()[0] == head
    probs = loaded.predict(files)
    order = (-probs).argsort(axis=1)
    classes = np.array(loaded.classes)
    assert [row["class"] for row in rows] == classes[order[:, 0]].tolist()
    assert [row["class_2"] for row in rows] == classes[order[:, 1]].tolist()
    for row, of_image, first in zip(rows, probs, order[:, 0], strict=True):
        assert float(row["confidence"]) == pytest.approx(of_image[first], abs=2e-6)
        assert row["rejected"] == ("true" if of_image[first] < 0.5 else "false")
        # Of three members.
        assert float(row["disagreement"]) in {0, 0.3333, 0.6667, 1}
    assert {row["rejected"] for row in rows} == {"true", "false"}


def test_linked_folders_are_followed_but_not_in_circles(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(photos / "of 1")
    (tmp_path / "back").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    found = list(find_images([str(tmp_path)]))
    names = sorted(path.name for path in files_of(photos) if path.parent.name == "of 1")
    assert found == [str(tmp_path / "linked" / name) for name in names]


def test_jsonl_has_every_class_and_an_error_where_there_is_no_answer(
    call: Call, photos: Path, tmp_path: Path, loaded: Ensemble
) -> None:
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.png"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    good = files_of(photos)[3]
    code, out, err = call(broken, good, missing, "--format", "jsonl")
    assert code == 1
    first, answer, last = map(json.loads, out.splitlines())
    assert set(first) == set(last) == {"path", "error"}
    assert set(answer) == {"path", "class", "confidence", "probabilities", "disagreement"}
    probs = loaded.predict(good)[0]
    told = [answer["probabilities"][name] for name in loaded.classes]
    np.testing.assert_allclose(told, probs, atol=1e-6)
    assert answer["probabilities"][answer["class"]] == answer["confidence"]
    lines = err.splitlines()
    assert lines[0].startswith(f"{broken}: cannot be read as an image")
    assert lines[1] == f"{missing}: cannot be read as an image (No such file or directory)"
    assert lines[2] == "Could not be read: 2 of 3"


def test_the_table_names_classes_confidences_and_files(call: Call, photos: Path) -> None:
    _, out, _ = call(files_of(photos)[0], "--reject", "1", "--top", "1")
    head, row = out.splitlines()
    assert head.split() == ["class", "confidence", "disagree", "path"]
    assert row.endswith(f"{files_of(photos)[0]}  rejected")


def test_a_list_of_files_comes_from_stdin_and_odd_names_go_through(
    call: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xe4v, 1.png"))
    shutil.copyfile(files_of(photos)[0], odd)
    text = os.fsencode(odd) + b"\r\n\n" + os.fsencode(photos / "of 1") + b"\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    output = tmp_path / "answers.csv"
    code, out, _ = call("-", "--format", "csv", "--output", output)
    assert (code, out) == (0, "")
    with output.open(errors="surrogateescape", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert paths == [str(odd), *map(str, sorted((photos / "of 1").iterdir()))]


def test_csv_on_stdout_is_the_same_as_in_a_file(call: Call, photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "narrow\u202fspace.png"
    shutil.copyfile(files_of(photos)[0], odd)
    output = tmp_path / "answers.csv"
    call(odd, "--format", "csv", "--output", output)
    _, out, _ = call(odd, "--format", "csv")
    assert out == output.read_text()
    assert str(odd) in out


def test_a_folder_without_images_and_a_pipe_are_named(
    call: Call, photos: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    code, _, err = call(empty, tmp_path / "pipe.png", files_of(photos)[0])
    assert code == 1
    assert f"{empty}: cannot be read as an image (a folder with no images in it)" in err
    assert "pipe.png is a pipe or a device, not a file" in err


def test_images_of_kinds_that_are_not_read_are_named(
    call: Call, photos: Path, tmp_path: Path
) -> None:
    shutil.copyfile(files_of(photos)[0], tmp_path / "a.png")
    (tmp_path / "of 1").mkdir()
    for name in ("b.HEIC", "of 1/c.dng"):
        (tmp_path / name).write_bytes(b"a photo")
    (tmp_path / "notes.txt").write_text("no image")
    code, _, err = call(tmp_path)
    assert code == 1
    assert err.splitlines() == [
        f"{tmp_path}/{name}: cannot be read as an image (images of this kind ({suffix}) are not "
        "read; convert it)"
        for name, suffix in (("b.HEIC", ".heic"), ("of 1/c.dng", ".dng"))
    ] + ["Could not be read: 2 of 3"]


def test_a_name_with_a_line_break_makes_no_line_of_its_own(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a\nforged.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "b\nforged.png")
    (tmp_path / "c\nforged.png").symlink_to("nowhere")
    (tmp_path / "d\nforged").mkdir()
    code, _, err = call(*sorted(tmp_path.iterdir()))
    assert code == 1
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"{tmp_path}/{name}"
        for name in (
            r"a\x0aforged.png",
            r"b\x0aforged.png",
            r"c\x0aforged.png",
            r"d\x0aforged",
        )
    ]
    assert lines[-1] == "Could not be read: 4 of 4"


def test_output_takes_the_place_of_a_file_but_not_of_a_pipe(
    call: Call, photos: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "target.csv").write_text("of before")
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    code, _, _ = call(photos, "--format", "csv", "--output", tmp_path / "link.csv")
    assert code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "target.csv").read_text().splitlines()) == 41
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    code, _, _ = call(photos, "--format", "csv", "--output", pipe)
    reader.join(timeout=20)
    assert code == 0
    assert pipe.is_fifo()
    assert len(read[0].splitlines()) == 41


def test_a_reader_that_has_enough_ends_it_quietly(
    photos: Path, run_with_ensemble: Run, tmp_path: Path
) -> None:
    names = tmp_path / "names"
    names.write_text("\n".join(map(str, files_of(photos) * 100)))
    line = (
        f"{sys.executable} -m tuner predict - --format jsonl --ensemble "
        f"{run_with_ensemble.path / 'ensembles' / 'all'} < {names} | head -2"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", "0"], "--top"),
        (["--reject", "1.5"], "--reject"),
        (["--reject", "nan"], "--reject"),
        (["--ensemble", "nothing"], "no ensemble 'nothing'"),
        (["--output", "/dev/null/a.csv"], "--output /dev/null/a.csv: cannot be written: "),
    ],
)
def test_wrong_usage_is_told(call: Call, photos: Path, words: list[str], message: str) -> None:
    code, out, err = call(photos, *words)
    assert (code, out) == (2, "")
    assert message in err


# The stream


def test_files_come_in_order_with_the_unreadable_in_their_places(
    photos: Path, tmp_path: Path, loaded: Ensemble
) -> None:
    files = list(map(str, files_of(photos) * 30))
    missing = range(7, len(files), 97)
    for number in missing:
        files[number] = str(tmp_path / f"{number}.png")
    seen: list[str] = []
    probs: list[np.ndarray] = []
    errors: list[str | None] = []
    for batch in predict_paths(loaded, iter(files)):
        assert len(batch.paths) <= loaded.batch_size
        seen += batch.paths
        errors += batch.errors
        probs.append(batch.vote.probs.numpy())
    assert seen == files
    assert [number for number, error in enumerate(errors) if error] == list(missing)
    readable = [file for file, error in zip(files, errors, strict=True) if error is None]
    np.testing.assert_allclose(np.concatenate(probs), loaded.predict(readable), atol=1e-5)


def test_no_more_is_read_ahead_than_two_batches(photos: Path, loaded: Ensemble) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        for file in repeat(str(files_of(photos)[0])):
            taken += 1
            yield file

    stream = predict_paths(loaded, endless())  # type: ignore[arg-type]
    for number, _ in enumerate(islice(stream, 4), start=1):
        assert taken <= (number + 2) * loaded.batch_size
    stream.close()  # type: ignore[attr-defined]


def test_images_in_folders_are_found_in_alphabetical_order(photos: Path) -> None:
    assert list(find_images([str(photos)])) == list(map(str, files_of(photos)))


def mutants(folder: Path, count: int, seed: int) -> list[str]:
    """Write ``count`` files that were images before bytes were changed, cut or put in."""
    rng = random.Random(seed)
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8))
    forms = {
        "jpg": (picture, {"quality": 80, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
        "png": (picture.convert("RGBA"), {}),
        "gif": (picture.convert("P"), {"save_all": True, "append_images": [picture.convert("P")]}),
        "bmp": (picture, {}),
        "webp": (picture, {}),
        "tif": (picture, {"compression": "tiff_lzw"}),
        "ppm": (picture.convert("L"), {}),
    }
    contents = {}
    for suffix, (image, options) in forms.items():
        image.save(folder / f"whole.{suffix}", **options)
        contents[suffix] = (folder / f"whole.{suffix}").read_bytes()
    files = []
    for number in range(count):
        suffix = rng.choice(list(contents))
        content = bytearray(contents[suffix])
        for _ in range(rng.choice([1, 2, 8, 40])):
            # Headers matter most.
            place = min(int(rng.expovariate(1 / 60)), len(content) - 1)
            content[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        if rng.random() < 0.1:
            place = rng.randrange(len(content) + 1)
            content[place:place] = rng.randbytes(rng.randrange(200))
        file = folder / f"{number}.{rng.choice([suffix, *contents])}"
        file.write_bytes(content)
        files.append(str(file))
    return files


@pytest.mark.parametrize(
    ("count", "seed"), [(500, 0), pytest.param(2000, 1, marks=pytest.mark.slow)]
)
def test_changed_files_are_read_or_named_and_nothing_else_happens(
    count: int, seed: int, call: Call, tmp_path: Path
) -> None:
    files = mutants(tmp_path, count, seed)
    names = tmp_path / "names.jsonl"
    code, _, err = call(*files, "--format", "jsonl", "--output", names)
    rows = [json.loads(line) for line in names.read_text().splitlines()]
    assert [row["path"] for row in rows] == files
    failed = [row for row in rows if "error" in row]
    assert code == 1
    assert err.splitlines()[-1] == f"Could not be read: {len(failed)} of {count}"
    # Some of both, or the test would show nothing.
    assert count / 10 < len(failed) < count * 9 / 10
    for row in rows:
        if "error" not in row:
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_thousand_files(
    photos: Path, run_with_ensemble: Run, tmp_path: Path
) -> None:
    """The peak of a process that sees 100,000 files is that of one that sees 2,000."""
    peaks = {}
    for count in (2_000, 100_000):
        names = tmp_path / "names"
        files = map(str, files_of(photos))
        names.write_text("\n".join(islice(chain.from_iterable(repeat(list(files))), count)))
        code = (
            "import sys\nfrom tuner.cli import main\n"
            f"sys.argv = ['cifar-tune', 'predict', '-', '--format', 'csv', '--output', "
            f"{str(tmp_path / 'out.csv')!r}, '--ensemble', "
            f"{str(run_with_ensemble.path / 'ensembles' / 'all')!r}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            # Not ru_maxrss, which begins with the peak of the process that started this one.
            "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
            "print(int(status['VmHWM'].split()[0]) // 1024)"
        )
        with names.open() as stdin:
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdin=stdin,
                capture_output=True,
                text=True,
                check=True,
            )
        peaks[count] = int(done.stdout)
        assert len((tmp_path / "out.csv").read_text().splitlines()) == count + 1
    assert peaks[100_000] < peaks[2_000] + 30


def test_an_ensemble_with_unknown_views_is_refused(run_with_ensemble: Run, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(run_with_ensemble.path / "ensembles" / "all", folder)
    plain = json.loads((folder / "ensemble.json").read_text())
    plain["preprocessing"]["tta"] = "spin"
    write_json(folder / "ensemble.json", plain)
    with pytest.raises(tuner.TunerError, match="'spin' is not one of none, flip"):
        tuner.load_ensemble(folder)
