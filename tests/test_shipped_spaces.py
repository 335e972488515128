"""The spaces of ``search_spaces/``: what they propose is a training that runs."""

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from tuner.config import DataConfig, TrialConfig
from tuner.data.cache import Images
from tuner.data.splits import Splits, load_splits
from tuner.models.build import build_model
from tuner.models.families import FAMILIES
from tuner.models.pretrained import Pretrained
from tuner.space import RandomTrial, load_space
from tuner.training.initial_weights import InitialWeights
from tuner.training.loop import train

SHIPPED = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))
IMAGES = 16
every_shipped_space = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


@cache
def draws(path: Path) -> tuple[TrialConfig, ...]:
    """Sample a shipped space 200 times."""
    space = load_space(path)
    return tuple(
        space.sample(RandomTrial(seed), epochs=space.search.epochs, seed=seed)
        for seed in range(200)
    )


def first_of_each_family(*paths: Path) -> dict[str, TrialConfig]:
    """Return the first trial of each family that the spaces propose."""
    families: dict[str, TrialConfig] = {}
    for config in itertools.chain.from_iterable(map(draws, paths)):
        families.setdefault(config.model.family, config)
    return families


@every_shipped_space
def test_a_shipped_space_samples_200_times(path: Path) -> None:
    space = load_space(path)
    assert space.description
    assert len({str(config.to_dict()) for config in draws(path)}) == 200
    for index in range(len(space.baseline)):
        trial = RandomTrial(0, space.baseline_params(index))
        assert space.sample(trial, epochs=1, seed=0, baseline=index)


@pytest.fixture(scope="module")
def large_digits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Return 16 training digits of 32 x 32 pixels, and as many for validation."""
    data = DataConfig(source="digits", image_size=32, train_limit=IMAGES)
    splits = load_splits(data, tmp_path_factory.mktemp("data"))
    val = Images(images=splits.val.images[:IMAGES], labels=splits.val.labels[:IMAGES])
    return replace(splits, val=val)


def random_start(config: TrialConfig, splits: Splits) -> InitialWeights | None:
    """Return what stands in for ImageNet's weights, which no test can fetch."""
    network = build_model(config.model, len(splits.classes), splits.image_shape)
    if not isinstance(network, Pretrained):
        return None
    return InitialWeights(tensors=network.network.state_dict(), mean=(0.5,) * 3, std=(0.25,) * 3)


def trains_a_step(config: TrialConfig, splits: Splits) -> bool:
    (epoch,) = train(
        replace(config, epochs=1, batch_size=IMAGES),
        splits,
        torch.device("cpu"),
        start=random_start(config, splits),
    )
    return epoch.is_finite


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "custom"])
def test_each_family_of_the_shipped_spaces_trains_a_step(family: str, large_digits: Splits) -> None:
    assert trains_a_step(first_of_each_family(*SHIPPED)[family], large_digits)


@pytest.mark.slow
@every_shipped_space
def test_each_family_of_a_shipped_space_trains_a_step(path: Path, large_digits: Splits) -> None:
    for family, config in first_of_each_family(path).items():
        assert trains_a_step(config, large_digits), family
