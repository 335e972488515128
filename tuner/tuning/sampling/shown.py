"""A storage that controls how Optuna's samplers see trials."""

import copy
import heapq
import threading
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

MARK = "paused"
"""Attribute of a trial that is shown as pruned, and may still continue."""
MOST, BEST = 1000, 100
"""Maximum number of ended trials shown to a drawing sampler, and how many of these are the best.

The rest are the newest: TPE considers at most 25 trials good, and gives the others less weight the
older they are.
"""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class ShownTrials(InMemoryStorage):
    """A storage of one study that shows some trials in states other than their own.

    ``show_as_pruned`` shows a running trial as pruned: Optuna does not let a trial continue once it
    was pruned, and from a running one its samplers learn nothing, or that it is bad. A drawing
    sampler sees pruned trials as complete, with the values that they had reached: TPE considers
    every complete trial better than every pruned one. If there are very many ended trials, some are
    left out, so that a draw stays cheap.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[int, FrozenTrial] = {}
        """Number of a trial -> the trial as shown."""
        self._complete: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}
        """Number of a trial -> the trial as shown or stored, and as a drawing sampler sees it."""
        self._drawing: int | None = None
        """Identifier of the thread that is drawing."""
        self._drawn_from: list[FrozenTrial] = []
        """The trials shown to it; empty before it has requested them."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Show this thread, for one draw, the trials that a sampler should learn from."""
        self._drawing = threading.get_ident()
        try:
            yield
        finally:
            self._drawing, self._drawn_from = None, []

    def show_as_pruned(self, trial: optuna.Trial, curve: Mapping[int, float]) -> None:
        """Show a running trial as pruned, with its curve: step -> value."""
        shown = copy.copy(self.get_trial(trial._trial_id))
        shown.state = TrialState.PRUNED
        shown.datetime_complete = shown.datetime_start
        shown.intermediate_values = dict(curve)
        shown.values = [curve[max(curve)]] if curve else None
        shown.user_attrs = {**shown.user_attrs, MARK: True}
        self._shown[trial.number] = shown

    def forget(self, trial: optuna.Trial) -> None:
        """Show a trial in its own state again."""
        self._shown.pop(trial.number, None)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of the study; see ``BaseStorage``."""
        is_drawing = self._drawing == threading.get_ident()
        if not (self._shown or is_drawing) or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        trials = self._drawn_from if is_drawing else []
        if not trials:
            trials = [
                self._shown.get(trial.number, trial)
                for trial in super().get_all_trials(study_id, deepcopy=False)
            ]
            if is_drawing:
                # TPE requests them for each parameter.
                trials = self._best_and_newest(study_id, [self._as_complete(t) for t in trials])
                self._drawn_from = trials
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _best_and_newest(self, study_id: int, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials without the ended ones beyond ``MOST``."""
        ended = [trial for trial in trials if trial.state in ENDED]
        if len(ended) <= MOST:
            return trials
        (direction,) = self.get_study_directions(study_id)
        best_of = heapq.nsmallest if direction is StudyDirection.MINIMIZE else heapq.nlargest
        scored = [
            (trial.value, trial.number) for trial in ended if trial.state is TrialState.COMPLETE
        ]
        numbers = {number for _, number in best_of(BEST, scored)}
        numbers |= {trial.number for trial in ended[BEST - MOST :]}
        return [t for t in trials if t.state not in ENDED or t.number in numbers]

    def _as_complete(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a pruned trial as a complete one; one without a value stays the worst possible.

        So does a trial on other images, below all others; see ``Sampler.add_foreign``.
        """
        if trial.state is not TrialState.PRUNED:
            return trial
        known = self._complete.get(trial.number)
        if known is None or known[0] is not trial:
            shown = trial
            if trial.value is not None and trial.last_step != 0:
                shown = copy.copy(trial)
                shown.state = TrialState.COMPLETE
            known = self._complete[trial.number] = (trial, shown)
        return known[1]
