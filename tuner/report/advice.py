"""Advice on what to look at in a run: its space, rungs, images and ensemble."""

import math
from collections.abc import Iterator, Mapping, Sequence

from scipy.stats import binom

from tuner.config import SearchConfig
from tuner.metrics.intervals import margin, wilson
from tuner.report.best import BestTrial
from tuner.report.ensembles import EnsembleFigures, Scores
from tuner.run.resuming import WITHOUT_PATIENCE, refit_command
from tuner.run.run import Run
from tuner.run.state import SearchState
from tuner.run.trial import TrialRecord, order_of
from tuner.run.uncertainty import validated_on
from tuner.schema import plural
from tuner.space import SearchSpace
from tuner.space.axes import Range, parameters, to_yaml, value_of

MIN_TRIALS = 20
"""With fewer trials, chance explains what is seen."""
BEST_SHARE = 0.1
EDGE = 0.1
"""Part of a range, on its own scale, that counts as its edge."""
CHANCE = 0.01
"""Probability below which chance does not explain how many of the best trials lie at an edge, or
how much two accuracies differ."""
HARDLY = 0.1
"""A parameter hardly matters below this part of an even share of the importance."""
MOST_NAMES = 5
WIDE = 0.02
"""Uncertainty or gap in accuracy that is worth a look."""


def advise(
    space: SearchSpace,
    search: SearchConfig,
    trials: Sequence[TrialRecord],
    importance: Mapping[str, float],
) -> list[str]:
    """Return what a user should look at, one item per line; none where too little is known.

    Args:
        space: The search space.
        search: How it was searched.
        trials: Trials of the run.
        importance: Share of each parameter; empty if it is unknown.
    """
    state = SearchState.from_trials(search, trials)
    return [
        *_errors(state),
        *_edges(space, trials),
        *_unimportant(importance, trials),
        *_rungs(state),
    ]


def _errors(state: SearchState) -> Iterator[str]:
    for kind, count in state.errors.most_common():
        yield f"{count} of {len(state.trials)} trials ended with an error: {kind}."


def _edges(space: SearchSpace, trials: Sequence[TrialRecord]) -> Iterator[str]:
    scored = [
        (order_of(trial.best, trial.metric), trial.config.to_dict())
        for trial in trials
        if trial.best and trial.is_scored
    ]
    scored.sort(key=lambda entry: entry[0])
    for axis in parameters(space.axes):
        if not isinstance(axis, Range):
            continue
        values = [value_of(plain, axis.name) for _, plain in scored]
        # Earlier trials of a resumed run may have values that the space no longer holds.
        held = [float(value) for value in values if value is not None and axis.admits(value)]
        if len(held) < MIN_TRIALS:
            continue
        best = held[: max(5, round(BEST_SHARE * len(held)))]
        for upwards, bound, side, change in (
            (False, axis.low, "lowest", "lower"),
            (True, axis.high, "highest", "raise"),
        ):
            if not axis.can_widen(upwards=upwards):
                continue
            # In a range of few values, each end is one value, which may be wider than a tenth.
            width = max(EDGE, _share_up_to(axis, bound, upwards=upwards))
            edge = [v for v in best if _share_up_to(axis, v, upwards=upwards) <= width + 1e-9]
            if binom.sf(len(edge) - 1, len(best), width) < CHANCE and len(edge) > len(best) / 2:
                yield (
                    f"{axis.name}: {len(edge)} of the best {len(best)} lie at the {side} end, "
                    f"{to_yaml(bound)}; {change} it, the best may lie beyond."
                )


def _share_up_to(axis: Range, value: float, *, upwards: bool) -> float:
    """Return the share of random draws from an end of a range up to ``value``, both included.

    Args:
        axis: The range.
        value: A number in it.
        upwards: Whether the high end is meant.
    """
    # A number of a grid is drawn from the interval that is rounded to it.
    half = (axis.step or (1 if axis.whole else 0)) / 2
    low, high = axis.low - half, axis.high + half
    cut = value - half if upwards else value + half
    if axis.log:
        low, high, cut = math.log(low), math.log(high), math.log(cut)
    return (high - cut if upwards else cut - low) / (high - low)


def _unimportant(importance: Mapping[str, float], trials: Sequence[TrialRecord]) -> Iterator[str]:
    # Trials that took another branch say nothing about the parameters of this one.
    plain = [trial.config.to_dict() for trial in trials]
    names = [
        name
        for name, share in importance.items()
        if share * len(importance) < HARDLY
        and all(value_of(config, name) is not None for config in plain)
    ]
    if names and len(trials) >= 2 * MIN_TRIALS:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        # The least important ones come last.
        listed = ", ".join(names[: -MOST_NAMES - 1 : -1])
        seem, them = ("seems", "it") if len(names) == 1 else ("seem", "them")
        yield (
            f"{listed}{more} {seem} to matter little in this search; with {them} fixed, the "
            "search has less to learn."
        )


def _rungs(state: SearchState) -> Iterator[str]:
    for rung in state.rungs():
        if rung.arrived < MIN_TRIALS:
            continue
        if not rung.stopped and not rung.paused:
            yield (
                f"Rung {rung.epoch} stopped none of {rung.arrived} trials: it saves nothing; "
                "use a larger reduction, or a later rung."
            )
        elif not rung.passed and not rung.paused:
            yield f"Rung {rung.epoch} let none of {rung.arrived} trials pass; raise grace."


def advise_on_run(
    run: Run,
    trials: Sequence[TrialRecord],
    best: BestTrial | None,
    ensemble: EnsembleFigures | None,
) -> list[str]:
    """Return what a reader should know about the figures of a run, one item per line.

    Args:
        run: The run.
        trials: Trials of the run.
        best: The leading trial.
        ensemble: The newest ensemble; advice on its members does not depend on test figures.
    """
    lines = [*_cut(run, trials), *_few_images(run, best)]
    if run.record.reason:
        command = run.resume_command(*WITHOUT_PATIENCE)
        lines.insert(0, f"The search ended: {run.record.reason}. Resume it with: {command}")
    if ensemble is None or ensemble.is_val_seen:
        return lines
    return [
        *lines,
        *_vote(ensemble),
        *_unfinished(run, trials, ensemble),
        *_gap(ensemble, run),
    ]


def _cut(run: Run, trials: Sequence[TrialRecord]) -> Iterator[str]:
    record = run.record
    has_budget = record.budget_seconds is not None or record.budget_gpu_hours is not None
    if record.status != "finished" or record.refit or record.reason or not has_budget:
        return
    cut = sum(trial.status.state == "interrupted" for trial in trials)
    waiting = sum(trial.status.state == "paused" for trial in trials)
    # The number of configurations in a grid is unknown here.
    is_grid = record.search.sampler == "grid"
    missing = 0 if is_grid else max(0, record.search.trials - len(trials))
    if cut or waiting or missing:
        told = [f"cut {cut} of {len(trials)} trials"] if cut else []
        told += [f"left {waiting} of {len(trials)} trials waiting at a rung"] if waiting else []
        told += [f"left {missing} of {record.search.trials} trials unbegun"] if missing else []
        *before, last = told
        whole = f"{', '.join(before)} and {last}" if before else last
        yield f"The budget {whole}. Resume with a larger one:\n  {run.resume_command(factor=2)}"


def _few_images(run: Run, best: BestTrial | None) -> Iterator[str]:
    if best is None or not best.others_within:
        return
    if best.accuracy - best.low > WIDE:
        told = plural(best.others_within, "other trial")
        more = ""
        if run.record.data.folds is None:
            more = " More of them, or all images in turn (--folds), would decide."
        yield (
            f"{validated_on(run)} give the accuracy within {margin(best.accuracy, best.images)}: "
            f"{told} may be as accurate as the best.{more}"
        )


def _vote(ensemble: EnsembleFigures) -> Iterator[str]:
    verdict, crossfit = ensemble.verdict, ensemble.ensemble.crossfit
    if verdict:
        if verdict.advised != verdict.asked and verdict.asked.num_members > 1:
            yield verdict.text
    elif crossfit and len(ensemble.members) > 1 and ensemble.metric == "accuracy":
        single = _single(ensemble)
        if single and crossfit.accuracy < single.accuracy:
            yield (
                f"The ensemble is right on {crossfit.accuracy:.2%} of the validation images, "
                f"cross-fitted, the best single, trial {ensemble.best_single}, on "
                f"{single.accuracy:.2%}."
            )


def _unfinished(
    run: Run, trials: Sequence[TrialRecord], ensemble: EnsembleFigures
) -> Iterator[str]:
    members = {member.trial for member in ensemble.members}
    ended = {trial.number for trial in trials if len(trial.history) == trial.config.epochs}
    num, early = len(members), len(members - ended)
    if not run.record.refit and 2 * early > num:
        yield (
            f"{early} of {num} members were stopped before their last epoch. To train the best "
            f"{num} of the run to the end:\n  {refit_command(run.path, num)}"
        )


def _single(ensemble: EnsembleFigures) -> Scores | None:
    """Return the validation scores of the best single trial, cross-fitted if available."""
    crossfits = [row.figures.crossfit for row in ensemble.comparison if row.method == "best single"]
    vals = [member.val for member in ensemble.members if member.trial == ensemble.best_single]
    return next((scores for scores in (*crossfits, *vals) if scores), None)


def _gap(ensemble: EnsembleFigures, run: Run) -> Iterator[str]:
    crossfit, test = ensemble.ensemble.crossfit, ensemble.ensemble.test
    if crossfit is None or not ensemble.has_test or not ensemble.test_images:
        return
    high, low = max(crossfit.accuracy, test.accuracy), min(crossfit.accuracy, test.accuracy)
    num_high, num_low = run.record.num_val, ensemble.test_images
    side = "below"
    if test.accuracy > crossfit.accuracy:
        # With folds, test images are judged by the mean of a member's networks, the others by one.
        if run.record.data.folds:
            return
        num_high, num_low, side = num_low, num_high, "above"
    # Newcombe's (1998) interval for the difference of two shares, method 10.
    below = high - wilson(high, num_high, level=1 - CHANCE)[0]
    above = wilson(low, num_low, level=1 - CHANCE)[1] - low
    if high - low > max(WIDE, math.hypot(below, above)):
        yield (
            f"The ensemble's test accuracy, {test.accuracy:.2%}, lies {100 * (high - low):.1f} "
            f"points {side} the cross-fitted one on validation images, {crossfit.accuracy:.2%}: "
            "more than chance explains. Do the images come from the same source?"
        )
