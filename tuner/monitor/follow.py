"""Watching a search from its run folder alone: from another terminal, or another machine."""

import time

from rich.console import Console, RenderableType

from tuner.monitor.live_table import draw, summary
from tuner.monitor.terminal import LiveTable
from tuner.run.run import Run, clock
from tuner.run.state import Tally
from tuner.run.trial import TrialRecord
from tuner.storage.paths import AnyPath, etag, modified

SECONDS = 1.0
"""Between two looks at the folder."""
SILENT_SECONDS = 60.0
"""Without news for so long, and for 5 epochs, the search may have been killed; this is said."""


class Folder:
    """A run folder whose changes are told to a tally."""

    def __init__(self, path: AnyPath) -> None:
        self.run = Run.open(path)
        self.tally = Tally(self.run.record.search)
        self.news = 0.0
        """When the last epoch ended, in seconds since 1970."""
        self._written = modified(path / "run.json")
        """When the search last wrote for how long it had been active."""
        self._gpus: dict[int, float] = {}
        """Trial -> GPUs that it holds."""
        self._gpu_hours: dict[int, float] = {}
        """Trial -> what it has spent."""
        self._etags: dict[int, tuple[object, object]] = {}
        """Trial -> when its status and its history were written last."""
        trials = self.run.trials()
        self.tally.add(trials)
        for trial in trials:
            self._etags[trial.number] = _etags(trial.path)
            if trial.status.state == "running":
                self.tally.trial_began(trial.number, trial.config, trial.history)
            self._hear(trial)

    @property
    def slots(self) -> int:
        """Trials that the search trains at once; 0 where it was not recorded."""
        return int(self.run.record.slots.get("count", 0))

    @property
    def has_ended(self) -> bool:
        """Whether the search has said that it ended."""
        return self.run.record.status != "running"

    def look(self) -> list[TrialRecord]:
        """Tell the tally what has changed; give the trials that have ended since."""
        self.run = Run.open(self.run.path)
        self._written = modified(self.run.path / "run.json")
        self.tally.search = self.run.record.search
        ended = []
        for path in self.run.trial_paths():
            number, etags = int(path.name), _etags(path)
            if etags[0] is None or self._etags.get(number) == etags:
                continue
            self._etags[number] = etags
            trial = self.run.trial(number)
            is_running = trial.status.state == "running"
            known = self.tally.running.get(number)
            if known is None:
                self.tally.trial_began(number, trial.config, ())
                known = self.tally.running[number]
            for row in trial.history[len(known.history) :]:
                self.tally.epoch_ended(number, row)
            if not is_running:
                self.tally.trial_ended(number, trial.status, trial.history)
                ended.append(trial)
            self._hear(trial)
        return ended

    def _hear(self, trial: TrialRecord) -> None:
        self.news = max([self.news, *(row.time for row in trial.history)])
        self._gpu_hours[trial.number] = trial.gpu_hours
        self._gpus[trial.number] = trial.gpus if trial.status.state == "running" else 0.0

    def seconds_left(self) -> float | None:
        """Foresee the time left, in seconds, as ``Tally.seconds_left``, or that of the budget."""
        left = self.tally.seconds_left(self.slots)
        if left is None or self.has_ended:
            return None
        record = self.run.record
        if record.budget_seconds is not None:
            active = record.active_seconds + time.time() - self._written
            left = min(left, record.budget_seconds - active)
        held = sum(list(self._gpus.values()))
        if record.budget_gpu_hours is not None and held:
            unspent = record.budget_gpu_hours - sum(list(self._gpu_hours.values()))
            left = min(left, 3600 * unspent / held)
        return max(0.0, left)

    def note(self, now: float) -> str:
        """Say that nothing has been heard for long, if so."""
        silent = now - self.news
        usual = max(SILENT_SECONDS, 5 * self._epoch(), 2 * self.run.record.save_seconds)
        if self.has_ended or not self.news or silent < usual:
            return ""
        return f"No news for {clock(silent)}; was the search killed?"

    def _epoch(self) -> float:
        rows = [row for trial in list(self.tally.running.values()) for row in trial.history[-1:]]
        return max((row.seconds for row in rows), default=0.0)


def _etags(path: AnyPath) -> tuple[object, object]:
    """Return what changes when the status or the history of a trial is written."""
    return etag(path / "status.json"), etag(path / "history.csv")


def follow(path: AnyPath, console: Console) -> Run:
    """Show the search of a run folder until it ends, or the user has seen enough.

    Raises:
        UsageError: If there is no run.
        TunerError: If it is damaged.
    """
    folder = Folder(path)

    if not console.is_terminal or console.is_dumb_terminal:
        console.print(summary(folder.tally, folder.slots, folder.seconds_left()), markup=False)
        while not folder.has_ended:
            time.sleep(SECONDS)
            for trial in folder.look():
                ending = folder.tally.ending(trial.number, trial.status, trial.history)
                console.print(str(ending), soft_wrap=True, markup=False)
        return folder.run

    def table(width: int, height: int) -> RenderableType:
        note = folder.note(time.time())
        return draw(folder.tally, folder.slots, folder.seconds_left(), note, width, height)

    with LiveTable(table, console):
        while not folder.has_ended:
            time.sleep(SECONDS)
            folder.look()
    return folder.run
