"""What a search and a refit share: opening the run, running its trials, closing it."""

import contextlib
import math
import platform
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from rich.console import Console
from torch import Tensor

from tuner import __version__
from tuner.config import Resources, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import (
    ClusterError,
    NoUsableTrials,
    StorageError,
    TunerError,
    UsageError,
    first_line,
)
from tuner.models.cost import count_parameters
from tuner.models.trust import Code, check_code_trusted, code_of
from tuner.monitor.terminal import tell
from tuner.run.digests import DamagedError
from tuner.run.layout import SPACE
from tuner.run.resuming import WITHOUT_PATIENCE
from tuner.run.run import Run, clock
from tuner.run.run_record import RunRecord, RunStatus, now
from tuner.run.trial import OPEN
from tuner.space import load_run_space
from tuner.storage.files import write_text
from tuner.storage.paths import remove_folder
from tuner.storage.patience import Patience, patient, persevere, storage_fault
from tuner.storage.temporary import PREFIX, TemporaryFolder, remove_abandoned
from tuner.tracking import check_installed, tracked
from tuner.training.saving import check_resumable
from tuner.tuning.budget import Budget
from tuner.tuning.pool import WaitingPool
from tuner.tuning.progress import Progress
from tuner.tuning.proposers import Proposer
from tuner.tuning.ray_backend.callbacks import (
    NoticePoster,
    Silence,
    TuneCallback,
    TuneScheduler,
    TuneSearcher,
)
from tuner.tuning.ray_backend.capacity import Capacity, plan_capacity
from tuner.tuning.ray_backend.cluster import (
    connected,
    hardware,
    is_started_here,
    replaced,
    variables,
)
from tuner.tuning.ray_backend.nodes import check_shared, versions_here
from tuner.tuning.ray_backend.notices import NoticeBoard
from tuner.tuning.ray_backend.private import TUNE_ENV_VARS, air_usage
from tuner.tuning.ray_backend.signals import drained_by_signals, interrupted_by_signals
from tuner.tuning.ray_backend.watch import RayWatch
from tuner.tuning.ray_backend.worker import place, train_if_fit
from tuner.tuning.recorder import Recorder, make_tuner
from tuner.tuning.request import RunRequest
from tuner.tuning.resources import CapacityPlan
from tuner.tuning.tuner import Tuner

TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The engine's own snapshots are written once, at the end, into a folder that is deleted.
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    # By default, Tune would start trials that do not fit yet one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": str(10**6),
}


@contextmanager
def connected_run(
    request: RunRequest,
    splits: Splits,
    console: Console,
    *,
    resources: Resources | None = None,
) -> Iterator[tuple[Run, CapacityPlan]]:
    """Connect to the cluster, and open the run's folder, a new or an existing one, exclusively.

    An existing one is left unchanged until ``run_trials`` begins: it may still be refused.

    Args:
        request: The user's request.
        splits: The images.
        console: Shows how many trials run at a time.
        resources: Resources per trial, where the request does not set them.

    Raises:
        UsageError: On a name that is taken, or a run to resume that is missing or of other data.
        DamagedError: If files of a run to resume are damaged, or not what was written.
        ClusterError: On a cluster that does not answer, or is too small.
        StorageError: If the storage is full, or fails otherwise, before the trials run.
        KeyboardInterrupt: On a signal outside ``run_trials``, with the command that goes on.
    """
    if not request.resume or "log" in request.given:
        check_installed(request.log)
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupted_by_signals())
        stack.enter_context(connected(request.address, console=console))
        check_shared(request.storage.absolute())
        plan = capacity_of(request, resources or Resources(), splits)
        if math.isfinite(request.gpu_hours) and not any(one.gpus for one in plan.all_resources()):
            raise UsageError("--gpu-hours: these trials use no GPU; give --time-budget instead")
        # Absolute, because the workers start in their own folders.
        path = (request.storage / request.name).absolute()
        if request.resume:
            run = Run.open(path)
            stack.enter_context(run.locked())
            splits.expect(run.record.data_fingerprint, run.record.split_fingerprint, path)
            if request.search.epochs != run.record.search.epochs:
                raise UsageError(
                    f"--resume: the trials of {path} are planned for {run.record.search.epochs} "
                    f"epochs, not {request.search.epochs}; start a new run with --warm-start "
                    f"{request.name}"
                )
            check_resumable(run)
        else:
            try:
                record = _record(request, splits, plan)
                run = Run.create(path, record, request.space_text, stack)
            except OSError as error:
                remove_folder(path)
                raise StorageError(
                    f"{path}: cannot be written ({error.strerror}). Make room, or choose another "
                    "--storage."
                ) from None
        run.address = request.address
        try:
            run.remove_abandoned()
            remove_abandoned(Path(tempfile.gettempdir()), PREFIX)
            tell(console, f"{run.record.name}: {plan}")
            yield run, plan
        except KeyboardInterrupt:
            if run.record.status == "running":
                # A resumed run may still have the space of its schema version.
                schema_version = run.record.schema_version
                run.update(status="interrupted", finished=now(), schema_version=schema_version)
            raise KeyboardInterrupt(f"interrupted; {run.how_to_go_on()}") from None
        except OSError as error:
            if not (reason := storage_fault(error)):
                raise
            raise StorageError(f"{path}: cannot be used ({reason}). {run.how_to_go_on()}") from None


def run_trials(
    request: RunRequest,
    run: Run,
    plan: CapacityPlan,
    proposer: Proposer,
    payload: dict[str, Any],
    console: Console,
    *,
    val_labels: Tensor | None = None,
) -> Tuner:
    """Run the trials that ``proposer`` proposes until the last one or a signal, and close the run.

    Args:
        request: The user's request.
        run: A new run, or one to resume.
        plan: Resources per trial, and how many trials run at once.
        proposer: Proposes the trials.
        payload: Arguments of ``train_trial`` that every worker gets, without those of the request.
        console: Shows the progress.
        val_labels: Labels of the validation images, if trials are promoted for the ensemble;
            int64, shape (N,).

    Raises:
        TunerError: If the first three trials failed in the same way.
        ClusterError: If Ray itself was lost.
        StorageError: If the storage failed for too long.
    """
    budget = Budget(
        trials=request.search.trials,
        seconds=request.seconds,
        gpu_seconds=request.gpu_hours * 3600,
    )
    # The images of a resumed run may have moved.
    moved: dict[str, Any] = {}
    if request.resume:
        write_text(run.path / SPACE, request.space_text)
        moved = {"data": request.data, "data_dir": str(request.data_dir)}
    run.update(
        status="running",
        reason="",
        search=request.search,
        slots=plan.to_plain(),
        **moved,
        **request.kept_entries,
        **request.record_entries,
    )
    tuner, recorder = make_tuner(run, proposer, budget, plan)
    if val_labels is not None:
        pool = WaitingPool(run, tuner.state, val_labels)
        tuner.observers.append(pool.on)
        tuner.prefer = pool.prefer
    say = partial(tell, console)

    def drain() -> None:
        # A search that already failed or ended is not interrupted.
        if tuner.draining != "broken" and (tuner.live or tuner.has_more):
            tuner.draining = "interrupted"

    def close(status: RunStatus) -> None:
        # First, so that it is on record if a damaged trial makes the leaderboard fail.
        run.update(
            status=status,
            reason=tuner.reason if tuner.draining == "patience" else "",
            finished=now(),
            active_seconds=tuner.spending.seconds,
        )
        run.write_leaderboard()

    def give_up() -> None:
        console.show_cursor()
        close("interrupted")

    watch = RayWatch(is_local=is_started_here(), close=give_up, advice=run.how_to_go_on())
    storage = Patience(run.path, say, watch.is_lost)
    capacity = Capacity(plan, say)
    status: RunStatus = "failed"
    try:
        with (
            patient(storage),
            watch,
            drained_by_signals(drain, watch.is_lost),
            tracked(run, request.log, tuner.state, tuner.observers, say),
        ):
            if trials := recorder.restore():
                num_outside = tuner.restore(trials)
                say(_resuming(tuner, num_outside))
            payload = payload | {
                "save_seconds": request.save_seconds,
                "metric": request.search.metric,
                "costs": request.search.costs,
                "compile_mode": request.compile_mode,
            }
            space = load_run_space(run.path / SPACE)
            max_failures = request.max_failures
            engine = partial(_tune, tuner, recorder, payload, capacity, storage, max_failures)
            with Progress(tuner, console, lambda: capacity.count, space):
                _run_over_losses(engine, tuner, recorder, max_failures)
        if tuner.draining != "broken":
            status = "interrupted" if tuner.draining == "interrupted" else "finished"
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception as error:
        # Ray may report its own end to the search before the watch has looked.
        if not storage.blame(error) and not watch.look():
            raise
        status = "interrupted"
    finally:
        with patient(storage), _blaming(storage, run):
            persevere(lambda: close(status))
            if status == "finished":
                persevere(lambda: run.prune(request.keep))
    watch.check()
    if storage.problem:
        raise StorageError(f"{run.path}: cannot be used ({storage.problem}). {run.how_to_go_on()}")
    _tell_ending(tuner, run, say)
    return tuner


def _tell_ending(tuner: Tuner, run: Run, say: Callable[[str], None]) -> None:
    """Say what ended the trials before the last one, if anything did.

    Raises:
        TunerError: If the first three trials failed in the same way.
    """
    if tuner.draining == "broken":
        number, reason = tuner.failures[0]
        raise TunerError(
            f"the first trials all failed in the same way: {reason}. More is in "
            f"{run.trial_path(number) / 'status.json'}."
        )
    if tuner.draining == "budget":
        say(_budget_spent(tuner, run))
    if tuner.draining == "patience":
        done = f"{tuner.state.num_done} of {tuner.spending.budget.trials} trials done"
        say(f"Ended with {done}: {tuner.reason}.")
        say(f"Go on all the same with:\n  {run.resume_command(*WITHOUT_PATIENCE)}")


def _budget_spent(tuner: Tuner, run: Run) -> str:
    """Say how far the budget went, and how to train the rest."""
    state, budget = tuner.state, tuner.spending.budget
    done = f"{state.num_done} of {budget.trials} trials done"
    if cut := state.ended["interrupted"]:
        done += f", {cut} cut off"
    if paused := state.ended["paused"]:
        done += f", {paused} paused"
    spent = f"The budget is spent after {clock(tuner.spending.seconds)}: {done}."
    if state.num_done == budget.trials:
        return spent
    return f"{spent} Resume with:\n  {run.resume_command(factor=2)}"


def check_trusted(request: RunRequest, code: Code, whose: object) -> None:
    """Refuse to run code that is neither known here nor trusted, before running any of it.

    Args:
        request: The user's request; for a resumed run, the code of its trials is checked, too.
        code: Other code that would be run.
        whose: What that code came with.

    Raises:
        UntrustedCodeError: If there is any.
    """
    check_code_trusted(code, whose, trust=request.trust_code)
    if request.resume:
        run = Run.open(request.storage / request.name)
        known = code_of(trial.config.model for trial in run.trials())
        check_code_trusted(known, run.path, trust=request.trust_code)


def require_usable_trial(run: Run, tuner: Tuner) -> None:
    """Refuse a run that is finished but has no model.

    Raises:
        NoUsableTrials: If no trial left a checkpoint.
    """
    if run.record.status == "finished" and not any(trial.is_usable for trial in run.trials()):
        raise NoUsableTrials(
            f"{run.path}: none of {tuner.num_started} trials left a model to use. "
            f"{_why_none(run, tuner)}"
        )


def capacity_of(request: RunRequest, own: Resources, splits: Splits) -> CapacityPlan:
    """Plan with the space's resources; those of the request take precedence.

    Raises:
        UsageError: As ``plan_capacity``.
        ClusterError: As ``plan_capacity``.
    """

    def count(config: TrialConfig) -> int:
        try:
            one = count_parameters(config.model, len(splits.classes), splits.image_shape)
            return one * max(1, splits.num_folds)
        except UsageError:
            # The network cannot be built; its worker reports why.
            return 0

    cpus, gpus = request.cpus_per_trial, request.gpus_per_trial
    return plan_capacity(
        replace(
            own,
            cpus=own.cpus if cpus is None else cpus,
            gpus=own.gpus if gpus is None else gpus,
        ),
        request.concurrent,
        count,
        is_most=request.resume and "concurrent" not in request.given,
    )


def _resuming(tuner: Tuner, num_outside: int) -> str:
    paused = len(tuner.paused)
    ended = sum(record.status.state not in OPEN for record in tuner.state.trials.values())
    others = len(tuner.state.trials) - ended - paused
    waiting = f", {paused} wait at a rung" if paused else ""
    outside = f"; {num_outside} of them are outside the current space" if num_outside else ""
    return f"Resuming: {ended} trials have ended, {others} continue{waiting}{outside}."


@contextmanager
def _blaming(storage: Patience, run: Run) -> Iterator[None]:
    """Close the run as far as the storage allows, and record how far that is."""
    try:
        yield
    except Exception as error:
        if not storage.blame(error):
            raise
        try:
            run.update(status="interrupted", finished=now())
        except (OSError, StorageError):
            storage.problem += "; run.json could not be written and says that it is running"


def _run_over_losses(
    engine: Callable[[], None], tuner: Tuner, recorder: Recorder, max_failures: int
) -> None:
    """Let the engine run the tuner's trials; restart it after losses that it cannot survive."""
    num_kills = num_ended = 0
    while num_kills <= max_failures:
        try:
            return engine()
        except RuntimeError as error:
            # Ray kills workers on a node that runs low on memory. Tune 2.60 counts any other loss
            # of a worker as a failed trial, but crashes on this one.
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            requeue(tuner, recorder)
        # Kills between which trials end are no reason to give up a long search.
        num_kills = num_kills + 1 if tuner.state.num_ended == num_ended else 1
        num_ended = tuner.state.num_ended
    # Nothing starts any more, but it will after a resume: what waits may still be promoted then.
    tuner.draining = tuner.draining or "interrupted"
    tuner.end_waiting()
    raise ClusterError(
        f"{recorder.run.path}: workers were killed {max_failures + 1} times because a machine ran "
        "low on memory; resume with --resume and fewer trials at once (--concurrent)"
    )


def requeue(tuner: Tuner, recorder: Recorder) -> None:
    """Requeue all trials under way, because their workers are gone."""
    for number, trial in list(tuner.live.items()):
        try:
            saved = recorder.saved_epochs(number) if trial.ending is None else []
        except DamagedError as error:
            tuner.lose(number, [], first_line(error))
        else:
            tuner.lose(number, saved, is_excused=True)


def _tune(
    tuner: Tuner,
    recorder: Recorder,
    payload: dict[str, Any],
    capacity: Capacity,
    storage: Patience,
    max_failures: int,
) -> None:
    run = recorder.run
    board = NoticeBoard(f"{run.path}:{uuid.uuid4().hex}")
    trainable = tune.with_parameters(train_if_fit, versions=versions_here(), board=board, **payload)
    poster = NoticePoster(tuner, capacity, board)
    callback = TuneCallback(tuner, recorder, capacity, poster, max_failures)
    with _settings_of_tune(), contextlib.closing(board), TemporaryFolder() as scratch:
        tune.run(
            tune.with_resources(trainable, place),
            name="search",
            storage_path=scratch,
            # The tuner decides when there are no more.
            num_samples=-1,
            search_alg=TuneSearcher(tuner, capacity, run.trial_path, callback.settle),
            scheduler=TuneScheduler(tuner, capacity, poster, storage),
            callbacks=[callback, Silence()],
            # The tuner requeues a trial that lost its worker; it can tell whether a node was lost.
            max_failures=0,
            reuse_actors=True,
            raise_on_failed_trial=False,
            trial_name_creator=lambda trial: f"{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
            verbose=0,
        )


@contextmanager
def _settings_of_tune() -> Iterator[None]:
    """Adapt Tune to a search in the block, and restore the settings of the user's own experiments.

    To count its own callbacks among ours, Tune would import mlflow and wandb: 1.3 s before the
    first trial starts, if they are installed. Idle workers lack the variable for PyTorch Lightning,
    so Tune would start new ones.
    """
    for_workers = dict(TUNE_ENV_VARS)
    TUNE_ENV_VARS.clear()
    try:
        with (
            replaced(air_usage, tag_callbacks=lambda callbacks: False),
            variables(TUNE_VARIABLES),
        ):
            yield
    finally:
        TUNE_ENV_VARS.update(for_workers)


def _record(request: RunRequest, splits: Splits, plan: CapacityPlan) -> RunRecord:
    return RunRecord(
        name=request.name,
        command=request.command,
        space=request.space_name,
        search=request.search,
        data=splits.config or request.data,
        data_dir=str(request.data_dir),
        data_fingerprint=splits.fingerprint,
        split_fingerprint=splits.split_fingerprint,
        num_train=len(splits.train.labels),
        num_val=len(splits.val.labels),
        versions={"python": platform.python_version(), "cifar-tune": __version__}
        | {name: version(name) for name in ("torch", "torchvision", "ray", "optuna")},
        git_commit=_git_commit(),
        hardware={
            "platform": platform.platform(),
            "threads_per_trial": plan.default.threads,
            **hardware(),
        },
        slots=plan.to_plain(),
        started=now(),
        **request.kept_entries,
        **request.record_entries,
    )


def _git_commit() -> str:
    """Return the commit that this package runs from; empty if it is installed."""
    git = ("git", "-C", str(Path(__file__).parent))
    # An installed one may be inside somebody else's repository.
    questions = ("ls-files", "--error-unmatch", Path(__file__).name), ("rev-parse", "HEAD")
    told = ""
    for question in questions:
        try:
            told = subprocess.check_output([*git, *question], stderr=subprocess.DEVNULL, text=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
    return told.strip()


def _why_none(run: Run, tuner: Tuner) -> str:
    states = ", ".join(f"{number} {state}" for state, number in tuner.state.ended.items())
    last = f" Last failure: {tuner.failures[-1][1]}" if tuner.failures else ""
    more = (
        f" Resume with a larger budget: {run.resume_command(factor=2)}"
        if "interrupted" in tuner.state.ended
        else ""
    )
    return f"They ended: {states}.{last}{more}"
