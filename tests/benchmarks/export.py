"""An ensemble in three runtimes: torch, onnxruntime and an exported program, on the CPU.

    python -m tests.benchmarks.export ENSEMBLE --rounds 7 [--check FOLDER] [--json]

ENSEMBLE is the folder of an ensemble. It is exported to both formats, which compares them on the
images kept with it or on those of FOLDER, at their full size. Then the three take turns for the
given number of rounds, with one image and with 32 of the networks' own size. The table shows the
median and quartiles of a round's milliseconds, and the median of its ratios to torch, which is
``Ensemble.predict`` on an array.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

import tuner
from tuner.deploy.export import RUNTIMES, TIMED_BATCHES, Export, Format, PredictArray, open_exported
from tuner.deploy.predictor import Ensemble

ROUND_SECONDS = 0.2


def seconds_of(run: PredictArray, images: np.ndarray) -> float:
    """Return the mean seconds of a call, after a warm-up call."""
    run(images)
    calls, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < ROUND_SECONDS or not calls:
        run(images)
        calls += 1
    return passed / calls


def measure(ensemble: Ensemble, exports: dict[Format, Export], rounds: int) -> list[dict[str, Any]]:
    """Return one row per runtime and number of images."""
    runs: dict[str, PredictArray] = {"torch": ensemble.predict}
    for to, made in exports.items():
        runs[RUNTIMES[to]] = open_exported(Path(made.file), to)
    channels, size, _ = ensemble.image_shape
    rows = []
    for count in TIMED_BATCHES:
        images = np.zeros((count, size, size, channels), dtype=np.uint8)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(1000 * seconds_of(run, images))
        for name in runs:
            ratios = [own / base for own, base in zip(times[name], times["torch"], strict=True)]
            low, middle, high = statistics.quantiles(times[name], n=4)
            rows.append(
                {
                    "images": count,
                    "runtime": name,
                    "ms": middle,
                    "quartiles": [low, high],
                    "ratio": statistics.median(ratios),
                }
            )
    return rows


def print_report(exports: dict[Format, Export], rows: list[dict[str, Any]]) -> None:
    """Print both tables."""
    console = Console()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("runtime", "MB", "images", "largest difference", "equal labels", "as of files"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    for made in exports.values():
        compared = made.compared
        table.add_row(
            made.runtime,
            f"{made.num_bytes / 1e6:.2f}",
            str(compared.num_images),
            f"{compared.max_difference:.1e}",
            str(compared.equal_labels),
            f"{compared.equal_labels_of_files} of {compared.num_files}",
        )
    console.print(table)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("images", "runtime", "ms", "quartiles", "to torch"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right")
    for row in rows:
        low, high = row["quartiles"]
        table.add_row(
            str(row["images"]),
            row["runtime"],
            f"{row['ms']:.3g}",
            f"{low:.3g} to {high:.3g}",
            f"{row['ratio']:.2f}",
        )
    console.print()
    console.print(table)


def main() -> None:
    """Export, compare, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ensemble", type=Path)
    parser.add_argument("--check", type=Path, help="a folder of images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ensemble = tuner.load_ensemble(options.ensemble, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        exports: dict[Format, Export] = {
            to: ensemble.export(Path(folder) / f"ensemble.{to}", check=options.check)
            for to in get_args(Format)
        }
        rows = measure(ensemble, exports, options.rounds)
    if options.json:
        plain = {to: made.to_plain() for to, made in exports.items()}
        print(json.dumps({"exports": plain, "latency": rows}, indent=2))
    else:
        print_report(exports, rows)


if __name__ == "__main__":
    main()
