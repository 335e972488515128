"""Ray Tune's searcher, scheduler and callback: each passes its events on to the conductor."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuner.tuning.ray_backend.capacity import Room
from tuner.tuning.ray_backend.nodes import Answer
from tuner.tuning.ray_backend.notices import Notice, NoticeBoard
from tuner.tuning.tuner import Conductor

DOUBT_SECONDS = 30.0
"""A worker is missed before its node is: Ray asks a node five times, 3 s apart."""


class TuneSearcher(Searcher):
    """Starts trials where there is room; what became of them reaches the conductor elsewhere."""

    def __init__(self, conductor: Conductor, room: Room, settle: Callable[[], None]) -> None:
        super().__init__()
        self._conductor = conductor
        self._room = room
        self._settle = settle

    def suggest(self, trial_id: str) -> Any:
        """Return the parameters of the next trial, or nothing for now, or say that there is none.

        More trials than there is room for would be proposed before they could learn from those
        under way.
        """
        # Where no trial is left running, the engine asks again and again and goes no step further.
        self._settle()
        live = self._conductor.live
        # Asked before there is room: no node need come for a search to end.
        if self._conductor.is_draining() or not self._conductor.has_more:
            if not live:
                self._conductor.end_waiting()
            return None if live else Searcher.FINISHED
        if not self._room.takes_another([trial.share for trial in live.values()]):
            return None
        if params := self._conductor.start():
            return params | {"avoid": list(self._room.refused)}
        # A trial under way may lose its worker, and has to be started again then.
        return None if live else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder is the record, the engine's snapshots are never read."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse."""
        raise AssertionError("a search is resumed from its run folder")


class Herald:
    """Posts to the workers what has changed for all of them."""

    def __init__(self, conductor: Conductor, room: Room, board: NoticeBoard) -> None:
        self._conductor = conductor
        self._room = room
        self._board = board
        self._posted = Notice()

    def look(self) -> None:
        """Post a notice, if another one holds than before."""
        notice = Notice(
            is_ending=self._conductor.is_draining(),
            is_over=self._conductor.is_over,
            leaving=self._room.closing,
        )
        if notice != self._posted:
            self._board.post(notice)
            self._posted = notice


class TuneScheduler(FIFOScheduler):
    """Sees every epoch and decides whether the trial goes on, and whether where it is."""

    def __init__(self, conductor: Conductor, room: Room, herald: Herald) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conductor = conductor
        self._room = room
        self._herald = herald

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Choose the first of those that wait; end them where no trial is started any more."""
        if not self._conductor.is_draining():
            return super().choose_trial_to_run(tune_controller)
        for trial in tune_controller.get_trials():
            # One that has a worker is about to run, whatever its state.
            if trial.status == Trial.PENDING and trial.temporary_state.ray_actor is None:
                self._conductor.withdraw(trial.config["number"], "before it had a worker")
                tune_controller.stop_trial(trial)
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let the conductor decide."""
        # After the worker's last word the engine repeats its report, marked as done.
        if result.get(DONE):
            return TrialScheduler.CONTINUE
        if "host" in result:
            # The first and last word of a worker on a node that cannot run trials.
            self._room.refuse(
                Answer(
                    node=result["node"],
                    host=result["host"],
                    value=dict(result.get("versions", ())),
                    problem=result.get("problem", ""),
                )
            )
        if "tell" in result:
            self._room.tell_once(result["tell"])
        number = trial.config["number"]
        if not self._conductor.keeps_going(number, result):
            return TrialScheduler.STOP
        # The worker reads the notice when its report is answered.
        self._herald.look()
        if "node" in result or "saved" in result:
            self._move(trial)
        return TrialScheduler.CONTINUE

    def _move(self, trial: Trial) -> None:
        """End the worker of a trial that is saved, if the trial is to go on on another node."""
        if self._conductor.live[trial.config["number"]].status.node in self._room.closing:
            # Ended in any other way, this worker would be given the next trial.
            worker = trial.temporary_state.ray_actor
            assert worker is not None, "it has just reported"
            ray.kill(worker)


class TuneCallback(Callback):
    """Closes the books of trials that ended, and has those go on that lost their worker.

    The engine turns an exception out of ``on_trial_complete`` into a failure of the trial; out of
    ``on_step_end`` it ends the search, as a full disk or a bug of ours should.
    """

    def __init__(self, conductor: Conductor, room: Room, herald: Herald, max_failures: int) -> None:
        self._conductor = conductor
        self._room = room
        self._herald = herald
        self._max_failures = max_failures
        self._endings: deque[Trial] = deque()
        self._losses: dict[Trial, float] = {}
        """Trials that lost their worker -> when that was noticed."""

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Note that a trial ended by itself, or was stopped."""
        self._endings.append(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Note that a trial lost its worker."""
        self._losses[trial] = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Close the books of what ended in this step, and tell the workers what has changed."""
        self.settle()
        self._herald.look()
        self._conductor.note_spending()

    def settle(self) -> None:
        """Close the books of what ended, and have go on what lost its worker and may."""
        while self._endings:
            trial = self._endings.popleft()
            self._conductor.end(trial.config["number"])
            _forget_figures(trial)
        for trial, noticed in list(self._losses.items()):
            number = trial.config["number"]
            live = self._conductor.live[number]
            if not live.status.node and (node := self._room.lost_since(live.began)):
                # It has not said where it was; most likely there.
                self._conductor.keeps_going(number, {"node": node})
            # A worker that went with its node, or whose node went later, says nothing of the trial.
            workers = (*live.lost_on, live.status.node)
            num_lost = sum(not self._room.has_lost(node) for node in workers)
            is_fatal = num_lost > self._max_failures and live.outcome is None
            is_doubtful = is_fatal or not live.status.node
            if is_doubtful and time.monotonic() - noticed < DOUBT_SECONDS:
                continue
            del self._losses[trial]
            times = f"{num_lost} time{'' if num_lost == 1 else 's'}"
            reason = f"its worker was lost, {times}: {_last_error(trial)}".removesuffix(": ")
            self._conductor.lose(number, reason if is_fatal else "")
            _forget_figures(trial)


def _forget_figures(trial: Trial) -> None:
    """Let go of what Ray keeps of an ended trial and nobody reads: 40 kB, and it keeps them all."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
    trial.run_metadata.last_result = {DONE: True}
    trial.evaluated_params = {}


def _last_error(trial: Trial) -> str:
    """Return the line that matters of what the engine wrote of a trial's last failure."""
    path = Path(trial.error_file or "")
    text = path.read_text() if path.is_file() else ""
    lines = text.rpartition("Failure #")[2].strip().splitlines()[1:]
    # Where an exception came out of the worker, the first line names its function.
    return lines[-1 if "ray::" in lines[0] else 0] if lines else ""
