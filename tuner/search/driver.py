"""``search()``: the space, the data and the cluster brought together into a run."""

import contextlib
import math
import os
import platform
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from rich.console import Console

from tuner.compiling import CompileMode
from tuner.config import DataConfig, SearchConfig, TrialConfig
from tuner.data import Splits, load_splits
from tuner.errors import ClusterError, NoUsableTrials, TunerError, UsageError
from tuner.files import write_text
from tuner.models.cost import excess
from tuner.run import Run, RunRecord, RunStatus, now
from tuner.search.cluster import Slots, connected, hardware, plan_slots
from tuner.search.conductor import Budget, Conductor
from tuner.search.engine import TuneCallback, TuneScheduler, TuneSearcher
from tuner.search.progress import Progress
from tuner.search.sampler import Sampler
from tuner.search.scheduler import make_scheduler
from tuner.search.study import refuse_taken, refuse_unfit
from tuner.search.trainable import pack, pack_starts, train_trial
from tuner.space import SearchSpace
from tuner.tracking import Target, refuse_missing, tracked
from tuner.trial import OPEN
from tuner.weights import load_starts


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """All that a user can ask of a search."""

    space: SearchSpace
    space_name: str
    search: SearchConfig
    data: DataConfig
    data_dir: Path
    storage: Path
    name: str
    command: str
    keep: int
    """Checkpoints that stay on disk when the run ends."""
    resume: bool = False
    """Go on with the run of that name instead of making it."""
    warm_start: Run | None = None
    """A run from whose trials the sampler learns first."""
    study_storage: str | None = None
    """A journal file or the URL of a database where Optuna's study can be watched."""
    seconds: float = math.inf
    """Of searching, over all resumes; running trials finish their epoch."""
    gpu_hours: float = math.inf
    """Of GPUs held by training trials, over all resumes."""
    log: tuple[Target, ...] = ()
    """Where else than in TensorBoard's files the trials are recorded."""
    max_failures: int = 3
    """Workers that a trial may lose before it counts as failed."""
    compile_mode: CompileMode = "auto"
    address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    concurrent: int | None = None


def search(request: SearchRequest, console: Console) -> Run:
    """Search a space and leave a run folder, or go on with one.

    Args:
        request: What to search, on what.
        console: Where progress is shown.

    Returns:
        The run; its status is ``interrupted`` if a signal ended it early.

    Raises:
        UsageError: On data or weights that cannot be read, a name that is taken, a sampler that
            cannot search this space, or a run to resume that is missing or of other data.
        ClusterError: On a cluster that does not answer, or is too small.
        NoUsableTrials: If no trial left a checkpoint.
        TunerError: If the first three trials failed in the same way.
    """
    if request.name != Path(request.name).name or request.name.startswith("."):
        raise UsageError(
            f"--name {request.name!r} is not a plain name; give --storage for a folder"
        )
    refuse_unfit(request.space, request.search)
    refuse_missing(request.log)
    if request.study_storage and not request.resume:
        refuse_taken(request.study_storage, request.name)
    splits = load_splits(request.data, request.data_dir)
    starts = load_starts(
        request.space.starting_models(), splits.classes, splits.image_shape, request.storage
    )
    with connected(request.address), contextlib.ExitStack() as stack:
        slots = plan_slots(request.gpus_per_trial, request.cpus_per_trial, request.concurrent)
        if math.isfinite(request.gpu_hours) and not slots.gpus:
            raise UsageError("--gpu-hours: these trials use no GPU; give --time-budget instead")
        # Absolute, for the workers start in folders of their own.
        path = (request.storage / request.name).absolute()
        space = request.space.resolved()
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
            write_text(path / "space.yaml", space)
            kept = request.study_storage or run.record.study_storage
            run.update(
                status="running",
                search=request.search,
                study_storage=kept,
                slots=asdict(slots),
            )
        else:
            run = Run.create(path, _record(request, splits, slots), space)
            stack.enter_context(run.locked())
        console.print(f"{run.record.name}: {slots}", markup=False)
        budget = Budget(
            trials=request.search.trials,
            seconds=request.seconds,
            gpu_seconds=request.gpu_hours * 3600,
        )
        sampler = Sampler(
            request.space,
            request.search,
            study_storage=run.record.study_storage,
            study_name=request.name,
            excess=_excess(request.space, splits),
        )
        if request.warm_start:
            _warm_start(sampler, request.warm_start, console)
        conductor = Conductor(run, sampler, make_scheduler(request.search), budget, slots)
        status: RunStatus = "failed"
        try:
            if trials := run.trials():
                left_out = conductor.replay(trials)
                _tell_replay(conductor, len(trials), left_out, console)
            shipped = {
                "data": pack(splits),
                "starts": pack_starts(starts),
                "compile_mode": request.compile_mode,
            }
            with (
                _draining_on_signals(conductor),
                tracked(run, request.log, conductor.observers) as tracking,
                Progress(conductor, console),
            ):
                _run_trials(conductor, shipped, slots, request.max_failures)
            for target, problem in tracking.problems.items():
                console.print(f"{target} was not told of all trials: {problem}", markup=False)
            if conductor.draining != "broken":
                status = "interrupted" if conductor.draining == "interrupted" else "finished"
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            if status != "interrupted":
                run.prune(request.keep)
            run.write_leaderboard()
            run.update(status=status, finished=now(), active_seconds=conductor.active_seconds)
    if conductor.draining == "broken":
        number, reason = conductor.failures[0]
        raise TunerError(
            f"the first trials all failed in the same way: {reason}. More is in "
            f"{run.trial_path(number) / 'status.json'}."
        )
    if conductor.draining == "budget":
        console.print(
            f"The budget is spent: {conductor.active_seconds:.0f} s of searching, "
            f"{sum(conductor.ended.values())} of {budget.trials} trials.",
            markup=False,
        )
    if status == "finished" and not conductor.draining and conductor.num_started < budget.trials:
        tried = f"{conductor.num_started} of {budget.trials} trials"
        console.print(f"The grid holds no more configurations: {tried}.", markup=False)
    if sampler.num_refused:
        console.print(_share_refused(sampler), markup=False)
    if status == "finished" and not any(trial.is_usable for trial in run.trials()):
        raise NoUsableTrials(
            f"{run.path}: none of {conductor.num_started} trials left a model to use. "
            f"{_why_none(conductor)}"
        )
    return run


def _excess(space: SearchSpace, splits: Splits) -> Callable[[TrialConfig], str]:
    """Give what says by what a configuration exceeds the space's limits."""
    return lambda config: excess(
        config.model, space.constraints, len(splits.classes), splits.image_shape
    )


def _share_refused(sampler: Sampler) -> str:
    total = sampler.num_refused + sampler.num_accepted
    share = sampler.num_refused / total
    return (
        f"Constraints: {sampler.num_refused} of {total} proposals ({share:.0%}) exceeded them and "
        "were drawn again."
    )


def _warm_start(sampler: Sampler, run: Run, console: Console) -> None:
    """Tell the sampler of a run's trials; they are no peers for those of this one."""
    ended = [trial for trial in run.trials() if trial.status.state not in OPEN]
    known = sum(sampler.add(trial.config, trial.status.state, trial.history) for trial in ended)
    outside = f"; {len(ended) - known} lie outside this space" if known < len(ended) else ""
    console.print(f"Learnt from {known} trials of {run.record.name}{outside}.", markup=False)


def _tell_replay(conductor: Conductor, total: int, left_out: int, console: Console) -> None:
    ended = sum(conductor.ended.values())
    outside = f"; {left_out} of them lie outside the space as it is now" if left_out else ""
    console.print(
        f"Resuming: {ended} trials have ended, {total - ended} go on{outside}.", markup=False
    )


def _run_trials(
    conductor: Conductor, shipped: dict[str, Any], slots: Slots, max_failures: int
) -> None:
    """Let the engine run the trials that the conductor starts, over losses that it cannot bear.

    ``shipped`` holds arguments of ``train_trial``.
    """
    for _ in range(max_failures + 1):
        try:
            return _tune(conductor, shipped, slots, max_failures)
        except RuntimeError as error:
            # Ray kills workers on a node that runs low on memory; Tune 2.60 takes any other loss of
            # a worker for the trial's, but falls over this one.
            if not isinstance(error.__cause__, OutOfMemoryError):
                raise
            conductor.requeue()
    raise ClusterError(
        f"{conductor.run.path}: workers were killed {max_failures + 1} times because a machine ran "
        "low on memory; go on with --resume and fewer trials at once (--concurrent)"
    )


def _tune(conductor: Conductor, shipped: dict[str, Any], slots: Slots, max_failures: int) -> None:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # The engine's own snapshots are written once, at the end, into a folder that is thrown away.
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**9)
    trainable = tune.with_parameters(
        train_trial,
        **shipped,
        threads=slots.threads,
        epoch_seconds=conductor.sampler.space.constraints.epoch_seconds,
    )
    with tempfile.TemporaryDirectory(prefix="cifar-tune-") as scratch:
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            # The conductor says when there are no more.
            num_samples=-1,
            resources_per_trial={"cpu": slots.cpus, "gpu": slots.gpus},
            search_alg=TuneSearcher(conductor),
            scheduler=TuneScheduler(conductor),
            callbacks=[TuneCallback(conductor)],
            max_failures=max_failures,
            # Fewer would leave slots idle, more would propose configurations before they can
            # learn from the trials under way.
            max_concurrent_trials=slots.count,
            reuse_actors=True,
            raise_on_failed_trial=False,
            trial_name_creator=lambda trial: f"{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
            verbose=0,
        )


@contextmanager
def _draining_on_signals(conductor: Conductor) -> Iterator[None]:
    """On the first SIGINT or SIGTERM end after the running epochs, on the second at once."""

    def drain(signum: int, frame: FrameType | None) -> None:
        if conductor.draining == "interrupted":
            raise KeyboardInterrupt
        conductor.draining = "interrupted"

    previous = {number: signal.signal(number, drain) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _record(request: SearchRequest, splits: Splits, slots: Slots) -> RunRecord:
    return RunRecord(
        name=request.name,
        command=request.command,
        space=request.space_name,
        search=request.search,
        data=request.data,
        data_dir=str(request.data_dir),
        study_storage=request.study_storage,
        data_fingerprint=splits.fingerprint,
        split_fingerprint=splits.split_fingerprint,
        num_train=len(splits.train.labels),
        num_val=len(splits.val.labels),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("cifar-tune", "torch", "torchvision", "ray", "optuna")},
        git_commit=_git_commit(),
        hardware={
            "platform": platform.platform(),
            "threads_per_trial": slots.threads,
            **hardware(),
        },
        slots=asdict(slots),
        started=now(),
    )


def _git_commit() -> str:
    """Give the commit that this package runs from; empty for an installed one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _why_none(conductor: Conductor) -> str:
    states = ", ".join(f"{number} {state}" for state, number in conductor.ended.items())
    last = f" Last failure: {conductor.failures[-1][1]}" if conductor.failures else ""
    return f"They ended: {states}.{last}"
