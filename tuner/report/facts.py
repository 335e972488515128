"""The data of trials on a run's page, as plain values for its script."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.config import Metric, SearchConfig
from tuner.metrics.intervals import wilson
from tuner.report.page import metric_facts
from tuner.run.forecast import Spread
from tuner.run.run import Run
from tuner.run.state import SearchState
from tuner.run.trial import TrialRecord, TrialState, order_of
from tuner.space import SearchSpace
from tuner.space.axes import Branch, Choice, Range, parameters, to_yaml, value_of
from tuner.space.searched import ALL, columns, short_names

Plain = dict[str, Any]


def parameter_facts(space: SearchSpace) -> list[Plain]:
    """Describe the parameters of a space: their scale and their family."""
    axes = list(parameters(space.axes))
    short = short_names([axis.name for axis in axes])
    facts = []
    for axis in axes:
        words = axis.name.split(".")
        fact: Plain = {"name": axis.name, "short": short[axis.name]}
        fact["family"] = words[1] if words[0] == "model" and len(words) > 2 else None
        match axis:
            case Range():
                fact |= {"low": axis.low, "high": axis.high, "log": axis.log, "whole": axis.whole}
            case Choice():
                fact["values"] = [to_yaml(value) for value in axis.values]
            case Branch():
                fact["values"] = list(axis.options)
        facts.append(fact)
    return facts


def column_facts(
    space: SearchSpace, described: Sequence[Plain], importance: Mapping[str, float]
) -> list[Plain]:
    """Describe the columns of searched parameters by their positions in ``described``."""
    places = {fact["name"]: index for index, fact in enumerate(described)}
    return [
        {"heading": column.heading, "parameters": [places[name] for name in column.names]}
        for column in columns(space, importance)
    ]


def _trial(trial: TrialRecord, described: Sequence[Plain]) -> Plain:
    """Describe a trial, with its values of the ``described`` parameters."""
    best, metric = trial.best, trial.metric
    plain = trial.config.to_dict()
    return {
        "number": trial.number,
        "family": trial.config.model.family,
        "state": trial.status.state,
        "value": _rounded(best.value(metric), 4) if best else None,
        "accuracy": _rounded(best.val_accuracy, 4) if best else None,
        "loss": _rounded(best.val_loss, 4) if best else None,
        "best_epoch": best.epoch if best else None,
        "epochs": len(trial.history),
        "max_epochs": trial.config.epochs,
        "seconds": _rounded(trial.seconds, 1),
        "parameters": trial.status.num_parameters or None,
        "reason": trial.status.reason,
        "values": [_value(value_of(plain, fact["name"]), fact) for fact in described],
        "curve": [_rounded(row.value(metric), 4) for row in trial.history],
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def _value(value: Any, fact: Plain) -> str | float | None:
    """Spell a choice like its axis; round the numbers of a range to the precision of a plot."""
    if value is None:
        return None
    if "values" in fact:
        return to_yaml(value)
    # Earlier trials of a resumed run may have a word where the space now has a range.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Whole numbers are kept: tables show them as counts.
    return value if fact["whole"] else float(f"{value:.5g}")


def spending(search: SearchConfig, trials: Sequence[TrialRecord]) -> dict[str, list[Plain]]:
    """Return the time spent by family, and by how far trials came."""
    marks = [rung.epoch for rung in SearchState(search).rungs()]
    by_family: dict[str, list[TrialRecord]] = {}
    by_rung: dict[str, list[TrialRecord]] = {f"stopped at rung {mark}": [] for mark in marks}
    names: dict[TrialState, str] = {"completed": "ran its course", "stopped": "stopped elsewhere"}
    for trial in trials:
        by_family.setdefault(trial.config.model.family, []).append(trial)
        stop = trial.status.stop
        state = trial.status.state
        key = f"stopped at rung {stop.rung}" if stop else names.get(state, state.replace("_", " "))
        if state == "paused":
            key = f"paused at rung {len(trial.history)}"
        by_rung.setdefault(key, []).append(trial)
    return {
        "family": _spent(by_family, search.metric),
        "rung": _spent({key: group for key, group in by_rung.items() if group}, search.metric),
    }


def _spent(groups: Mapping[str, Sequence[TrialRecord]], metric: Metric) -> list[Plain]:
    rows = []
    for name, trials in groups.items():
        bests = [trial.best for trial in trials if trial.best and trial.is_scored]
        best = min(bests, key=lambda row: order_of(row, metric), default=None)
        rows.append(
            {
                "name": name,
                "trials": len(trials),
                "epochs": sum(len(trial.history) for trial in trials),
                "hours": sum(trial.seconds for trial in trials) / 3600,
                "gpu_hours": sum(trial.gpu_hours for trial in trials),
                "best": best.value(metric) if best else None,
            }
        )
    return rows


def class_facts(per_class: Sequence[Plain]) -> list[Plain]:
    """Return class accuracies with their 95 % intervals, without classes that have no images."""
    known = [row for row in per_class if row["count"]]
    ends = [wilson(row["accuracy"], row["count"]) for row in known]
    return [
        row | {"low": round(low, 4), "high": round(high, 4)}
        for row, (low, high) in zip(known, ends, strict=True)
    ]


def run_facts(
    run: Run,
    space: SearchSpace,
    ranked: Sequence[TrialRecord],
    importance: Mapping[str, Mapping[str, float]],
    tentative: Mapping[str, Spread],
) -> Plain:
    """Return the data that the script of a run's page draws."""
    facts = parameter_facts(space)
    state = SearchState.from_trials(run.record.search, ranked)
    return {
        "metric": metric_facts(run.record.search.metric),
        "epochs": run.record.search.epochs,
        "rungs": [rung.epoch for rung in state.rungs()],
        "parameters": facts,
        "columns": column_facts(space, facts, importance.get(ALL, {})),
        "trials": [_trial(trial, facts) for trial in ranked],
        "best_so_far": [
            [epochs, round(hours, 5), round(best, 4)] for epochs, hours, best in state.best_so_far()
        ],
        "importance": {
            group: [[name, round(share, 4)] for name, share in shares.items()]
            for group, shares in importance.items()
        },
        "tentative": [
            [name, round(share.median, 4), round(share.low, 4), round(share.high, 4)]
            for name, share in tentative.items()
        ],
        "spending": spending(run.record.search, ranked),
    }
