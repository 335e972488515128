"""A run's page: what it says, that it asks for nothing, and that a browser draws it."""

import dataclasses
import functools
import html
import json
import math
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from tests.benchmarks.processes import PROGRAM
from tests.conftest import Call
from tests.test_state import row
from tests.test_tuner import World, read_space
from tuner.cli.insights import RunInsights, tentative_importance
from tuner.config import SearchConfig
from tuner.errors import TunerError
from tuner.report import live, make_page, verdict, write_report
from tuner.report.advice import _share_up_to, advise
from tuner.report.comparison import compare, comparison_page
from tuner.report.facts import _value
from tuner.run.run import Run
from tuner.run.trial import TrialStatus, write_history, write_status, write_trial
from tuner.run.uncertainty import val_margin
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.space.axes import Range, parameters
from tuner.space.searched import LEAST_WEIGHED, short_names
from tuner.tuning.sampling.importance import ALL, importances, resampled_importances
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.schedulers import make_scheduler

CLASSES = ["zero", "one </script>", "two"]


def scores(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "nll": 0.3, "brier": 0.1, "ece": 0.01}


def write_ensemble(run: Run, trials: list[int]) -> None:
    """Leave the folder of an ensemble, with real digits as its mistakes."""
    folder = run.path / "ensembles" / "top"
    (folder / "mistakes").mkdir(parents=True)
    metrics: dict[str, Any] = {
        "path": str(folder),
        "run": run.record.name,
        "name": "top",
        "method": "vote",
        "test_images": 300,
        "classes": CLASSES,
        "temperature": 1.1,
        "ensemble": {"val": scores(0.8), "crossfit": scores(0.788), "test": scores(0.763)},
        "members": [
            {
                "trial": number,
                "family": "cnn",
                "weight": 1 / len(trials),
                "val": scores(0.75),
                "test": scores(0.74),
                "contribution": 0.01,
            }
            for number in trials
        ],
        "left_out": [{"trial": 99, "reason": "adds nothing"}],
        "best_single": trials[0],
        "gain": {
            "over_best_single": {"gain": 0.0232, "low": 0.0174, "high": 0.029},
            "over_mean_member": {"gain": 0.03, "low": 0.02, "high": 0.04},
            "level": 0.95,
            "mcnemar_p": 0.001,
        },
        "by_size": [
            {
                "k": k,
                "accuracy": 0.74 + 0.01 * k,
                "low": 0.72 + 0.01 * k,
                "high": 0.76 + 0.01 * k,
                "gain": 0.01 * k,
                "gain_low": 0.0,
                "gain_high": 0.02 * k,
                "mcnemar_p": 0.1,
            }
            for k in range(1, len(trials) + 1)
        ],
        "per_class": [{"class": label, "accuracy": 0.7, "count": 100} for label in CLASSES],
        "reliability": [
            {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
            {"low": 0.5, "high": 1.0, "count": 300, "confidence": 0.8, "accuracy": 0.76},
        ],
        "coverage": [{"coverage": 0.5, "accuracy": 0.9}, {"coverage": 1.0, "accuracy": 0.763}],
        "oracle": 0.9,
        "disagreement": [[0.0]],
        "error_correlation": [[1.0]],
        "frontier": None,
        "comparison": [
            {
                "method": method,
                "calibrated": calibrated,
                "members": trials[:num_members],
                "temperature": 1.1 if calibrated else 1.0,
                "figures": {
                    "val": scores(0.8),
                    "crossfit": None if method == "mean member" else scores(0.779),
                    "test": scores(0.75 + gain),
                },
                "gain": {"gain": gain, "low": gain - 0.004, "high": gain + 0.004},
                "mcnemar_p": 0.1,
            }
            for method, calibrated, num_members, gain in (
                ("best single", False, 1, 0.0),
                ("mean member", False, 5, -0.0123),
                ("vote", True, 5, 0.0132),
            )
        ],
        "skipped": [{"method": "greedy-soup", "reason": "its trials are of several families"}],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    counts = "\n".join(f"{label},80,10,10" for label in CLASSES)
    (folder / "confusion.csv").write_text(f"true \\ predicted,{','.join(CLASSES)}\n{counts}\n")
    lines = ["file,index,true,predicted,confidence"]
    for number, image in enumerate(load_digits().images[:6]):
        picture = Image.fromarray((image * 15).astype(np.uint8))
        picture.save(folder / "mistakes" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{number},{CLASSES[1]},two,0.9{number}")
    (folder / "mistakes" / "mistakes.csv").write_text("\n".join(lines) + "\n")


def simulated(folder: Path, search: SearchConfig, space: SearchSpace) -> Run:
    """Leave the run folder of a search whose accuracies follow from the learning rate."""
    run = World(folder, search, space.text).run
    sampler, scheduler = Sampler(space, search), make_scheduler(search)
    draw = random.Random(search.seed)
    for number in range(search.trials):
        config = sampler.ask(number)
        assert config is not None
        quality = 0.9 - 0.2 * abs(math.log10(config.optimizer.lr)) + 0.01 * draw.random()
        history, status = [], TrialStatus(state="completed", num_parameters=1000 + number)
        for epoch in range(1, config.epochs + 1):
            accuracy = max(0.1, quality * (1 - math.exp(-epoch)))
            step = row(epoch, round(accuracy, 4))
            history.append(replace(step, time=float(1000 * number + epoch)))
            if stop := scheduler.judge(number, epoch, history[-1].val_accuracy):
                status = TrialStatus(state="stopped", stop=stop, reason=str(stop))
                break
        if number == 3:
            status = TrialStatus(state="failed", reason="OSError: <b>disk</b> & full")
        path = run.trial_path(number)
        write_trial(path, config)
        write_history(path, history)
        write_status(path, status)
    return run


SEARCH = SearchConfig(
    trials=40, epochs=9, grace=1, reduction=3, sampler="random", scheduler="asha-stop"
)


@functools.cache
def spaces() -> SearchSpace:
    return read_space("""
space:
  batch_size: {choice: [32, 64, 128]}
  model:
    choice:
      cnn: {stages: 2, width: {int: [8, 64]}}
      resnet: {depth: {choice: [10, 18]}}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}}}
""")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulated(tmp_path_factory.mktemp("report"), SEARCH, spaces())


def copy_of(run: Run, folder: Path) -> Run:
    """Return a copy that a test may change."""
    shutil.copytree(run.path, folder / "run")
    return Run.open(folder / "run")


def page_of(run: Run) -> Path:
    """Write a page without importances and advice."""
    return write_report(run, run.ranked(), spaces(), {}, []).path


def write(run: Run) -> str:
    ranked = run.ranked()
    shares = importances(spaces(), ranked)
    advice = advise(spaces(), run.record.search, ranked, shares.get(ALL, {}))
    return write_report(run, ranked, spaces(), shares, advice).path.read_text()


def facts_in(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_page_holds_every_trial_with_its_curve_and_its_end(run: Run) -> None:
    facts = facts_in(write(run))
    told = {trial["number"]: trial for trial in facts["trials"]}
    assert len(told) == 40
    for trial in run.trials():
        assert told[trial.number]["curve"] == [row.val_accuracy for row in trial.history]
        assert told[trial.number]["reason"] == trial.status.reason
        assert told[trial.number]["max_epochs"] == trial.config.epochs
    assert facts["rungs"] == [1, 3]
    *good, bad = [trial["accuracy"] for trial in facts["trials"]]
    assert good == sorted(good, reverse=True)
    assert facts["trials"][-1]["state"] == "failed"
    assert good[-1] < bad


def test_values_stand_under_their_parameters_and_are_missing_in_other_families(run: Run) -> None:
    facts = facts_in(write(run))
    names = [parameter["name"] for parameter in facts["parameters"]]
    for told in facts["trials"]:
        config = run.trial(told["number"]).config.to_dict()
        values = dict(zip(names, told["values"], strict=True))
        assert values["model"] == told["family"]
        assert values["batch_size"] == str(config["batch_size"])
        assert values["optimizer.sgd.lr"] == pytest.approx(
            config["optimizer"]["sgd"]["lr"], rel=1e-4
        )
        width = config["model"].get("cnn", {}).get("width")
        assert values["model.cnn.width"] == width


def test_time_by_family_and_by_rung_adds_up_to_all_epochs(run: Run) -> None:
    spent = facts_in(write(run))["spending"]
    hours = sum(row.seconds for trial in run.trials() for row in trial.history) / 3600
    for rows in spent.values():
        assert sum(row["hours"] for row in rows) == pytest.approx(hours)
        assert sum(row["trials"] for row in rows) == 40
    assert [row["name"] for row in spent["rung"]][:2] == ["stopped at rung 1", "stopped at rung 3"]


def test_time_that_nothing_divides_has_no_section(tmp_path: Path, run: Run) -> None:
    assert 'id="spending"' in write(run)
    world = World(tmp_path)
    worker = world.begin(world.tuner())
    for accuracy in (0.3, 0.4, 0.5, 0.6):
        worker.step(accuracy)
    worker.finish()
    page = write_report(world.run, world.run.ranked(), world.space, {}, []).path.read_text()
    assert "Time spent" not in page
    assert "#spending" not in page


def test_the_curves_of_few_trials_are_whole_at_first(tmp_path: Path, run: Run) -> None:
    few = simulated(tmp_path, replace(SEARCH, trials=10), spaces())
    assert '<input id="zoom" type="checkbox" autocomplete="off">' in write(few)
    assert '<input id="zoom" type="checkbox" autocomplete="off" checked>' in write(run)


def test_without_javascript_the_page_says_what_is_missing_and_where_it_is(
    tmp_path: Path, run: Run
) -> None:
    copy = copy_of(run, tmp_path)

    def told() -> str:
        return write(copy).partition("<noscript>")[2].partition("</noscript>")[0]

    assert "which is off here. So does the leaderboard.</p>" in told()
    (copy.path / "leaderboard.csv").touch()
    assert "also in <code>leaderboard.csv</code> in the run's folder.</p>" in told()


def test_the_page_needs_nothing_and_runs_nothing_that_a_trial_says(run: Run) -> None:
    page = write(run)
    without_library = page.replace(
        (Path("tuner/report/assets/echarts.min.js")).read_text(encoding="utf-8"), ""
    )
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#|data:)\w+""", without_library)
    assert "default-src 'none'" in page
    assert "<b>disk</b>" not in page


def test_the_importance_finds_the_parameter_that_decides(run: Run) -> None:
    shares = importances(spaces(), run.trials())[ALL]
    assert next(iter(shares)) == "optimizer.sgd.lr"
    assert sum(shares.values()) == pytest.approx(1)


def test_the_importance_of_few_trials_is_not_told(run: Run) -> None:
    assert importances(spaces(), run.trials()[:10]) == {}


def test_the_importance_in_very_many_trials_is_that_in_some_of_them(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = [trial for trial in run.trials() if trial.is_scored and trial.best]
    some = importances(spaces(), scored[::2])
    assert some != importances(spaces(), scored)
    monkeypatch.setattr("tuner.tuning.sampling.importance.MOST_TRIALS", len(scored) // 2 + 1)
    assert importances(spaces(), run.trials()) == some


def test_a_family_without_a_score_before_the_only_one_with_scores_is_passed_over(run: Run) -> None:
    trials = run.trials()
    first = trials[0].config.model.family
    mute = [replace(t, history=()) if t.config.model.family == first else t for t in trials]
    mute += [replace(t, number=t.number + 100) for t in mute if t.history]
    assert list(importances(spaces(), mute)) == [ALL]


def test_best_values_that_crowd_at_the_end_of_a_range_are_told_of(run: Run) -> None:
    lines = advise(spaces(), SEARCH, run.trials(), {})
    (edge,) = [line for line in lines if "lie at the" in line]
    assert edge.startswith("optimizer.sgd.lr: ")
    assert edge.endswith("highest end, 1; raise it, the best may lie beyond.")
    assert "1 of 40 trials ended with an error: OSError." in lines


def test_values_that_the_space_no_longer_holds_are_passed_over(run: Run) -> None:
    """A resumed search may have been given a space that lacks them, here smoothing by 0."""
    text = spaces().text + "  label_smoothing: {float: [0.05, 0.5], log: true}\n"
    lines = advise(read_space(text), SEARCH, run.trials(), {})
    assert [line.partition(":")[0] for line in lines if "lie at" in line] == ["optimizer.sgd.lr"]


def test_the_share_of_draws_at_an_end_of_a_range_is_that_of_the_law_of_the_sampler() -> None:
    space = read_space("""
space:
  model: {cnn: {dropout: {float: [0.0, 0.3], step: 0.1}}}
  augment: {cutout: {int: [1, 16], log: true}, crop: {int: [0, 10]}}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}}}
""")
    trial = RandomTrial()
    for axis in parameters(space.axes):
        assert isinstance(axis, Range)
        draws = [float(axis.sample(trial)) for _ in range(4000)]
        for value in (min(draws), *draws[:5], max(draws)):
            below = np.mean([draw <= value for draw in draws])
            above = np.mean([draw >= value for draw in draws])
            assert _share_up_to(axis, value, upwards=False) == pytest.approx(below, abs=0.04)
            assert _share_up_to(axis, value, upwards=True) == pytest.approx(above, abs=0.04)


def test_a_parameter_that_hardly_matters_is_told_of(run: Run) -> None:
    shares = {"optimizer.sgd.lr": 0.99, "batch_size": 0.001, "model": 0.009}
    lines = advise(spaces(), SEARCH, run.trials(), shares)
    assert (
        "model, batch_size seem to matter little in this search; with them fixed, the search "
        "has less to learn."
    ) in lines


def test_what_lies_in_a_branch_is_not_told_to_matter_hardly(run: Run) -> None:
    shares = {"optimizer.sgd.lr": 0.999, "model.cnn.width": 0.0, "batch_size": 0.001}
    (line,) = [line for line in advise(spaces(), SEARCH, run.trials(), shares) if "little" in line]
    assert line.startswith("batch_size seems to matter little")


def test_rungs_that_stop_nobody_or_everybody_are_told_of(tmp_path: Path, run: Run) -> None:
    trials = run.trials()
    kept = [replace(t, status=TrialStatus(state="completed")) for t in trials]
    assert any("Rung 1 stopped none of 40" in line for line in advise(spaces(), SEARCH, kept, {}))
    stop = next(t.status for t in trials if t.status.stop and t.status.stop.rung == 1)
    lost = [replace(t, status=stop, history=t.history[:1]) for t in trials]
    assert any("Rung 1 let none of 40" in line for line in advise(spaces(), SEARCH, lost, {}))


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["model.cnn.width", "batch_size"], ["width", "batch_size"]),
        (["optimizer.sgd.lr", "optimizer.adamw.lr"], ["sgd.lr", "adamw.lr"]),
        (["model", "model.cnn.model"], ["model", "cnn.model"]),
    ],
)
def test_a_name_is_as_short_as_it_stays_its_own(names: list[str], short: list[str]) -> None:
    assert list(short_names(names).values()) == short


def test_the_verdict_comes_from_the_ensemble_if_there_is_one(tmp_path: Path, run: Run) -> None:
    copy = copy_of(run, tmp_path)
    best = copy.ranked()[0]
    space = "\N{NO-BREAK SPACE}"
    assert verdict(copy.ranked(), None) == (
        f"Best of 40 trials: {100 * best.best.val_accuracy:.1f}{space}% validation "
        f"({best.config.model.family}, trial {best.number})"
    )
    write_ensemble(copy, [best.number, 5, 6, 7, 8])
    page = write(copy)
    expected = f"Ensemble of 5: 76.3{space}% test, +2.3 over the best single [1.7, 2.9]"
    assert f"<h1>{expected}</h1>" in page
    assert page.count('src="data:image/png;base64,') == 6
    assert "is one &lt;/script&gt;" in page
    assert "one </script>" not in page
    assert facts_in(page)["ensemble"]["confusion"] == [[80, 10, 10]] * 3


def spoilt(run: Run, folder: Path) -> Run:
    """Return a copy whose better half diverged after epochs that look well."""
    copy = copy_of(run, folder)
    for trial in copy.ranked()[:20]:
        write_status(trial.path, TrialStatus(state="diverged", reason="the loss is not finite"))
    return copy


def test_the_methods_that_were_compared_stand_with_all_their_figures(
    tmp_path: Path, run: Run
) -> None:
    copy = copy_of(run, tmp_path)
    write_ensemble(copy, [4, 5, 6, 7, 8])
    page = write(copy).replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "none")
    assert '<td class="n">76.30</td><td class="n">78.80</td><td class="n">80.00</td>' in page
    table = page.partition('<table id="comparison">')[2].partition("</table>")[0]
    _, _, *lines = table.split("<tr>")
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines]
    assert rows == [
        ["best single", "77.90", "75.00", "+0.00 [-0.40, +0.40]", "80.00", "1", "0.3000", "0.0100"],
        ["mean member", "none", "73.77", "-1.23 [-1.63, -0.83]", "80.00", "5", "0.3000", "0.0100"],
        ["vote + T", "77.90", "76.32", "+1.32 [+0.92, +1.72]", "80.00", "5", "0.3000", "0.0100"],
    ]
    assert "Not tried: greedy-soup (its trials are of several families)." in page


def test_nothing_builds_on_trials_that_ended_badly(tmp_path: Path, run: Run) -> None:
    copy = spoilt(run, tmp_path)
    ranked = copy.ranked()
    first = run.ranked()[20]
    assert verdict(ranked, None).endswith(f"({first.config.model.family}, trial {first.number})")
    assert importances(spaces(), copy.trials()) == {}, "of fewer than 20 trials"
    assert not any("lie at the" in line for line in advise(spaces(), SEARCH, copy.trials(), {}))
    facts = facts_in(write(copy))
    states = [trial["state"] for trial in facts["trials"]]
    assert set(states[-21:]) == {"diverged", "failed"}
    best = first.best.val_accuracy
    assert facts["best_so_far"][-1][2] == best
    assert max(row["best"] or 0 for row in facts["spending"]["family"]) == best
    assert compare([copy])[0]["best_trial"] == first.number
    assert verdict(ranked[-20:], None) == "No trial of 20 ended well"


def test_a_run_without_a_trial_has_a_page(tmp_path: Path) -> None:
    empty = World(tmp_path).run
    space = load_space(empty.path / "space.yaml")
    page = write_report(empty, empty.ranked(), space, {}, []).path.read_text()
    assert "No trial of 0 has an accuracy" in page


def test_the_command_tells_the_verdict_and_where_the_page_is(run: Run, call: Call) -> None:
    command = ["report", str(run.path)]
    told = call(*command)
    assert told.code == 0, told.err
    assert told.out.startswith("Best of 40 trials: ")
    assert "Worth a look: 1 of 40 trials ended with an error: OSError." in told.err
    assert (run.path / "report.html").exists()
    code, out, err = call(*command, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["report"] == str(run.path / "report.html")
    assert len(document["advice"]) >= 2


def test_a_damaged_ensemble_is_told_of(tmp_path: Path, run: Run) -> None:
    copy = copy_of(run, tmp_path)
    write_ensemble(copy, [1])
    (copy.path / "ensembles" / "top" / "metrics.json").write_text("{}")
    with pytest.raises(TunerError, match=r"metrics.json: damaged"):
        write(copy)


def test_a_mistake_whose_picture_is_too_large_is_named(tmp_path: Path, run: Run) -> None:
    copy = with_ensemble(run, tmp_path)
    # Earlier versions wrote images of any size.
    with (copy.path / "ensembles" / "top" / "mistakes" / "02.png").open("ab") as file:
        file.write(bytes(1_600_000))
    page = write(copy)
    assert page.count('src="data:image/png;base64,') == 5
    assert "02.png is too large for this page" in page


def test_no_trial_is_the_best_by_images_that_were_trained_on(tmp_path: Path, run: Run) -> None:
    copy = with_ensemble(run, tmp_path, is_val_seen=True, comparison=[])
    copy.update(data=replace(copy.record.data, all_data=True))
    page = write(copy)
    assert "+2.3 over the first trial [1.7, 2.9]" in page
    assert "Over the first, trial 1: +2.3 points" in page
    assert "best single" not in page.partition('id="ensemble"')[2].partition("</section>")[0]
    assert "<dt>best single" not in page


def test_folders_whose_names_are_no_utf_8_are_shown(tmp_path: Path, run: Run) -> None:
    copy = with_ensemble(run, tmp_path, name=None)
    ensembles = copy.path / "ensembles"
    for name in (b"r\xe4v", b"k\xf6n"):
        shutil.copytree(ensembles / "top", ensembles / os.fsdecode(name))
    shutil.rmtree(ensembles / "top")
    odd = copy.path.rename(tmp_path / os.fsdecode(b"b\xe4r"))
    page = write(Run.open(odd))
    assert all(name in page for name in (r"r\udce4v", r"k\udcf6n", r"b\udce4r"))


@pytest.mark.slow
def test_a_thousand_trials_make_a_page_in_seconds_and_below_five_megabytes(tmp_path: Path) -> None:
    space = load_space(Path("search_spaces/wide.yaml"))
    search = replace(space.search, trials=1000, sampler="random", scheduler="asha-stop")
    run = simulated(tmp_path, search, space)
    run.update(search=search)
    start = time.perf_counter()
    process = subprocess.Popen([PROGRAM, "report", str(run.path)], stdout=subprocess.PIPE)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.perf_counter() - start
    # What it stood in line for a processor, which is other work's time (Linux, sched-stats.rst).
    _, waited, _ = map(int, Path(f"/proc/{process.pid}/schedstat").read_text().split())
    seconds -= waited / 1e9
    told, _ = process.communicate()
    assert process.returncode == 0
    assert b"Report: " in told
    size = (run.path / "report.html").stat().st_size
    print(f"{seconds:.1f} s, {size / 1e6:.2f} MB")
    assert seconds < 10
    assert size < 5e6


def with_ensemble(run: Run, folder: Path, **changed: Any) -> Run:
    """Return a copy with an ensemble, some of whose figures are changed."""
    copy = copy_of(run, folder)
    write_ensemble(copy, [1, 2, 3])
    metrics = copy.path / "ensembles" / "top" / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | changed))
    return copy


def advice_of(run: Run) -> list[str]:
    return make_page(run, run.ranked(), spaces(), {}, []).advice


def test_a_vote_below_the_best_single_is_worth_a_look(tmp_path: Path, run: Run) -> None:
    # By the comparison, the best single is right on 77.9 % without having been chosen on these.
    better = {"val": scores(0.8), "crossfit": scores(0.788), "test": scores(0.763)}
    worse = better | {"crossfit": scores(0.768)}
    for name, figures, lines in (("better", better, 0), ("worse", worse, 1)):
        copy = with_ensemble(run, tmp_path / name, ensemble=figures)
        assert len([line for line in advice_of(copy) if "the best single" in line]) == lines
    asked, advised = {"method": "vote", "num_members": 3}, {"method": None, "num_members": 1}
    verdict = {"text": "Take trial 1 alone.", "top": 3, "asked": asked, "advised": advised}
    copy = with_ensemble(run, tmp_path / "verdict", verdict=verdict)
    assert "Take trial 1 alone." in advice_of(copy)
    assert "By validation images alone: Take trial 1 alone." in write(copy)
    agreeing = verdict | {"advised": asked}
    copy = with_ensemble(run, tmp_path / "agreeing", verdict=agreeing)
    assert "Take trial 1 alone." not in advice_of(copy)


def test_members_that_were_stopped_early_are_worth_a_look(tmp_path: Path, run: Run) -> None:
    whole = {trial.number: len(trial.history) == trial.config.epochs for trial in run.trials()}
    early, late = ([n for n, is_whole in whole.items() if is_whole == wanted] for wanted in (0, 1))
    for numbers, count in ((early[:2] + late[:1], 2), (early[:1] + late[:2], 0)):
        copy = copy_of(run, tmp_path / str(count))
        write_ensemble(copy, numbers)
        told = [line for line in advice_of(copy) if "before their last epoch" in line]
        assert len(told) == bool(count)
        assert all(line.startswith("2 of 3 members") for line in told)
        # Which trials these are, the ranks say, and not the ensemble.
        advised = "the best 3 of the run to the end:\n  cifar-tune refit run --top 3"
        assert all(advised in line for line in told)


@pytest.mark.parametrize(
    ("test", "folds", "side"),
    [
        (0.6, None, "below"),
        (0.75, None, ""),
        (0.9, None, "above"),
        (0.6, 5, "below"),
        # The mean of five networks is better than one.
        (0.9, 5, ""),
    ],
)
def test_a_gap_that_chance_does_not_explain_is_worth_a_look(
    tmp_path: Path, run: Run, test: float, folds: int | None, side: str
) -> None:
    figures = {"val": scores(0.8), "crossfit": scores(0.788), "test": scores(test)}
    copy = with_ensemble(run, tmp_path, ensemble=figures)
    copy.update(num_val=1000, data=replace(copy.record.data, folds=folds))
    told = [line for line in advice_of(copy) if "more than chance explains" in line]
    assert len(told) == bool(side)
    assert all(f"points {side} the cross-fitted one" in line for line in told)


def test_few_images_and_a_budget_that_cut_trials_are_worth_a_look(tmp_path: Path, run: Run) -> None:
    copy = copy_of(run, tmp_path)
    copy.update(num_val=10_000)
    assert advice_of(copy) == []
    copy.update(num_val=100)
    (line,) = advice_of(copy)
    assert line.startswith("100 validation images give the accuracy within ± ")
    best = copy.ranked()[0].best
    assert best is not None
    margin = val_margin(copy, best.val_accuracy).partition(": ")[2]
    assert f"the accuracy within {margin}: " in line
    worst = copy.ranked()[-2]
    write_status(worst.path, replace(worst.status, state="interrupted"))
    copy.update(num_val=10_000, status="finished", budget_seconds=60.0)
    copy.update(search=replace(SEARCH, trials=42))
    (line,) = advice_of(copy)
    assert line.startswith("The budget cut 1 of 40 trials and left 2 of 42 trials unbegun.")
    write_status(worst.path, replace(worst.status, state="paused"))
    (line,) = advice_of(copy)
    assert line.startswith(
        "The budget left 1 of 40 trials waiting at a rung and left 2 of 42 trials unbegun."
    )
    write_status(worst.path, worst.status)
    assert "--time-budget 120s" in line
    copy.update(budget_gpu_hours=1.0)
    (line,) = advice_of(copy)
    assert line.endswith("--time-budget 120s --gpu-hours 2 --storage " + str(copy.path.parent))
    copy.update(search=replace(SEARCH, trials=42, sampler="grid"))
    assert advice_of(copy) == [], "a grid may hold fewer"


def test_trials_outside_a_narrowed_space_do_not_hide_the_importance(run: Run) -> None:
    narrow = read_space(
        """
space:
  batch_size: {choice: [32, 64]}
  model:
    choice:
      cnn: {stages: 2, width: {int: [8, 64]}}
      resnet: {depth: {choice: [10, 18]}}
  optimizer: {sgd: {lr: {float: [0.01, 1.0], log: true}}}
"""
    )
    scored = [trial for trial in run.trials() if trial.is_scored]
    inside = [trial for trial in scored if trial.config.batch_size != 128][:15]
    trials = [*inside, *(trial for trial in scored if trial.config.batch_size == 128)]
    assert len(trials) >= LEAST_WEIGHED
    known = RunInsights(space=narrow, importance=importances(narrow, trials), advice=[])
    assert known.importance == {}
    shares = tentative_importance(run, known, trials)
    assert shares == resampled_importances(narrow, inside)
    assert shares


def test_of_few_trials_the_importance_is_told_with_its_range(run: Run) -> None:
    few = run.trials()[:19]
    shares = resampled_importances(spaces(), few)
    first, *rest = shares.values()
    assert next(iter(shares)) == "optimizer.sgd.lr"
    for spread in shares.values():
        assert 0 <= spread.low <= spread.median <= spread.high <= 1
    assert first.high - first.low > 0.1, "few trials cannot tell"
    assert sum(spread.median for spread in (first, *rest)) == pytest.approx(1, abs=0.3)
    assert resampled_importances(spaces(), few[:9]) == {}
    assert resampled_importances(spaces(), run.trials()) == {}


# In a browser


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a search of many parameters, with an ensemble beside it."""
    space = load_space(Path("search_spaces/quick.yaml"))
    search = replace(SEARCH, trials=30, epochs=6, grace=2)
    run = simulated(tmp_path_factory.mktemp("searched"), search, space)
    ranked = run.ranked()
    write_ensemble(run, [trial.number for trial in ranked[:5]])
    return write_report(run, ranked, space, importances(space, ranked), []).path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield the system's Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@dataclasses.dataclass
class View:
    page: Any
    problems: list[str]

    def num_colours(self, selector: str) -> int:
        """Count the colours of each chart; give the fewest."""
        return self.page.eval_on_selector_all(
            selector,
            """charts => Math.min(...charts.map(chart =>
                Math.max(0, ...[...chart.querySelectorAll("canvas")].map(canvas => {
                    const { width, height } = canvas;
                    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
                    return new Set(new Uint32Array(pixels.buffer)).size;
                }))))""",
        )


def opened(browser: Any, path: Path, width: int, scheme: str) -> View:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    view = View(page, [])
    page.on("console", lambda message: view.problems.append(message.text))
    page.on("pageerror", lambda error: view.problems.append(str(error)))

    def note(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            view.problems.append(f"asks for {request.url}")

    page.on("request", note)
    page.goto(path.as_uri())
    return view


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_draws_every_picture(
    browser: Any, searched: Path, width: int, scheme: str
) -> None:
    view = opened(browser, searched, width, scheme)
    page = view.page
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"
    assert page.locator(".chart").count() >= 17
    assert view.num_colours(".chart") > 100, "one is blank"
    assert page.locator(".mistakes img").evaluate_all("all => all.every(i => i.naturalWidth === 8)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 23, 26)"}[scheme]
    # A reader who turns to the other scheme sees the charts change with the page.
    before = page.locator("#chart-best").screenshot()
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    assert page.locator("#chart-best").screenshot() != before
    assert view.problems == []


@pytest.mark.browser
def test_the_leaderboard_is_sorted_and_filtered(browser: Any, searched: Path) -> None:
    view = opened(browser, searched, 1440, "light")
    page = view.page

    def column(number: int) -> list[str]:
        return page.locator(f"#trials tbody td:nth-child({number})").all_inner_texts()

    accuracies = [float(text) for text in column(4)]
    assert len(accuracies) == 25
    assert accuracies == sorted(accuracies, reverse=True)
    page.get_by_role("button", name="Show all 30").click()
    assert len(column(1)) == 30
    page.get_by_role("button", name="trial", exact=True).click()
    assert [int(text) for text in column(1)] == list(range(30))
    page.get_by_role("button", name="trial", exact=True).click()
    assert [int(text) for text in column(1)] == list(range(29, -1, -1))
    page.locator("#filter").fill("cnn STOPPED")
    states = column(3)
    assert 0 < len(states) < 30
    assert set(states) == {"stopped"}
    assert page.locator("#shown").inner_text() == f"{len(states)} of 30 trials"
    page.get_by_role("button", name="epochs", exact=True).click()
    page.locator("#with-parameters").check()
    assert page.locator("#trials th[aria-sort]").inner_text() == "epochs"
    assert "label_smoothing" in page.locator("#trials thead").inner_text()
    assert view.problems == []


@pytest.mark.browser
def test_a_line_goes_below_the_values_of_a_parameter_that_its_trial_has_not(
    browser: Any, tmp_path: Path
) -> None:
    space = read_space("""
space:
  model: {cnn: {width: {int: [8, 64]}}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 1.0], log: true}, momentum: {choice: [0.8, 0.9]}}
      adamw: {lr: {float: [0.0001, 0.01], log: true}}
""")
    run = simulated(tmp_path, SEARCH, space)
    view = opened(browser, write_report(run, run.ranked(), space, {}, []).path, 1440, "light")
    drawn = view.page.evaluate(
        """() => {
            const made = echarts.getInstanceByDom(document.getElementById("chart-parallel"));
            const { parallelAxis, series } = made.getOption();
            return { axes: parallelAxis.map((a) => [a.name, a.min]), lines: series[0].data };
        }"""
    )
    names, lowest = zip(*drawn["axes"], strict=True)
    configs = [trial.config.to_dict() for trial in reversed(run.ranked())]
    assert len(drawn["lines"]) == len(configs)
    for line, config in zip(drawn["lines"], configs, strict=True):
        values = dict(zip(names, line, strict=True))
        ((optimizer, told),) = config["optimizer"].items()
        has = optimizer == "sgd"
        assert values["optimizer"] == optimizer
        assert values["momentum"] == (str(told["momentum"]) if has else "n/a")
        rate = lowest[names.index("sgd.lr")]
        assert rate < 0.01
        assert values["sgd.lr"] == (pytest.approx(told["lr"], rel=1e-4) if has else rate)
    assert "A line meets n/a" in view.page.locator("#parallel-note").inner_text()
    assert view.problems == []


@pytest.mark.browser
def test_where_no_trial_has_an_accuracy_the_pages_say_so(browser: Any, tmp_path: Path) -> None:
    run = simulated(tmp_path, SEARCH, spaces())
    for trial in run.trials():
        write_history(trial.path, [])
    view = opened(browser, page_of(run), 390, "light")
    for section in ("#curves", "#parameters"):
        text = view.page.locator(section).inner_text()
        assert "Nothing to show yet: no trial has an accuracy." in text
        assert view.page.locator(f"{section} .chart").count() == 0
    assert view.page.locator("#trials tbody tr").count() == 25
    assert view.problems == []
    page = tmp_path / "compare.html"
    page.write_text(comparison_page(compare([run, run])))
    view = opened(browser, page, 390, "light")
    assert "Nothing to show yet" in view.page.locator("#curves").inner_text()
    assert view.problems == []


def ends_of(view: View, chart: str) -> list[float]:
    """Return the ends of a chart's vertical axis."""
    ends: list[float] = view.page.evaluate(
        """(id) => {
            const made = echarts.getInstanceByDom(document.getElementById(id));
            const { min, max } = made.getOption().yAxis[0];
            return [min, max];
        }""",
        chart,
    )
    return ends


@pytest.mark.browser
def test_an_axis_of_equal_accuracies_has_a_length(browser: Any, tmp_path: Path) -> None:
    run = simulated(tmp_path, SEARCH, spaces())
    for trial in run.trials():
        write_history(trial.path, [replace(row, val_accuracy=0.0) for row in trial.history])
    view = opened(browser, page_of(run), 1440, "light")
    for chart in ("chart-curves", "chart-best"):
        low, high = ends_of(view, chart)
        assert low < high
    assert view.problems == []


@pytest.mark.browser
def test_the_line_of_a_weak_run_is_in_sight(browser: Any, tmp_path: Path, run: Run) -> None:
    weak = simulated(tmp_path, replace(SEARCH, trials=1), spaces())
    (trial,) = weak.trials()
    write_history(trial.path, [replace(trial.history[0], val_accuracy=0.05)])
    page = tmp_path / "compare.html"
    page.write_text(comparison_page(compare([run, weak])))
    view = opened(browser, page, 1440, "light")
    low, high = ends_of(view, "chart-compare")
    assert low < 0.05 < high
    assert view.problems == []


@pytest.mark.browser
def test_all_epochs_by_nll_are_in_sight(browser: Any, tmp_path: Path) -> None:
    run = simulated(tmp_path, SEARCH, spaces())
    best = run.ranked()[0]
    write_history(best.path, [replace(row, val_loss=9 / row.epoch) for row in best.history])
    run.update(search=replace(run.record.search, metric="nll"))
    run = Run.open(run.path)
    view = opened(browser, page_of(run), 1440, "light")
    assert ends_of(view, "chart-curves")[1] < 9
    view.page.locator("#zoom").click()
    low, high = ends_of(view, "chart-curves")
    assert low < 1 < 9 < high
    assert view.problems == []


@pytest.mark.browser
def test_choices_of_numbers_are_sorted_as_numbers(browser: Any, run: Run) -> None:
    view = opened(browser, page_of(run), 1440, "light")
    view.page.locator("#with-parameters").check()
    view.page.get_by_role("button", name="Show all 40").click()
    view.page.get_by_role("button", name="batch_size", exact=True).click()
    place = view.page.locator("#trials thead th").all_inner_texts().index("batch_size") + 1
    cells = view.page.locator(f"#trials tbody td:nth-child({place})")
    values = [int(text) for text in cells.all_inner_texts()]
    assert values == sorted(values)
    assert set(values) == {32, 64, 128}


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_a_click_shows_what_a_trial_was_given_and_why_it_ended(
    browser: Any, run: Run, width: int
) -> None:
    ranked = run.ranked()
    stopped = next(trial for trial in ranked if trial.status.state == "stopped")
    view = opened(browser, page_of(run), width, "light")
    page, panel = view.page, view.page.locator("#trial")
    page.locator("#filter").fill(f"stopped {stopped.status.reason.split(',')[0]}")
    page.get_by_role("button", name=f"Show trial {stopped.number}", exact=True).click()
    assert stopped.status.reason in panel.inner_text()
    assert f"batch_size\t{stopped.config.batch_size}" in panel.inner_text()
    assert view.num_colours("#chart-trial") > 5
    assert panel.evaluate("e => e.scrollWidth <= e.clientWidth"), "it scrolls sideways"
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    # Another one, by the row: the curve is drawn anew.
    page.locator("#filter").fill("completed")
    page.locator("#trials tbody tr").first.click()
    assert "completed after" in panel.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#trial-close").click()
    assert view.problems == []


@pytest.mark.browser
def test_a_page_that_a_browser_saved_is_drawn_anew(browser: Any, run: Run, tmp_path: Path) -> None:
    page = opened(browser, page_of(run), 1440, "light").page
    page.locator("#trials tbody tr").first.click()
    saved = tmp_path / "saved.html"
    saved.write_text(page.content())
    view = opened(browser, saved, 1440, "light")
    assert view.page.locator(".slices .chart").count() == page.locator(".slices .chart").count() > 0
    view.page.locator("#trials tbody tr").first.click()
    assert view.num_colours(".slices .chart") > 5
    assert view.num_colours("#chart-trial") > 5
    assert view.problems == []


def test_the_best_configuration_is_shown_to_copy(run: Run) -> None:
    page = page_of(run).read_text()
    _, _, card = page.partition('<section id="best">')
    text = card.partition("<pre>")[2].partition("</pre>")[0]
    (baseline,) = yaml.safe_load(text)["baseline"]
    best = run.ranked()[0]
    assert baseline["batch_size"] == best.config.batch_size
    assert f"Trial {best.number} (" in card


@pytest.mark.browser
def test_counts_are_told_in_full(browser: Any, run: Run) -> None:
    page = opened(browser, page_of(run), 1440, "light").page
    told = page.evaluate("[12345, 100, 1234.5, 0.012345, 7, -3.14159].map(short)")
    assert told == ["12345", "100", "1235", "0.0123", "7", "-3.14"]


@pytest.mark.browser
def test_the_controls_change_their_charts(browser: Any, run: Run) -> None:
    view = opened(browser, page_of(run), 1440, "light")
    page = view.page
    for control, chart in (
        ("#log-epochs", "#chart-curves"),
        ("#zoom", "#chart-curves"),
        ("#share", "#chart-parallel"),
    ):
        before = page.locator(chart).screenshot()
        if control == "#share":
            page.locator(control).fill("3")
            assert page.locator("#share-text").inner_text() == "10 %: 4 of 40 trials"
        else:
            page.locator(control).click()
        assert page.locator(chart).screenshot() != before, control
    assert view.problems == []


@pytest.mark.browser
def test_it_prints_on_pages_in_light_colours(browser: Any, searched: Path, tmp_path: Path) -> None:
    view = opened(browser, searched, 1440, "dark")
    view.page.pdf(path=tmp_path / "report.pdf", format="A4", margin={"top": "1cm"})
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    # The printer gets each chart as one picture, whatever its layers.
    view.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    printed = view.page.locator(".chart > canvas")
    assert printed.count() == view.page.locator(".chart").count()
    view.page.evaluate("document.querySelectorAll('.chart > div').forEach(e => e.remove())")
    assert view.num_colours(".chart") > 100
    view.page.emulate_media(media="print")
    background = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    assert view.problems == []


@pytest.mark.browser
def test_on_a_phone_the_test_figures_are_in_sight_and_charts_shrink(
    browser: Any, tmp_path: Path, run: Run
) -> None:
    copy = copy_of(run, tmp_path)
    write_ensemble(copy, [4, 5, 6])
    tentative = resampled_importances(spaces(), copy.trials()[:15])
    path = write_report(copy, copy.ranked(), spaces(), {}, [], tentative).path
    view = opened(browser, path, 1440, "light")
    view.page.set_viewport_size({"width": 390, "height": 844})
    view.page.wait_for_timeout(100)
    assert view.page.evaluate("document.documentElement.scrollWidth") == 390
    for table in ("#members", "#comparison"):
        head = view.page.locator(f"{table} th", has_text="test %").bounding_box()
        assert 0 < head["x"] < head["x"] + head["width"] <= 390
    edges = view.page.locator(".slices .chart").evaluate_all(
        "all => all.map((chart) => chart.getBoundingClientRect().right)"
    )
    assert len(edges) == 5
    assert max(edges) <= 390
    # One shows what is known, the other what little trials tell.
    for chart in ("#chart-classes", "#chart-tentative"):
        assert view.num_colours(chart) > 20
    assert view.problems == []


@pytest.mark.browser
@pytest.mark.slow
def test_a_served_page_follows_the_search_and_leaves_its_reader_where_he_was(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS", 0.0)
    monkeypatch.setattr(live, "IDLE", 0)
    # The filter below leaves more rows than are shown at first.
    run = simulated(tmp_path, replace(SEARCH, trials=80), spaces())

    def build(run: Run, version: str) -> str:
        return make_page(run, run.ranked(), spaces(), {}, [], version=version).html

    with live.page_server(live.LivePage(run.path, build), 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.method))
        page.clock.install()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.clock.run_for(10_000)
        page.wait_for_timeout(300)
        assert asked.count("GET") == 1, "nothing was new"
        assert asked.count("HEAD") >= 1
        page.locator("#filter").fill("cnn")
        assert page.locator("#more").inner_text().startswith("Show all ")
        page.get_by_role("button", name="trial", exact=True).click()
        page.get_by_role("button", name="trial", exact=True).click()
        page.locator("details summary").last.click()
        page.locator("#parameters").scroll_into_view_if_needed()
        rows = page.locator("#trials tbody").inner_text()
        before = page.evaluate("scrollY")
        assert before > 500
        run.update(active_seconds=4321.0)
        with page.expect_event("load"):
            page.clock.run_for(4_000)
        assert "1:12:01" in page.locator("header").inner_text()
        assert page.locator("#filter").input_value() == "cnn"
        assert page.locator("#trials tbody").inner_text() == rows
        assert page.locator("#trials th[aria-sort=descending]").inner_text() == "trial"
        assert page.locator("details").last.get_attribute("open") is not None
        assert page.evaluate("scrollY") == before
        # A trial that is looked at is not taken away.
        page.locator("#trials tbody tr").first.click()
        for trial in run.trials()[10:]:
            shutil.rmtree(trial.path)
        run.update(status="finished")
        page.clock.run_for(10_000)
        page.wait_for_timeout(300)
        assert page.locator("#trial").is_visible()
        # Nor is a selection in parallel coordinates.
        select = "(intervals) => parallel.made.dispatchAction("
        select += "{ type: 'axisAreaSelect', parallelAxisIndex: 0, intervals })"
        page.evaluate(select, [[0, 0.5]])
        page.keyboard.press("Escape")
        page.clock.run_for(10_000)
        page.wait_for_timeout(300)
        assert "Paused while trials" in page.locator("#live-status").inner_text()
        with page.expect_event("load"):
            page.evaluate(select, [])
            page.clock.run_for(4_000)
        assert "The search has ended" in page.locator("header").inner_text()
        # Of so few trials, all are shown; the reader did not choose otherwise.
        assert page.locator("#share").input_value() == "0"
        assert not page.locator("#zoom").is_checked()
        assert page.locator("#filter").input_value() == "cnn"
        asked.clear()
        page.clock.run_for(60_000)
        page.wait_for_timeout(300)
        assert asked == []
        assert problems == []


def test_a_whole_number_stays_whole() -> None:
    assert _value(123456, {"low": 1, "high": 10**6, "log": False, "whole": True}) == 123456


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_word_has_no_place_in_a_range(is_whole: bool) -> None:
    assert _value("relu", {"low": 0.1, "high": 0.5, "log": False, "whole": is_whole}) is None


def test_the_commands_of_the_page_can_be_typed(tmp_path: Path) -> None:
    run = simulated(tmp_path, replace(SEARCH, trials=3), spaces())
    moved = Run.open(run.path.rename(tmp_path / "my run"))
    page = html.unescape(page_of(moved).read_text())
    assert f"rerun 'my run' {moved.ranked()[0].number} --storage {tmp_path}" in page
