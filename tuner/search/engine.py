"""Ray Tune's searcher, scheduler and callback: each passes its events on to the conductor."""

from collections import deque
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuner.search.conductor import Conductor


class TuneSearcher(Searcher):
    """Starts trials; what became of them reaches the conductor by the callback."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> Any:
        """Give the parameters of the next trial, or say that there is none."""
        return self._conductor.start() or Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder is the record, the engine's snapshots are never read."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse."""
        raise AssertionError("a search is resumed from its run folder")


class TuneScheduler(FIFOScheduler):
    """Sees every epoch and decides whether the trial goes on."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let the conductor decide."""
        # After the worker's last word the engine repeats its report, marked as done.
        if result.get(DONE):
            return TrialScheduler.CONTINUE
        goes_on = self._conductor.keeps_going(trial.config["number"], result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class TuneCallback(Callback):
    """Closes the books of trials that ended.

    The engine turns an exception out of ``on_trial_complete`` into a failure of the trial; out of
    ``on_step_end`` it ends the search, as a full disk or a bug of ours should.
    """

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._endings: deque[tuple[Trial, str]] = deque()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Note that a trial ended by itself, or was stopped."""
        self._endings.append((trial, ""))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Note that a trial lost more workers than it may."""
        reason = f"its worker was lost, {trial.num_failures} times"
        if cause := _last_error(trial):
            reason += f": {cause}"
        self._endings.append((trial, reason))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Close the books of what ended in this step."""
        while self._endings:
            trial, reason = self._endings.popleft()
            self._conductor.end(trial.config["number"], reason)
            _forget_figures(trial)


def _forget_figures(trial: Trial) -> None:
    """Let go of what Ray keeps of an ended trial and nobody reads: 40 kB, and it keeps them all."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
    trial.run_metadata.last_result = {DONE: True}
    trial.evaluated_params = {}


def _last_error(trial: Trial) -> str:
    """Give the first line of what the engine wrote of a trial's last failure."""
    path = Path(trial.error_file or "")
    lines = path.read_text().splitlines() if path.is_file() else []
    heads = [index for index, line in enumerate(lines) if line.startswith("Failure #")]
    return lines[heads[-1] + 1] if heads and heads[-1] + 1 < len(lines) else ""
