"""What happens to each trial, from its proposal to its end; the engine's callbacks lead here.

Ray Tune knows a searcher, a scheduler and callbacks. All three are thin: they pass every event on
to one ``Conductor``, which asks the sampler, judges epochs, and writes the run folder.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuner.config import TrialConfig
from tuner.run import EpochRow, Run, Stop, TrialState, TrialStatus, now, write_status, write_trial
from tuner.search.sampler import Sampler
from tuner.search.scheduler import Asha

EPOCH_KEYS = tuple(EpochRow.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ends: the worker's last word, or the conductor's decision."""

    state: TrialState
    reason: str = ""
    stop: Stop | None = None
    traceback: str = ""


@dataclass(slots=True)
class LiveTrial:
    """A trial that is under way."""

    number: int
    config: TrialConfig
    status: TrialStatus
    history: list[EpochRow] = field(default_factory=list)
    outcome: Outcome | None = None


class Conductor:
    """Leads a search's trials and keeps its books.

    Attributes:
        live: Trials under way, by number.
        ended: How many trials ended in which state.
        best: Number and best epoch of the leading trial.
        is_draining: No trial is started any more, and running ones end after their epoch.
    """

    def __init__(self, run: Run, sampler: Sampler, scheduler: Asha, num_trials: int) -> None:
        self.run = run
        self.sampler = sampler
        self.scheduler = scheduler
        self.num_trials = num_trials
        self.num_started = 0
        self.num_epochs = 0
        self.live: dict[int, LiveTrial] = {}
        self.ended: dict[TrialState, int] = {}
        self.best: tuple[int, EpochRow] | None = None
        self.last_failure = ""
        self.is_draining = False

    def start(self) -> dict[str, Any] | None:
        """Propose the next trial and open its folder; ``None`` when there is none to start."""
        if self.is_draining or self.num_started >= self.num_trials:
            return None
        number = self.num_started
        config = self.sampler.ask(number)
        self.num_started += 1
        path = self.run.trial_path(number)
        trial = LiveTrial(number, config, TrialStatus(state="running", started=now()))
        write_trial(path, config)
        write_status(path, trial.status)
        self.live[number] = trial
        return {"number": number, "path": str(path), "config": config.to_dict()}

    def keeps_going(self, number: int, report: dict[str, Any]) -> bool:
        """Take a worker's report; say whether its trial goes on."""
        trial = self.live[number]
        if "outcome" in report:
            trial.outcome = Outcome(
                state=report["outcome"],
                reason=report.get("reason", ""),
                traceback=report.get("traceback", ""),
            )
            return True
        row = EpochRow(**{key: report[key] for key in EPOCH_KEYS})
        trial.history.append(row)
        trial.status = replace(
            trial.status, num_parameters=report["num_parameters"], node=report["node"]
        )
        self.num_epochs += 1
        if not math.isfinite(row.train_loss + row.val_loss):
            return True
        if self.best is None or (row.val_accuracy, -row.val_loss) > (
            self.best[1].val_accuracy,
            -self.best[1].val_loss,
        ):
            self.best = (number, row)
        stop = self.scheduler.judge(row.epoch, row.val_accuracy)
        if stop is not None:
            trial.outcome = Outcome(state="stopped", stop=stop, reason=str(stop))
            return False
        if self.is_draining and row.epoch < trial.config.epochs:
            trial.outcome = Outcome(state="interrupted", reason=f"after epoch {row.epoch}")
            return False
        return True

    def end(self, number: int, lost: str = "") -> LiveTrial:
        """Close a trial's books and give them.

        Args:
            number: Which trial.
            lost: Why its worker is gone, if that is how it ended.
        """
        trial = self.live.pop(number)
        outcome = Outcome(state="failed", reason=lost) if lost else trial.outcome
        assert outcome is not None, f"trial {number} ended without a word"
        state = outcome.state
        trial.status = replace(
            trial.status,
            state=state,
            reason=outcome.reason,
            stop=outcome.stop,
            traceback=outcome.traceback,
            finished=now(),
        )
        write_status(self.run.trial_path(number), trial.status)
        self.sampler.tell(number, state, trial.history)
        self.ended[state] = self.ended.get(state, 0) + 1
        if state == "failed":
            self.last_failure = trial.status.reason
        return trial

    def searcher(self) -> Searcher:
        """Give the engine's view of ``start``."""
        return _Searcher(self)

    def watcher(self) -> TrialScheduler:
        """Give the engine's view of ``keeps_going``."""
        return _Watcher(self)

    def callback(self, on_end: Callable[[LiveTrial], None]) -> Callback:
        """Give the engine's view of ``end``; ``on_end`` is told of each."""
        return _Endings(self, on_end)


class _Searcher(Searcher):
    """Proposes trials; what became of them reaches the conductor by the callback."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> Any:
        return self._conductor.start() or Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    # The run folder is the record: the engine's own snapshots are neither needed nor read.
    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a search is resumed from its run folder")


class _Watcher(FIFOScheduler):
    """Sees every epoch and decides whether the trial goes on."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conductor = conductor

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        # After the worker's last word the engine repeats its report, marked as done.
        if result.get(DONE):
            return TrialScheduler.CONTINUE
        goes_on = self._conductor.keeps_going(trial.config["number"], result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class _Endings(Callback):
    """Closes the books of trials that ended.

    The engine turns an exception out of ``on_trial_complete`` into a failure of the trial; out of
    ``on_step_end`` it ends the search, as a full disk or a bug of ours should.
    """

    def __init__(self, conductor: Conductor, on_end: Callable[[LiveTrial], None]) -> None:
        self._conductor = conductor
        self._on_end = on_end
        self._endings: deque[tuple[int, str]] = deque()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._endings.append((trial.config["number"], ""))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        lines = str(trial.get_error()).strip().splitlines()
        self._endings.append((trial.config["number"], f"its worker was lost: {lines[-1]}"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        while self._endings:
            self._on_end(self._conductor.end(*self._endings.popleft()))
