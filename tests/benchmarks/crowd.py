"""Short trials on many slots: whether all are used, and what an epoch costs the driver.

    python -m tests.benchmarks.crowd --slots 8 24

This machine plays nodes of 8 CPUs each, Ray's own processes and all; the workers train tiny
networks on the digits. Once every slot has its trial, the driver's processor time is taken for a
while, then the search is interrupted as by Ctrl-C. A worker takes about 0.5 GB of memory. Ends with
status 1 if a trial was lost.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.processes import Search
from tests.raylets import Raylets
from tuner.run.run import Run
from tuner.run.trial import TrialRecord

SPACE = """
dataset: digits
search: {trials: 100000, epochs: 10, sampler: random, scheduler: none}
space:
  batch_size: 256
  model: {cnn: {stages: 2, blocks: 1, width: 8}}
  optimizer: {sgd: {lr: {float: [0.01, 0.3], log: true}}}
"""
CPUS_A_NODE = 8
START_SECONDS = 900.0
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """What a search on so many slots came to."""

    slots: int
    start_seconds: float
    """Until all slots had a trial at once."""
    seconds: float
    """That were measured from then on."""
    trials: int
    epochs: int
    """That ended in these seconds."""
    milliseconds: float
    """The driver's processor time an epoch, trials' beginnings and endings among them."""
    nodes: int
    """On which trials were trained."""
    lost: int
    """Trials that ended otherwise than by completion or the interrupt."""
    worker_megabytes: float
    """Memory of a worker, shared pages divided among those that share them."""


def measure(slots: int, seconds: float) -> Crowd:
    """Search on so many slots, and measure for so many seconds."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cpus = min(slots, CPUS_A_NODE)
    with tempfile.TemporaryDirectory(prefix="crowd-") as name, Raylets(cpus=cpus) as cluster:
        folder = Path(name)
        (folder / "space.yaml").write_text(SPACE)
        for _ in range(slots // cpus - 1):
            cluster.add(cpus=cpus)
        cluster.wait_for_nodes(slots // cpus)
        words = ("--space", "space.yaml", "--name", "run", "--address", cluster.address)
        with Search(folder, *words) as search:
            while sum(has_begun(trial) for trial in trials_in(folder)) < slots:
                assert search.wait(1) is None, search.errors
                assert time.time() < search.began + START_SECONDS, "not all slots are used"
            began, cpu, before = time.time(), cpu_seconds(search), trials_in(folder)
            assert search.wait(seconds) is None, search.errors
            workers = [
                process
                for number in range(slots // cpus)
                for process in cluster.running(number)
                if process.name.startswith("ray::Implicit")
            ]
            size = sum(map(proportional_size, (worker.pid for worker in workers))) / len(workers)
            passed, spent, after = time.time() - began, cpu_seconds(search) - cpu, trials_in(folder)
            search.process.send_signal(signal.SIGINT)
            assert search.wait(START_SECONDS) == INTERRUPTED, search.errors
        ended = trials_in(folder)
    epochs = sum(len(trial.history) for trial in after) - sum(len(t.history) for t in before)
    return Crowd(
        slots=slots,
        start_seconds=began - search.began,
        seconds=passed,
        trials=sum(is_over(t) for t in after) - sum(is_over(t) for t in before),
        epochs=epochs,
        milliseconds=1000 * spent / epochs,
        nodes=len({trial.status.node for trial in ended}),
        lost=sum(trial.status.state not in ("completed", "interrupted") for trial in ended),
        worker_megabytes=size / 1e6,
    )


def trials_in(folder: Path) -> list[TrialRecord]:
    path = folder / "runs" / "run"
    return Run.open(path).trials() if (path / "run.json").exists() else []


def has_begun(trial: TrialRecord) -> bool:
    return trial.status.state == "running" and bool(trial.status.node)


def is_over(trial: TrialRecord) -> bool:
    return trial.status.state != "running"


def cpu_seconds(search: Search) -> float:
    """Return the processor time of the driver so far."""
    fields = Path(f"/proc/{search.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_size(pid: int) -> float:
    """Return the memory of a process in bytes, shared pages divided among those that share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [measure(slots, options.seconds) for slots in options.slots]
    if options.json:
        print(json.dumps([asdict(crowd) for crowd in found], indent=2))
    else:
        rows = [asdict(crowd) for crowd in found]
        table = Table(
            "", *(str(crowd.slots) for crowd in found), title="Short trials on many slots"
        )
        for key in rows[0]:
            table.add_row(key.replace("_", " "), *(f"{row[key]:.4g}" for row in rows))
        Console(highlight=False, width=100).print(table)
    sys.exit(any(crowd.lost for crowd in found))


if __name__ == "__main__":
    main()
