"""Test accuracy of ``--space auto`` and of shipped spaces on few images, in the same search time.

    python -m tests.benchmarks.auto --data FOLDER --storage FOLDER --minutes 10 --seeds 3

FOLDER is CIFAR-10 as class folders. 1,200 images of its training part, 120 per class, become a flat
folder like a user's; the program takes 840 of them for training, 120 for validation and 240 for
testing. Each space is searched for the same time; the shipped ones get as many trials as fit into
it, more than they specify. The best trial and the vote of the best five are then scored on images
of FOLDER's test part, which no search sees: 240 images would say too little. ``--storage`` keeps
the runs: the same command continues an interrupted benchmark.

    python -m tests.benchmarks.auto --photos --storage FOLDER --minutes 10

searches tiles of the sample photos of scikit-learn and Matplotlib, labelled by their photo, only to
exercise the code path.
"""

import argparse
import json
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import tuner
from tuner.config import AUTO
from tuner.run.run import Run, find_run, list_runs

SPACES = (AUTO, "cnn_small", "speed")
IMAGES = 1_200
TOP = 5
MOST_TRIALS = 1_000
"""Trials of the shipped spaces: more than fit into the time."""
TILE = 160
"""Length of a tile's sides in pixels."""


def flat_folder(images: Path, folder: Path, count: int = IMAGES) -> Path:
    """Make class folders, each with the same number of images from a training part."""
    classes = sorted(path.name for path in (images / "train").iterdir() if path.is_dir())
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        files = sorted((images.resolve() / "train" / name).iterdir())
        for file in random.Random(0).sample(files, count // len(classes)):
            link = folder / name / file.name
            if not link.exists():
                os.link(file, link) if _is_same_disk(file, folder) else link.symlink_to(file)
    return folder


def _is_same_disk(file: Path, folder: Path) -> bool:
    return file.stat().st_dev == folder.stat().st_dev


def tiles(folder: Path) -> Path:
    """Cut sample photos into overlapping tiles, one class per photo."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    hopper = np.asarray(Image.open(get_sample_data("grace_hopper.jpg")))
    photos = {"china": china, "flower": flower, "hopper": hopper}
    for name, pixels in photos.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        height, width = pixels.shape[:2]
        for top in range(0, height - TILE + 1, TILE // 4):
            for left in range(0, width - TILE + 1, TILE // 4):
                tile = np.ascontiguousarray(pixels[top : top + TILE, left : left + TILE])
                Image.fromarray(tile).save(folder / name / f"{top:04}-{left:04}.jpg")
    return folder


def searched(space: str, data: Path, storage: Path, minutes: float, seed: int) -> Run:
    """Search a space for the given time, or resume that search."""
    name = f"{space}-{seed}"
    known = name in list_runs(storage)
    if known and find_run(storage, name).record.status == "finished":
        return find_run(storage, name)
    run = tuner.search(
        space,
        data=data,
        seed=seed,
        name=name,
        storage=storage,
        resume=known,
        trials=None if space == AUTO else MOST_TRIALS,
        time_budget=60 * minutes,
        data_dir=storage / "data",
    )
    if run.record.status != "finished":
        raise SystemExit("interrupted; the same command goes on")
    return run


def accuracies(run: Run, files: Sequence[Path]) -> dict[str, Any]:
    """Score the best trial and the vote of the best ones on images unseen by any search."""
    trials = run.trials()
    usable = sum(trial.is_usable for trial in trials)
    found = {
        "trials": len(trials),
        "whole": sum(len(trial.history) == trial.config.epochs for trial in trials),
        "epochs": run.record.search.epochs,
        "seconds": run.record.active_seconds,
        "val": run.top(1)[0].best.val_accuracy,  # type: ignore[union-attr]
    }
    for key, top in (("best", 1), ("vote", min(TOP, usable))):
        ensemble = tuner.combine(run, top=top, name=key, progress=False)
        of_class = {name: index for index, name in enumerate(ensemble.classes)}
        labels = np.array([of_class[file.parent.name] for file in files])
        probs = ensemble.predict(list(files)) if files else np.zeros((0, len(of_class)))
        found[key] = float((probs.argmax(axis=1) == labels).mean()) if files else None
        found[f"{key} own test"] = ensemble.metrics["ensemble"]["test"]["accuracy"]
    return found


def as_table(found: Mapping[str, Sequence[Mapping[str, Any]]], minutes: float) -> Table:
    """Return one row per space: means over the seeds, and the gain of auto over it, by seed."""
    table = Table(title=f"{IMAGES:,} images, {minutes:g} minutes on {os.cpu_count()} CPUs")
    table.add_column("space")
    for heading in ("trials", "whole", "epochs", "best %", "vote %", "auto's gain, vote"):
        table.add_column(heading, justify="right")
    for space, rows in found.items():
        gains = [
            100 * (ours["vote"] - row["vote"]) for ours, row in zip(found[AUTO], rows, strict=True)
        ]
        table.add_row(
            space,
            *(f"{statistics.fmean(row[key] for row in rows):.0f}" for key in ("trials", "whole")),
            f"{statistics.fmean(row['epochs'] for row in rows):.0f}",
            *(_spread([100 * row[key] for row in rows]) for key in ("best", "vote")),
            "" if space == AUTO else f"{_spread(gains)}",
        )
    return table


def _spread(values: Sequence[float]) -> str:
    mean = (
        f"{statistics.fmean(values):+.1f}" if min(values) < 0 else f"{statistics.fmean(values):.1f}"
    )
    return f"{mean} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else mean


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="CIFAR-10 as class folders")
    source.add_argument("--photos", action="store_true", help="tiles of sample photos, auto alone")
    parser.add_argument("--storage", type=Path, required=True, help="keeps runs, to go on with")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    storage = options.storage.absolute()
    storage.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    spaces = options.spaces
    if options.photos:
        data, spaces = tiles(storage / "photos"), [AUTO]
    else:
        data = flat_folder(options.data, storage / "images")
        files = random.Random(1).sample(
            sorted((options.data / "test").glob("*/*.*")), options.test_images
        )
    found: dict[str, list[dict[str, Any]]] = {space: [] for space in spaces}
    for seed in range(options.seeds):
        for space in spaces:
            run = searched(space, data, storage, options.minutes, seed)
            found[space].append(accuracies(run, files))
            print(space, seed, json.dumps(found[space][-1]), flush=True)
    if options.json or options.photos or AUTO not in found:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False, width=100).print(as_table(found, options.minutes))


if __name__ == "__main__":
    main()
