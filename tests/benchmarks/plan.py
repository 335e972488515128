"""Compare the estimates of ``plan`` with the searches that follow.

    python -m tests.benchmarks.plan --data FOLDER --json plan.json

FOLDER is CIFAR-10 as class folders; without it, the searches on real images are left out. Each
search is planned and then run, with nothing changed between. The error is that of the median, as a
share of the actual value; the range is that of four simulated searches in five.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.overhead import own_environment
from tuner.config import DataConfig
from tuner.run.forecast import outcomes
from tuner.space import load_space
from tuner.tuning.planning.plan import plan
from tuner.tuning.request import SearchRequest
from tuner.tuning.session import search

ROOT = Path(__file__).parents[2]
FAMILIES = """
dataset: digits
search: {trials: 12, epochs: 6, sampler: random, scheduler: none}
space:
  batch_size: {choice: [32, 64]}
  model:
    choice:
      cnn: {stages: 2, width: {choice: [16, 32]}}
      resnet: {depth: 20, width_factor: {choice: [0.5, 1.0]}}
  optimizer: {adamw: {lr: {float: [1.0e-3, 1.0e-2], log: true}}}
"""
STOPPED = """
search: {trials: 24, epochs: 6, grace: 1, reduction: 2, sampler: random, scheduler: asha}
space:
  batch_size: 64
  model:
    choice:
      cnn: {stages: 3, width: {choice: [16, 32, 48]}}
      resnet: {depth: 20, width_factor: {choice: [0.5, 1.0]}}
  optimizer: {adamw: {lr: {float: [1.0e-3, 1.0e-2], log: true}}}
"""
IMAGES = 2000
"""Number of real training images."""
PART = ("search.trials=10", "search.epochs=6", "search.grace=2")
MOST = 0.25
"""Largest allowed error of the wall time, as a share."""


def measure(
    space: Path, data: DataConfig, overrides: tuple[str, ...], seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """Plan a search and run it; return one row per figure."""
    loaded = load_space(space, overrides, folder)
    request = SearchRequest(
        space=loaded,
        space_name=str(space),
        search=loaded.search,
        data=data,
        data_dir=folder / "data",
        storage=folder,
        name=space.stem,
        command="",
        keep=5,
    )
    console = Console(stderr=True, quiet=True)
    with own_environment():
        made = plan(request, seconds, console)
    with own_environment():
        run = search(request, console)
    rows = [
        asdict(outcome) | {"error": outcome.error, "is_within": outcome.is_within}
        for outcome in outcomes(run, run.trials())
    ]
    assert rows, "the search has found no plan"
    took = made.forecast.measured_seconds
    return [*rows, {"name": "planning, s", "measured": took, "predicted": None}]


def as_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    """Return a table of one row per figure."""
    table = Table(title="Plan and search")
    table.add_column("search")
    table.add_column("")
    for heading in ("planned", "range", "measured", "error"):
        table.add_column(heading, justify="right")
    for name, rows in found.items():
        for place, row in enumerate(rows):
            spread = row["predicted"]
            table.add_row(
                "" if place else name,
                row["name"],
                *(
                    (f"{spread['median']:.3g}", f"{spread['low']:.3g} to {spread['high']:.3g}")
                    if spread
                    else ("", "")
                ),
                f"{row['measured']:.3g}",
                "" if row.get("error") is None else f"{row['error']:+.0%}",
                end_section=place == len(rows) - 1,
            )
    return table


def main() -> None:
    """Run the benchmark; print a table, and with ``--json`` write one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 as class folders")
    parser.add_argument("--measure", type=float, default=40.0, help="seconds of each plan")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the searches")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name)
        families, stopped = folder / "two_families.yaml", folder / "two_stopped.yaml"
        families.write_text(FAMILIES)
        stopped.write_text(STOPPED)
        digits = DataConfig(source="digits")
        asked = [(ROOT / "search_spaces" / "quick.yaml", digits, ()), (families, digits, ())]
        if options.data:
            real = DataConfig(source=str(options.data.absolute()), train_limit=IMAGES)
            asked.append((ROOT / "search_spaces" / "cnn_small.yaml", real, PART))
            asked.append((stopped, real, ()))
        for space, data, overrides in asked:
            if options.only and space.stem not in options.only:
                continue
            found[space.stem] = measure(space, data, overrides, options.measure, folder)
            Console(stderr=True).print(f"{space.stem}: done")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    Console(highlight=False, width=110).print(as_table(found))
    if any(abs(rows[0]["error"]) > MOST for rows in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
