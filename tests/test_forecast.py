import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.cli.plan import print_forecast
from tuner.config import ModelConfig, SearchConfig, TrialConfig
from tuner.errors import TunerError
from tuner.report import write_report
from tuner.run.forecast import (
    PLAN,
    FamilyForecast,
    Forecast,
    Infeasible,
    Outcome,
    RungForecast,
    Spread,
    outcomes,
)
from tuner.run.run import Run
from tuner.space import load_space
from tuner.storage.records import read_record, write_record
from tuner.tuning.budget import Budget
from tuner.tuning.planning.plan import with_advice
from tuner.tuning.planning.simulated import TrialCost, simulate
from tuner.tuning.resources import TrialResources


def spread(median: float) -> Spread:
    return Spread(low=0.5 * median, median=median, high=2 * median)


@pytest.fixture
def forecast() -> Forecast:
    return Forecast(
        space="tiny.yaml",
        trials=3,
        epochs=2,
        slots={"cpus": 1.0, "gpus": 0.0, "count": 2},
        refused=0.25,
        measured_seconds=60.0,
        simulations=300,
        seconds=spread(10.0),
        training_seconds=spread(8.0),
        gpu_hours=spread(0.0),
        started=spread(3.0),
        rungs=(RungForecast(epoch=1, trials=spread(3)), RungForecast(epoch=2, trials=spread(2))),
        families=(
            FamilyForecast(
                family="cnn",
                configs=2,
                cpus=1.0,
                gpus=0.0,
                epoch_seconds=spread(1.0),
                parameters=spread(3000.0),
                memory=None,
            ),
            FamilyForecast(
                family="resnet",
                configs=1,
                cpus=1.0,
                gpus=0.0,
                epoch_seconds=spread(2.0),
                parameters=spread(5000.0),
                memory=spread(1e9),
            ),
        ),
        disk_most=spread(1e6),
        disk_kept=spread(1e5),
        misfits=(
            Infeasible(family="cnn", parameters=10**9, reason="out of memory", config={"seed": 0}),
        ),
    )


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_range_holds_its_median(values: list[float]) -> None:
    found = Spread.of(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_a_range_leaves_out_a_tenth_at_either_end() -> None:
    assert Spread.of(range(101)) == Spread(low=10, median=50, high=90)


def test_a_forecast_is_read_as_it_was_written(forecast: Forecast, tmp_path: Path) -> None:
    write_record(tmp_path / "p.json", forecast)
    assert read_record(tmp_path / "p.json", Forecast) == forecast


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"families": 3}'])
def test_a_damaged_forecast_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(TunerError, match=r"p\.json: damaged"):
        read_record(tmp_path / "p.json", Forecast)


def test_a_planned_run_is_compared_figure_by_figure(forecast: Forecast, finished_run: Run) -> None:
    finished_run.update(active_seconds=8.0)
    write_record(finished_run.path / PLAN, forecast)
    trials = finished_run.trials()
    found = {outcome.name: outcome for outcome in outcomes(finished_run, trials)}
    assert found["time of the search, s"].error == pytest.approx(0.25)
    seconds = sum(row.seconds for trial in trials for row in trial.history)
    assert found["training time, s"].measured == pytest.approx(seconds)
    assert found["trials of 1 epoch"].measured == 3
    assert found["trials of 2 epochs"].measured == 3
    assert found["trials of 2 epochs"].is_within
    assert found["an epoch of cnn, s"].measured > 0
    # The run has no trial of that family, and uses no GPU.
    assert not {"an epoch of resnet, s", "GPU-hours"} & set(found)


def test_gpu_hours_are_compared_where_trials_hold_gpus(
    forecast: Forecast, finished_run: Run
) -> None:
    finished_run.update(slots={"cpus": 1.0, "gpus": 0.5, "count": 2})
    write_record(finished_run.path / PLAN, forecast)
    found = {outcome.name: outcome for outcome in outcomes(finished_run, finished_run.trials())}
    seconds = found["training time, s"].measured
    assert found["GPU-hours"].measured == pytest.approx(seconds / 2 / 3600)


def test_what_did_not_come_has_no_error() -> None:
    assert Outcome(name="", predicted=spread(1.0), measured=0).error is None


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_run_that_did_not_come_to_its_end_is_not_compared(
    status: str, forecast: Forecast, finished_run: Run
) -> None:
    write_record(finished_run.path / PLAN, forecast)
    finished_run.update(status=status)
    assert outcomes(finished_run, finished_run.trials()) == []
    finished_run.update(status="finished")
    assert outcomes(finished_run, finished_run.trials())
    finished_run.update(reason="a quarter of the budget brings nothing")
    assert outcomes(finished_run, finished_run.trials()) == []


def test_the_report_sets_the_plan_beside_what_came(forecast: Forecast, finished_run: Run) -> None:
    space = finished_run.path / "space.yaml"
    space.write_text(json.dumps({"space": {"model": {"cnn": {"width": {"choice": [8, 16]}}}}}))
    loaded = load_space(space)
    finished_run.update(active_seconds=8.0)
    assert (
        "Planned"
        not in write_report(finished_run, finished_run.ranked(), loaded, {}, []).path.read_text()
    )
    write_record(finished_run.path / PLAN, forecast)
    page = write_report(finished_run, finished_run.ranked(), loaded, {}, []).path.read_text()
    _, _, table = page.partition('<table id="planned">')
    first = table.partition("<tbody>")[2].partition("</tr>")[0]
    cells = [cell.partition(">")[2] for cell in first.replace("</td>", "").split("<td")[1:]]
    assert cells == ["time of the search, s", "10", "5 to 20", "8", "+25 %"]


def test_what_would_fit_into_a_small_budget_is_advised(
    forecast: Forecast, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrialConfig(model=ModelConfig("cnn", {}), epochs=9)
    share = TrialResources(cpus=1, gpus=0)
    cost = TrialCost(
        config=config, resources=share, setup_seconds=0.5, epoch_seconds=1.0, write_seconds=0.0
    )
    search = SearchConfig(trials=8, epochs=9, grace=9, scheduler="none", sampler="random")
    imagined = partial(
        simulate, num_known=1, fit=lambda shares: len(shares) <= 2, start_seconds=2.0
    )
    budget = Budget(trials=8, seconds=25.0)
    given = replace(forecast, trials=8, done=spread(4.0))
    advised = with_advice(given, imagined, [cost], search, budget)
    # Four after one another of 4 epochs take 2 + 4 * 4.75 s = 21; of 5 epochs, 25, but that speeds
    # differ; all of 9 epochs, 41.
    assert advised.fitting_epochs in (4, 5)
    assert advised.seconds_of_all is not None
    assert 35 < advised.seconds_of_all.median < 47
    print_forecast(advised)
    text = capsys.readouterr().out
    assert "4 of 8 trials fit into the budget" in text
    assert f"with --epochs {advised.fitting_epochs}, all do." in text
    # Where not even one epoch of each does, it says so.
    hopeless = with_advice(given, imagined, [cost], search, replace(budget, seconds=4.0))
    assert hopeless.fitting_epochs is None
    print_forecast(hopeless)
    assert "with fewer epochs not all would" in capsys.readouterr().out


def test_a_forecast_reads_well_in_a_narrow_terminal(
    forecast: Forecast, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = replace(forecast, misfits=2 * forecast.misfits)
    print_forecast(twice)
    text = capsys.readouterr().out
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "Would not fit: cnn, 1G parameters: out of memory (2 configurations)" in lines
    assert "Constraints refuse 25% of the configurations drawn." in lines
    assert any(
        line.split("  ")[0] == "time of the search" and "0:00:10 (0:00:05 to 0:00:20)" in line
        for line in lines
    )
    assert "GPU-hours" not in text
    # Though usual trials hold none, large ones do.
    print_forecast(replace(forecast, gpu_hours=spread(0.5)))
    assert "GPU-hours" in capsys.readouterr().out
