"""Count the deliberately swapped labels that ``data issues`` finds, on real images.

    python -m tests.benchmarks.label_errors --data FOLDER --storage FOLDER --minutes 10

FOLDER is CIFAR-10 as class folders. ``--images`` images of its training part become a flat folder,
in which a share ``--swapped`` of them is moved to another class, drawn at random. A search of
``--space`` takes ``--minutes``; the vote of its best five trials then judges the validation images.
Precision is the share of the reported images that were swapped, recall the share of the swapped
images that were reported. By chance, precision is the share of swapped images, and recall the share
of reported images. FOLDER has some label errors of its own, and images that fit two classes, so
precision is a lower bound.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import tuner
from tests.benchmarks.auto import flat_folder
from tuner.config import AUTO
from tuner.data.splits import load_splits
from tuner.ensemble.issues import look_for_issues
from tuner.run.run import find_run, list_runs


def swap(folder: Path, share: float) -> set[str]:
    """Move some images to another class; return their names there."""
    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*"))
    numbers = random.Random(2)
    swapped = set()
    for file in numbers.sample(files, round(share * len(files))):
        own = file.parent.name
        other = numbers.choice([name for name in classes if name != own])
        moved = folder / other / f"swapped-{file.name}"
        file.rename(moved)
        swapped.add(moved.name)
    return swapped


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Search, look for errors, and compare the reported images with the swapped ones."""
    storage = options.storage.absolute()
    folder = storage / "swapped"
    if not folder.exists():
        swap(flat_folder(options.data, folder, options.images), options.swapped)
    if options.space in list_runs(storage):
        run = find_run(storage, options.space)
    else:
        run = tuner.search(
            options.space,
            data=folder,
            name=options.space,
            storage=storage,
            val_fraction=options.val_fraction,
            time_budget=60 * options.minutes,
            data_dir=storage / "data",
        )
    if run.record.status != "finished":
        raise SystemExit("interrupted; remove the run, and the same command begins anew")
    found = look_for_issues(run, top=5)
    names = load_splits(run.record.data, storage / "data").val_names
    swapped = {name for name in names if Path(name).name.startswith("swapped-")}
    told = [issue.path for issue in found.labels]
    hits = len(swapped.intersection(told))
    first = told[: len(swapped)]
    return {
        "checked": found.checked,
        "swapped": len(swapped),
        "found": len(told),
        "validation accuracy": run.top(1)[0].best.val_accuracy,  # type: ignore[union-attr]
        "precision": hits / max(1, len(told)),
        "precision by chance": len(swapped) / found.checked,
        "recall": hits / len(swapped),
        "recall by chance": len(told) / found.checked,
        "precision of as many as were swapped": len(swapped.intersection(first)) / len(swapped),
    }


def main() -> None:
    """Run the benchmark and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--storage", type=Path, required=True, help="keeps images and run")
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--swapped", type=float, default=0.05)
    parser.add_argument("--val-fraction", type=float, default=0.3)
    parser.add_argument("--space", default=AUTO)
    parser.add_argument("--minutes", type=float, default=10.0)
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
