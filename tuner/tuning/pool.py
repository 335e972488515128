"""The pool for the ensemble: finds the waiting trial from which the vote gains most."""

from bisect import insort
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tuner.ensemble.gain import best_addition, truth_of
from tuner.ensemble.integrity import ROUNDING
from tuner.errors import StorageError, TunerError
from tuner.run.events import Event, TrialEnded, TrialPromoted, TrialStarted
from tuner.run.layout import CHECKPOINT
from tuner.run.run import Run
from tuner.run.state import SearchState, TrialProgress
from tuner.run.trial import TrialState, best_row, read_val_probs

MOST_MEMBERS = 20
"""Maximum number of ended trials in the ensemble: those with the lowest NLL."""
ENDED_WELL: frozenset[TrialState] = frozenset({"completed", "stopped"})


class WaitingPool:
    """Prefers the waiting trial that most lowers the NLL of the ensemble of ended trials.

    It uses the validation probabilities that trials have written to the run folder. Trials that are
    under way rewrite theirs and are ignored, so that a search that is killed and resumed makes the
    same choices.

    Args:
        run: The run of these trials.
        state: State of the search; each event is applied to it before it is passed here.
        labels: Labels of the validation images, int64, shape (N,).
    """

    def __init__(self, run: Run, state: SearchState, labels: Tensor) -> None:
        self._run = run
        self._state = state
        self._labels = labels
        self._known: dict[int, Tensor | None] = {}
        """Trial -> the result of ``truth_of``; ``None`` if its file cannot be used."""
        self._ended: list[tuple[float, int]] | None = None
        """NLL and number of the possible members, best first; ``None`` until needed."""
        self._last: tuple[tuple[int, ...], tuple[int, ...], int | None] | None = None
        """Members and waiting trials of the last call, and its result."""

    def on(self, event: Event) -> None:
        """Update the pool with an event; see ``Observer``."""
        number = event.number
        match event:
            case TrialEnded(state="paused"):
                # Read now, one by one: reading all of them at once would delay the search.
                self._truth(number)
            case TrialEnded():
                if event.state in ENDED_WELL and self._ended is not None:
                    self._add(self._ended, self._state.trials[number])
                if number not in self._members():
                    self._known.pop(number, None)
            case TrialStarted() | TrialPromoted():
                self._known.pop(number, None)
        if isinstance(event, TrialEnded | TrialStarted | TrialPromoted):
            # The same trials may have reached another rung.
            self._last = None

    def prefer(self, waiting: Sequence[int]) -> int | None:
        """Return the trial to promote; see ``Asha.next_promotion``."""
        members = self._members()
        asked = (members, tuple(waiting))
        if self._last is None or self._last[:2] != asked:
            self._last = (*asked, self._best_of(members, waiting))
        return self._last[2]

    def _best_of(self, members: Sequence[int], waiting: Sequence[int]) -> int | None:
        known, candidates = self._truths(members), self._truths(waiting)
        if not known or not candidates:
            return None
        place = best_addition(torch.stack([*known.values()]), torch.stack([*candidates.values()]))
        return None if place is None else list(candidates)[place]

    def _truths(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Return the result of ``truth_of`` for the trials whose file can be used."""
        return {number: truth for number in numbers if (truth := self._truth(number)) is not None}

    def _members(self) -> tuple[int, ...]:
        if self._ended is None:
            self._ended = []
            for trial in self._state.trials.values():
                if trial.status.state in ENDED_WELL:
                    self._add(self._ended, trial)
        return tuple(number for _, number in self._ended)

    def _add(self, ended: list[tuple[float, int]], trial: TrialProgress) -> None:
        best = best_row(trial.history, self._state.search.metric)
        if best is not None and (self._run.trial_path(trial.number) / CHECKPOINT).exists():
            insort(ended, (best.val_loss, trial.number))
            for _, number in ended[MOST_MEMBERS:]:
                self._known.pop(number, None)
            del ended[MOST_MEMBERS:]

    def _truth(self, number: int) -> Tensor | None:
        if number not in self._known:
            self._known[number] = self._read(number)
        return self._known[number]

    def _read(self, number: int) -> Tensor | None:
        try:
            probs, _ = read_val_probs(self._run.trial_path(number))
        except StorageError:
            raise
        except TunerError:
            # The ensemble refuses it as well, and says why.
            return None
        if probs.dtype not in ROUNDING or probs.ndim != 2 or len(probs) != len(self._labels):
            return None
        if probs.shape[1] <= int(self._labels.max()) or not np.isfinite(probs).all():
            return None
        return truth_of(torch.from_numpy(probs).float(), self._labels)
