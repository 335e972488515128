"""Trials that wait at a rung, as Optuna's samplers are to see them."""

import copy
from collections.abc import Container, Mapping

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

MARK = "paused"
"""Attribute of a trial that is shown as pruned, and may still go on."""


class PausedTrials(InMemoryStorage):
    """A storage of one study that shows running trials as pruned where it is told to.

    Optuna lets no trial go on that it was told has been pruned, and of one that runs its samplers
    learn nothing, or that it is bad.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[int, FrozenTrial] = {}
        """Number of a trial -> as it is shown."""

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
        if not self._shown or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        shown = self._shown
        trials = [
            shown.get(trial.number, trial) for trial in super().get_all_trials(study_id, False)
        ]
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found
