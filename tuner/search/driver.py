"""``search()``: the space, the data and the cluster brought together into a run."""

import os
import platform
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from ray import tune
from rich.console import Console

from tuner.config import DataConfig, SearchConfig
from tuner.data import Splits, load_splits
from tuner.errors import NoUsableTrials
from tuner.run import Run, RunRecord, RunStatus, now
from tuner.search.cluster import Slots, connected, hardware, plan_slots
from tuner.search.conductor import Conductor
from tuner.search.progress import Progress
from tuner.search.sampler import Sampler
from tuner.search.scheduler import make_scheduler
from tuner.search.trainable import pack, train_trial
from tuner.space import SearchSpace


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
    address: str | None = None
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    concurrent: int | None = None


def search(request: SearchRequest, console: Console) -> Run:
    """Search a space and leave a run folder.

    Args:
        request: What to search, on what.
        console: Where progress is shown.

    Returns:
        The run; its status is ``interrupted`` if a signal ended it early.

    Raises:
        UsageError: On data that cannot be read, or a name that is taken.
        ClusterError: On a cluster that does not answer, or is too small.
        NoUsableTrials: If no trial left a checkpoint.
    """
    splits = load_splits(request.data, request.data_dir)
    with connected(request.address):
        slots = plan_slots(request.gpus_per_trial, request.cpus_per_trial, request.concurrent)
        # Absolute, for the workers start in folders of their own.
        path = (request.storage / request.name).absolute()
        run = Run.create(path, _record(request, splits), request.space.resolved())
        console.print(f"{run.record.name}: {slots}", highlight=False)
        conductor = Conductor(
            run,
            Sampler(request.space, request.search),
            make_scheduler(request.search),
            request.search.trials,
        )
        status: RunStatus = "failed"
        try:
            with (
                _draining_on_signals(conductor),
                Progress(conductor, slots, console) as progress,
            ):
                _run_trials(conductor, progress, splits, slots)
            status = "interrupted" if conductor.is_draining else "finished"
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            run.prune(request.keep)
            run.write_leaderboard()
            run.update(status=status, finished=now())
    if status == "finished" and not any(trial.is_usable for trial in run.trials()):
        raise NoUsableTrials(
            f"{run.path}: none of {conductor.num_started} trials left a model to use. "
            f"{_why_none(conductor)}"
        )
    return run


def _run_trials(conductor: Conductor, progress: Progress, splits: Splits, slots: Slots) -> None:
    """Let the engine run the trials that the conductor starts."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # The engine's own snapshots are written once, at the end, into a folder that is thrown away.
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(10**9)
    trainable = tune.with_parameters(train_trial, data=pack(splits), threads=slots.threads)
    with tempfile.TemporaryDirectory(prefix="cifar-tune-") as scratch:
        tune.run(
            trainable,
            name="search",
            storage_path=scratch,
            num_samples=conductor.num_trials,
            resources_per_trial={"cpu": slots.cpus, "gpu": slots.gpus},
            search_alg=conductor.searcher(),
            scheduler=conductor.watcher(),
            callbacks=[conductor.callback(progress.trial_ended)],
            # Fewer would leave slots idle, more would propose configurations before they can
            # learn from the trials under way.
            max_concurrent_trials=min(slots.count, conductor.num_trials),
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
        if conductor.is_draining:
            raise KeyboardInterrupt
        conductor.is_draining = True

    previous = {number: signal.signal(number, drain) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _record(request: SearchRequest, splits: Splits) -> RunRecord:
    return RunRecord(
        name=request.name,
        command=request.command,
        space=request.space_name,
        search=request.search,
        data=request.data,
        data_dir=str(request.data_dir),
        data_fingerprint=splits.fingerprint,
        split_fingerprint=splits.split_fingerprint,
        num_train=len(splits.train.labels),
        num_val=len(splits.val.labels),
        versions={"python": platform.python_version()}
        | {name: version(name) for name in ("cifar-tune", "torch", "torchvision", "ray", "optuna")},
        git_commit=_git_commit(),
        hardware={"platform": platform.platform(), **hardware()},
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
    last = f" Last failure: {conductor.last_failure}" if conductor.last_failure else ""
    return f"They ended: {states}.{last}"
