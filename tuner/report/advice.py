"""What to change in a search space, or in the rungs, as the trials of a run show it."""

import math
from collections.abc import Iterator, Mapping, Sequence

from scipy.stats import binom

from tuner.config import SearchConfig
from tuner.run.state import SearchState
from tuner.run.trial import TrialRecord, order_of
from tuner.space import SearchSpace
from tuner.space.axes import Range, parameters, to_yaml, value_of

MIN_TRIALS = 20
"""Below, chance explains what is seen."""
BEST_SHARE = 0.1
EDGE = 0.1
"""Part of a range, on its own scale, that is its edge."""
CHANCE = 0.01
"""So rarely would as many of the best lie at an edge if all places were as good."""
HARDLY = 0.1
"""A parameter hardly matters with less than this part of an even share of the importance."""
MOST_NAMES = 5


def advise(
    space: SearchSpace,
    search: SearchConfig,
    trials: Sequence[TrialRecord],
    importance: Mapping[str, float],
) -> list[str]:
    """Return what a user should look at, one line each; nothing where too little is known.

    Args:
        space: What was searched.
        search: How it was searched.
        trials: Of the run.
        importance: Share of each parameter; empty where it is not known.
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
        values = [value for _, plain in scored if (value := value_of(plain, axis.name)) is not None]
        places = [_place(axis, float(value)) for value in values]
        if len(places) < MIN_TRIALS:
            continue
        best = places[: max(5, round(BEST_SHARE * len(places)))]
        # An end of a range of few values is one of them, wider than a tenth.
        width = max(EDGE, 1 / axis.size())
        for end, bound, change in ((0, axis.low, "lower"), (1, axis.high, "raise")):
            edge = [
                place for place in best if abs(place - end) <= (EDGE if width == EDGE else 1e-9)
            ]
            if binom.sf(len(edge) - 1, len(best), width) < CHANCE and len(edge) > len(best) / 2:
                side = "highest" if end else "lowest"
                yield (
                    f"{axis.name}: {len(edge)} of the best {len(best)} lie at the {side} end, "
                    f"{to_yaml(bound)}; {change} it, the best may lie beyond."
                )


def _place(axis: Range, value: float) -> float:
    """Return where a value lies in a range, on its own scale: 0 at the low end, 1 at the high."""
    low, high = axis.low, axis.high
    if axis.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def _unimportant(importance: Mapping[str, float], trials: Sequence[TrialRecord]) -> Iterator[str]:
    # Of what lies in a branch, the best trials tell nothing if they took another.
    plain = [trial.config.to_dict() for trial in trials]
    names = [
        name
        for name, share in importance.items()
        if share * len(importance) < HARDLY
        and all(value_of(config, name) is not None for config in plain)
    ]
    if names and len(trials) >= 2 * MIN_TRIALS:
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        # The least important ones, which come last.
        listed = ", ".join(names[: -MOST_NAMES - 1 : -1])
        seem, them = ("seems", "it") if len(names) == 1 else ("seem", "them")
        yield (
            f"{listed}{more} {seem} hardly to matter in what was tried; with {them} fixed, the "
            "search has less to learn."
        )


def _rungs(state: SearchState) -> Iterator[str]:
    for rung in state.rungs():
        if rung.arrived < MIN_TRIALS:
            continue
        if not rung.stopped and not rung.paused:
            yield (
                f"Rung {rung.epoch} stopped none of {rung.arrived} trials: it saves nothing; "
                "a larger reduction, or a later rung, would tell more."
            )
        elif not rung.passed and not rung.paused:
            yield f"Rung {rung.epoch} let none of {rung.arrived} trials pass; raise grace."
