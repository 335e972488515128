"""The spaces of ``search_spaces/``: what they propose is a training that runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tuner.config import DataConfig, TrialConfig
from tuner.data import Splits, load_splits
from tuner.models import build_model
from tuner.models.pretrained import Pretrained
from tuner.sources import Images
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.train import train
from tuner.weights import Start

SHIPPED = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))
IMAGES = 16
every_shipped_space = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


def draws(space: SearchSpace) -> Iterator[TrialConfig]:
    for seed in range(200):
        yield space.sample(RandomTrial(seed), epochs=space.search.epochs, seed=seed)


@every_shipped_space
def test_a_shipped_space_samples_200_times(path: Path) -> None:
    space = load_space(path)
    assert space.description
    assert len({str(config.to_dict()) for config in draws(space)}) == 200
    for index in range(len(space.baseline)):
        trial = RandomTrial(0, space.baseline_params(index))
        assert space.sample(trial, epochs=1, seed=0, baseline=index)


@pytest.fixture(scope="module")
def large_digits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Give 16 training digits of 32 x 32 pixels, and as many for validation."""
    data = DataConfig(source="digits", image_size=32, train_limit=IMAGES)
    splits = load_splits(data, tmp_path_factory.mktemp("data"))
    val = Images(images=splits.val.images[:IMAGES], labels=splits.val.labels[:IMAGES])
    return replace(splits, val=val)


def one_of_each_family(path: Path) -> Iterator[Any]:
    families: dict[str, TrialConfig] = {}
    for config in draws(load_space(path)):
        families.setdefault(config.model.family, config)
    for family, config in families.items():
        yield pytest.param(config, id=f"{path.stem}-{family}")


def random_start(config: TrialConfig, splits: Splits) -> Start | None:
    """Give what stands in for ImageNet's weights, which no test can fetch."""
    network = build_model(config.model, len(splits.classes), splits.image_shape)
    if not isinstance(network, Pretrained):
        return None
    return Start(tensors=network.network.state_dict(), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    "config", [param for path in SHIPPED for param in one_of_each_family(path)]
)
def test_each_family_of_a_shipped_space_trains_a_step(
    config: TrialConfig, large_digits: Splits
) -> None:
    (epoch,) = train(
        replace(config, epochs=1, batch_size=IMAGES),
        large_digits,
        torch.device("cpu"),
        start=random_start(config, large_digits),
    )
    assert epoch.is_finite
