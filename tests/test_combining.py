"""The ``ensemble`` command: what it prints, and that it fits a terminal."""

import json
import sys
from typing import Any

import pytest

import tuner.ensemble
from tuner.cli import ensemble, main
from tuner.ensemble import latency
from tuner.ensemble.request import METHODS
from tuner.run.run import Run


@pytest.fixture
def call(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Return a function that combines the run with some options and returns code, out and err."""

    def type_options(*words: str) -> tuple[int, str, str]:
        line = ["cifar-tune", "ensemble", "--storage", str(finished_run.path.parent), *words]
        monkeypatch.setattr(sys, "argv", line)
        monkeypatch.chdir(finished_run.path.parent)
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return type_options


def test_the_command_offers_every_method() -> None:
    assert tuple(ensemble.METHODS) == METHODS


def test_members_gain_and_the_left_out_are_shown(call: Any) -> None:
    code, out, err = call("--top", "2", "--device", "cpu")
    assert code == 0, err
    assert "tiny: vote of 2" in out
    assert "over the best single, trial 1" in out
    assert "McNemar p" in out
    assert "below the top 2 by validation accuracy" in out
    assert "Ensemble: tiny/ensembles/top2" in out
    assert "Next, with --ensemble tiny/ensembles/top2:\n  cifar-tune predict IMAGE...\n" in out
    assert err == "reading the test images: 359, by networks: 2\n"


@pytest.mark.parametrize("words", [["--compare", "--calibrate"], ["--frontier"], ["--dry-run"]])
def test_what_is_shown_fits_80_columns(call: Any, words: list[str]) -> None:
    code, out, err = call("--top", "3", *words)
    assert code == 0, err
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_a_frontier_of_the_first_members_alone_says_so(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "Only the first 2 of 3 members were combined."
    _, out, _ = call("--top", "3", "--frontier")
    assert note not in out
    for module in (latency, tuner.ensemble):
        monkeypatch.setattr(module, "MOST_COMBINED", 2)
    _, out, err = call("--top", "3", "--frontier")
    assert note in out
    assert "timing members on cpu: 2\n" in err


def test_a_dry_run_reads_no_test_image(call: Any, finished_run: Run) -> None:
    code, out, _ = call("--top", "2", "--dry-run", "--compare", "--json")
    assert code == 0
    document = json.loads(out)
    asked, single, *others = document["choices"]
    assert asked["method"] == "vote"
    assert [member["weight"] for member in asked["members"]] == [0.5, 0.5]
    assert single["val"]["accuracy"] >= single["crossfit"]["accuracy"]
    assert {choice["method"] for choice in others} == {"best single", *METHODS}
    assert document["left_out"]
    assert not (finished_run.path / "test_readings.jsonl").exists()
    assert not (finished_run.path / "ensembles").exists()
    assert not list(finished_run.path.glob(".ensemble-*"))


def test_an_ensemble_is_named_after_how_it_was_made(call: Any, finished_run: Run) -> None:
    call("--top", "2", "--method", "greedy", "--calibrate", "--tta", "flip", "--json")
    assert [path.name for path in (finished_run.path / "ensembles").iterdir()] == [
        "greedy2-calibrated-flip"
    ]
