"""A run on a user's own images: no test set, moved folders, changed test images, their own files.

The images are made here: 16-bit greys, wider than high, so that depth and shape matter.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.conftest import record_of, train_trial
from tuner.cli import cli
from tuner.cli.ensemble_tables import print_ensemble
from tuner.config import DataConfig, ModelConfig, SearchConfig, TrialConfig
from tuner.data.splits import load_splits
from tuner.deploy.predictor import read_ensemble
from tuner.ensemble import make_ensemble, planning
from tuner.ensemble.request import EnsembleRequest
from tuner.ensemble.result import EnsembleResult
from tuner.errors import DataError
from tuner.metrics.predict import score
from tuner.run.run import Run
from tuner.training.rerun import rerun

CPU = torch.device("cpu")
WHITE = 4095


def photograph(label: int, seed: int) -> Image.Image:
    """Return 12 bits of noise, brighter on the left for one class and on the right for another."""
    values = np.random.default_rng(seed).integers(0, 2000, (12, 20))
    values[:, 10 * label : 10 * label + 10] += 2000
    return Image.fromarray(values.astype(np.uint16))


def put_photographs(folder: Path, count: int, first_seed: int = 0) -> None:
    for label, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = photograph(label, first_seed + 1000 * label + number)
            image.save(folder / name / f"{number}.png")


def make_run(folder: Path, storage: Path, **more: Any) -> Run:
    """Train two tiny trials on a folder, as a search would."""
    asked = DataConfig(source=str(folder), image_size=8, resize="auto", val_fraction=0.3, **more)
    splits = load_splits(asked, storage / "data")
    assert splits.config is not None
    record = record_of(
        splits,
        splits.config,
        storage / "data",
        name="photos",
        command="",
        space="tiny.yaml",
        search=SearchConfig(trials=2, epochs=1, grace=1),
        hardware={"threads_per_trial": 1},
        status="finished",
    )
    run = Run.create(storage / "photos", record, "space: {model: {cnn: {}}}\n")
    for number in range(2):
        model = ModelConfig("cnn", {"stages": 1, "blocks": 1, "width": 8})
        config = TrialConfig(model=model, epochs=1, seed=number, batch_size=16)
        train_trial(run.trial_path(number), config, splits)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of training images alone."""
    put_photographs(tmp_path / "images" / "train", 30)
    return tmp_path / "images"


@pytest.fixture
def tested_folder(folder: Path) -> Path:
    """Return the folder with test images, too."""
    put_photographs(folder / "test", 10, first_seed=500)
    return folder


def combine(run: Run, said: list[str] | None = None, **asked: Any) -> EnsembleResult:
    say = (lambda message: None) if said is None else said.append
    request = EnsembleRequest(top=2, **asked)
    with planning(run, request, devices=[CPU], say=say) as plan:
        return make_ensemble(plan, say=say)


def mistakes(result: EnsembleResult) -> list[dict[str, str]]:
    with (result.path / "mistakes" / "mistakes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["vote", "soup"])
def test_without_test_images_figures_are_cross_fitted_and_said_to_be(
    folder: Path, tmp_path: Path, method: str
) -> None:
    run = make_run(folder, tmp_path)
    said: list[str] = []
    request = EnsembleRequest(top=2, method=method, compare=True, frontier=method == "vote")  # type: ignore[arg-type]
    with planning(run, request, devices=[CPU]) as plan:
        result = make_ensemble(plan, say=said.append)
        expected = score(plan.choice.crossfit, plan.pool.labels)
    assert result.ensemble.test == result.ensemble.crossfit == expected
    assert not result.has_test
    assert result.test_images == run.record.num_val
    assert any("no test images" in line for line in said)
    assert not (run.path / "test_readings.jsonl").exists()
    for row in mistakes(result):
        assert Path(row["path"]).is_file()
        assert row["true"] == Path(row["path"]).parent.name


def test_without_test_images_no_figure_is_called_one_of_test(folder: Path, tmp_path: Path) -> None:
    make_run(folder, tmp_path)
    words = ["ensemble", "--top", "2", "--storage", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(cli, [*words, "--run", "photos"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "No test images." in result.stdout
    assert "Held-out gain over trial" in result.stdout
    assert " test" not in result.stdout.replace("No test images", "")
    report = CliRunner().invoke(cli, ["report", "photos", "--storage", str(tmp_path)])
    assert report.exit_code == 0, report.output
    page = (tmp_path / "photos" / "report.html").read_text()
    assert "There are no test images." in page
    assert "Held-out accuracy of each class" in page


def test_an_ensemble_prepares_images_as_they_were_prepared(
    tested_folder: Path, tmp_path: Path
) -> None:
    run = make_run(tested_folder, tmp_path)
    result = combine(run)
    described = json.loads((result.path / "ensemble.json").read_text())["preprocessing"]
    assert (described["resize"], described["black"], described["white"]) == ("crop", 0, WHITE)
    card = (result.path / "model_card.md").read_text()
    assert "values 0 to 4095 of images deeper than 8 bits become 0 to 255" in card
    ensemble = read_ensemble(result.path, CPU)
    files = sorted((tested_folder / "test").rglob("*.png"))
    probs = ensemble.predict(files)
    truth = [ensemble.classes.index(path.parent.name) for path in files]
    assert (probs.argmax(axis=1) == truth).mean() == pytest.approx(result.ensemble.test.accuracy)
    pictures = [Image.open(path) for path in files]
    np.testing.assert_allclose(ensemble.predict(pictures), probs, atol=1e-6)
    bright = Image.fromarray(np.full((9, 9), 60_000, dtype=np.uint16))
    bright.save(tmp_path / "bright.png")
    with pytest.warns(UserWarning, match=r"bright\.png: has values beyond .* 0 to 4095"):
        ensemble.predict(tmp_path / "bright.png")


def test_mistakes_name_the_users_own_files(tested_folder: Path, tmp_path: Path) -> None:
    run = make_run(tested_folder, tmp_path)
    # Labels that no network can guess.
    one, other = (tested_folder / "test" / name / "3.png" for name in ("left", "right"))
    one.rename(tmp_path / "aside.png")
    other.rename(one)
    (tmp_path / "aside.png").rename(other)
    rows = mistakes(combine(run))
    assert rows
    for row in rows:
        assert Path(row["path"]).is_relative_to(tested_folder / "test")
        assert Path(row["path"]).parent.name == row["true"]


def test_test_images_that_changed_between_readings_are_told(
    tested_folder: Path, tmp_path: Path
) -> None:
    run = make_run(tested_folder, tmp_path)
    said: list[str] = []
    combine(run, said)
    combine(run, said)
    assert not any("have changed" in line for line in said)
    photograph(0, 77).save(tested_folder / "test" / "left" / "0.png")
    combine(run, said)
    assert sum("test images have changed since an earlier reading" in line for line in said) == 1


def test_images_that_moved_are_found_where_they_are_said_to_be(
    tested_folder: Path, tmp_path: Path
) -> None:
    run = make_run(tested_folder, tmp_path)
    before = combine(run)
    place = tested_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"unknown dataset .* name their new place with --data"):
        combine(run)
    after = combine(run, data=str(place), data_dir=tmp_path / "other-data")
    assert after.ensemble == before.ensemble
    words = ["rerun", "photos", "0", "--storage", str(tmp_path), "--data", str(place), "--json"]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert json.loads(result.stdout)["epochs"][0]["same"]
    with pytest.raises(DataError, match="unknown dataset"):
        list(rerun(run, 0, CPU))

    put_photographs(tmp_path / "others" / "train", 30, first_seed=99)
    with pytest.raises(DataError, match=r"are not the images that .* was trained on"):
        combine(run, data=str(tmp_path / "others"))


@pytest.mark.ray
def test_a_search_says_what_it_found_and_goes_on_where_the_images_moved(
    session: None, tmp_path: Path
) -> None:
    put_photographs(tmp_path / "photos" / "train", 20)
    (tmp_path / "photos" / "train" / "left" / "torn.png").write_bytes(b"")
    space = tmp_path / "space.yaml"
    space.write_text(
        "dataset: {source: PHOTOS, image_size: 8, val_fraction: 0.25}\n"
        "search: {trials: 1, epochs: 1, grace: 1}\n"
        "space: {batch_size: 8, model: {cnn: {stages: 1, width: 8}}}\n"
    )

    def invoke(*words: str) -> Any:
        at = ("--storage", str(tmp_path), "--data-dir", str(tmp_path / "data"))
        return CliRunner().invoke(cli, ["search", *words, "--name", "run", *at])

    asked = ("--space", str(space), "--data", str(tmp_path / "photos"))
    refused = invoke(*asked)
    assert isinstance(refused.exception, DataError)
    assert "torn.png: cannot be read as an image" in str(refused.exception)
    first = invoke(*asked, "--skip-broken")
    assert first.exit_code == 0, first.output
    assert "torn.png" in first.stderr
    assert "values from 0 to 4095 are scaled to 8 bits" in first.stderr
    data = Run.open(tmp_path / "run").record.data
    assert (data.resize, data.white, data.val_fraction) == ("crop", WHITE, 0.25)
    assert (data.image_size, data.skip_broken) == (8, True)
    assert Run.open(tmp_path / "run").record.num_val == 10

    (tmp_path / "photos").rename(tmp_path / "moved")
    lost = invoke("--resume", "search.trials=2")
    assert "name their new place with --data" in str(lost.exception)
    second = invoke("--resume", "search.trials=2", "--data", str(tmp_path / "moved"))
    assert second.exit_code == 0, second.output
    run = Run.open(tmp_path / "run")
    assert len(run.trials()) == 2
    assert run.record.data.source == str(tmp_path / "moved")
    assert invoke("--resume", "search.trials=3").exit_code == 0
    changed = invoke("--resume", "search.trials=4", "--resize", "pad")
    assert "the images of" in str(changed.exception)


def test_without_test_images_nothing_fitted_to_them_is_held_out(
    folder: Path, tmp_path: Path
) -> None:
    run = make_run(folder, tmp_path)
    result = combine(run, method="greedy", compare=True)
    assert result.by_size == ()
    assert {member.contribution for member in result.members} == {None}
    single = result.best_single_figures
    assert single.test == single.crossfit
    (row,) = (r for r in result.comparison if r.method == "best single" and not r.calibrated)
    assert row.figures == single
    assert result.verdict is not None
    assert result.gain.over_best_single == result.verdict.asked.gain
    for method, is_told in (("greedy", False), ("auto", True)):
        card = (combine(run, method=method).path / "model_card.md").read_text()
        assert ("The method (auto) was chosen on all of them." in card) is is_told


def test_images_that_were_trained_on_are_not_held_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    result = combine(make_run(folder, tmp_path, all_data=True), said)
    assert result.tested_on == "training"
    assert not [line for line in said if "made without it" in line]
    card = (result.path / "model_card.md").read_text()
    assert "held-out" not in card
    print_ensemble(result.path, is_whole=True)
    shown = capsys.readouterr().out
    # Nothing was chosen by these images: no trial is the best.
    assert not [word for word in ("chosen by.", "for choosing", "best single") if word in card]
    assert "first, trial 0" in card
    assert "best single" not in shown
    assert "first: 0" in shown
