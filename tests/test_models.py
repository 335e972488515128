"""The contract of every architecture, over every choice of every parameter."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import UsageError
from tuner.models import ARCHITECTURES, build_model
from tuner.schema import Scalar, parse, schema_of

SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"stages": 2, "blocks": 1, "width": 8},
    "resnet": {"depth": 20, "width_factor": 0.5},
}
"""Parameters that make a family quick; each case changes one of them. None is needed by a family
that is quick by default."""


def values_of(scalar: Scalar) -> tuple[Any, ...]:
    if scalar.kind is bool:
        return (False, True)
    ends = (scalar.bounds.ge, scalar.bounds.le)
    return scalar.words or tuple(scalar.kind(end) for end in ends if end is not None)


def configs() -> Iterator[Any]:
    for family, architecture in ARCHITECTURES.items():
        small = SMALL.get(family, {})
        yield pytest.param(ModelConfig(family, small), id=f"{family}-small")
        for name, scalar in schema_of(architecture.params).fields.items():
            for value in values_of(scalar):
                config = ModelConfig(family, {**small, name: value})
                yield pytest.param(config, id=f"{family}-{name}={value}")


every_choice = pytest.mark.parametrize("config", list(configs()))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def settle(model: nn.Module) -> nn.Module:
    """Leave the special start, in which zeros hide some weights from the gradient."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model(torch.randn(4, 1, 8, 8))
    return model


@every_choice
def test_an_architecture_keeps_its_contract(config: ModelConfig) -> None:
    model = settle(build_model(config, num_classes=7, image_shape=(1, 8, 8)))
    images = torch.randn(2, 1, 8, 8)

    logits = model(images)
    assert logits.shape == (2, 7)
    logits.logsumexp(dim=1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name

    model.eval()
    with torch.inference_mode():
        expected = model(images)
        torch.testing.assert_close(model(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)
        twin = build_model(config, num_classes=7, image_shape=(1, 8, 8)).eval()
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(twin(images), expected)
        model.to(memory_format=torch.channels_last)
        nhwc = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(nhwc), expected, rtol=1e-4, atol=1e-5)


@every_choice
def test_an_architecture_takes_colour_images_and_starts_sane(config: ModelConfig) -> None:
    model = build_model(config, num_classes=10, image_shape=(3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    loss = nn.functional.cross_entropy(model(images), torch.tensor([1, 2]))
    assert loss < 20


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 32, 32), (3, 64, 64)])
def test_a_family_takes_images_of_any_size(family: str, shape: tuple[int, int, int]) -> None:
    model = build_model(ModelConfig(family, SMALL.get(family, {})), 3, shape)
    assert model(torch.randn(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_parameter_has_a_default_that_its_own_range_admits(family: str) -> None:
    schema = schema_of(ARCHITECTURES[family].params)
    assert not schema.required
    defaults = dataclasses.asdict(ARCHITECTURES[family].params())
    assert parse(schema, defaults) == ARCHITECTURES[family].params()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_seed_decides_the_weights(family: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = build_model(ModelConfig(family, SMALL.get(family, {})), 10)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.testing.assert_close(weights(1), weights(1), rtol=0, atol=0)
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_family_works_under_bfloat16_autocast(family: str) -> None:
    model = build_model(ModelConfig(family, SMALL.get(family, {})), 10)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 32, 32))
    logits.float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_dropout_acts_in_training_alone(family: str) -> None:
    model = build_model(ModelConfig(family, {**SMALL.get(family, {}), "dropout": 0.5}), 10)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    torch.testing.assert_close(model(images), model(images))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig("cnn"), 288_746),
        # He et al. give 0.27 million for ResNet-20 (table 6); projections add 1 %.
        (ModelConfig("resnet", {"depth": 20}), 272_474),
        (ModelConfig("resnet", {"depth": 18}), 11_173_962),
    ],
)
def test_known_networks_have_their_known_number_of_weights(
    config: ModelConfig, expected: int
) -> None:
    with torch.device("meta"):
        model = build_model(config, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("depth", [18, 20, 32, 34, 44, 56])
def test_a_resnet_has_as_many_layers_as_its_name_says(depth: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig("resnet", {"depth": depth}), 10)
    layers = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    counted = [n for n in layers if "norm" not in n and "shortcut" not in n and n != "stem.1"]
    assert len(counted) == depth


@pytest.mark.parametrize("width", [8, 20, 37])
def test_widths_grow_in_multiples_of_eight(width: int) -> None:
    model = build_model(ModelConfig("cnn", {"width": width, "width_growth": 1.3, "blocks": 1}), 10)
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert all(a <= b for a, b in itertools.pairwise(widths))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_deep_cnn_starts_with_moderate_logits(norm: str, residual: bool) -> None:
    params = {"stages": 4, "blocks": 8, "width": 8, "norm": norm, "residual": residual}
    model = build_model(ModelConfig("cnn", params), 10)
    assert model(torch.randn(8, 3, 32, 32)).abs().max() < 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("cn"), "model: unknown family 'cn'; did you mean 'cnn'?"),
        (ModelConfig("transformer"), "known are cnn, resnet"),
        (ModelConfig("cnn", {"witdh": 8}), "model.cnn.witdh: .*did you mean 'width'"),
        (ModelConfig("cnn", {"kernel": 4}), "model.cnn.kernel: 4 is not one of 3, 5, 7"),
        (ModelConfig("cnn", {"stages": 7}), "model.cnn.stages: .*at most 6"),
        (ModelConfig("resnet", {"depth": 18.0}), "model.resnet.depth: 18.0 is not one of"),
        (ModelConfig("resnet", {"depth": "18"}), "model.resnet.depth: '18' is not one of"),
    ],
)
def test_a_mistake_is_refused_by_its_path(config: ModelConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(config, 10)


def test_the_small_parameters_are_those_of_known_families() -> None:
    assert SMALL.keys() <= ARCHITECTURES.keys()
