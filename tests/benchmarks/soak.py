"""Damage files that the program reads, kill it and starve it, and count losses: none is allowed.

    python -m tests.benchmarks.soak

Search spaces with mistakes are read, run folders with one damaged file go through every command
that only reads, and altered image files go through ``predict``: each has to be read, or refused by
an error that a user can fix. Searches are killed at random moments, lose their disk, their storage
or their study, receive signals to end, and compete for one name: each has to end as promised, and
to resume with nothing lost. Each part has an option that says how much is tried; 0 leaves the part
out. Exits with status 1 if anything was lost.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tuner
from tests.benchmarks.soak_parts.failures import STEADY, try_failures
from tests.benchmarks.soak_parts.inputs import try_checks, try_damages, try_images, try_spaces
from tests.benchmarks.soak_parts.kills import try_kills
from tests.benchmarks.soak_parts.leftovers import try_leftovers
from tests.benchmarks.soak_parts.together import try_together
from tests.benchmarks.soak_parts.trials import try_trials
from tests.benchmarks.soak_parts.tried import Tried
from tests.test_damaged_runs import RUN, undamaged_runs
from tuner.run.run import Run

COUNTS = {
    "spaces": 20_000,
    "damages": 5_000,
    "images": 2_000,
    "checks": 500,
    "kills": 30,
    "failures": 35,
    "together": 5,
    "trials": 2_000,
}
"""Part -> number of tries."""


def soak(counts: dict[str, int], seed: int, folder: Path, messages: Console) -> Iterator[Tried]:
    """Try all parts, and yield the outcome of each kind.

    Args:
        counts: See ``COUNTS``.
        seed: Seed of everything random.
        folder: An empty folder.
        messages: Console that reports the progress.
    """
    temporary = folder / "t"
    temporary.mkdir()
    # For the searches; their leftovers are looked for there.
    os.environ["TMPDIR"] = os.environ["RAY_TMPDIR"] = str(temporary)
    (folder / "runs").mkdir()
    with undamaged_runs(folder / "runs") as storage:
        yield try_spaces(counts["spaces"], seed, folder)
        yield try_damages(counts["damages"], seed, storage)
        ensemble = tuner.load_ensemble(storage / RUN / "ensembles" / "top2", device="cpu")
        yield try_images(counts["images"], seed, ensemble, folder)
    if counts["checks"]:
        yield try_checks(counts["checks"], seed, searched(folder / "checked"))
    for part, attempt in SEARCHES.items():
        if counts[part]:
            (folder / part).mkdir()
            yield from attempt(counts[part], seed, folder / part, messages)
    if counts["trials"]:
        yield try_trials(counts["trials"])
    if any(counts[part] for part in (*SEARCHES, "checks")):
        (folder / "last").mkdir()
        (folder / "last" / "space.yaml").write_text(STEADY)
        yield try_leftovers(temporary, folder / "last", "--space", "space.yaml", "--name", "last")


SEARCHES: dict[str, Callable[[int, int, Path, Console], list[Tried]]] = {
    "kills": try_kills,
    "failures": try_failures,
    "together": try_together,
}


def searched(storage: Path) -> Run:
    """Search three trials and combine two; return the run."""
    run = tuner.search(
        {"space": {"model": {"cnn": {"stages": 2, "width": {"int": [8, 16]}}}}},
        data="digits",
        trials=3,
        epochs=2,
        name="checked",
        storage=storage,
        progress=False,
    )
    tuner.combine(run, top=2, device="cpu", progress=False)
    return run


def as_table(found: Iterable[Tried]) -> Table:
    """Return a table of one row per kind."""
    table = Table("what", "tried", "as promised", "refused", "lost", "slowest, s")
    for tried in found:
        lost = tried.lost.total()
        counts = (tried.kept + tried.refused + lost, tried.kept, tried.refused, lost)
        table.add_row(tried.what, *map(str, counts), f"{tried.slowest:.2f}")
    return table


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for part, count in COUNTS.items():
        parser.add_argument(f"--{part}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = {part: getattr(options, part) for part in COUNTS}
    messages = Console(stderr=True, highlight=False)
    console = Console(highlight=False, width=100)
    found: list[Tried] = []
    # A short path, for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        began = time.monotonic()
        for tried in soak(counts, options.seed, Path(name), messages):
            found.append(tried)
            seconds, began = time.monotonic() - began, time.monotonic()
            messages.print(f"{tried.what}: {tried.lost.total()} lost, {seconds:.0f} s")
    if options.json:
        print(json.dumps([tried.to_plain() for tried in found], indent=2))
    else:
        console.print(as_table(found))
        for tried in found:
            for text in tried.notes:
                console.print(f"{tried.what}: {text}", markup=False)
            for text, count in tried.lost.most_common():
                console.print(f"{tried.what}, lost {count} times: {text}", markup=False)
    sys.exit(any(tried.lost for tried in found))


if __name__ == "__main__":
    main()
