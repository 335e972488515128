"""Storages, studies and machines that fail in mid-search."""

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from rich.console import Console

from tests.benchmarks.faults import HANG_SECONDS, SPACE, Moment, baselines
from tests.benchmarks.processes import Search
from tests.benchmarks.promises import SAVE_SECONDS, Verdict, Watch, judge, look
from tests.benchmarks.soak_parts.tried import Tried
from tuner.errors import StorageError
from tuner.run.run import Run

TRIALS = 6
STEADY = SPACE.replace("trials: 12", f"trials: {TRIALS}") + baselines(TRIALS)
"""Trials that are the same whatever becomes of the search."""
NAME = "run"
SHORT = (2.0, 20.0)
"""Seconds of a fault that is over before it is given up."""
SIGNAL_SECONDS = 60.0
"""Within this a search ends that was sent a signal."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a search works with, and what may fail of it."""

    folder: Path
    """It works in."""

    @property
    def storage(self) -> Path:
        """A small disk of its own, where the machine lets one have that."""
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.storage / NAME

    @property
    def study(self) -> Path:
        """The database of the study, outside of the storage."""
        return self.folder / "study.db"

    @property
    def flag(self) -> Path:
        """While it is there, nothing can be written in the storage."""
        return self.folder / "faulty"


@contextmanager
def full(place: Place) -> Iterator[None]:
    """Leave no byte on the disk."""
    ballast = place.storage / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 2**20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def gone(place: Place) -> Iterator[None]:
    """Take the run's folder away."""
    elsewhere = place.storage / "elsewhere"
    place.run.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(place.run)


@contextmanager
def faulty(place: Place) -> Iterator[None]:
    """Make each write in the block fail with EIO."""
    place.flag.touch()
    try:
        yield
    finally:
        place.flag.unlink()


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Lock the study's database for the block."""
    with sqlite3.connect(place.study, timeout=60, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
    other.close()


@contextmanager
def lost(place: Place) -> Iterator[None]:
    """Take the study's database away."""
    kept = place.study.with_name("kept.db")
    place.study.rename(kept)
    try:
        yield
    finally:
        kept.replace(place.study)


@contextmanager
def damaged(place: Place) -> Iterator[None]:
    """Put rubbish in the place of the study's database."""
    kept, rubbish = place.study.with_name("kept.db"), place.study.with_name("rubbish.db")
    os.link(place.study, kept)
    rubbish.write_bytes(bytes(range(256)) * 16)
    rubbish.replace(place.study)
    try:
        yield
    finally:
        kept.replace(place.study)


Fault = Callable[[Place], AbstractContextManager[None]]
STORAGE: dict[str, Fault] = {
    "a full disk": full,
    "a storage that is taken away": gone,
    "errors of input and output": faulty,
}
STUDY: dict[str, Fault] = {
    "a locked study": locked,
    "a lost study": lost,
    "a damaged study": damaged,
}
SIGNAL = "SIGTERM to the process group"


def try_failures(number: int, seed: int, folder: Path, messages: Console) -> list[Tried]:
    """Make a part of a search fail, each in turn, at a random moment, and resume the search.

    Every other storage fault lasts until the search gives it up, the rest are over before.

    Args:
        number: Of faults in all.
        seed: Of moments and durations.
        folder: An empty one.
        messages: Where each search is told.
    """
    draw = random.Random(seed)
    kinds = [*STORAGE, *STUDY, SIGNAL]
    found = {kind: Tried(what=kind) for kind in kinds}
    shim = faulty_disk(folder)
    for count in range(number):
        kind = kinds[count % len(kinds)]
        if kind == "errors of input and output" and shim is None:
            found[kind].notes = ["not tried: there is no C compiler"]
            continue
        place = Place(folder=folder / str(count))
        place.storage.mkdir(parents=True)
        with ExitStack() as stack:
            if kind == "a full disk" and not stack.enter_context(small_disk(place.storage)):
                found[kind].notes = ["not tried: nothing may be mounted here"]
                continue
            is_long = kind in STORAGE and count // len(kinds) % 2 == 1
            seconds = HANG_SECONDS if is_long else draw.uniform(*SHORT)
            verdict = failing_search(place, kind, draw_moment(draw), seconds, shim)
        if verdict.kills or verdict.broken:
            # Else it had ended before.
            found[kind].enter(verdict.broken, verdict.seconds)
        messages.print(
            f"{kind}, {'until it is given up' if is_long else f'{seconds:.0f} s'}: "
            f"{'; '.join(verdict.broken) or 'all promises kept'}, {verdict.seconds:.0f} s",
            soft_wrap=True,
            markup=False,
        )
    return [tried for tried in found.values() if tried.kept or tried.lost or tried.notes]


def draw_moment(draw: random.Random) -> Moment:
    """Return a moment after the first epoch, of which a search trains more than two a trial."""
    return Moment(draw.randint(1, 2 * TRIALS), draw.uniform(0, 1))


def failing_search(
    place: Place, kind: str, moment: Moment, seconds: float, shim: Path | None
) -> Verdict:
    """Run a search in which something fails, to its end, resumed if it had to give up.

    Args:
        place: What it works with.
        kind: What fails.
        moment: When.
        seconds: How long, or until the search has ended.
        shim: See ``faulty_disk``.
    """
    (place.folder / "space.yaml").write_text(STEADY)
    verdict = Verdict()
    began = time.monotonic()
    options = ["--name", NAME, "--concurrent", "2", "--save-seconds", str(SAVE_SECONDS)]
    if kind in STUDY:
        options += ["--study-storage", f"sqlite:///{place.study}"]
    more = {}
    if shim is not None and STORAGE.get(kind) is faulty:
        more = {
            "LD_PRELOAD": str(shim),
            "FAULT_FLAG": str(place.flag),
            "FAULT_BELOW": f"{place.storage}/",
        }
    kills = []
    with Watch(place.run) as watch:
        with Search(place.folder, "--space", "space.yaml", *options, more=more) as search:
            if moment.arrives(search, watch):
                # What was saved before is lost by none of these, however late it was.
                kills.append(replace(look(place.run, time.time(), search.began), late=[], lost={}))
                expected = strike(place, kind, search, seconds)
                code = search.wait(HANG_SECONDS)
                if code not in expected or "Traceback" in search.errors:
                    verdict.broken.append(f"ended with {code}: {search.errors.strip()[-300:]}")
            else:
                code = search.wait(HANG_SECONDS)
            errors = search.errors
        if code not in (0, None) and "--resume --name run" not in errors:
            verdict.broken.append(f"no command to go on with: {errors.strip()[-300:]}")
        # A study that was not back when the search ended is completed by the next one.
        if code != 0 or kind in STUDY:
            with Search(place.folder, "--resume", *options) as again:
                if (code := again.wait(HANG_SECONDS)) != 0:
                    verdict.broken.append(f"resumed: {code}: {again.errors.strip()[-300:]}")
        watch.look()
    verdict.seconds = time.monotonic() - began
    judge(Run.open(place.run), kills, watch, verdict)
    if kind in STUDY:
        verdict.broken += flaws_of_study(place)
    return verdict


def strike(place: Place, kind: str, search: Search, seconds: float) -> tuple[int, ...]:
    """Make something fail, and mend it, or let the search end before.

    Returns:
        What the search may end with.
    """
    if kind == SIGNAL:
        os.killpg(search.process.pid, signal.SIGTERM)
        if search.wait(SIGNAL_SECONDS) is None:
            search.kill_everything()
        # All of its trials may have ended just before.
        return 130, 0
    with (STORAGE | STUDY)[kind](place):
        search.wait(seconds)
    # A short fault may befall a search that ends, and is not waited for any more.
    return (0, StorageError.exit_code) if kind in STORAGE else (0,)


def flaws_of_study(place: Place) -> Iterator[str]:
    """Say whether the study does not hold all trials of the run as they ended."""
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{place.study}")
    told = sorted(
        trial.user_attrs.get("trial", -1) for trial in study.trials if trial.state.is_finished()
    )
    if told != [*range(TRIALS)]:
        yield f"the study holds the trials {told} among {len(study.trials)}"


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 50 MB on a folder; say whether that can be done."""
    command = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def faulty_disk(folder: Path) -> Path | None:
    """Build what has writes fail; ``None`` where there is no compiler."""
    source = Path(__file__).with_name("faulty_disk.c")
    built = folder / "faulty_disk.so"
    try:
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(built), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return built
