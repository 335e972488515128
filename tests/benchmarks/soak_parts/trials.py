"""Thousands of tiny trials: what the driver needs of memory as their number grows."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

from tests.benchmarks import overhead
from tests.benchmarks.soak_parts.tried import Tried

MOST_KILOBYTES = 30.0
"""That the driver may grow by for each trial: of 10,000, by 300 MB."""
SLOTS = 8


def try_trials(number: int) -> Tried:
    """Search with trials that train nothing, in a process of its own, and look at its memory.

    Args:
        number: Of trials.
    """
    tried = Tried(what="tiny trials in one search")
    began = time.monotonic()
    command = [sys.executable, "-m", __spec__.name, str(number)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        tried.enter([f"ended with {done.returncode}: {done.stderr[-300:]}"], seconds)
        return tried
    sizes = {int(count): size for count, size in json.loads(done.stdout).items()}
    tried.kept, tried.slowest = number, seconds
    tried.notes.append(
        "MB of the driver after "
        + ", ".join(f"{count} trials {size / 1000:.0f}" for count, size in sizes.items())
    )
    (first, before), (last, after) = min(sizes.items()), max(sizes.items())
    growth = (after - before) / (last - first)
    tried.notes.append(f"kB that it grew by for each trial: {growth:.1f}")
    if growth > MOST_KILOBYTES:
        tried.lost[f"the driver grew by {growth:.1f} kB a trial"] += 1
    return tried


def main() -> None:
    """Print the driver's kilobytes after a quarter, a half and all of the trials."""
    number = int(sys.argv[1])
    ray.init("local", num_cpus=SLOTS, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory(prefix="trials-") as folder:
            ends, usage = overhead.search(Path(folder), trials=number, sampler="random")
    finally:
        ray.shutdown()
    counts = (number // 4, number // 2, number)
    print(json.dumps({count: usage.size_at(ends[count - 1]) for count in counts}))


if __name__ == "__main__":
    main()
