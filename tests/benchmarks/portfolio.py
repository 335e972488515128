"""Record learning curves of a shipped space on seven sets of images, and choose first trials.

    python -m tests.benchmarks.portfolio --space cnn_small --data FOLDER --results cnn_small.jsonl

FOLDER is CIFAR-10 as class folders. The same configurations, drawn from the space and its
baselines, are trained on the digits, without and with noise, and on five parts of CIFAR-10, which
differ in classes, size, colour and number of images. Eight are chosen one after another, each for
the lowest mean regret of the best so far; they are printed as the ``baseline:`` of a space. The
check learns them from all sets but one, tries them on that set, and compares them with the same
number of random configurations. Configurations in ``--results`` are not trained again.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.benchmarks.samplers import read_results
from tuner.config import DataConfig, TrialConfig
from tuner.data.splits import load_splits
from tuner.run.trial import EpochMetrics, best_row
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.space.searched import searched_yaml
from tuner.space.source import find_space
from tuner.training.loop import train
from tuner.tuning.warm_start import PORTFOLIO, choose

VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
NUM_VAL = 1000
"""Number of validation images of each part of CIFAR-10."""
SHOWN = (1, 2, 4, PORTFOLIO)
"""Numbers of trials after which the check takes the regret."""
DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """A part of CIFAR-10."""

    classes: Sequence[str] = (*VEHICLES, *ANIMALS)
    train_images: int = 2000
    image_size: int = 32
    is_grey: bool = False


SETS: dict[str, ImageSet | DataConfig] = {
    "digits": DataConfig(source="digits"),
    "noisy digits": DataConfig(source="noisy-digits"),
    "vehicles": ImageSet(classes=VEHICLES),
    "animals": ImageSet(classes=ANIMALS),
    "16 pixels": ImageSet(image_size=16),
    "grey": ImageSet(is_grey=True),
    "600 images": ImageSet(train_images=600),
}


def prepare(name: str, images: ImageSet | DataConfig, cifar: Path, folder: Path) -> DataConfig:
    """Return the configuration of a set; copy a part of CIFAR-10 to a folder of its own."""
    if isinstance(images, DataConfig):
        return images
    own = folder / name.replace(" ", "-")
    if not own.exists():
        made = own.with_suffix(".part")
        shutil.rmtree(made, ignore_errors=True)
        for name in images.classes:
            files = sorted((cifar / "train" / name).iterdir())
            num_train, num_val = (
                number // len(images.classes) for number in (images.train_images, NUM_VAL)
            )
            for part, chosen in (
                ("val", files[:num_val]),
                ("train", files[num_val : num_val + num_train]),
            ):
                target = made / part / name
                target.mkdir(parents=True)
                for file in chosen:
                    if images.is_grey:
                        Image.open(file).convert("L").save(target / f"{file.stem}.png")
                    else:
                        shutil.copyfile(file, target / file.name)
        made.rename(own)
    return DataConfig(source=str(own), image_size=images.image_size)


def draw(space: SearchSpace, count: int, epochs: int, seed: int) -> list[TrialConfig]:
    """Return random configurations, followed by the baselines of a space."""
    trial = RandomTrial(seed=seed)
    drawn = [space.sample(trial, epochs=epochs, seed=0) for _ in range(count)]
    known = [RandomTrial(params=space.baseline_params(n)) for n in range(len(space.baseline))]
    return drawn + [
        space.sample(trial, epochs=epochs, seed=0, baseline=number)
        for number, trial in enumerate(known)
    ]


def record(task: tuple[str, TrialConfig, DataConfig, Path]) -> dict[str, Any]:
    """Train one configuration on one set; return its line of the results."""
    name, config, data, folder = task
    torch.set_num_threads(1)
    rows: list[EpochMetrics] = []
    for epoch in train(config, load_splits(data, folder), torch.device("cpu")):
        rows.append(epoch.figures)
        if not epoch.is_finite:
            break
    return {
        "set": name,
        "config": config.to_dict(),
        "history": [asdict(row) for row in rows],
    }


def key_of(config: TrialConfig) -> str:
    """Return a text that identifies a configuration."""
    return json.dumps(config.to_dict(), sort_keys=True)


def read(results: Path) -> dict[str, dict[str, float]]:
    """Return the recorded results: set -> key of a configuration -> its best accuracy."""
    found: dict[str, dict[str, float]] = {}
    for line in read_results(results):
        best = best_row([EpochMetrics(**row) for row in line["history"]], "accuracy")
        # Parsed and written again: a line of an earlier commit may lack a setting.
        key = key_of(TrialConfig.from_dict(line["config"]))
        found.setdefault(line["set"], {})[key] = best.val_accuracy if best else 0.0
    return found


def regrets_of(accuracies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the normalised regrets of configurations on each set, both of shape (S, N).

    If half of them are equally good, the others have a regret of 1.
    """
    short = accuracies.max(axis=1, keepdims=True) - accuracies
    median = np.median(short, axis=1, keepdims=True)
    return np.where(short < median, short / np.where(median, median, 1), short > 0)


def check(regrets: NDArray[np.float64], sets: Sequence[str]) -> Table:
    """Try a portfolio on each set, after learning it from the other sets."""
    generator = np.random.default_rng(0)
    table = Table(title="Regret on a set left out, after so many trials (at random)")
    table.add_column("left out")
    for count in SHOWN:
        table.add_column(str(count), justify="right")
    means = np.zeros((len(sets), len(SHOWN), 2))
    for place, name in enumerate(sets):
        own = regrets[place]
        chosen = choose(np.delete(regrets, place, axis=0), PORTFOLIO)
        orders = np.array([generator.permutation(len(own)) for _ in range(DRAWS)])
        for column, count in enumerate(SHOWN):
            by_chance = own[orders[:, :count]].min(axis=1).mean()
            means[place, column] = own[chosen[:count]].min(), by_chance
        table.add_row(name, *(f"{ours:.2f} ({chance:.2f})" for ours, chance in means[place]))
    table.add_section()
    table.add_row("mean", *(f"{ours:.2f} ({chance:.2f})" for ours, chance in means.mean(axis=0)))
    return table


def main() -> None:
    """Record the missing results; print the check, and the chosen configurations as YAML."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", required=True)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE")
    parser.add_argument("--configs", type=int, default=48, help="drawn beside the baselines")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn configurations")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    messages = Console(stderr=True, highlight=False)
    folder = options.results.with_suffix(".sets")
    folder.mkdir(parents=True, exist_ok=True)
    space = load_space(find_space(options.space))
    configs = draw(space, options.configs, options.epochs, options.seed)
    known = read(options.results)
    tasks = [
        (name, config, data, folder)
        for config in configs
        for name, data in _prepared(options.sets, options.data, folder)
        if key_of(config) not in known.get(name, {})
    ]
    with (
        options.results.open("a") as lines,
        ProcessPoolExecutor(options.processes) as pool,
    ):
        done = as_completed([pool.submit(record, task) for task in tasks])
        for future in track(done, "recording", total=len(tasks), console=messages):
            lines.write(json.dumps(future.result()) + "\n")
            lines.flush()
    known = read(options.results)
    sets = options.sets
    regrets = regrets_of(
        np.array([[known[name][key_of(config)] for config in configs] for name in sets])
    )
    output = Console(highlight=False, width=100)
    if len(sets) > 1:
        output.print(check(regrets, sets))
    output.print(f"baseline:  # learnt by tests/benchmarks/portfolio.py on {', '.join(sets)}")
    for column in choose(regrets, PORTFOLIO):
        entry = yaml.safe_load(searched_yaml(space, configs[column].to_dict()))
        (chosen,) = entry["baseline"]
        output.print(f"  - {json.dumps(chosen)}", soft_wrap=True, markup=False)


def _prepared(names: Sequence[str], cifar: Path, folder: Path) -> Iterator[tuple[str, DataConfig]]:
    for name in names:
        yield name, prepare(name, SETS[name], cifar, folder)


if __name__ == "__main__":
    main()
