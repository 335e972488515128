"""Proposes configurations with Optuna, which learns which trials completed, stopped or failed."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from tuner.config import Metric, SearchConfig, TrialConfig
from tuner.errors import UsageError
from tuner.metrics import goal
from tuner.run.trial import EpochMetrics, TrialState, best_row
from tuner.space import RandomTrial, SearchSpace, Trial
from tuner.tuning.sampling.reconstruct import RecordingTrial, params_of, reconstruct
from tuner.tuning.sampling.shown import ShownTrials
from tuner.tuning.sampling.study import check_study_fits, make_optuna_sampler, make_study

MAX_REFUSED = 500
"""Configurations per request that may exceed the limits of the space without counting as draws."""
MAX_GRID_REFUSED = 10_000
"""Configurations of a grid that may be refused before the first one is accepted."""
MAX_DRAWS = 50
"""Draws before a configuration that has been proposed already is accepted again, and draws of what
a baseline leaves out before the baseline is given up."""
INFORMED_DRAWS = 3
"""Number of these draws before random ones: a model keeps proposing what it considers best."""
CHANCE_EVERY = 3
"""With TPE, the last of this many trials is drawn at random: if most trials were stopped early,
what its model considers best is too limited."""
Told = tuple[OptunaState, float | None, dict[int, float]]
"""State, value and curve of a trial, as reported to Optuna."""


class Sampler:
    """Proposes configurations from a space and learns from how their trials ended.

    The baselines of the space come first. A configuration that was proposed before is replaced by
    another draw, unless the space seems to hold no other.
    """

    def __init__(
        self,
        space: SearchSpace,
        search: SearchConfig,
        *,
        limit_violation: Callable[[TrialConfig], str] = lambda config: "",
    ) -> None:
        """Make a sampler; ``limit_violation`` says which of the space's limits a config exceeds."""
        check_study_fits(space, search)
        self.space = space
        self.search = search
        self._storage = ShownTrials()
        self.study = make_study(search.metric, self._storage)
        self.on_change: Callable[[], None] = lambda: None
        """Called after a trial was drawn or has ended, never during a draw."""
        self._limit_violation = limit_violation
        self._is_tpe = search.sampler == "tpe"
        self._refused: set[bytes] = set()
        self.num_accepted = 0
        self._grid = self._shuffled_grid()
        self._baselines = list(range(len(space.baseline)))
        self.untried: dict[int, str] = {}
        """Baseline that was given up, by its index -> why."""
        self._asked: dict[int, optuna.Trial] = {}
        self._proposed: set[bytes] = set()
        self._seed()

    def _seed(self) -> None:
        """Make Optuna's samplers, with seeds that depend on how many trials are known.

        With the same seed, a resumed search would repeat the draws that it has tried.
        """
        known = (self.search.seed, len(self._proposed))
        informed, chance = map(int, np.random.SeedSequence(known).generate_state(2))
        self._informed = make_optuna_sampler(self.space, self.search, informed)
        self._chance = optuna.samplers.RandomSampler(seed=chance)
        self._has_relearnt = False

    def ask(self, number: int) -> TrialConfig | None:
        """Propose the configuration of trial ``number``; ``None`` at the end of a grid.

        Raises:
            UsageError: If hardly any configuration of the space is accepted, and none was before.
        """
        is_left_to_chance = self._is_tpe and number % CHANCE_EVERY == CHANCE_EVERY - 1
        informed_draws = 0 if is_left_to_chance else INFORMED_DRAWS
        if self._has_relearnt:
            self._seed()
        is_grid = self.search.sampler == "grid"
        refusal: UsageError | None = None
        repeated: Mapping[str, Any] | None = None
        draw = refused = num_tries = 0
        while draw <= MAX_DRAWS:
            baseline = self._baselines[0] if self._baselines else None
            pinned: Mapping[str, Any] | None = None
            if baseline is not None:
                pinned = self.space.baseline_params(baseline)
            elif is_grid:
                pinned = next(self._grid, None)
                is_over = pinned is None or refused == MAX_GRID_REFUSED
                if is_over and refusal is not None and self._known_params() is None:
                    break
                if pinned is None:
                    return None
            elif draw == MAX_DRAWS:
                # With running trials, a configuration tried twice is better than an error.
                pinned = repeated or self._known_params()
            is_informed = draw + refused + num_tries < informed_draws
            self.study.sampler = self._informed if is_informed else self._chance
            if pinned is not None:
                self.study.enqueue_trial(dict(pinned))
            trial = self.study.ask()
            obstacle = ""
            # A grid ends by itself.
            is_free = is_grid
            try:
                with self._storage.drawing() if self._is_tpe else nullcontext():
                    config = self._sample(trial, number, baseline)
                problem = self._limit_violation(config)
            except UsageError as error:
                refusal = error
                obstacle = str(error)
            else:
                digest = _key(config)
                is_new = digest not in self._proposed
                if problem:
                    obstacle = f"it has {problem}"
                    refusal = UsageError(
                        f"constraints: hardly any configuration keeps them; the last one drawn has "
                        f"{problem}. Raise the limit or narrow the space."
                    )
                    is_first = digest not in self._refused
                    if refused < MAX_REFUSED and (is_first or self._known_params() is None):
                        is_free = True
                    self._refused.add(digest)
                elif is_new or draw == MAX_DRAWS:
                    self.num_accepted += 1
                    for key, value in _attrs(number).items():
                        trial.set_user_attr(key, value)
                    self._asked[number] = trial
                    self._proposed.add(digest)
                    if baseline is not None:
                        self._baselines.pop(0)
                    self.on_change()
                    return config
                elif baseline is None:
                    repeated = trial.params
            # FAIL says nothing about the space; PRUNED would count as one of TPE's startup trials.
            self.study.tell(trial, state=OptunaState.FAIL)
            if baseline is None:
                refused += is_free
                draw += not is_free
                continue
            num_tries += 1
            assert pinned is not None
            if num_tries == MAX_DRAWS or len(trial.params) == len(pinned):
                self._baselines.pop(0)
                num_tries = 0
                if obstacle:
                    self.untried[baseline] = obstacle
        assert refusal is not None
        raise refusal

    def _known_params(self) -> Mapping[str, Any] | None:
        """Return the parameters of the newest trial of the run; ``None`` if there is none."""
        trials = reversed(self.study.get_trials(deepcopy=False))
        return next((trial.params for trial in trials if "trial" in trial.user_attrs), None)

    @property
    def num_refused(self) -> int:
        """Number of configurations that exceeded the limits and were redrawn at no trial's cost."""
        return len(self._refused)

    def _sample(self, trial: Trial, number: int, baseline: int | None = None) -> TrialConfig:
        seed = trial_seed(self.search.seed, number)
        epochs = self.search.epochs
        return self.space.sample(trial, epochs=epochs, seed=seed, baseline=baseline)

    def _shuffled_grid(self) -> Iterator[Mapping[str, Any]]:
        """Yield the parameters of every valid configuration that was not tried, in random order."""
        axes = self.space.axes
        for index in _shuffled(int(axes.size()), random.Random(self.search.seed)):
            params = axes.pick(index)
            try:
                config = self._sample(RandomTrial(params=params), 0)
            except UsageError:
                continue
            if _key(config) not in self._proposed:
                yield params

    def tell(self, number: int, state: TrialState, history: Sequence[EpochMetrics]) -> None:
        """Report to Optuna how trial ``number`` ended; see ``_told``."""
        if (trial := self._asked.pop(number, None)) is not None:
            self._storage.forget(trial)
            self._tell(trial, _told(state, history, self.search.metric))
            self.on_change()

    def note_rung(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Let Optuna learn from a trial that reached a rung as from one that was stopped there.

        This holds whether the trial waits there or was promoted. TPE counts running trials among
        the bad ones (``constant_liar``), and those that were promoted are the best so far.
        """
        if (trial := self._asked.get(number)) is not None:
            self._storage.show_as_pruned(trial, _told("paused", history, self.search.metric)[2])
            self.on_change()

    def _tell(self, trial: optuna.Trial, told: Told) -> None:
        optuna_state, value, curve = told
        for step, reached in curve.items():
            trial.report(reached, step)
        # Optuna takes the value of a pruned trial from its curve itself.
        is_complete = optuna_state is OptunaState.COMPLETE
        self.study.tell(trial, value if is_complete else None, optuna_state)

    def add(
        self,
        config: TrialConfig,
        state: TrialState,
        history: Sequence[EpochMetrics],
        number: int | None = None,
    ) -> bool:
        """Add a trial that ended earlier, in this run or, without a number, in another one.

        Args:
            config: Configuration of the trial.
            state: State in which it ended.
            history: Its epochs.
            number: Number of the trial, if it belongs to this run.

        Returns:
            Whether its configuration lies in the space; if not, the trial is left out.
        """
        self._note_tried(config, number)
        return self._learn(config, _told(state, history, self.search.metric), number)

    def add_foreign(
        self,
        config: TrialConfig,
        state: TrialState,
        history: Sequence[EpochMetrics],
        share_better: float,
    ) -> bool:
        """Add a trial whose accuracies are not comparable with those of this search.

        If it has any, it is reported as pruned before the first epoch, with a value from its rank
        in its own run: TPE ranks it below all trials of this search, and uses it until there are
        enough of those.

        Args:
            config: Configuration of the trial; it may be proposed again.
            state: State in which it ended.
            history: Its epochs.
            share_better: Share of the trials of its run that were better.

        Returns:
            The same as ``add``.
        """
        self._has_relearnt = True
        told = _told(state, history, self.search.metric)
        if told[1] is not None:
            place = share_better if self.search.metric in goal.LOWER_IS_BETTER else 1 - share_better
            told = OptunaState.PRUNED, place, {0: place}
        return self._learn(config, told)

    def _learn(self, config: TrialConfig, told: Told, number: int | None = None) -> bool:
        """Add the result of a configuration; return whether it lies in the space."""
        if (drawn := params_of(self.space, config)) is None:
            return False
        optuna_state, value, curve = told
        if self.search.sampler == "cmaes":
            # CMA-ES keeps what it has learnt with the trials that it was asked for, and only there.
            self._tell(self._ask_again(drawn, number), told)
            self.on_change()
            return True
        self.study.add_trial(
            create_trial(
                state=optuna_state,
                value=value,
                params=drawn.params,
                distributions=drawn.distributions,
                intermediate_values=curve,
                user_attrs=_attrs(number),
            )
        )
        self.on_change()
        return True

    def restore(self, number: int, config: TrialConfig) -> bool:
        """Restore a trial that was proposed and has not ended.

        Returns:
            The same as ``add``.
        """
        self._note_tried(config, number)
        drawn = params_of(self.space, config)
        if drawn is None:
            return False
        self._asked[number] = self._ask_again(drawn, number)
        self.on_change()
        return True

    def _ask_again(self, drawn: RecordingTrial, number: int | None) -> optuna.Trial:
        self.study.sampler = self._informed if self.search.sampler == "cmaes" else self._chance
        self.study.enqueue_trial(drawn.params, _attrs(number))
        return self.study.ask(drawn.distributions)

    def _note_tried(self, config: TrialConfig, number: int | None) -> None:
        """Record that a configuration, and the baselines that it came from, are not proposed again.

        These are the fitting baselines that leave nothing to chance. If there are none, each of the
        run's first trials came from at most one of the others.
        """
        self._has_relearnt = True
        self._proposed.add(_key(config))
        # The space may set or search the epochs of this run's own trials.
        if number is None and config.epochs != self.search.epochs:
            return
        counts = {index: self._num_left_out(index, config) for index in self._baselines}
        fitting = [index for index, count in counts.items() if count is not None]
        tried = [index for index in fitting if counts[index] == 0]
        if not tried and number is not None and number < len(self.space.baseline):
            tried = fitting[:1]
        self._baselines = [index for index in self._baselines if index not in tried]

    def _num_left_out(self, index: int, config: TrialConfig) -> int | None:
        """Return how many parameters of a configuration a baseline left to chance.

        Returns:
            ``None`` if the baseline cannot have produced it.
        """
        drawn = reconstruct(self.space, config, index)
        pinned = self.space.baseline_params(index)
        if drawn is None or not pinned.items() <= drawn.params.items():
            return None
        return len(drawn.params) - len(pinned)


def _told(state: TrialState, history: Sequence[EpochMetrics], metric: Metric) -> Told:
    """Return what to report to Optuna about a trial.

    A completed trial is COMPLETE with its best value. One that was stopped, or waits at a rung, is
    PRUNED with its last value. One that diverged, ran out of memory or was stopped before its first
    epoch is PRUNED without a value, the worst possible, so that its region is avoided. One that
    failed for another reason says nothing about its configuration: FAIL.
    """
    best = best_row(history, metric)
    values = {row.epoch: row.value(metric) for row in history if math.isfinite(row.val_loss)}
    # In an earlier run that did not record the metric, some epochs have no value.
    curve = {epoch: value for epoch, value in values.items() if value is not None}
    if state == "completed" and best is not None:
        return OptunaState.COMPLETE, best.value(metric), curve
    if state in ("stopped", "paused") and curve:
        return OptunaState.PRUNED, curve[max(curve)], curve
    if state in ("diverged", "out_of_memory", "stopped"):
        return OptunaState.PRUNED, None, {}
    return OptunaState.FAIL, None, {}


def _attrs(number: int | None) -> dict[str, Any]:
    """Return the user attributes of an Optuna trial: its number in the run."""
    return {} if number is None else {"trial": number}


def _key(config: TrialConfig) -> bytes:
    """Return a digest of a configuration, the same for any seed."""
    text = json.dumps(config.to_dict() | {"seed": None}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _shuffled(size: int, generator: random.Random) -> Iterator[int]:
    """Yield the numbers below ``size`` in random order, storing only those that were moved."""
    moved: dict[int, int] = {}
    for place in range(size):
        other = generator.randrange(place, size)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)


def trial_seed(run_seed: int, number: int) -> int:
    """Derive the seed of a trial from the run's, so that a single trial can be run again."""
    return int(np.random.SeedSequence((run_seed, number)).generate_state(1)[0])
