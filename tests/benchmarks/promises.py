"""Check the promises of a killed search on the run folder that it leaves."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.benchmarks.processes import Reaper
from tuner.data.splits import load_splits
from tuner.run.checkpoint import load_progress
from tuner.run.run import Run
from tuner.run.trial import OPEN, EpochMetrics, TrialRecord, read_history
from tuner.training.loop import train

FIGURES = ("train_loss", "val_loss", "val_accuracy", "lr")
SAVE_SECONDS = 1.0
"""Value of ``--save-seconds``: a kill may cost each running trial this much, or an epoch."""
SETUP_SECONDS = 10.0
"""Seconds of a worker before its first epoch, on a busy machine."""
WRITE_SECONDS = 1.0
"""Seconds to write a trial's files, on a busy machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """The state of a run folder at a kill."""

    time: float
    """Moment of the kill, in seconds since 1970."""
    ended: dict[int, dict[str, bytes]]
    """The files of each trial that had ended, by name."""
    running: dict[int, list[EpochMetrics]]
    """The saved epochs of each trial that had not ended."""
    lost: dict[int, float]
    """Seconds since the last saved epoch of each trial that trained, or since its worker began."""
    late: list[int]
    """Trials for which ``lost`` is more than promised."""
    paused: list[int]
    """Trials that were paused at a rung."""


@dataclass(slots=True)
class Verdict:
    """The outcome of one search."""

    kills: int = 0
    early_kills: int = 0
    """Kills before the first trial, included in ``kills``."""
    lost: int = 0
    """Trials that had ended before a kill and are gone."""
    run_again: int = 0
    """Trials that had ended before a kill and whose files have changed since."""
    past_stop: int = 0
    """Stopped trials whose history does not end at the epoch of their stop."""
    lost_seconds: list[float] = field(default_factory=list)
    """For each kill, the seconds of training lost by the trial that lost most."""
    replaced: int = 0
    """Epochs that were in a history and were trained again."""
    epochs: int = 0
    """Epochs in the histories at the end."""
    seconds: float = 0.0
    left_over: list[Reaper] = field(default_factory=list)
    """For each kill, the thread that waits for the processes left over."""
    compared: int = 0
    """Trials killed under way whose figures were compared with a training without a kill."""
    strays: int = 0
    """Temporary files that kills left in the trials' folders."""
    is_whole: bool = False
    """Whether the run is finished, with all trials."""
    is_same: bool | None = None
    """Whether trials, curves and stops equal those without a kill; None if not compared."""
    paused: int = 0
    """Trials that were paused at a rung at a kill, summed over all kills."""
    broken: list[str] = field(default_factory=list)
    """Promises that were not kept."""


class Watch:
    """Collects every epoch that is ever in a trial's history while a search runs."""

    def __init__(self, run: Path) -> None:
        self.seen: dict[tuple[int, int], set[float]] = {}
        """Trial and epoch -> when it ended; several times if it was trained again."""
        self._run = run
        self._stamps: dict[Path, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.look()

    def look(self) -> None:
        """Read the histories that have changed."""
        for path in self._run.glob("trials/[0-9]*/history.csv"):
            # A storage may be missing for a while.
            with contextlib.suppress(FileNotFoundError):
                stamp = path.stat().st_mtime_ns
                if self._stamps.get(path) == stamp:
                    continue
                self._stamps[path] = stamp
            for row in read_history(path.parent):
                self.seen.setdefault((int(path.parent.name), row.epoch), set()).add(row.time)


def look(path: Path, at: float, since: float) -> Kill:
    """Read from the run folder the state that a resumed search has to keep.

    Args:
        path: Path of the run.
        at: Moment of the kill.
        since: When the search started or was resumed; no trial trained just before.
    """
    ended: dict[int, dict[str, bytes]] = {}
    running: dict[int, list[EpochMetrics]] = {}
    lost: dict[int, float] = {}
    late = []
    paused = []
    for trial in Run.open(path).trials() if (path / "run.json").exists() else []:
        if trial.status.state in OPEN:
            running[trial.number] = saved = load_progress(trial.state)[0]
            if trial.status.state == "paused":
                paused.append(trial.number)
                continue
            # Its worker wrote this first, before it set up the training.
            began = max(since, (trial.path / "status.json").stat().st_mtime)
            last = saved[-1].time if saved else 0.0
            lost[trial.number] = max(0.0, at - max(began, last))
            longest = max((row.seconds for row in saved), default=0.0)
            allowed = max(SAVE_SECONDS, longest) + WRITE_SECONDS
            allowed += SETUP_SECONDS if last < began else 0.0
            if lost[trial.number] > allowed:
                late.append(trial.number)
        else:
            ended[trial.number] = {
                file.name: file.read_bytes()
                for file in trial.path.iterdir()
                # A worker may leave behind its saved state, or a part of it.
                if not file.name.startswith(".") and file != trial.state
            }
    return Kill(time=at, ended=ended, running=running, lost=lost, late=late, paused=paused)


def judge(run: Run, kills: Sequence[Kill], watch: Watch, verdict: Verdict) -> None:
    """Check a run that has ended against the promises; see ``Verdict``."""
    trials = {trial.number: trial for trial in run.trials()}
    verdict.kills = len(kills)
    verdict.early_kills = sum(not kill.ended and not kill.running for kill in kills)
    verdict.paused = sum(len(kill.paused) for kill in kills)
    verdict.epochs = sum(len(trial.history) for trial in trials.values())
    verdict.strays = len([*run.path.glob("trials/*/.*")])
    ended_before = {number: files for kill in kills for number, files in kill.ended.items()}
    for number, files in ended_before.items():
        if number not in trials:
            verdict.lost += 1
        elif any((trials[number].path / name).read_bytes() != was for name, was in files.items()):
            verdict.run_again += 1
    verdict.lost_seconds = [max(kill.lost.values(), default=0.0) for kill in kills]
    verdict.replaced = count_replaced(trials, watch)
    verdict.past_stop = sum(
        stop is not None and len(trial.history) != stop.rung
        for trial in trials.values()
        for stop in (trial.status.stop,)
    )
    verdict.is_whole = (
        run.record.status == "finished"
        and [*trials] == [*range(run.record.search.trials)]
        and not any(trial.status.state in OPEN or trial.state.exists() for trial in trials.values())
    )
    verdict.broken += [
        text
        for text, count in (
            ("a finished trial was lost", verdict.lost),
            ("a finished trial was run again", verdict.run_again),
            ("a trial went on after its stop", verdict.past_stop),
            ("an epoch that was told of was trained again", verdict.replaced),
            ("not all trials ended", not verdict.is_whole),
        )
        if count
    ]
    verdict.broken += [
        f"trial {number} lost {kill.lost[number]:.1f} s" for kill in kills for number in kill.late
    ]
    verdict.broken += [text for trial in trials.values() for text in flaws(trial)]
    verdict.compared, differing = compare(run, kills)
    verdict.broken += differing


def count_replaced(trials: dict[int, TrialRecord], watch: Watch) -> int:
    """Count the epochs that were seen in a history but are not the ones kept there."""
    kept = {(number, row.time) for number, trial in trials.items() for row in trial.history}
    return sum(
        (number, time) not in kept for (number, _), times in watch.seen.items() for time in times
    )


def flaws(trial: TrialRecord) -> Iterator[str]:
    """Yield the flaws of a history: epochs that are duplicate, missing or out of order."""
    epochs = [row.epoch for row in trial.history]
    if epochs != [*range(1, len(epochs) + 1)]:
        yield f"trial {trial.number} has the epochs {epochs}"
    times = [row.time for row in trial.history]
    if times != sorted(times):
        yield f"the epochs of trial {trial.number} ended in another order"
    if trial.status.state == "completed" and len(epochs) != trial.config.epochs:
        yield f"trial {trial.number} is complete after {len(epochs)} epochs"


def compare(run: Run, kills: Sequence[Kill]) -> tuple[int, list[str]]:
    """Retrain, without a kill, the two longest of the trials that were killed under way.

    Returns:
        How many were compared, and the differences.
    """
    numbers = {number for kill in kills for number, saved in kill.running.items() if saved}
    trials = sorted((run.trial(n) for n in numbers), key=lambda t: len(t.history), reverse=True)[:2]
    splits = load_splits(run.record.data, Path(run.record.data_dir))
    differing = []
    for trial in trials:
        epochs = train(trial.config, splits, torch.device("cpu"))
        for row, epoch in zip(trial.history, epochs, strict=False):
            if any(getattr(row, name) != getattr(epoch.figures, name) for name in FIGURES):
                differing.append(f"trial {trial.number} has other figures in epoch {row.epoch}")
                break
    return len(trials), differing


def same_runs(*paths: Path) -> bool:
    """Return whether runs have the same trials with the same figures and outcomes."""
    found = [
        [
            (
                trial.config,
                trial.status.state,
                trial.status.stop,
                [tuple(getattr(row, name) for name in FIGURES) for row in trial.history],
            )
            for trial in Run.open(path).trials()
        ]
        for path in paths
    ]
    return all(trials == found[0] for trials in found)
