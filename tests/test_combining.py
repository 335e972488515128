"""The ``ensemble`` command: what it prints, and that it fits a terminal."""

import json
import re
import shutil
from pathlib import Path

import pytest

import tuner.ensemble
from tests.conftest import Call
from tuner.cli.ensemble_tables import print_ensemble
from tuner.ensemble import latency
from tuner.ensemble.request import METHODS, EnsembleRequest
from tuner.run.run import Run


@pytest.fixture
def combine(call: Call, finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that combines the run with some options."""
    storage = finished_run.path.parent
    monkeypatch.chdir(storage)
    return lambda *words: call("ensemble", "--storage", str(storage), *words)


def test_the_verdict_comes_first_and_all_fits_a_terminal(combine: Call) -> None:
    code, out, err = combine("--top", "2", "--device", "cpu")
    assert code == 0, err
    assert out.startswith("tiny: vote of 2\nThe vote of 2 ")
    assert "cross-fitted" in out
    assert "Test gain over trial 1, in points: " in out
    assert "below the top 2 by validation accuracy" not in out
    assert "\n  cifar-tune predict IMAGE... --ensemble tiny/ensembles/top2\n" in out
    assert err.endswith("Reading 359 test images with 2 networks\n")
    assert len((err + out).splitlines()) <= 24
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_all_tables_are_printed_when_asked_for_and_shown_later(combine: Call, call: Call) -> None:
    _, out, _ = combine("--top", "2", "--verbose")
    assert "below the top 2 by validation accuracy" in out
    assert "The first members together" in out
    assert "true \\ predicted, test images" in out
    assert call("show", "tiny/ensembles/top2").out == out


def test_auto_takes_what_the_verdict_advises(combine: Call, finished_run: Run) -> None:
    _, out, _ = combine("--top", "3", "--method", "auto", "--json")
    document = json.loads(out)
    verdict = document["verdict"]
    assert verdict["advised"] == verdict["asked"] | {"method": verdict["advised"]["method"]}
    assert document["method"] == (verdict["advised"]["method"] or "vote")
    assert document["name"] == "auto3"
    assert len(document["members"]) == verdict["advised"]["num_members"]
    assert verdict["text"].endswith("Take it.")


def test_by_nll_the_verdict_goes_by_nll_and_what_is_next_does_so_too(combine: Call) -> None:
    _, out, _ = combine("--top", "3", "--metric", "nll", "--json")
    verdict = json.loads(out)["verdict"]
    assert "NLL" in verdict["text"]
    assert verdict["asked"]["metric"] == "nll"
    assert verdict["asked"]["value"] == verdict["asked"]["nll"]
    _, out, _ = combine("--top", "3", "--metric", "nll")
    is_taken = verdict["text"].endswith("Take it.")
    advice = [line for line in out.splitlines() if " ensemble --top " in line]
    assert is_taken or (len(advice) == 1 and "--metric nll" in advice[0])
    assert "Test gain in accuracy over trial" in out


def test_the_best_trial_that_was_asked_for_is_not_advised_again(combine: Call) -> None:
    _, out, _ = combine("--top", "1")
    assert "stands alone" in out
    assert " ensemble --top 1" not in out


def advise_the_single(folder: Path) -> None:
    """Let the verdict on an ensemble advise the best trial instead."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["verdict"]["advised"] = metrics["verdict"]["single"]
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_commands_that_are_next_find_the_images_and_trust_the_code(
    run_with_ensemble: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(run_with_ensemble.path, tmp_path / "runs" / "tiny")
    folder = tmp_path / "runs" / "tiny" / "ensembles" / "all"
    advise_the_single(folder)
    monkeypatch.chdir(tmp_path)
    request = EnsembleRequest(data="new photos", data_dir=Path("there"), trust_code=True)
    print_ensemble(folder, is_whole=True, moved=request.moved, trust_code=True)
    ensemble, *others = re.findall("^  cifar-tune (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert ensemble == (
        "ensemble --top 1 --calibrate --data 'new photos' --data-dir there --trust-code --run tiny"
    )
    assert {line.split()[0] for line in others} == {"predict", "evaluate", "export"}
    assert all("--trust-code" in line for line in others)


@pytest.mark.parametrize("place", ["copy", "tiny/backup/all"])
def test_no_command_asks_for_the_run_of_a_copied_ensemble(
    place: str, run_with_ensemble: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_with_ensemble.path, tmp_path / "tiny")
    shutil.copytree(run_with_ensemble.path / "ensembles" / "all", tmp_path / place)
    advise_the_single(tmp_path / place)
    print_ensemble(tmp_path / place, is_whole=True)
    lines = re.findall("^  cifar-tune (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["predict", "evaluate", "export"]
    assert all(f"--ensemble {tmp_path / place}" in line for line in lines)


@pytest.mark.parametrize("words", [["--compare", "--calibrate"], ["--frontier"], ["--dry-run"]])
def test_what_is_shown_fits_80_columns(combine: Call, words: list[str]) -> None:
    code, out, err = combine("--top", "3", *words)
    assert code == 0, err
    told, _, commands = out.partition("Next:\n")
    assert max(len(line.rstrip()) for line in told.splitlines()) <= 80
    assert all(line.startswith("  cifar-tune ") for line in commands.splitlines())


def test_a_frontier_of_the_first_members_alone_says_so(
    combine: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "Only the first 2 of 3 members were combined."
    _, out, _ = combine("--top", "3", "--frontier")
    assert note not in out
    for module in (latency, tuner.ensemble):
        monkeypatch.setattr(module, "MOST_COMBINED", 2)
    _, out, err = combine("--top", "3", "--frontier")
    assert note in out
    assert "timing members on cpu: 2\n" in err


def test_a_dry_run_reads_no_test_image(combine: Call, finished_run: Run) -> None:
    code, out, _ = combine("--top", "2", "--dry-run", "--compare", "--json")
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


def test_an_ensemble_is_named_after_how_it_was_made(combine: Call, finished_run: Run) -> None:
    combine("--top", "2", "--method", "greedy", "--calibrate", "--tta", "flip", "--json")
    combine("--top", "2", "--metric", "nll", "--json")
    assert {path.name for path in (finished_run.path / "ensembles").iterdir()} == {
        "greedy2-calibrated-flip",
        "top2-nll",
    }
