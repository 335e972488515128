"""The contract of every architecture, over every choice of every parameter."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import UsageError
from tuner.models.build import FitsImages, build_model
from tuner.models.families import FAMILIES
from tuner.models.layers import SqueezeExcitation, StochasticDepth, drop_rates
from tuner.models.params import ViTParams
from tuner.models.speednet import ShiftNorm, SpeedNet
from tuner.models.vit import Layer, sincos_positions
from tuner.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tuner.schema import Scalar, parse, schema_of

SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"stages": 2, "blocks": 1, "width": 8},
    "resnet": {"depth": 20, "width_factor": 0.5},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "speednet": {"stages": 2, "width": 8, "widening": 2.0},
    "convnext": {"stages": 2, "blocks": 1, "width": 8},
    "vit": {"layers": 2, "width": 32},
    "pretrained": {"name": "mobilenet_v3_small", "image_size": 32},
}
"""Parameters that make a family quick; each case changes one of them. None is needed by a family
that is quick by default."""
NEEDS: dict[tuple[str, str], dict[str, Any]] = {("cnn", "stochastic_depth"): {"residual": True}}
"""What a parameter needs beside it."""
ELSEWHERE = {("pretrained", "trial")}
"""Parameters that need another network beside them; test_pretrained.py holds them."""
NAMED: dict[str, dict[str, Any]] = {"pretrained": {"name": "resnet18"}}
"""What has no default: which network it is."""
NAMES = [family for family in FAMILIES if family in SMALL]
"""All with parameters of their own; ``custom`` is held by test_custom.py."""
every_family = pytest.mark.parametrize("family", NAMES)


def values_of(scalar: Scalar) -> tuple[Any, ...]:
    """Return the ends of the range; the middle stands for an end that is not in it."""
    if scalar.kind is bool:
        return (False, True)
    bounds = scalar.bounds
    ends = [end for end in (bounds.ge, bounds.le) if end is not None]
    if len(ends) == 1 and (opposite := bounds.lt or bounds.gt) is not None:
        ends.append((ends[0] + opposite) / 2)
    return scalar.choices or tuple(scalar.kind(end) for end in ends)


def configs() -> Iterator[Any]:
    for family in NAMES:
        small = SMALL[family]
        yield pytest.param(ModelConfig(family, small), id=f"{family}-small")
        for name, scalar in schema_of(FAMILIES[family]).fields.items():
            for value in () if (family, name) in ELSEWHERE else values_of(scalar):
                config = ModelConfig(
                    family, {**small, **NEEDS.get((family, name), {}), name: value}
                )
                yield pytest.param(config, id=f"{family}-{name}={value}")


def families_with(name: str) -> list[str]:
    return [f for f in NAMES if name in schema_of(FAMILIES[f]).fields]


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
    # As many as make it sure that stochastic depth leaves each branch to one of them.
    images = torch.randn(8, 1, 8, 8)

    logits = model(images)
    assert logits.shape == (8, 7)
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


@every_family
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 32, 32), (3, 64, 64)])
def test_a_family_takes_images_of_any_size(family: str, shape: tuple[int, int, int]) -> None:
    model = build_model(ModelConfig(family, SMALL[family]), 3, shape)
    assert model(torch.randn(2, *shape)).shape == (2, 3)


@every_family
def test_every_parameter_has_a_default_that_its_own_range_admits(family: str) -> None:
    schema = schema_of(FAMILIES[family])
    assert not schema.required
    named = NAMED.get(family, {})
    defaults = dataclasses.asdict(FAMILIES[family](**named))
    assert parse(schema, defaults) == FAMILIES[family](**named)


@every_family
def test_the_seed_decides_the_weights(family: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = build_model(ModelConfig(family, SMALL[family]), 10)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.testing.assert_close(weights(1), weights(1), rtol=0, atol=0)
    assert not torch.equal(weights(1), weights(2))


@every_family
def test_a_family_works_under_bfloat16_autocast(family: str) -> None:
    model = build_model(ModelConfig(family, SMALL[family]), 10)
    model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.isfinite().all()
    logits.float().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_what_is_dropped_is_dropped_in_training_alone(name: str) -> None:
    assert families_with(name)
    for family in families_with(name):
        params = {**SMALL[family], **NEEDS.get((family, name), {})}
        model = settle(build_model(ModelConfig(family, {**params, name: 0.5}), 10, (1, 8, 8)))
        images = torch.randn(8, 1, 8, 8)
        assert not torch.equal(model(images), model(images)), family
        plain = build_model(ModelConfig(family, params), 10, (1, 8, 8)).eval()
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(model.eval()(images), plain(images))


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    branch = torch.rand(4000, 3, 2, 2) + 0.5
    dropped = StochasticDepth(0.25)(branch)
    is_kept = dropped.flatten(1).any(dim=1)
    assert is_kept.float().mean() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(dropped[is_kept], branch[is_kept] / 0.75)
    assert drop_rates(0.4, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def few_steps(family: str) -> tuple[float, float, nn.Module]:
    """Train on one batch and give the loss before and after, and the model."""
    torch.manual_seed(3)
    model = build_model(ModelConfig(family, SMALL[family]), 3, (3, 16, 16))
    labels = torch.arange(16) % 3
    images = torch.randn(3, 3, 16, 16)[labels] + 0.3 * torch.randn(16, 3, 16, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[-1], model


@every_family
def test_a_few_steps_lower_the_loss_repeat_with_the_seed_and_are_kept_by_a_checkpoint(
    family: str, tmp_path: Path
) -> None:
    first, last, model = few_steps(family)
    assert last < 0.8 * first
    *again, twin = few_steps(family)
    assert again == [first, last]
    torch.testing.assert_close(twin.state_dict(), model.state_dict(), rtol=0, atol=0)

    if isinstance(model, FitsImages):
        model.fit_to(torch.randn(20, 3, 16, 16))
    checkpoint = Checkpoint(
        model=ModelConfig(family, SMALL[family]),
        epoch=1,
        classes=("a", "b", "c"),
        image_shape=(3, 16, 16),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    save_checkpoint(tmp_path / "c.safetensors", model, checkpoint)
    loaded, _ = load_checkpoint(tmp_path / "c.safetensors", checkpoint.model)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig("cnn"), 288_746),
        # He et al. give 0.27 million for ResNet-20 (table 6); projections add 1 %.
        (ModelConfig("resnet", {"depth": 20}), 272_474),
        (ModelConfig("resnet", {"depth": 18}), 11_173_962),
        # Zagoruyko & Komodakis give 36.5, 8.9 and 2.7 million (tables 4 and 5).
        (ModelConfig("wide_resnet", {"depth": 28, "widen_factor": 10}), 36_479_194),
        (ModelConfig("wide_resnet", {"depth": 40, "widen_factor": 4}), 8_949_210),
        (ModelConfig("wide_resnet"), 2_748_890),
        (ModelConfig("speednet"), 1_971_352),
        (ModelConfig("convnext"), 2_310_986),
        (ModelConfig("vit"), 2_680_906),
    ],
)
def test_known_networks_have_their_known_number_of_weights(
    config: ModelConfig, expected: int
) -> None:
    with torch.device("meta"):
        model = build_model(config, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("depth", [18, 20, 32, 34, 44, 56])
def test_a_resnet_has_as_many_layers_as_its_name_says(depth: int, preactivation: bool) -> None:
    params = {"depth": depth, "preactivation": preactivation}
    with torch.device("meta"):
        model = build_model(ModelConfig("resnet", params), 10)
    for module in list(model.modules()):
        if hasattr(module, "shortcut"):
            module.shortcut = None
    assert len(layers_of(model)) == depth


@pytest.mark.parametrize("depth", [10, 16, 22, 28, 34, 40])
def test_a_wide_resnet_has_as_many_convolutions_as_its_name_says(depth: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig("wide_resnet", {"depth": depth}), 10)
    assert len(layers_of(model)) == depth + 1


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("cnn", r"features\.\d+\.(conv\.weight|norm\.\w+)|classifier\.1\.(weight|bias)"),
        (
            "resnet",
            r"stem\.(0\.weight|1\.\w+)|blocks\.\d\.(conv|norm)[12]\.\w+"
            r"|blocks\.\d\.shortcut\.[01]\.\w+|classifier\.1\.(weight|bias)",
        ),
    ],
)
def test_the_weights_keep_their_names_for_earlier_checkpoints(family: str, names: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(family), 10)
    assert all(re.fullmatch(names, name) for name in model.state_dict())


def correlated_images(num_images: int) -> Tensor:
    """Return smooth colour images whose channels are alike, as photographs are."""
    rough = torch.randn(num_images, 1, 12, 12) + 0.5 * torch.randn(num_images, 3, 12, 12)
    return nn.functional.avg_pool2d(rough, 3, stride=1, padding=1)


@pytest.mark.parametrize("kernel", [2, 3])
def test_a_speednet_whitens_the_patches_of_its_images(kernel: int) -> None:
    model = build_model(ModelConfig("speednet", {"whitening_kernel": kernel}), 10)
    assert isinstance(model, SpeedNet)
    assert isinstance(model, FitsImages)
    images = correlated_images(600)
    model.fit_to(images)
    outputs = model.whitening(images).detach().transpose(0, 1).flatten(1)
    one_sign, other_sign = outputs.chunk(2)
    torch.testing.assert_close(one_sign, -other_sign)
    second_moments = one_sign @ one_sign.T / one_sign.shape[1]
    off_diagonal = second_moments - second_moments.diag().diag()
    assert off_diagonal.abs().max() < 1e-2
    assert second_moments.diag()[0] == pytest.approx(1, abs=1e-2)
    assert second_moments.diag().max() < 1.01


def test_the_whitening_is_learned_from_data_but_for_its_bias() -> None:
    model = build_model(ModelConfig("speednet", SMALL["speednet"]), 10)
    trained = [name for name, _ in model.named_parameters()]
    assert "whitening.bias" in trained
    assert "whitening.weight" not in trained
    before = model.state_dict()["whitening.weight"].clone()
    assert isinstance(model, SpeedNet)
    model.fit_to(correlated_images(40))
    assert not torch.equal(model.state_dict()["whitening.weight"], before)
    model.fit_to(torch.ones(4, 3, 8, 8))
    assert model.state_dict()["whitening.weight"].isfinite().all()


def test_a_speednet_begins_by_passing_its_input_on() -> None:
    model = build_model(ModelConfig("speednet"), 10)
    assert isinstance(model, SpeedNet)
    conv = model.stages[1].conv2
    maps = torch.randn(2, 256, 6, 6)
    torch.testing.assert_close(conv(maps)[:, : conv.in_channels], maps)
    norm = ShiftNorm(8)
    assert [name for name, _ in norm.named_parameters()] == ["bias"]


@pytest.mark.parametrize("width", [32, 64])
def test_a_layer_of_the_vit_is_pytorchs_encoder_layer(width: int) -> None:
    ours = Layer(ViTParams(mlp_ratio=2.0), width, heads=2, drop_rate=0.0).eval()
    theirs = nn.TransformerEncoderLayer(
        width, 2, 2 * width, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    names = {
        "queries_keys_values.": "self_attn.in_proj_",
        "project.": "self_attn.out_proj.",
        "expand.": "linear1.",
        "contract.": "linear2.",
    }
    state = theirs.state_dict()
    for name in ours.state_dict():
        prefix, _, rest = name.partition(".")
        ours.get_parameter(name).data = state[names.get(f"{prefix}.", f"{prefix}.") + rest]
    tokens = torch.randn(3, 5, width)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_every_patch_has_a_place_of_its_own() -> None:
    places = sincos_positions(4, 6, 32)
    assert places.shape == (24, 32)
    assert torch.cdist(places, places).add(torch.eye(24)).min() > 0.1
    # A step to the right looks the same in every row.
    steps = places.view(4, 6, 32).diff(dim=1)
    torch.testing.assert_close(steps[0], steps[3])


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_vit_sees_where_its_patches_are(pooling: str, positions: str) -> None:
    params = {**SMALL["vit"], "pooling": pooling, "positions": positions}
    model = settle(build_model(ModelConfig("vit", params), 10, (1, 8, 8))).eval()
    images = torch.randn(2, 1, 8, 8)
    assert not torch.allclose(model(images), model(images.flip(-1)))


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
    for convolution in ("standard", "separable"):
        model = build_model(ModelConfig("cnn", params | {"convolution": convolution}), 10)
        assert model(torch.randn(8, 3, 32, 32)).abs().max() < 20


def test_a_separable_convolution_is_one_kernel_a_channel_then_a_mix() -> None:
    model = build_model(ModelConfig("cnn", {"convolution": "separable", "width": 32}), 10)
    kernels, mix = (tuple(m.weight.shape) for m in model.get_submodule("features.1.conv"))
    assert (kernels, mix) == ((32, 1, 3, 3), (32, 32, 1, 1))


def test_squeeze_excitation_weighs_channels_by_shares() -> None:
    block = SqueezeExcitation(16)
    images = torch.randn(2, 16, 4, 4)
    shares = block(images) / images
    torch.testing.assert_close(shares, shares[:, :, :1, :1].expand_as(shares))
    assert shares.min() > 0
    assert shares.max() < 1


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
        (ModelConfig("wide_resnet", {"depth": 18}), "18 is not one of 10, 16, 22, 28, 34, 40"),
        (ModelConfig("cnn", {"stochastic_depth": 0.1}), "model.cnn: .* needs residual: true"),
    ],
)
def test_a_mistake_is_refused_by_its_path(config: ModelConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(config, 10)


def test_the_small_parameters_are_those_of_known_families() -> None:
    assert SMALL.keys() <= FAMILIES.keys()
    assert {family for family, _ in NEEDS} <= SMALL.keys()
