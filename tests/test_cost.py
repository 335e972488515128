"""What a network costs, held against formulas and against what is built."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tuner.config import Constraints, ModelConfig
from tuner.errors import SpaceError, UsageError
from tuner.models.build import build_model
from tuner.models.cost import Cost, count_cost, count_parameters, limit_violation
from tuner.models.families import FAMILIES
from tuner.space import load_space

NAMES = [family for family in FAMILIES if family not in ("custom", "pretrained")]
"""Those that need no file and no name; the others are held by the tests of their own."""
IMAGE = (3, 32, 32)


@pytest.mark.parametrize("family", ["cnn", "resnet", "speednet"])
def test_the_parameters_are_those_of_the_network_that_is_built(family: str) -> None:
    config = ModelConfig(family)
    network = build_model(config, 7, (1, 8, 8))
    expected = sum(parameter.numel() for parameter in network.parameters())
    assert count_cost(config, 7, (1, 8, 8)).parameters == expected
    assert count_parameters(config, 7, (1, 8, 8)) == expected


@pytest.mark.parametrize("family", NAMES)
def test_counting_draws_nothing_and_is_remembered(family: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    cost = count_cost(ModelConfig(family), 10, IMAGE)
    assert torch.equal(torch.get_rng_state(), before)
    assert count_cost(ModelConfig(family, {}), 10, IMAGE) is cost
    assert cost.parameters > 0
    assert cost.flops > cost.parameters


def test_the_flops_are_two_for_each_multiply_add() -> None:
    config = ModelConfig("cnn", {"stages": 1, "blocks": 1, "width": 16})
    convolution = 3 * 3 * 3 * 16 * 32 * 32
    classifier = 16 * 10
    expected = Cost(parameters=432 + 32 + 170, flops=2 * (convolution + classifier))
    assert count_cost(config, 10, IMAGE) == expected


def test_attention_counts_too() -> None:
    params: dict[str, Any] = {"layers": 1, "width": 32, "mlp_ratio": 4.0, "patch": 4}
    tokens, width = 64, 32
    patches = tokens * 3 * 4 * 4 * width
    matrices = tokens * 12 * width**2
    attention = 2 * tokens**2 * width
    expected = 2 * (patches + matrices + attention + width * 10)
    assert count_cost(ModelConfig("vit", params), 10, IMAGE).flops == expected


def test_a_known_network_has_its_known_cost() -> None:
    # Zagoruyko & Komodakis count 10.5 billion of WRN-28-10 as multiply-adds times two.
    cost = count_cost(ModelConfig("wide_resnet", {"depth": 28, "widen_factor": 10}), 10, IMAGE)
    assert cost.flops == pytest.approx(10.5e9, rel=0.01)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (Constraints(), ""),
        (Constraints(epoch_seconds=1.0), ""),
        (Constraints(parameters=288_746, flops=1e9), ""),
        (Constraints(parameters=2e5), "2.89e+05 parameters, above the limit of 2e+05"),
        (Constraints(flops=1e7), "7.73e+07 FLOPs, above the limit of 1e+07"),
        (
            Constraints(parameters=1.0, flops=1.0),
            "2.89e+05 parameters, above the limit of 1 and 7.73e+07 FLOPs, above the limit of 1",
        ),
    ],
)
def test_what_is_above_a_limit_is_named(constraints: Constraints, message: str) -> None:
    assert limit_violation(ModelConfig("cnn"), constraints, 10, IMAGE) == message


def test_a_mistake_in_the_model_is_told() -> None:
    with pytest.raises(UsageError, match="unknown family"):
        count_cost(ModelConfig("zebra"), 10, IMAGE)


OWN = """
import torch
def make(num_classes, image_shape, width):
    hidden = torch.nn.Conv2d(image_shape[0], width, 4, 4)
    return torch.nn.Sequential(hidden, torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))
"""


def test_a_network_of_ones_own_is_counted_and_tried_without_limits_too() -> None:
    plain = {"path": "own.py", "name": "make", "params": {"width": 2}, "source": OWN}
    config = ModelConfig("custom", plain)
    linear = 2 * 8 * 8 * 10
    cost = count_cost(config, 10, IMAGE)
    assert cost == Cost(parameters=98 + linear + 10, flops=2 * (64 * 96 + linear))
    assert limit_violation(config, Constraints(), 10, IMAGE) == ""
    wrong = ModelConfig("custom", plain | {"params": {"width": 0.5}})
    with pytest.raises(UsageError, match=r"own.py:4: make failed: ValueError"):
        limit_violation(wrong, Constraints(), 10, IMAGE)


SQUEEZING = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_shape, is_normed):
        super().__init__()
        self.norm = nn.BatchNorm1d(image_shape[0]) if is_normed else nn.Identity()
        self.head = nn.Linear(image_shape[0], num_classes)

    def forward(self, images):
        pooled = images.mean(dim=(2, 3), keepdim=True).squeeze()
        return self.head(self.norm(pooled))
"""


@pytest.mark.parametrize(
    ("is_normed", "message"),
    [
        (False, r"own\.py: the network returns \(10,\) .* \(1, 3, 32, 32\); .* shape \(1, 10\)\. "),
        (True, r"own\.py:12: the network fails on a single image, .*: ValueError: expected 2D"),
    ],
)
def test_a_network_that_drops_the_dimension_of_a_single_image_is_refused(
    is_normed: bool, message: str
) -> None:
    params = {"is_normed": is_normed}
    plain = {"path": "own.py", "name": "Net", "params": params, "source": SQUEEZING}
    config = ModelConfig("custom", plain)
    with pytest.raises(UsageError, match=message):
        limit_violation(config, Constraints(), 10, IMAGE)
    # What was trained with it earlier is still loaded.
    assert build_model(config, 10, IMAGE)(torch.zeros(2, *IMAGE)).shape == (2, 10)


ATTENTION = """
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

class Net(nn.Module):
    def __init__(self, num_classes, image_shape, kind):
        super().__init__()
        self.kind, width = kind, image_shape[2]
        if kind == "layer":
            self.mix = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        elif kind == "attention":
            self.mix = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        tokens = images.flatten(1, 2)
        if self.kind == "layer":
            tokens = self.mix(tokens)
        elif self.kind == "attention":
            tokens, _ = self.mix(tokens, tokens, tokens, need_weights=False)
        else:
            heads = tokens.unflatten(2, (4, -1)).transpose(1, 2)
            tokens = scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return self.head(tokens.mean(dim=1))
"""


@pytest.mark.parametrize(("kind", "matrices"), [("layer", 8), ("attention", 4), ("function", 0)])
def test_the_attention_of_a_network_of_ones_own_counts_too(kind: str, matrices: int) -> None:
    plain = {"path": "own.py", "name": "Net", "params": {"kind": kind}, "source": ATTENTION}
    tokens, width = 96, 32
    expected = 2 * (matrices * tokens * width**2 + 2 * tokens**2 * width + width * 10)
    assert count_cost(ModelConfig("custom", plain), 10, IMAGE).flops == expected


def test_a_space_sets_the_limits(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("constraints: {parameters: 5.0e6, flops: 1000000000}\nspace: {model: cnn}\n")
    space = load_space(file, ["constraints.epoch_seconds=20"])
    assert space.constraints == Constraints(parameters=5e6, flops=1e9, epoch_seconds=20.0)
    (tmp_path / "again.yaml").write_text(space.resolved())
    assert load_space(tmp_path / "again.yaml") == space
    file.write_text("space: {model: cnn}\n")
    assert load_space(file).constraints == Constraints()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("constraints: {parameters: 0}", "1:27: constraints.parameters: 0 is out of range"),
        ("constraints: {parameter: 1}", "1:15: .*did you mean 'parameters'"),
        ("constraints: {flops: {int: [1, 2]}}", "in place of a plain value"),
        ("constraints: 5", "5 is not a mapping"),
    ],
)
def test_a_wrong_limit_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(f"{line}\nspace: {{model: cnn}}\n")
    with pytest.raises(SpaceError, match=message):
        load_space(tmp_path / "s.yaml")
