"""Ray Tune's searcher, scheduler and callback, each of which passes its events to the tuner."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.result import DONE
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuner.errors import first_line
from tuner.run.digests import DamagedError
from tuner.run.events import Event, TrialPlaced
from tuner.run.layout import STATUS
from tuner.run.trial import EpochMetrics
from tuner.schema import plural, to_json
from tuner.storage.paths import to_path
from tuner.storage.patience import Patience, persevere
from tuner.tuning.ray_backend.capacity import Capacity
from tuner.tuning.ray_backend.nodes import DOUBT_SECONDS, Answer
from tuner.tuning.ray_backend.notices import Notice, NoticeBoard
from tuner.tuning.ray_backend.worker import may_write
from tuner.tuning.recorder import Recorder
from tuner.tuning.tuner import Assignment, Tuner


class TuneSearcher(Searcher):
    """Starts trials when there is room; their later events reach the tuner elsewhere.

    Args:
        tuner: Decides which trial starts next.
        capacity: Decides whether there is room for it.
        path_of: Returns the folder of a trial.
        settle: Processes trials that ended or lost their worker.
    """

    def __init__(
        self,
        tuner: Tuner,
        capacity: Capacity,
        path_of: Callable[[int], object],
        settle: Callable[[], None],
    ) -> None:
        super().__init__()
        self._tuner = tuner
        self._capacity = capacity
        self._path_of = path_of
        self._settle = settle

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's parameters, ``None`` to wait, or ``FINISHED`` at the end.

        Returns:
            ``number`` and ``path``, the folder, of the trial, ``config``, its configuration as
            JSON, ``attempt``, the number of this attempt, ``known``, the number of its recorded
            epochs, ``cpus`` and ``gpus``, its resources, ``num_parameters`` and ``halved_from`` of
            its status, ``is_measured``, whether its network's costs are known, ``judged``, the
            epochs after which it may be paused or stopped, ``budget_seconds``, the time until the
            budget is spent, and ``avoid``, the nodes that get no trials.
        """
        # With no trial running, the engine repeats this call without completing a step.
        self._settle()
        given = self._tuner.next(self._capacity.has_room)
        if not isinstance(given, Assignment):
            return None if given == "wait" else Searcher.FINISHED
        return {
            "number": given.number,
            "path": str(self._path_of(given.number)),
            "attempt": given.attempt,
            "known": given.num_epochs,
            # As text: Ray copies, flattens and stores the parameters again for each report.
            "config": to_json(given.config),
            "cpus": given.resources.cpus,
            "gpus": given.resources.gpus,
            "num_parameters": given.num_parameters,
            "is_measured": given.is_measured,
            "halved_from": given.halved_from,
            "judged": list(given.judged_epochs),
            "budget_seconds": given.budget_seconds,
            "avoid": list(self._capacity.refused),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the run folder is the record; the engine's snapshots are never read."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse."""
        raise AssertionError("a search is resumed from its run folder")


class NoticePoster:
    """Posts changes that concern all workers."""

    def __init__(self, tuner: Tuner, capacity: Capacity, board: NoticeBoard) -> None:
        self._tuner = tuner
        self._capacity = capacity
        self._board = board
        self._posted = Notice()

    def post_if_changed(self) -> None:
        """Post a notice if it differs from the last one."""
        notice = Notice(
            is_ending=self._tuner.is_draining(),
            is_over=self._tuner.is_over,
            leaving=self._capacity.closing_nodes,
        )
        if notice != self._posted:
            self._board.post(notice)
            self._posted = notice


class TuneScheduler(FIFOScheduler):
    """Receives every report; decides whether a trial continues, and whether on its current node."""

    def __init__(
        self, tuner: Tuner, capacity: Capacity, poster: NoticePoster, storage: Patience
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tuner = tuner
        self._capacity = capacity
        self._poster = poster
        self._storage = storage
        self._added: list[Trial] = []
        """Trials waiting for a worker, in order of arrival, and some that no longer wait."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Note that a trial waits for a worker."""
        self._added.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Choose the last of the waiting trials; end them all if no more trials are to start.

        Tune gives a free worker to the chosen trial, and ends the worker that it is starting for
        it. For the last trial, which has just arrived, it is not starting one yet. With the first,
        as in Tune, trials shorter than a worker's start would leave all slots but one empty.
        """
        if not self._tuner.is_draining():
            while self._added and self._added[-1].status != Trial.PENDING:
                self._added.pop()
            return self._added[-1] if self._added else None
        for trial in list(tune_controller.get_live_trials()):
            # A trial that has a worker is about to run, whatever its status.
            if trial.status == Trial.PENDING and trial.temporary_state.ray_actor is None:
                self._tuner.withdraw(trial.config["number"], "before it had a worker")
                tune_controller.stop_trial(trial)
        return None

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let the tuner decide whether the trial continues."""
        # After the worker's last report the engine repeats it, marked as done.
        if result.get(DONE):
            return TrialScheduler.CONTINUE
        event: Event | None = result.get("event")
        if "storage" in result:
            self._storage.give_up(result["storage"])
            # Like an interrupt: running trials save what they can, the others wait.
            self._tuner.draining = "interrupted"
        if isinstance(event, TrialPlaced) and "host" not in result:
            self._capacity.accept(event.node)
        elif isinstance(event, TrialPlaced) and not _is_folder_unusable(trial):
            # The first and last report of a worker on a node that cannot run trials.
            self._capacity.refuse(
                Answer(
                    node=event.node,
                    host=result["host"],
                    value=dict(result.get("versions", ())),
                    problem=result.get("problem", ""),
                )
            )
        if "tell" in result:
            self._capacity.tell_once(result["tell"])
        if event is not None and self._tuner.on(event) != "continue":
            # A paused trial resumes as another of Ray's trials, in whichever worker is free.
            return TrialScheduler.STOP
        # The worker reads the notice when its report is answered.
        self._poster.post_if_changed()
        if isinstance(event, TrialPlaced) or "saved" in result:
            self._migrate(trial)
        return TrialScheduler.CONTINUE

    def _migrate(self, trial: Trial) -> None:
        """End the worker of a saved trial if the trial is to continue on another node."""
        status = self._tuner.state.trials[trial.config["number"]].status
        if status.node in self._capacity.closing_nodes:
            # If it ended in any other way, this worker would get the next trial.
            worker = trial.temporary_state.ray_actor
            assert worker is not None, "it has just reported"
            ray.kill(worker)


class TuneCallback(Callback):
    """Finishes trials that ended, and requeues those that lost their worker.

    The engine turns an exception from ``on_trial_complete`` into a failure of the trial; one from
    ``on_step_end`` ends the search, as a full disk or one of our bugs should.
    """

    def __init__(
        self,
        tuner: Tuner,
        recorder: Recorder,
        capacity: Capacity,
        poster: NoticePoster,
        max_failures: int,
    ) -> None:
        self._tuner = tuner
        self._recorder = recorder
        self._capacity = capacity
        self._poster = poster
        self._max_failures = max_failures
        self._endings: deque[Trial] = deque()
        self._losses: dict[Trial, float] = {}
        """Trial that lost its worker -> when that was noticed."""

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
        """Finish the trials that ended in this step, and notify the workers of changes."""
        self.settle()
        self._poster.post_if_changed()
        self._recorder.note_spending()

    def settle(self) -> None:
        """Finish trials that ended, and requeue or fail those that lost their worker."""
        while self._endings:
            trial = self._endings.popleft()
            self._tuner.end(trial.config["number"])
            _forget_metrics(trial)
        for trial, noticed in list(self._losses.items()):
            number = trial.config["number"]
            live, progress = self._tuner.live[number], self._tuner.state.trials[number]
            if not progress.status.node and (node := self._capacity.lost_since(live.began)):
                # It has not reported where it was; most likely there.
                self._tuner.on(TrialPlaced(number=number, node=node))
            # A worker lost with its node, or whose node left later, says nothing about the trial.
            node = progress.status.node
            num_lost = sum(not self._capacity.has_lost(one) for one in (*live.lost_on, node))
            is_fatal = num_lost > self._max_failures and live.ending is None
            is_doubtful = is_fatal or not node
            if is_doubtful and time.monotonic() - noticed < DOUBT_SECONDS:
                continue
            del self._losses[trial]
            times = plural(num_lost, "time")
            reason = f"its worker was lost, {times}: {_last_error(trial)}".removesuffix(": ")
            saved: list[EpochMetrics] = []
            try:
                # A trial that had ended has nothing left to resume.
                saved = self._recorder.saved_epochs(number) if live.ending is None else []
            except DamagedError as error:
                is_fatal, reason = True, first_line(error)
            is_excused = self._capacity.has_lost(node)
            self._tuner.lose(number, saved, reason if is_fatal else "", is_excused=is_excused)
            _forget_metrics(trial)


class Silence(TrialProgressCallback):
    """Keeps Tune from adding its own progress callback.

    That one prints lines at any verbosity, and calls interrupted trials completed.
    """

    def log_result(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    def on_trial_complete(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""


def _is_folder_unusable(trial: Trial) -> bool:
    """Whether the trial's folder is missing or read-only here, too: the node is not at fault.

    Raises:
        StorageError: If the storage fails here, too, for too long.
    """
    folder = to_path(trial.config["path"])
    return not persevere((folder / STATUS).exists) or not may_write(folder)


def _forget_metrics(trial: Trial) -> None:
    """Drop what Ray keeps of every ended trial and nobody reads: 40 kB each."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()
    trial.run_metadata.last_result = {DONE: True}
    trial.evaluated_params = {}


def _last_error(trial: Trial) -> str:
    """Return the relevant line of the engine's record of a trial's last failure."""
    path = Path(trial.error_file or "")
    text = path.read_text() if path.is_file() else ""
    lines = text.rpartition("Failure #")[2].strip().splitlines()[1:]
    # If the worker raised an exception, the first line names its function.
    return lines[-1 if "ray::" in lines[0] else 0] if lines else ""
