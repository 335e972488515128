"""Real learning curves of every configuration of a small space, recorded once."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from tuner.config import DataConfig, TrialConfig
from tuner.data.splits import load_splits
from tuner.run.trial import EpochMetrics
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.training.loop import train

SPACE = """
description: 270 small CNNs; with 80 images their accuracies lie far apart
dataset: digits
search: {trials: 1000, epochs: 18, grace: 2, reduction: 3}
space:
  batch_size: {choice: [8, 16, 32]}
  model:
    cnn: {stages: 2, width: {int: [8, 24], step: 8}, dropout: {float: [0.0, 0.6], step: 0.3}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 0.81], step: 0.2}}
      adamw: {lr: {float: [0.0005, 0.0405], step: 0.01}}
"""
IMAGES = 80
NUM_DRAWS = 20_000
"""Enough to meet every configuration; it is checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """A space with the curve of each of its configurations."""

    space: SearchSpace
    histories: dict[str, list[EpochMetrics]]

    def of(self, config: TrialConfig) -> list[EpochMetrics]:
        """Return the epochs of a configuration, whatever its seed."""
        return self.histories[key(config)]


def key(config: TrialConfig) -> str:
    """Return a configuration's text, the same for any seed."""
    return json.dumps(config.to_dict() | {"seed": 0}, sort_keys=True)


def recorded(folder: Path, messages: Console) -> Curves:
    """Read the curves from ``folder``, or train all configurations and write them there."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "space.yaml"
    file.write_text(SPACE)
    space = load_space(file)
    table = folder / "curves.json"
    plain = json.loads(table.read_text()) if table.exists() else {}
    configs = enumerate_space(space)
    if set(plain) != {key(config) for config in configs}:
        plain = dict(_record(configs, folder, messages))
        table.write_text(json.dumps(plain))
    histories = {config: [EpochMetrics(**row) for row in rows] for config, rows in plain.items()}
    return Curves(space=space, histories=histories)


def _record(
    configs: Sequence[TrialConfig], folder: Path, messages: Console
) -> Iterator[tuple[str, list[dict[str, float]]]]:
    torch.set_num_threads(1)
    splits = load_splits(DataConfig(source="digits", train_limit=IMAGES), folder)
    for number, config in enumerate(configs):
        if number % 20 == 0:
            messages.print(f"recording curves: {number} of {len(configs)}")
        rows: list[dict[str, float]] = []
        for epoch in train(config, splits, torch.device("cpu")):
            rows.append(asdict(epoch.figures))
            if not epoch.is_finite:
                break
        yield key(config), rows


def enumerate_space(space: SearchSpace) -> Sequence[TrialConfig]:
    """Return each configuration of a finite space once, with seed 0."""
    found: dict[str, TrialConfig] = {}
    draws = RandomTrial(0)
    for _ in range(NUM_DRAWS):
        config = space.sample(draws, epochs=space.search.epochs, seed=0)
        found.setdefault(key(config), config)
    assert len(found) == space.cardinality()
    return list(found.values())
