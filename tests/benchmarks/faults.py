"""Kill a search at random moments, resume it, and check its run folder against the promises.

    python -m tests.benchmarks.faults --driver-kills 9 --worker-kills 9 --ray-kills 9 --all-kills 9

Short searches on the digits run through the installed command. At random moments, some before the
first trial, ``kill -9`` hits the driver alone, the training processes, one of Ray's processes, or
the driver with everything that it started. A search that lost its workers continues by itself, and
one that lost Ray has to end with a message; otherwise it is resumed at once, while processes left
over by the kill may still run. Exits with status 1 if a promise was broken.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.processes import Process, Reaper, Search, descendants
from tests.benchmarks.promises import (
    SAVE_SECONDS,
    Kill,
    Verdict,
    Watch,
    judge,
    look,
    same_runs,
)
from tuner.errors import ClusterError
from tuner.run.run import Run

Kind = Literal["driver", "worker", "ray", "everything"]
"""What is killed; ``ray`` is the raylet or the GCS."""

TRIALS = 12
SPACE = f"""
description: Trials of the faults benchmark, 0.3 s an epoch
dataset: digits
search: {{trials: {TRIALS}, epochs: 8, grace: 1, reduction: 2, sampler: random, seed: 1}}
space:
  batch_size: 16
  model:
    cnn: {{stages: 2, blocks: {{int: [1, 2]}}, width: {{int: [16, 32], step: 8}}, dropout: 0.2}}
  optimizer:
    choice:
      sgd: {{lr: {{float: [0.01, 0.3], log: true}}}}
      adamw: {{lr: {{float: [1.0e-3, 2.0e-2], log: true}}}}
  augment: {{crop: {{int: [0, 1]}}}}
"""
SLOTS = (2, 1)
"""Trials at a time, alternating: two, as users search; and one, with all trials given as baselines,
where nothing depends on time or on earlier proposals: a killed search has to equal an unkilled one.
"""
KILLS_A_SEARCH = 3
HANG_SECONDS = 600.0
NOTICE_SECONDS = 90.0
"""Time for a search without Ray to end: Ray itself waits for a minute when it starts."""
RAYS_OWN_END = "The program will terminate"
"""Message of Ray 2.60 when it ends a process in which it starts, after blocking its interpreter.
"""


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--driver-kills", type=int, default=20)
    parser.add_argument("--worker-kills", type=int, default=0)
    parser.add_argument("--ray-kills", type=int, default=0)
    parser.add_argument("--all-kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts: dict[Kind, int] = {
        "driver": options.driver_kills,
        "worker": options.worker_kills,
        "ray": options.ray_kills,
        "everything": options.all_kills,
    }
    messages = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        references, found = measure(Path(folder), counts, options.seed, messages)
    if options.json:
        print(json.dumps(document(references, found), indent=2))
    else:
        Console(highlight=False, width=100).print(as_table(found))
        for slots, reference in references.items():
            print(
                f"{slots} at a time, no kill: {reference.epochs} epochs, {reference.seconds:.0f} s"
            )
    sys.exit(any(verdict.broken for verdicts in found.values() for verdict in verdicts))


def measure(
    folder: Path, counts: dict[Kind, int], seed: int, messages: Console
) -> tuple[dict[int, Verdict], dict[Kind, list[Verdict]]]:
    """Run searches without a kill, then searches with the requested number of kills of each kind.

    Args:
        folder: An empty folder for the runs.
        counts: Kills of each kind.
        seed: Seed of the moments.
        messages: Console that reports each search.

    Returns:
        Verdicts on the searches without a kill, by trials at a time, and on those with kills.
    """
    torch.set_num_threads(1)
    (folder / "space-2.yaml").write_text(SPACE)
    (folder / "space-1.yaml").write_text(SPACE + baselines(TRIALS))
    rng = random.Random(seed)
    references = {
        slots: killed_search(folder, f"reference-{slots}", slots, "driver", [], messages)
        for slots in SLOTS
    }
    found: dict[Kind, list[Verdict]] = {}
    for kind, count in counts.items():
        if not count:
            continue
        verdicts = found.setdefault(kind, [])
        while (left := count - sum(verdict.kills for verdict in verdicts)) > 0:
            slots = SLOTS[len(verdicts) % len(SLOTS)]
            moments = [draw_moment(rng) for _ in range(min(left, KILLS_A_SEARCH))]
            name = f"{kind}-{len(verdicts)}"
            verdict = killed_search(folder, name, slots, kind, moments, messages)
            if slots == 1:
                verdict.is_same = same_runs(*(folder / "runs" / n for n in (name, "reference-1")))
                if not verdict.is_same:
                    verdict.broken.append("other trials than without a kill, one at a time")
            verdicts.append(verdict)
    return references, found


@dataclass(frozen=True, slots=True)
class Moment:
    """The moment when a search is killed."""

    epochs: int
    """Epochs trained after the start."""
    seconds: float
    """Seconds after these epochs."""

    def arrives(self, search: Search, watch: Watch) -> bool:
        """Wait for the moment; return whether the search is still running then."""
        before = len(watch.seen)
        while len(watch.seen) < before + self.epochs:
            if search.wait(0.05) is not None:
                return False
            assert time.time() < search.began + HANG_SECONDS, f"it hangs: {search.errors}"
        return search.wait(self.seconds) is None


def draw_moment(rng: random.Random) -> Moment:
    """Draw a moment: one in five while the search starts, the others up to 12 epochs later."""
    if rng.random() < 0.2:
        return Moment(0, rng.uniform(0.5, 10))
    return Moment(rng.randint(1, 12), rng.uniform(0, 1.5))


def baselines(count: int) -> str:
    """Return trials for ``SPACE``, in YAML."""
    rng = random.Random(0)
    lines = ["baseline:"]
    for _ in range(count):
        optimizer, low, high = rng.choice([("sgd", 0.01, 0.3), ("adamw", 0.001, 0.02)])
        lr = round(low * (high / low) ** rng.random(), 5)
        width, blocks = rng.choice([16, 24, 32]), rng.choice([1, 2])
        model = f"{{cnn: {{width: {width}, blocks: {blocks}}}}}"
        crop = f"augment: {{crop: {rng.choice([0, 1])}}}"
        lines.append(f"  - {{model: {model}, optimizer: {{{optimizer}: {{lr: {lr}}}}}, {crop}}}")
    return "\n".join(lines) + "\n"


def killed_search(
    folder: Path, name: str, slots: int, kind: Kind, moments: Sequence[Moment], messages: Console
) -> Verdict:
    """Run a search to its end, killing and resuming it, and judge the run folder.

    Args:
        folder: Folder of the spaces.
        name: Name of the run.
        slots: Trials at a time.
        kind: What is killed.
        moments: One per kill, from the start of the search or from the previous kill; those
            after the end of the search are skipped.
        messages: Console that reports the outcome.
    """
    path = folder / "runs" / name
    space = f"space-{slots}.yaml"
    verdict = Verdict()
    kills: list[Kill] = []
    left = deque(moments)
    began = time.monotonic()
    code: int | None = None
    with Watch(path) as watch:
        while code is None:
            start = ["--resume"] if (path / "run.json").exists() else ["--space", space]
            options = ("--concurrent", str(slots), "--save-seconds", str(SAVE_SECONDS))
            with Search(folder, *start, "--name", name, *options) as search:
                has_driver = True
                while has_driver and left and left[0].arrives(search, watch):
                    left.popleft()
                    at = time.time()
                    verdict.left_over.append(Reaper(strike(kind, search, path, verdict)))
                    kills.append(look(path, at, search.began))
                    has_driver = kind == "worker"
                if has_driver:
                    code = search.wait(HANG_SECONDS)
                    assert code is not None, f"{name} hangs: {search.errors}"
        verdict.seconds = time.monotonic() - began
        if not (path / "run.json").exists():
            raise RuntimeError(f"{name} did not begin: {search.errors}")
        if code != 0:
            verdict.broken.append(f"ended with {code}: {search.errors.strip()[-500:]}")
        watch.look()
    judge(Run.open(path), kills, watch, verdict)
    messages.print(
        f"{name}: {verdict.kills} kills, {verdict.epochs} epochs, seconds lost "
        f"{[round(seconds, 1) for seconds in verdict.lost_seconds]}, "
        f"{verdict.seconds:.0f} s, {verdict.strays} stray files; "
        f"{'; '.join(verdict.broken) or 'all promises kept'}",
        soft_wrap=True,
        markup=False,
    )
    return verdict


def strike(kind: Kind, search: Search, path: Path, verdict: Verdict) -> list[Process]:
    """Kill processes of a search, and return those that are left over.

    Args:
        kind: What is killed.
        search: The search, which continues if it lost only its workers.
        path: Path of its run.
        verdict: Receives what is wrong with the end of a search that lost Ray.
    """
    if kind == "driver":
        return search.kill_driver()
    if kind == "everything":
        return search.kill_everything()
    names = ("raylet", "gcs_server") if kind == "ray" else ("ray::Implicit", "ray::IDLE")
    struck: list[Process] = []
    while not struck and search.wait(0.05) is None:
        started = descendants(search.process.pid)
        struck = [process for process in started if process.name.startswith(names)]
    if kind == "worker":
        for process in struck:
            process.kill()
        return []
    if not struck:
        return []
    struck[len(verdict.left_over) % len(struck)].kill()
    code = search.wait(NOTICE_SECONDS)
    last = search.errors.strip().rpartition("\n")[2]
    # After its last trial, a search no longer needs Ray.
    is_over = code == 0 and Run.open(path).record.status == "finished"
    # Before its trials, a search shows Ray's own message, and there may be nothing to resume.
    is_told = code == ClusterError.exit_code or RAYS_OWN_END in search.errors
    if not (is_told or is_over) or "Traceback" in search.errors:
        verdict.broken.append(f"ended with {code} without Ray: {last[-500:]}")
    return started


def as_table(found: dict[Kind, list[Verdict]]) -> Table:
    """Return a table of one column per kind of kill."""
    table = Table("", *found, title="kill -9 at random moments, then --resume")
    rows = [summary(verdicts) for verdicts in found.values()]
    for label, text in (
        ("kills", "{kills}"),
        ("of these, before the first trial", "{early_kills}"),
        ("searches", "{searches}"),
        ("finished trials lost", "{lost}"),
        ("finished trials run again", "{run_again}"),
        ("trials trained past their stop", "{past_stop}"),
        ("told epochs trained again", "{replaced}"),
        ("trials that waited at a rung when a kill came", "{paused}"),
        ("seconds that a trial lost, max (mean)", "{lost_max:.1f} ({lost_mean:.1f})"),
        ("killed trials with the figures of an unkilled training", "{same_figures}/{compared}"),
        ("searches that ended with all trials", "{whole}/{searches}"),
        ("one trial at a time: the same run as without a kill", "{same_runs}/{single}"),
        ("last process of a killed search gone after, s", "{linger_max:.0f}"),
    ):
        table.add_row(label, *(text.format(**row) for row in rows))
    return table


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Add up the searches of one kind."""
    seconds = [lost for verdict in verdicts for lost in verdict.lost_seconds]
    broken = [text for verdict in verdicts for text in verdict.broken]
    counted = ("kills", "early_kills", "lost", "run_again", "past_stop", "replaced")
    names = (*counted, "paused", "compared")
    return {name: sum(getattr(verdict, name) for verdict in verdicts) for name in names} | {
        "searches": len(verdicts),
        "strays": sum(verdict.strays for verdict in verdicts),
        "lost_max": max(seconds, default=0.0),
        "lost_mean": sum(seconds) / max(1, len(seconds)),
        "same_figures": sum(verdict.compared for verdict in verdicts)
        - sum("other figures" in text for text in broken),
        "single": sum(verdict.is_same is not None for verdict in verdicts),
        "same_runs": sum(verdict.is_same is True for verdict in verdicts),
        "whole": sum(verdict.is_whole for verdict in verdicts),
        "epochs": [verdict.epochs for verdict in verdicts],
        "linger_max": max(
            (reaper.seconds() for verdict in verdicts for reaper in verdict.left_over), default=0.0
        ),
        "broken": broken,
    }


def document(references: dict[int, Verdict], found: dict[Kind, list[Verdict]]) -> dict[str, Any]:
    """Return the figures as plain values."""
    return {
        "uninterrupted": {
            slots: {"epochs": reference.epochs, "seconds": round(reference.seconds, 1)}
            for slots, reference in references.items()
        },
        "killed": {kind: summary(verdicts) for kind, verdicts in found.items()},
    }


if __name__ == "__main__":
    main()
