"""What a killed search promises, read from the run folders that it leaves."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.benchmarks.processes import Process, Reaper
from tuner.checkpoint import load_history
from tuner.data import load_splits
from tuner.run import Run
from tuner.train import train
from tuner.trial import OPEN, EpochRow, TrialRecord, read_history

FIGURES = ("train_loss", "val_loss", "val_accuracy", "lr")
RESTART_SECONDS = 3.0
"""A worker that outlives its driver ends its epoch sooner; a resumed search trains later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """The run folder as a kill found it."""

    time: float
    """In seconds since 1970."""
    ended: dict[int, dict[str, bytes]]
    """The files of each trial that had ended, by name."""
    running: dict[int, list[EpochRow]]
    """The saved epochs of each trial that had not ended."""
    workers: int
    """Processes that were training."""


@dataclass(slots=True)
class Verdict:
    """What became of one search."""

    kills: int = 0
    early_kills: int = 0
    """Of these, before the first trial."""
    lost: int = 0
    """Trials that had ended before a kill, and are gone."""
    run_again: int = 0
    """Trials that had ended before a kill, and whose files have changed since."""
    past_stop: int = 0
    """Trials with epochs after that of their stop."""
    extra: list[int] = field(default_factory=list)
    """Of each kill: epochs that had to be trained again, whole or in part."""
    epochs: int = 0
    """In the histories at the end."""
    seconds: float = 0.0
    left_over: list[Reaper] = field(default_factory=list)
    """Of each kill: what waits for the processes that it left over."""
    compared: int = 0
    """Trials killed under way whose figures are those of a training without a kill."""
    strays: int = 0
    """Temporary files that kills have left in the trials' folders."""
    is_whole: bool = False
    """Whether the run is finished, with all trials."""
    is_same: bool | None = None
    """Whether trials, curves and stops are those of a run without a kill; where it was asked."""
    broken: list[str] = field(default_factory=list)
    """The promises that were not kept."""


class Watch:
    """Collects every epoch that ever stood in a trial's history, while a search runs."""

    def __init__(self, run: Path) -> None:
        self.seen: dict[tuple[int, int], set[float]] = {}
        """Trial and epoch -> when it ended, more than one time where it was trained again."""
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
            stamp = path.stat().st_mtime_ns
            if self._stamps.get(path) == stamp:
                continue
            self._stamps[path] = stamp
            for row in read_history(path.parent):
                self.seen.setdefault((int(path.parent.name), row.epoch), set()).add(row.time)


def look(path: Path, at: float, left_over: Sequence[Process]) -> Kill:
    """Read from the run folder what a resumed search has to keep."""
    ended: dict[int, dict[str, bytes]] = {}
    running: dict[int, list[EpochRow]] = {}
    for trial in Run.open(path).trials() if (path / "run.json").exists() else []:
        if trial.status.state in OPEN:
            running[trial.number] = load_history(trial.state)
        else:
            ended[trial.number] = {
                file.name: file.read_bytes()
                for file in trial.path.iterdir()
                # A worker may leave its saved state, or a part of one, behind.
                if not file.name.startswith(".") and file != trial.state
            }
    # The engine names the process of a trial after the class that it makes of its function.
    workers = sum(process.name.startswith("ray::Implicit") for process in left_over)
    return Kill(time=at, ended=ended, running=running, workers=workers)


def judge(run: Run, kills: Sequence[Kill], watch: Watch, verdict: Verdict) -> None:
    """Hold a run that has ended to what was promised; see ``Verdict``."""
    trials = {trial.number: trial for trial in run.trials()}
    verdict.kills = len(kills)
    verdict.early_kills = sum(not kill.ended and not kill.running for kill in kills)
    verdict.epochs = sum(len(trial.history) for trial in trials.values())
    verdict.strays = len([*run.path.glob("trials/*/.*")])
    ended_before = {number: files for kill in kills for number, files in kill.ended.items()}
    for number, files in ended_before.items():
        if number not in trials:
            verdict.lost += 1
        elif any((trials[number].path / name).read_bytes() != was for name, was in files.items()):
            verdict.run_again += 1
    verdict.extra = count_extra(kills, trials, watch)
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
            ("not all trials ended", not verdict.is_whole),
        )
        if count
    ]
    for kill, extra in zip(kills, verdict.extra, strict=True):
        if extra > len(kill.running):
            verdict.broken.append(f"{extra} extra epochs of {len(kill.running)} running trials")
    verdict.broken += [text for trial in trials.values() for text in flaws(trial)]
    verdict.compared, differing = compare(run, kills)
    verdict.broken += differing


def count_extra(kills: Sequence[Kill], trials: dict[int, TrialRecord], watch: Watch) -> list[int]:
    """Count the epochs that each kill made necessary, over those of the trials' histories.

    An epoch that was seen in a history, but is not the one kept there, was trained for nothing; so
    was the one under way at the kill, if the next one of its trial that is kept began later.
    """
    kept = {(number, row.time) for number, trial in trials.items() for row in trial.history}
    thrown = [
        (number, time)
        for (number, _), times in watch.seen.items()
        for time in times
        if (number, time) not in kept
    ]
    extra = []
    earlier = 0.0
    for kill in kills:
        # What ended after the kill, before its worker died, was the one under way.
        whole = sum(earlier < time <= kill.time for _, time in thrown)
        cut = sum(
            any(row.time - row.seconds > kill.time for row in trials[number].history)
            for number in kill.running
            if number in trials
        )
        extra.append(whole + min(cut, kill.workers))
        earlier = kill.time + RESTART_SECONDS
    return extra


def flaws(trial: TrialRecord) -> Iterator[str]:
    """Say what is wrong with a history: epochs twice or left out, or out of their order."""
    epochs = [row.epoch for row in trial.history]
    if epochs != [*range(1, len(epochs) + 1)]:
        yield f"trial {trial.number} has the epochs {epochs}"
    times = [row.time for row in trial.history]
    if times != sorted(times):
        yield f"the epochs of trial {trial.number} ended in another order"
    if trial.status.state == "completed" and len(epochs) != trial.config.epochs:
        yield f"trial {trial.number} is complete after {len(epochs)} epochs"


def compare(run: Run, kills: Sequence[Kill]) -> tuple[int, list[str]]:
    """Train again, without a kill, the two longest of the trials that were killed under way.

    Returns:
        How many were compared, and what differed.
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
    """Whether runs hold the same trials with the same figures and endings."""
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
