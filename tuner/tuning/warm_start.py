"""Warm starts from earlier runs: what a search tries first, and what its sampler learns.

Accuracies on one set of images say nothing about another, so runs are combined by ranks: the
configurations that complement each other best over the runs are tried first. A single run also
teaches a sampler that learns: with its accuracies if they are comparable with those of the search,
else with its order.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console

from tuner.config import SearchConfig, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import DataError, UsageError
from tuner.metrics.goal import name_of
from tuner.monitor.terminal import tell
from tuner.run.check import check_records
from tuner.run.run import Run
from tuner.run.trial import OPEN, TrialRecord
from tuner.schema import plural
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.space.axes import Axis, Branch, Choice, Fixed, Group, Plain, Range, value_of
from tuner.space.searched import searched_yaml
from tuner.storage.paths import AnyPath
from tuner.training.run_images import ranked_by
from tuner.tuning.sampling.reconstruct import params_of
from tuner.tuning.sampling.sampler import Sampler

PORTFOLIO = 8
"""Maximum number of configurations of earlier runs that are tried first."""
LARGEST_SHARE = 4
"""They are at most one in this many trials of the search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierRun:
    """An earlier run as a new search sees it."""

    run: Run
    trials: Sequence[TrialRecord]
    """The trials that ended or are paused, best first by the metric of the search."""
    is_alike: bool
    """Whether its accuracies are comparable with those of the search: it trained on the same images
    and for the same number of epochs."""

    @property
    def name(self) -> str:
        """Name of its folder, as requested; the record of a copied run has another name."""
        return self.run.path.name


def read_runs(runs: Sequence[Run], search: SearchConfig, splits: Splits) -> list[EarlierRun]:
    """Read the trials of earlier runs.

    Args:
        runs: The earlier runs.
        search: The search that uses them.
        splits: Images of the search.

    Raises:
        DataError: If a run did not record the metric, and its images are not to be found.
        DamagedError: If files of a trial are damaged, or not what was written.
    """
    found = []
    for run in runs:
        record = run.record
        has_same_images = (
            splits.fingerprint == record.data_fingerprint
            and splits.split_fingerprint == record.split_fingerprint
        )
        if has_same_images:
            # Use these labels: the run's own images may have moved.
            ranked = run.by(search.metric, splits.val.labels.cpu().numpy)
        else:
            ranked = ranked_by(run, search.metric)
        try:
            trials = ranked.ranked()
        except DataError as error:
            raise DataError(
                f"--warm-start: {run.path} did not record "
                f"{name_of(search.metric)}, and its images are not available: {error}. Where "
                "this search is on the same, --data or --data-dir says where they are; else put "
                "them back, or search by --metric accuracy."
            ) from None
        # The sampler of its own run learned from paused trials, too.
        ended = [trial for trial in trials if trial.status.state not in OPEN - {"paused"}]
        check_records(ended)
        is_alike = has_same_images and record.search.epochs == search.epochs
        found.append(EarlierRun(run=run, trials=ended, is_alike=is_alike))
    return found


def with_portfolio(
    space: SearchSpace,
    runs: Sequence[EarlierRun],
    storage: AnyPath,
    console: Console,
    *,
    limit_violation: Callable[[TrialConfig], str] = lambda config: "",
) -> SearchSpace:
    """Return a space whose first baselines are the portfolio of earlier runs.

    From a single comparable run, only trials that the sampler cannot learn from are tried, for
    example those that differ in a value that the space fixes. How good the others are is known.

    Args:
        space: The space to search.
        runs: Earlier runs, of any spaces and images.
        storage: Folder of the runs that ``pretrained`` models start from.
        console: Where to print what is tried, and what does not fit.
        limit_violation: Returns which of the space's limits a configuration exceeds.
    """
    num_trials = sum(len(run.trials) for run in runs)
    is_known = len(runs) == 1 and runs[0].is_alike and can_teach(runs[0], space.search)
    if is_known:
        unknown = [one for one in runs[0].trials if params_of(space, one.config) is None]
        runs = [replace(runs[0], trials=unknown)] if unknown else []
    if not runs:
        return space
    size = max(1, min(PORTFOLIO, space.search.trials // LARGEST_SHARE))
    known = [_ranks_of(run, space, limit_violation) for run in runs]
    configs = {key: params for ranks in known for key, params in ranks.params.items()}
    regrets = np.array([[ranks.by_key.get(key, 1.0) for key in configs] for ranks in known])
    chosen = [list(configs.values())[column] for column in choose(regrets, size)]
    said = plural(len(chosen), "configuration") if chosen else "no configuration"
    whose = ", ".join(run.name for run in runs)
    if chosen or not is_known:
        tell(console, f"Tries first: {said} of {whose}.")
    misfits = sum((ranks.misfits for ranks in known), Counter[str]())
    if misfits:
        total = plural(num_trials, "trial")
        reasons = ", ".join(f"{count} by {what}" for what, count in misfits.most_common())
        tell(console, f"{misfits.total()} of {total} do not fit this space: {reasons}.")
    return _with_baselines(space, chosen, storage) if chosen else space


def can_teach(earlier: EarlierRun, search: SearchConfig) -> bool:
    """Whether the sampler of a search learns from a run; TPE can use its order alone."""
    return search.sampler == "tpe" or (search.learns and earlier.is_alike)


def add_earlier_trials(sampler: Sampler, earlier: EarlierRun, console: Console) -> None:
    """Add a run's trials to what the sampler knows; trials of the search are not judged by them.

    From a run that is not comparable, it learns only which trials were better than others, not
    their accuracies, and may propose their configurations again.
    """
    trials = earlier.trials
    shares = {trial.number: place / len(trials) for place, trial in enumerate(trials)}
    known = sum(
        sampler.add(trial.config, trial.status.state, trial.history)
        if earlier.is_alike
        else sampler.add_foreign(
            trial.config, trial.status.state, trial.history, shares[trial.number]
        )
        for trial in sorted(trials, key=lambda trial: trial.number)
    )
    outside = f"; {len(trials) - known} are outside this space" if known < len(trials) else ""
    tell(console, f"Learnt from {plural(known, 'trial')} of {earlier.name}{outside}.")


def choose(regrets: NDArray[np.float64], size: int) -> list[int]:
    """Return the columns that complement each other best, chosen one after another.

    Args:
        regrets: Regrets of N configurations on S sets of images or in S runs, shape (S, N); 0 is
            the best.
        size: Number of columns to choose.
    """
    chosen: list[int] = []
    reached = np.ones((len(regrets), 1))
    for _ in range(min(size, regrets.shape[1])):
        # If none improves a set, take the one that is best on average.
        order = np.lexsort((regrets.mean(axis=0), np.minimum(regrets, reached).mean(axis=0)))
        chosen.append(next(column for column in order.tolist() if column not in chosen))
        reached = np.minimum(reached, regrets[:, chosen[-1:]])
    return chosen


Key = tuple[tuple[str, Plain], ...]
"""The parameters of a configuration, which identify it across runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ranks:
    """The ranks of a run's configurations within the run."""

    by_key: Mapping[Key, float]
    """Share of the run's trials that were better.

    A configuration that a run has not tried counts as its last. On the tables of
    ``tests/benchmarks``, estimates from the nearest configurations that it has tried, or from all
    by their distance, chose no better.
    """
    params: Mapping[Key, Mapping[str, Plain]]
    misfits: Counter[str]
    """Obstacle -> number of trials that it keeps from being tried in the space."""


def _ranks_of(
    earlier: EarlierRun, space: SearchSpace, limit_violation: Callable[[TrialConfig], str]
) -> _Ranks:
    by_key: dict[Key, float] = {}
    params: dict[Key, Mapping[str, Plain]] = {}
    misfits: Counter[str] = Counter()
    for place, trial in enumerate(earlier.trials):
        try:
            found = params_in(space.axes, trial.config.to_dict())
            config = space.sample(
                RandomTrial(params=found), epochs=space.search.epochs, seed=trial.config.seed
            )
            is_beyond_limits = bool(limit_violation(config))
        except MisfitError as error:
            misfits[str(error)] += 1
            continue
        except UsageError:
            misfits["values that do not go together here"] += 1
            continue
        if is_beyond_limits:
            misfits["its constraints"] += 1
        elif trial.is_scored:
            key = tuple(sorted(found.items()))
            # If a configuration was trained several times, the best trial counts.
            by_key.setdefault(key, place / len(earlier.trials))
            params.setdefault(key, found)
    return _Ranks(by_key=by_key, params=params, misfits=misfits)


class MisfitError(Exception):
    """Names a parameter of a configuration that a space cannot produce."""


def params_in(axis: Axis, config: Mapping[str, Any]) -> dict[str, Plain]:
    """Return the parameters of a configuration that a space searches; it fixes the others itself.

    Args:
        axis: The space's axes, or a part of them.
        config: Result of ``TrialConfig.to_dict``.

    Raises:
        MisfitError: With the first parameter that the configuration lacks, or whose value the
            space does not hold.
    """
    match axis:
        case Fixed():
            return {}
        case Group(entries=entries):
            return {
                name: value
                for entry in entries.values()
                for name, value in params_in(entry, config).items()
            }
        case Branch(options=options):
            tag = value_of(config, axis.name)
            if not isinstance(tag, str) or tag not in options:
                raise MisfitError(axis.name)
            own: dict[str, Plain] = {axis.name: tag} if len(options) > 1 else {}
            return own | params_in(options[tag], config)
        case Range() | Choice():
            value = value_of(config, axis.name)
            if value is None or not axis.admits(value):
                raise MisfitError(axis.name)
            return {axis.name: value}


def _with_baselines(
    space: SearchSpace, chosen: Sequence[Mapping[str, Plain]], storage: AnyPath
) -> SearchSpace:
    """Return a space that tries these parameters first, as if its file said so.

    The run's own ``space.yaml`` says so, too: a resumed search tries the remaining ones.
    """
    plain = yaml.safe_load(space.resolved())
    own = plain.get("baseline", [])
    others = [
        entry
        for entry, baseline in zip(own, space.baseline, strict=True)
        if baseline.rest or baseline.params not in chosen
    ]
    plain["baseline"] = [*(_entry(space, params) for params in chosen), *others]
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    again = load_space(Path("space.yaml"), (), storage, text=text, is_recorded=True)
    return replace(again, own_code=space.own_code)


def _entry(space: SearchSpace, params: Mapping[str, Plain]) -> Any:
    config = space.sample(RandomTrial(params=dict(params)), epochs=space.search.epochs, seed=0)
    (entry,) = yaml.safe_load(searched_yaml(space, config.to_dict()))["baseline"]
    return entry
