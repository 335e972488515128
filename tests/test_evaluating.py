"""The ``evaluate`` command: labelled images, figures, mistakes, the ledgers."""

import colorsys
import csv
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tuner
from tests.conftest import Call
from tuner.config import DataConfig
from tuner.data.labelled import find_labelled, labels_among
from tuner.data.splits import load_test
from tuner.deploy.corruption import KINDS, SEVERITIES, Corruption, all_corruptions
from tuner.deploy.evaluation import evaluate
from tuner.deploy.predictor import Ensemble
from tuner.metrics.predict import score
from tuner.run.run import Run


@pytest.fixture
def run(run_with_ensemble: Run, tmp_path: Path) -> Run:
    """Return a run with an ensemble that may be written to."""
    shutil.copytree(run_with_ensemble.path, tmp_path / "runs" / "tiny")
    return Run.open(tmp_path / "runs" / "tiny")


@pytest.fixture
def call(call: Call, run: Run) -> Call:
    """Return a function that calls ``evaluate`` with some words."""
    at = ("--device", "cpu", "--storage", str(run.path.parent))
    return lambda *words: call("evaluate", *map(str, words), *at)


@pytest.fixture(scope="module")
def loaded(run_with_ensemble: Run) -> Ensemble:
    return tuner.load_ensemble(run_with_ensemble.path / "ensembles" / "all", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the test digits 9, 3 and 5 as class folders, 20 of each."""
    folder = tmp_path_factory.mktemp("labelled")
    test = load_test(DataConfig(source="digits"), folder)
    for label in (9, 3, 5):
        (folder / "digits" / str(label)).mkdir(parents=True)
        for index in (test.images.labels == label).nonzero()[:20, 0].tolist():
            image = Image.fromarray(test.images.images[index, 0].numpy())
            image.save(folder / "digits" / str(label) / f"{index:03d}.png")
    return folder / "digits"


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_runs_own_test_images_give_its_figures_and_enter_both_ledgers(
    call: Call, run: Run
) -> None:
    before = lines_of(run.path / "test_readings.jsonl")
    code, out, err = call("digits", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    place = run.path / "ensembles" / "all"
    metrics = json.loads((place / "metrics.json").read_text())
    assert found["images"] == metrics["test_images"]
    assert found["is_own_test"]
    # There in the precision of the training, here in float32: an image or two may fall otherwise.
    for name, value in metrics["ensemble"]["test"].items():
        assert found["scores"][name] == pytest.approx(value, abs=0.006), name
    assert found["interval"]["low"] < found["scores"]["accuracy"] < found["interval"]["high"]
    gain = metrics["gain"]["over_mean_member"]
    assert found["gain_over_mean_member"]["gain"] == pytest.approx(gain["gain"], abs=0.006)
    (entry,) = lines_of(place / "evaluations.jsonl")
    assert entry["accuracy"] == found["scores"]["accuracy"]
    assert entry["part"] == "test"
    *others, reading = lines_of(run.path / "test_readings.jsonl")
    assert others == before
    assert (reading["by"], reading["name"]) == ("evaluate", "all")
    assert reading["fingerprint"] == before[0]["fingerprint"] == entry["fingerprint"]


def test_a_folder_of_some_classes_is_measured_whole_with_the_users_own_paths(
    call: Call, run: Run, folder: Path, loaded: Ensemble, tmp_path: Path
) -> None:
    output = tmp_path / "evaluation"
    output.mkdir()
    (output / "corrupted.csv").write_text("of an earlier evaluation, with --corrupt")
    code, out, err = call(folder, "--json", "--output", output)
    assert (code, err) == (0, "")
    found = json.loads(out)
    files = sorted(folder.rglob("*.png"))
    truth = torch.tensor([int(file.parent.name) for file in files])
    probs = torch.from_numpy(loaded.predict(files))
    assert found["scores"]["accuracy"] == score(probs, truth).accuracy
    assert found["scores"]["nll"] == pytest.approx(score(probs, truth).nll, abs=1e-5)
    assert [entry["count"] for entry in found["per_class"]] == [0, 0, 0, 20, 0, 20, 0, 0, 0, 20]
    answers = zip(map(str, files), probs.argmax(dim=1).tolist(), truth.tolist(), strict=True)
    wrong = [(file, str(answer)) for file, answer, true in answers if answer != true]
    assert wrong
    assert sorted((m["path"], m["predicted"]) for m in found["mistakes"]) == sorted(wrong)
    assert sum(map(sum, found["confusion"])) == 60
    assert found["part"] == "all"
    assert not found["is_own_test"]
    assert len(lines_of(run.path / "test_readings.jsonl")) == 1
    assert len(lines_of(run.path / "ensembles" / "all" / "evaluations.jsonl")) == 1
    with (output / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [m["path"] for m in found["mistakes"]]
    assert json.loads((output / "evaluation.json").read_text()) == found
    assert not (output / "corrupted.csv").exists()
    for picture in ("confusion.png", "reliability.png"):
        with Image.open(output / picture) as image:
            image.load()


def test_of_train_and_test_the_test_part_is_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "test")
    for label in ("3", "5", "9"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "0.png").write_bytes(b"not to be opened")
    labelled = find_labelled(str(tmp_path), 8, tmp_path)
    assert (labelled.part, len(labelled)) == ("test", 60)
    first = min((tmp_path / "test" / "3").iterdir())
    assert labelled.name(0) == str(first)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(tuner.DataError, match="has no test images"):
        find_labelled(str(tmp_path), 8, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("cat",),
        ("test/cat",),
        ("set/test/cat", "set/test/dog"),
        ("train/cat", "train/dog", "test/dog"),
    ],
)
def test_a_part_to_test_on_needs_no_other_and_not_every_class(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    labelled = find_labelled(str(tmp_path), 8, tmp_path)
    found = [labelled.classes[label] for label in labelled.labels.tolist()]
    assert found == [Path(name).name for name in names if "train" not in name]


def test_rows_to_test_on_need_no_others(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_text("path,label,split\n0.png,cat,test\n")
    labelled = find_labelled(str(tmp_path), 8, tmp_path)
    assert (labelled.part, labelled.classes, len(labelled)) == ("test", ("cat",), 1)


def test_images_of_a_single_class_are_measured(
    loaded: Ensemble, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "5", tmp_path / "data" / "5")
    evaluation = evaluate(loaded, find_labelled(str(tmp_path / "data"), 8, tmp_path))
    assert evaluation.images == 20
    assert [entry.label for entry in evaluation.per_class if entry.count] == ["5"]


def test_broken_files_of_the_part_alone_are_told_by_the_users_paths(
    call: Call, run: Run, folder: Path, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "data" / part)
        (tmp_path / "data" / part / "3" / "x.heic").touch()
    code, _, err = call(tmp_path / "data")
    assert code == 1
    first, last = err.splitlines()
    assert first.startswith(f"{tmp_path}/data/test/3/x.heic: cannot be read as an image")
    assert last == "Could not be read: 1 of 61"
    (reading,) = lines_of(run.path / "ensembles" / "all" / "evaluations.jsonl")[-1:]
    assert (reading["images"], reading["unreadable"]) == (60, 1)


def test_a_missing_file_of_another_part_is_not_told(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    table = tmp_path / "labels.csv"
    head, *rows = ("path,label,split", "gone.png,cat,train", "lost.png,cat,test", "0.png,cat,test")
    table.write_text("\n".join([head, *rows]))
    (told,) = find_labelled(str(table), 8, tmp_path).broken
    assert told.startswith(f"{tmp_path}/lost.png: cannot be read as an image (No such file")
    table.write_text("\n".join([head, *rows[:2], "0.png,cat,train"]))
    with pytest.raises(tuner.DataError, match=r"has no test images.* 1 file .*\n.*lost\.png: No"):
        find_labelled(str(table), 8, tmp_path)


def test_an_ensemble_of_before_that_does_not_tell_its_data_is_measured(
    run: Run, folder: Path, call: Call
) -> None:
    file = run.path / "ensembles" / "all" / "ensemble.json"
    plain = json.loads(file.read_text())
    del plain["data"]
    file.write_text(json.dumps(plain))
    code, _, err = call(folder)
    assert (code, err) == (0, "")


def test_a_ledger_of_the_run_that_cannot_be_written_is_told_in_a_line(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Who is root may write anywhere.
    monkeypatch.setattr("tuner.run.run.append_line", refuse)
    code, out, err = call("digits")
    assert (code, out) == (1, "")
    assert "test_readings.jsonl: cannot be written (Permission denied)" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("form", ["zip", "gztar"])
def test_an_archive_gives_the_figures_of_its_folder(
    form: str, folder: Path, loaded: Ensemble, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "5" / "000.png").write_bytes(b"nothing")
    archive = shutil.make_archive(str(tmp_path / "packed"), form, tmp_path / "data")
    of_folder, of_archive = (
        evaluate(loaded, find_labelled(str(place), 8, tmp_path))
        for place in (tmp_path / "data", archive)
    )
    assert of_archive.fingerprint == of_folder.fingerprint
    assert of_archive.scores.accuracy == of_folder.scores.accuracy
    assert torch.equal(of_archive.confusion, of_folder.confusion)
    assert len(of_archive.unreadable) == len(of_folder.unreadable) == 1
    assert "5/000.png: cannot be read as an image" in of_archive.unreadable[0]
    assert {Path(m.path).name for m in of_archive.mistakes} == {
        Path(m.path).name for m in of_folder.mistakes
    }


def test_an_unknown_class_is_refused_before_an_image_is_read(
    call: Call, run: Run, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "9").rename(tmp_path / "data" / "nine")
    code, out, err = call(tmp_path / "data")
    assert (code, out) == (2, "")
    assert "class 'nine' is not one of the ensemble's; it has 0, 1, 2" in err
    assert len(err.splitlines()) == 1
    assert not (run.path / "ensembles" / "all" / "evaluations.jsonl").exists()


def test_a_class_is_known_in_either_unicode_form(tmp_path: Path) -> None:
    for name in ("cafe\N{COMBINING ACUTE ACCENT}", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    labelled = find_labelled(str(tmp_path), 8, tmp_path)
    known = ("dog", "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert labels_among(labelled, known).tolist() == [1, 0]


def test_what_cannot_be_read_is_named_and_left_out(
    call: Call, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    broken = tmp_path / "data" / "5" / "000.png"
    broken.write_bytes(b"nothing")
    code, out, err = call(tmp_path / "data")
    assert code == 1
    assert " on 60 images of " in out
    assert "Hardest classes: " in out
    assert "\nGain in accuracy over trial 1, the first member, in points:\n" in out
    assert err.splitlines()[0].startswith(f"{broken}: cannot be read as an image")
    assert err.splitlines()[-1] == "Could not be read: 1 of 61"


def test_what_cannot_be_written_is_told_in_a_line(call: Call, run: Run, folder: Path) -> None:
    code, _, err = call(folder, "--output", "/dev/null/evaluation")
    assert code == 2
    assert err.startswith("cifar-tune: --output /dev/null/evaluation: cannot be written: ")
    ledger = run.path / "ensembles" / "all" / "evaluations.jsonl"
    assert not ledger.exists(), "nothing was measured"
    ledger.mkdir()
    code, out, err = call(folder)
    assert (code, out) == (1, "")
    assert "Copy the ensemble to a folder of your own." in err
    assert len(err.splitlines()) == 1


def test_the_whole_data_of_a_run_are_told_and_entered_as_a_reading_of_its_test_images(
    run: Run, folder: Path, call: Call
) -> None:
    file = run.path / "ensembles" / "all" / "ensemble.json"
    plain = json.loads(file.read_text())
    plain["data"]["source"] = str(folder.absolute())
    file.write_text(json.dumps(plain))
    for number in (1, 2):
        code, out, err = call(folder, "--json")
        assert code == 0
        assert err.startswith("Worth a look: the ensemble may have been trained on these images,")
        assert not json.loads(out)["is_own_test"]
        readings = lines_of(run.path / "test_readings.jsonl")[1:]
        assert [(entry["part"], entry["images"]) for entry in readings] == [("all", 60)] * number


@pytest.mark.parametrize(
    ("place", "is_told"),
    [("photos/train", True), ("photos/val", True), ("photos/test", False), ("others", False)],
)
def test_a_part_that_was_trained_on_or_chosen_by_is_told(
    place: str,
    is_told: bool,
    loaded: Ensemble,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_trained_on(**record: str) -> bool:
        assert loaded.record.data is not None
        data = replace(loaded.record.data, source=str(tmp_path / "photos"), **record)
        monkeypatch.setattr(loaded, "record", replace(loaded.record, data=data))
        return evaluate(loaded, labelled).is_trained_on

    shutil.copytree(folder / "5", tmp_path / place / "5")
    labelled = find_labelled(str(tmp_path / place), 8, tmp_path)
    assert is_trained_on() == is_told
    # Whatever its folder is called.
    assert not is_trained_on(test_fingerprint=evaluate(loaded, labelled).fingerprint)


# Corruption


def test_corruption_is_measured_and_shown(call: Call, folder: Path) -> None:
    code, out, _ = call(folder, "--corrupt")
    assert code == 0
    assert "Accuracy on corrupted images" in out
    assert all(kind.replace("_", " ") in out for kind in KINDS)
    code, out, _ = call(folder, "--corrupt", "--json")
    found = json.loads(out)
    assert len(found["corrupted"]) == len(KINDS) * len(SEVERITIES)
    mean = np.mean([entry["accuracy"] for entry in found["corrupted"]])
    assert found["corrupted_accuracy"] == pytest.approx(mean)


def test_the_same_images_are_corrupted_alike_in_batches_of_any_size(
    loaded: Ensemble, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labelled = find_labelled(str(folder), 8, tmp_path)
    whole = evaluate(loaded, labelled, corrupt=True)
    monkeypatch.setattr("tuner.deploy.predictor.BATCH", 32)
    assert evaluate(loaded, labelled, corrupt=True).corrupted == whole.corrupted


@pytest.fixture(scope="module")
def colours() -> torch.Tensor:
    """Return 20 smooth colour images, uint8, (20, 3, 32, 32)."""
    coarse = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def test_every_kind_changes_images_more_the_severer_it_is(colours: torch.Tensor) -> None:
    distances: dict[str, list[float]] = {}
    for corruption in all_corruptions():
        changed = corruption(colours)
        assert changed.shape == colours.shape
        assert changed.dtype == torch.uint8
        distance = (changed.float() - colours.float()).abs().mean().item()
        distances.setdefault(corruption.kind, []).append(distance)
    assert tuple(distances) == KINDS
    for kind, found in distances.items():
        assert found[0] > 0.2, kind
        # Sizes that BOX does not divide evenly differ by more than the severity.
        assert found == sorted(found) or kind == "pixelate", (kind, found)


def corrupted(kind: str, severity: int, images: torch.Tensor) -> np.ndarray:
    corruption = Corruption(kind, severity, np.random.default_rng(0))  # type: ignore[arg-type]
    return corruption(images).numpy().astype(float)


def test_noise_has_the_strengths_of_the_benchmark() -> None:
    grey = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, scale in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        noise = corrupted("gaussian_noise", severity, grey)
        assert noise.std() == pytest.approx(255 * scale, rel=0.02)
        # Bytes are cut off, by half a step on average.
        assert noise.mean() == pytest.approx(127.5, abs=0.3)
    for severity, photons in enumerate((500, 250, 100, 75, 50), start=1):
        expected = 255 * np.sqrt(128 / 255 / photons)
        assert corrupted("shot_noise", severity, grey).std() == pytest.approx(expected, rel=0.02)


def test_light_and_contrast_are_those_of_the_benchmark(colours: torch.Tensor) -> None:
    pixels = colours.permute(0, 2, 3, 1).reshape(-1, 3)[::97].numpy() / 255
    brighter = corrupted("brightness", 3, colours).transpose(0, 2, 3, 1).reshape(-1, 3)[::97]
    for before, after in zip(pixels, brighter, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        np.testing.assert_allclose(after, np.array(expected) * 255, atol=1.001)
    shares = colours.numpy() / 255
    means = shares.mean(axis=(2, 3), keepdims=True)
    expected = np.clip((shares - means) * 0.15 + means, 0, 1) * 255
    np.testing.assert_allclose(corrupted("contrast", 5, colours), expected, atol=1.001)


@pytest.mark.parametrize("kind", ["defocus_blur", "gaussian_blur"])
def test_blur_spreads_a_point_and_keeps_its_light(kind: str) -> None:
    point = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    peaks = []
    for severity in SEVERITIES:
        blurred = corrupted(kind, severity, point)
        # Each lighted byte is cut off by less than 1.
        assert abs(blurred.sum() - point.sum().item()) < (blurred > 0).sum() * 1.01 + 100
        np.testing.assert_allclose(blurred, blurred.transpose(0, 1, 3, 2), atol=1)
        peaks.append(blurred.max())
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(peaks))
    assert peaks[-1] < 60 < 200 < peaks[0]
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert np.abs(corrupted(kind, 5, flat) - 77).max() <= 1
