"""Trials as Optuna's samplers are to see them."""

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
"""Attribute of a trial that is shown as pruned, and may still go on."""
MOST, BEST = 1000, 100
"""How many ended trials who draws is shown at the most, and how many of these are the best ones.

The rest are the newest: TPE takes 25 for good at the most, and the older the others are, the less
they weigh with it.
"""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class ShownTrials(InMemoryStorage):
    """A storage of one study that shows some trials in other states than they are in.

    Running ones are shown as pruned where it is told to: Optuna lets no trial go on that it was
    told has been pruned, and of one that runs its samplers learn nothing, or that it is bad.
    To who draws, pruned ones are shown as complete with the values that they had come to: TPE
    takes every complete trial for better than every pruned one. And of very many ended ones some
    are left out, so that a draw stays cheap.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[int, FrozenTrial] = {}
        """Number of a trial -> as it is shown."""
        self._complete: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}
        """Number of a trial -> as it is shown, or is, and as it is shown to who draws."""
        self._drawing: int | None = None
        """Thread that draws."""
        self._drawn_from: list[FrozenTrial] = []
        """What it is shown; empty before it has asked."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Show this thread, for one draw, what a sampler is to learn from."""
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
        """Show a trial as it is again."""
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
                # TPE asks for them with each parameter.
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
        """Return a pruned trial as a complete one; one without a value stays the worst there is.

        So does one of other images, below all others; see ``Sampler.add_foreign``.
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
