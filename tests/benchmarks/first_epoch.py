"""Seconds from typing ``search`` to its first line, and to the end of its first trained epoch.

    python -m tests.benchmarks.first_epoch --space quick --runs 3

Each run is a new process of the installed command, in an empty folder, as a user starts it: it
loads PyTorch, reads the images and starts Ray. It is killed once an epoch is in a history.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.processes import Search
from tests.benchmarks.promises import Watch

MOST_SECONDS = 300.0


def times(space: str) -> tuple[float, float]:
    """Start a search; return the seconds to its first line and to its first epoch."""
    with tempfile.TemporaryDirectory(prefix="first-epoch-") as name:
        folder = Path(name)
        began = time.time()
        line = 0.0
        with (
            Search(folder, "--space", space, "--name", "run") as search,
            Watch(folder / "runs" / "run") as watch,
        ):
            while not watch.seen:
                if not line and search.errors:
                    line = time.time() - began
                if search.wait(0.01) is not None or time.time() > began + MOST_SECONDS:
                    sys.exit(f"no epoch: {search.errors}")
            epoch = min(min(found) for found in watch.seen.values()) - began
            search.kill_everything()
    return line, epoch


def main() -> None:
    """Run the benchmark; print one line per run, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="quick")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    found = []
    for _ in range(options.runs):
        found.append(times(options.space))
        print(
            "first line after {:.2f} s, first epoch after {:.1f} s".format(*found[-1]), flush=True
        )
    line, epoch = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"medians: {line:.2f} s, {epoch:.1f} s")


if __name__ == "__main__":
    main()
