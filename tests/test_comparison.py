"""Runs side by side: the figures are the runs', and one that trained on other images is told of."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import Call
from tests.test_tuner import World
from tuner.report.comparison import compare, differences, verdict
from tuner.run.run import Run
from tuner.run.trial import write_history
from tuner.tuning.resources import TrialResources


def search(storage: Path, name: str, *accuracies: list[float], gpus: float = 0.5) -> Run:
    """Leave a run of one trial for each list of accuracies."""
    world = World(storage)
    tuner = world.tuner()
    tuner.resources_of = lambda config: TrialResources(cpus=1, gpus=gpus)
    for curve in accuracies:
        worker = world.begin(tuner)
        if all([worker.step(accuracy) for accuracy in curve]):
            worker.finish()
    world.run.path.rename(storage / name)
    run = Run.open(storage / name)
    run.update(name=name, status="finished")
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    one = search(tmp_path, "one", [0.3, 0.5, 0.6, 0.6], [0.7, 0.8, 0.9, 0.85])
    return [one, search(tmp_path, "two", [0.4, 0.5, 0.5, 0.6])]


def test_a_run_is_told_with_what_it_spent_and_its_best(runs: list[Run]) -> None:
    first, second = compare(runs)
    assert (first["best"], first["best_trial"], first["epochs"]) == (0.9, 1, 8)
    assert (second["best"], second["trials"]) == (0.6, 1)
    # 8 epochs of 2 s on half a GPU.
    assert first["gpu_hours"] == pytest.approx(8 / 3600)
    assert first["best_so_far"][-1][1] == pytest.approx(8 / 3600)
    assert [best for _, _, best in first["best_so_far"]] == [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9]


def test_the_verdict_names_the_leader_whatever_the_order(runs: list[Run]) -> None:
    expected = "one leads: 90.00\N{NO-BREAK SPACE}% validation, 30.00 ahead of two"
    assert verdict(compare(runs)) == verdict(compare(runs[::-1])) == expected


def test_runs_by_different_metrics_are_shown_by_accuracy_unless_one_is_named(
    runs: list[Run],
) -> None:
    runs[0].update(search=replace(runs[0].record.search, metric="nll"))
    other = Run.open(runs[0].path)
    mixed = compare([other, runs[1]])
    assert [run["metric"] for run in mixed] == ["accuracy", "accuracy"]
    # Every epoch has the same loss: the first one of trial 1 that is the most accurate is kept.
    assert mixed[0]["best"] == 0.9
    assert "one by nll, two by accuracy. All are shown by accuracy" in differences(mixed)
    assert verdict(mixed).startswith("one leads: 90.00")
    by_loss = compare([other, runs[1].by("nll")])
    assert [run["metric"] for run in by_loss] == ["nll", "nll"]
    assert [run["best"] for run in by_loss] == [1.0, 1.0]
    assert verdict(by_loss) == "one leads: 1.0000 validation NLL, 0.0000 ahead of two"


def test_by_another_metric_the_curve_ends_at_the_best_that_is_kept(runs: list[Run]) -> None:
    for run in runs:
        for trial in run.trials():
            # The lowest loss is that of the first epoch, whose weights are gone.
            losses = [0.1, *(0.5 + 0.1 * row.epoch for row in trial.history[1:])]
            rows = zip(trial.history, losses, strict=True)
            write_history(trial.path, [replace(row, val_loss=loss) for row, loss in rows])
    for told in compare([run.by("nll") for run in runs]):
        assert told["best"] > 0.1
        assert told["best_so_far"][-1][2] == told["best"]
        assert told["best_so_far"][-1][0] == told["epochs"]


def test_other_images_are_told_of_and_no_run_leads(runs: list[Run]) -> None:
    assert differences(compare(runs)) == ""
    runs[1].update(split_fingerprint="other")
    assert "differ in the images" in differences(compare(runs))
    assert verdict(compare(runs)) == "2 runs on different images"


def test_other_images_that_are_divided_alike_are_told_of(runs: list[Run]) -> None:
    runs[1].update(data_fingerprint="other")
    assert "differ in the images" in differences(compare(runs))
    assert verdict(compare(runs)) == "2 runs on different images"
    # Prepared differently, they may be the same.
    runs[1].update(data=replace(runs[1].record.data, image_size=16))
    assert differences(compare(runs)) == ""
    assert verdict(compare(runs)).startswith("one leads")


def test_runs_that_trained_on_their_validation_images_are_not_comparable(runs: list[Run]) -> None:
    for run in runs:
        run.update(data=replace(run.record.data, all_data=True))
    assert differences(compare(runs)).startswith("Not comparable: one, two trained on the")
    assert verdict(compare(runs)) == "2 runs that are not comparable"
    runs[0].update(data=replace(runs[0].record.data, all_data=False))
    assert differences(compare(runs)).startswith("Not comparable: two trained on the")


def test_the_command_prints_a_row_a_run_a_document_or_a_page(runs: list[Run], call: Call) -> None:
    storage = runs[0].path.parent
    page = storage / "side.html"
    command = ["compare", "one", "two", "--storage", str(storage)]
    code, table, err = call(*command, "--html", str(page))
    assert code == 0, err
    assert re.search(r"one +0\.9000 +cnn +2 +8 ", table)
    # The longest curve is as wide as the table gives it; half the epochs, half as wide.
    widths = [max(map(len, re.findall("[▁-█]+", line))) for line in table.splitlines()[1:3]]
    assert widths == [16, 8]
    text = page.read_text()
    assert "one leads" in text
    assert "default-src 'none'" in text
    assert "Charts need JavaScript, which is off here.</p>" in text
    code, out, err = call(*command, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [run["run"] for run in document["runs"]] == ["one", "two"]
    code, _, err = call("compare", "one", "--storage", str(storage))
    assert code == 2
    assert "two runs or more" in err


@pytest.mark.parametrize("width", [80, 140])
def test_a_comparison_fits_its_terminal(
    runs: list[Run], width: int, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.cli.output.make_console", lambda: Console(width=width))
    code, table, err = call("compare", *(str(run.path) for run in runs))
    assert code == 0, err
    assert all(len(line) <= width for line in table.splitlines())
    assert "over epochs" in table
    assert ("over GPU-hours" in table) == (width == 140)


def test_a_run_without_a_gpu_has_no_place_over_gpu_hours(tmp_path: Path, call: Call) -> None:
    one = search(tmp_path, "one", [0.3, 0.5, 0.6, 0.6])
    two = search(tmp_path, "two", [0.4, 0.5, 0.5, 0.6], gpus=0)
    page = tmp_path / "page.html"
    code, out, err = call("compare", str(one.path), str(two.path), "--html", str(page))
    assert code == 0, err
    lines = out.splitlines()
    assert len(re.findall("[▁-█]+", lines[1])) == 2
    assert re.search(r" - +0:00:\d\d +[▁-█]+ +-$", lines[2].rstrip())
    assert "Over GPU-hours without two: no trial held a GPU there." in page.read_text()


def test_a_copied_run_is_told_by_its_folder(runs: list[Run]) -> None:
    names = [run.path.name for run in runs]
    runs[1].update(name=runs[0].record.name)
    assert [run["run"] for run in compare(runs)] == names
