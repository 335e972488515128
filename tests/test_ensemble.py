"""An ensemble of a real run: its folder, its arithmetic, and one reading of the test images."""

import csv
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tuner.config import Method, TrialConfig
from tuner.data.cache import Images
from tuner.data.datasets import DatasetPart
from tuner.data.splits import Splits, load_test
from tuner.deploy.predictor import read_ensemble
from tuner.ensemble import make_ensemble, planning
from tuner.ensemble.folder import _write_mistakes
from tuner.ensemble.request import EnsembleRequest
from tuner.ensemble.result import EnsembleResult, _gain
from tuner.errors import NoUsableTrials, StorageError, TunerError, UsageError
from tuner.metrics.predict import confusion_matrix, predict_probs, score
from tuner.metrics.significance import NO_GAIN, paired_gain
from tuner.report.ensembles import MOST_IMAGE_BYTES
from tuner.run.checkpoint import load_checkpoint
from tuner.run.layout import DIGESTS
from tuner.run.run import Run
from tuner.run.trial import write_status, write_val_probs
from tuner.training.device import compute_dtype
from tuner.voting.temperature import soften

CPU = torch.device("cpu")
NUM_TEST = 359
FILES = {
    "ensemble.json",
    "metrics.json",
    "model_card.md",
    "probe.safetensors",
    "confusion.csv",
    "confusion.png",
    "reliability.png",
    "members",
    "mistakes",
}


def ensemble(run: Run, top: int = 3, name: str = "all", **asked: Any) -> EnsembleResult:
    request = EnsembleRequest(top=top, name=name, **asked)
    with planning(run, request, devices=[CPU]) as plan:
        return make_ensemble(plan)


@pytest.fixture(scope="module")
def run(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a copy of ``trained_run``, to be read alone; ``result`` is in it."""
    folder = tmp_path_factory.mktemp("combined") / "tiny"
    shutil.copytree(trained_run.path, folder)
    return Run.open(folder)


@pytest.fixture(scope="module")
def result(run: Run) -> EnsembleResult:
    """Return an ensemble of all three trials, to be read alone."""
    return ensemble(run)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def readings(run: Run) -> list[dict[str, Any]]:
    path = run.path / "test_readings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def held_out_images_of(run: Run) -> Images:
    return load_test(run.record.data, Path(run.record.data_dir)).images


def probs_of(checkpoint: Path, config: TrialConfig, images: Tensor) -> Tensor:
    """Return one member's probabilities from its file alone."""
    network, described = load_checkpoint(checkpoint, config.model)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (described.mean, described.std))
    dtype = compute_dtype(config.precision, CPU)
    return predict_probs(network, images, mean, std, device=CPU, dtype=dtype)


# The folder


def test_the_folder_holds_all_that_the_vote_needs(run: Run, result: EnsembleResult) -> None:
    assert result.path == run.path / "ensembles" / "all"
    assert {path.name for path in result.path.iterdir()} == FILES
    described = read(result.path / "ensemble.json")
    assert described["classes"] == list("0123456789")
    assert described["run"] == "tiny"
    assert sum(member["weight"] for member in described["members"]) == pytest.approx(1, abs=1e-15)
    files = {member["file"] for member in described["members"]}
    assert files == {f"members/{path.name}" for path in (result.path / "members").iterdir()}


def test_the_hashes_are_those_of_the_files_and_of_the_checkpoints(
    run: Run, result: EnsembleResult
) -> None:
    for member in read(result.path / "ensemble.json")["members"]:
        content = (result.path / member["file"]).read_bytes()
        assert member["sha256"] == hashlib.sha256(content).hexdigest()
        assert content == run.trial(member["trial"]).checkpoint.read_bytes()


def test_the_metrics_are_those_of_the_result(result: EnsembleResult) -> None:
    metrics = read(result.path / "metrics.json")
    assert metrics == result.to_plain()
    assert metrics["ensemble"]["test"] == dataclasses.asdict(result.ensemble.test)
    assert metrics["test_images"] == NUM_TEST


def test_the_confusion_matrix_is_written_with_its_classes(result: EnsembleResult) -> None:
    with (result.path / "confusion.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [row[0] for row in rows] == list("0123456789")
    assert [[int(cell) for cell in row[1:]] for row in rows] == result.confusion.tolist()


def test_a_second_ensemble_of_the_name_replaces_the_first(finished_run: Run) -> None:
    first = ensemble(finished_run)
    (first.path / "stray").touch()
    second = ensemble(finished_run, top=1)
    assert second.path == first.path
    assert {path.name for path in second.path.iterdir()} == FILES
    assert len(list((second.path / "members").iterdir())) == 1
    assert [path.name for path in (finished_run.path / "ensembles").iterdir()] == ["all"]


def test_ensembles_of_other_names_stay(finished_run: Run) -> None:
    paths = {ensemble(finished_run, top=2, name=name).path.name for name in ("a", "räv 2")}
    assert paths == {path.name for path in (finished_run.path / "ensembles").iterdir()}


def test_the_trials_are_left_as_they_were(finished_run: Run) -> None:
    def contents() -> dict[Path, bytes]:
        files = (finished_run.path / "trials").rglob("*")
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = contents()
    ensemble(finished_run)
    assert contents() == before


def test_the_mistakes_are_real_images_the_surest_first(run: Run, result: EnsembleResult) -> None:
    images = held_out_images_of(run)
    with (result.path / "mistakes" / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    num_wrong = result.test_images - int(result.confusion.trace())
    assert len(rows) == min(24, num_wrong) > 0
    assert {row["file"] for row in rows} | {"mistakes.csv"} == {
        path.name for path in (result.path / "mistakes").iterdir()
    }
    for row in rows:
        index = int(row["index"])
        with Image.open(result.path / "mistakes" / row["file"]) as image:
            assert np.array_equal(np.asarray(image), images.images[index, 0].numpy())
        assert row["true"] == str(int(images.labels[index])) != row["predicted"]
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)


def test_a_mistake_is_kept_as_a_small_picture(tmp_path: Path) -> None:
    images = torch.randint(256, (24, 3, 256, 256), dtype=torch.uint8)
    part = DatasetPart(
        images=Images(images=images, labels=torch.zeros(24, dtype=torch.int64)),
        classes=("a", "b"),
        fingerprint="",
    )
    vote = torch.tensor([[0.2, 0.8]]).expand(24, 2)
    _write_mistakes(tmp_path, part, vote, part.classes)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 24
    with Image.open(pictures[0]) as picture:
        assert picture.size == (128, 128)
    # Even noise fits.
    assert sum(file.stat().st_size for file in pictures) < MOST_IMAGE_BYTES


def test_the_metrics_hold_all_that_a_report_reads(finished_run: Run) -> None:
    metrics = read(ensemble(finished_run, frontier=True).path / "metrics.json")
    keys = "path run name method test_images classes temperature ensemble members left_out"
    keys += " best_single mean_member gain by_size per_class reliability coverage oracle"
    assert {*keys.split(), "disagreement", "error_correlation", "frontier"} <= metrics.keys()
    scores = {"accuracy", "nll", "brier", "ece"}
    for figures in (metrics["ensemble"].values(), metrics["mean_member"].values()):
        assert all(scores <= entry.keys() for entry in figures)
    assert set(metrics["ensemble"]) == {"val", "crossfit", "test"}
    member = {"trial", "family", "weight", "temperature", "val", "test", "contribution"}
    assert all(set(entry) == member for entry in metrics["members"])
    gain = {"over_best_single", "over_mean_member", "level", "mcnemar_p"}
    assert set(metrics["gain"]) == gain
    assert [set(entry) for entry in metrics["per_class"]] == [{"class", "accuracy", "count"}] * 10
    assert len(metrics["disagreement"]) == len(metrics["error_correlation"]) == 3


# The members


@pytest.mark.parametrize("top", [1, 2, 3])
def test_members_are_the_best_by_validation_best_first(finished_run: Run, top: int) -> None:
    accuracies = {
        trial.number: trial.best.val_accuracy for trial in finished_run.trials() if trial.best
    }
    best = sorted(accuracies, key=lambda number: -accuracies[number])[:top]
    members = ensemble(finished_run, top=top).members
    assert [member.trial for member in members] == best
    assert [member.weight for member in members] == [1 / top] * top


def test_the_figures_of_a_member_are_those_of_its_training(
    run: Run, result: EnsembleResult
) -> None:
    for member in result.members:
        best = run.trial(member.trial).best
        assert best is not None
        assert (member.val.accuracy, member.val.nll) == (best.val_accuracy, best.val_loss)


# The vote


def test_the_vote_is_the_mean_of_what_the_members_say(run: Run, result: EnsembleResult) -> None:
    images = held_out_images_of(run)
    files = sorted((result.path / "members").iterdir())
    configs = [run.trial(int(file.stem)).config for file in files]
    probs = [probs_of(f, c, images.images) for f, c in zip(files, configs, strict=True)]
    mean = torch.stack(probs).mean(dim=0)
    assert torch.equal(result.confusion, confusion_matrix(mean, images.labels, 10))
    expected = dataclasses.astuple(score(mean, images.labels))
    assert dataclasses.astuple(result.ensemble.test) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["vote", "greedy", "weighted"])
@pytest.mark.parametrize("calibrate", [False, True])
def test_the_folder_alone_gives_the_vote(
    finished_run: Run, method: Method, calibrate: bool
) -> None:
    result = ensemble(finished_run, method=method, calibrate=calibrate)
    described = read(result.path / "ensemble.json")
    images = held_out_images_of(finished_run)
    vote = torch.zeros(NUM_TEST, 10, dtype=torch.float64)
    for member in described["members"]:
        config = finished_run.trial(member["trial"]).config
        probs = probs_of(result.path / member["file"], config, images.images)
        vote += member["weight"] * soften(probs, member["temperature"])
    expected = dataclasses.astuple(score(soften(vote, described["temperature"]), images.labels))
    assert dataclasses.astuple(result.ensemble.test) == pytest.approx(expected, abs=1e-6)
    assert result.by_size[-1].accuracy == result.ensemble.test.accuracy
    temperatures = [member["temperature"] for member in described["members"]]
    assert temperatures == [member.temperature for member in result.members]


def test_each_member_is_scored_alone(run: Run, result: EnsembleResult) -> None:
    images = held_out_images_of(run)
    for member in result.members:
        trial = run.trial(member.trial)
        probs = probs_of(trial.checkpoint, trial.config, images.images)
        assert member.test == score(probs, images.labels)


def test_the_validation_figure_is_that_of_the_stored_probabilities(
    run: Run, result: EnsembleResult, digits: Splits
) -> None:
    stored = [torch.from_numpy(trial.val_probs()) for trial in run.trials()]
    expected = score(torch.stack(stored).mean(dim=0), digits.val.labels)
    assert dataclasses.astuple(result.ensemble.val) == pytest.approx(
        dataclasses.astuple(expected), abs=1e-6
    )


def test_members_of_earlier_versions_have_the_same_floor_on_validation_and_test(
    finished_run: Run,
) -> None:
    """They kept float16 probabilities, where 2**-25 and less is 0."""
    for trial in finished_run.trials()[:2]:
        write_val_probs(trial.path, trial.val_probs().astype(np.float16))
        (trial.path / DIGESTS).unlink()
    old = {trial.number for trial in finished_run.trials()[:2]}
    with planning(
        finished_run, EnsembleRequest(top=3, name="mixed", calibrate=True), devices=[CPU]
    ) as plan:
        result = make_ensemble(plan)
    images = held_out_images_of(finished_run)
    described = {
        member["trial"]: member for member in read(result.path / "ensemble.json")["members"]
    }
    assert len(described) == 3
    for position, member in enumerate(result.members):
        trial = finished_run.trial(member.trial)
        expected = probs_of(trial.checkpoint, trial.config, images.images)
        stored = plan.pool.probs[position]
        if member.trial in old:
            assert described[member.trial]["floor"] == 2**-25
            assert stored.min() >= 0.99 * 2**-25
            expected = expected.clamp(min=2**-25)
            expected /= expected.sum(dim=1, keepdim=True)
        else:
            assert described[member.trial]["floor"] == 0
            assert torch.equal(stored, torch.from_numpy(trial.val_probs()))
        assert member.test == score(expected, images.labels)
    loaded = read_ensemble(result.path, CPU)
    probs = loaded.predict(images.images.permute(0, 2, 3, 1).numpy())
    assert score(torch.from_numpy(probs), images.labels).nll == pytest.approx(
        result.ensemble.test.nll, abs=0.02
    )


def test_the_confusion_matrix_counts_every_test_image_once(
    run: Run, result: EnsembleResult
) -> None:
    assert result.confusion.sum() == NUM_TEST
    assert result.confusion.trace() / NUM_TEST == pytest.approx(result.ensemble.test.accuracy)
    labels = held_out_images_of(run).labels
    assert torch.equal(result.confusion.sum(dim=1), labels.bincount(minlength=10))


def test_the_gain_is_over_the_best_member_by_validation(result: EnsembleResult) -> None:
    expected = result.ensemble.test.accuracy - result.members[0].test.accuracy
    gain = result.gain.over_best_single
    assert gain.gain == pytest.approx(expected)
    assert gain.low <= gain.gain <= gain.high


def test_an_ensemble_of_one_is_that_member(finished_run: Run) -> None:
    result = ensemble(finished_run, top=1)
    (member,) = result.members
    assert member.weight == 1
    assert member.test == result.ensemble.test
    assert member.val == result.ensemble.val
    assert dataclasses.astuple(result.gain.over_best_single) == (0, 0, 0)
    assert result.gain.over_mean_member == result.gain.over_best_single


def test_a_network_gains_nothing_over_itself_unless_cross_fitting_chose_others() -> None:
    right = torch.arange(10) < 7
    assert _gain(right, right, is_same=True) == NO_GAIN
    assert _gain(right, right.flip(0), is_same=True) == paired_gain(right, right.flip(0))
    assert _gain(right, right, is_same=False) == paired_gain(right, right)


def test_the_same_call_gives_the_same_figures(finished_run: Run) -> None:
    assert ensemble(finished_run).to_plain() == ensemble(finished_run).to_plain()


# The readings of the test images


def test_every_call_enters_one_reading(finished_run: Run) -> None:
    assert readings(finished_run) == []
    result = ensemble(finished_run, top=2, name="pair")
    (reading,) = readings(finished_run)
    assert reading["by"] == "ensemble"
    assert reading["name"] == "pair"
    assert reading["trials"] == [member.trial for member in result.members]
    test = load_test(finished_run.record.data, Path(finished_run.record.data_dir))
    assert reading["fingerprint"] == test.fingerprint
    ensemble(finished_run, top=2, name="pair")
    assert len(readings(finished_run)) == 2


def assert_nothing_was_read(run: Run) -> None:
    assert readings(run) == []
    assert not (run.path / "ensembles").exists()


def test_a_reading_that_cannot_be_entered_gives_no_figures(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Who is root may write anywhere.
    monkeypatch.setattr("tuner.run.run.append_line", refuse)
    with pytest.raises(StorageError, match=r"test_readings\.jsonl: cannot be written"):
        ensemble(finished_run)
    assert_nothing_was_read(finished_run)


def test_more_members_than_trials_read_no_test_image(finished_run: Run) -> None:
    with pytest.raises(UsageError, match="only 3 usable") as caught:
        ensemble(finished_run, top=4)
    assert caught.value.exit_code == 2
    assert_nothing_was_read(finished_run)


def test_a_run_without_usable_trials_reads_no_test_image(finished_run: Run) -> None:
    for trial in finished_run.trials():
        write_status(trial.path, dataclasses.replace(trial.status, state="failed", stop=None))
    with pytest.raises(NoUsableTrials):
        ensemble(finished_run, top=1)
    assert_nothing_was_read(finished_run)


@pytest.mark.parametrize("changed", ["data_fingerprint", "split_fingerprint"])
def test_other_images_than_the_run_had_are_refused(finished_run: Run, changed: str) -> None:
    finished_run.update(**{changed: "0" * 64})
    with pytest.raises(UsageError, match="fingerprint") as caught:
        ensemble(finished_run)
    assert caught.value.exit_code == 2
    assert_nothing_was_read(finished_run)


def test_a_member_that_goes_after_the_choice_reads_no_test_image(finished_run: Run) -> None:
    with planning(finished_run, EnsembleRequest(top=2), devices=[CPU]) as plan:
        plan.pool.trials[1].checkpoint.unlink()
        with pytest.raises(TunerError, match="checkpoint"):
            make_ensemble(plan)
    assert_nothing_was_read(finished_run)


@pytest.mark.parametrize("name", ["", ".", "..", "../../tiny", "a/b", "a/", "/", ".hidden"])
def test_a_name_that_leads_elsewhere_removes_nothing(finished_run: Run, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        ensemble(finished_run, name=name)
    assert_nothing_was_read(finished_run)
    assert Run.open(finished_run.path).record == finished_run.record
