"""Trials as Optuna's samplers are to see them."""

import copy
import threading
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

MARK = "paused"
"""Attribute of a trial that is shown as pruned, and may still go on."""


class ShownTrials(InMemoryStorage):
    """A storage of one study that shows some trials in other states than they are in.

    Running ones are shown as pruned where it is told to: Optuna lets no trial go on that it was
    told has been pruned, and of one that runs its samplers learn nothing, or that it is bad.
    To who draws, pruned ones are shown as complete with the values that they had come to: TPE
    takes every complete trial for better than every pruned one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[int, FrozenTrial] = {}
        """Number of a trial -> as it is shown."""
        self._complete: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}
        """Number of a trial -> as it is shown, or is, and as it is shown to who draws."""
        self._drawing: int | None = None
        """Thread that draws."""

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Show this thread, for a while, what a sampler is to learn from."""
        self._drawing = threading.get_ident()
        try:
            yield
        finally:
            self._drawing = None

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
        trials = [
            self._shown.get(trial.number, trial)
            for trial in super().get_all_trials(study_id, deepcopy=False)
        ]
        if is_drawing:
            trials = [self._as_complete(trial) for trial in trials]
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _as_complete(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a pruned trial as a complete one; one without a value stays the worst there is.

        So does one of other images, below all others; see ``Sampler.add_foreign``.
        """
        if trial.state is not TrialState.PRUNED:
            return trial
        known = self._complete.get(trial.number)
        # Every parameter of every draw asks for all of them.
        if known is None or known[0] is not trial:
            shown = trial
            if trial.value is not None and trial.last_step != 0:
                shown = copy.copy(trial)
                shown.state = TrialState.COMPLETE
            known = self._complete[trial.number] = (trial, shown)
        return known[1]
