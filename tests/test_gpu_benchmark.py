"""The command that measures a GPU, on a CPU with its smallest settings; and how it judges."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.gpu_parts import PARTS, WEIGHTS, Judged, Report, sharing, steps
from tests.benchmarks.gpu_parts.__main__ import MODULES

REPOSITORY = Path(__file__).parents[1]


def measure(*words: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout


def test_its_parts_are_named() -> None:
    names = [line.split()[0] for line in measure("--list").splitlines()]
    assert names == list(PARTS) == list(WEIGHTS)
    assert names == [name for name in MODULES if name != "images"]


@pytest.mark.slow
def test_a_part_runs_without_a_gpu(tmp_path: Path) -> None:
    where = ("--data", "digits", "--data-dir", str(tmp_path / "data"), "--device", "cpu")
    table = measure(*where, "--tiny", "--only", "steps", "--json", str(tmp_path / "found.json"))
    document = json.loads((tmp_path / "found.json").read_text())
    part = document["parts"]["steps"]
    assert part["ended"] == "whole"
    assert part["figures"]["problems"] == {}
    for entry in part["figures"]["cases"].values():
        assert set(entry["rates"]) == {"captured", "saved", "eager"}
        assert all(rate > 0 for rates in entry["rates"].values() for rate in rates)
    whats = [each["what"] for each in document["summary"]]
    assert whats == ["cnn: captured over eager", "speednet: captured over eager"]
    assert "speednet: captured over eager" in table


def test_it_ends_in_time_and_says_what_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless, found = tmp_path / "python", tmp_path / "found.json"
    endless.write_text("#!/bin/sh\nexec sleep 60\n")
    endless.chmod(0o755)
    words = ["gpu", "--data", "digits", "--data-dir", str(tmp_path), "--device", "cpu"]
    words += ["--minutes", "0.1", "--only", "steps", "--json", str(found)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "executable", str(endless))
    gpu.main()
    parts = json.loads(found.read_text())["parts"]
    assert parts["images"]["ended"].startswith("cut off after ")
    assert "steps" not in parts


def test_a_checkout_of_today_may_be_the_earlier_one(tmp_path: Path) -> None:
    where = ("--data", "digits", "--data-dir", str(tmp_path), "--device", "cpu")
    measure(*where, "--minutes", "0.05", "--only", "steps", "--before", str(REPOSITORY))


def test_rates_are_those_of_the_time_in_which_all_trainings_ran() -> None:
    # Ten images a second from 0 on, and twenty from 2 on; both run until after 6.
    one = [(0.0, 0), (3.0, 30), (7.0, 70)]
    other = [(2.0, 0), (8.0, 120)]
    assert sharing.rate_of([one, other], until=6.0) == pytest.approx(30)


def test_figures_that_are_not_there_yet_make_no_table_fail(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"rates": {}, "execution": {}, "problems": {"MPS": "no daemon"}}
    assert sharing.judge(nothing) == []
    assert "no daemon" in sharing.tables(nothing)[0].title
    rates: dict[str, list[float]] = {"captured": [], "saved": [], "eager": []}
    entry = {"batch_size": 1, "target": 2, "rates": rates}
    report = Report(tmp_path / "result.json", steps.tables, steps.judge)
    report.figures = {"cases": {"cnn": entry}, "problems": {}, "device": "CPU"}
    report.write()
    assert json.loads((tmp_path / "result.json").read_text())["summary"] == []


def test_the_best_way_of_sharing_is_held_against_one_trial() -> None:
    ways = {"processes": {"1": [100.0], "8": [90.0]}, "threads": {"1": [99.0], "8": [190.0]}}
    (judged,) = sharing.judge({"rates": {"cnn": ways}})
    assert judged == Judged(what="8 trials of cnn over one, by threads", value=1.9, target=1.7)
    assert judged.is_met
