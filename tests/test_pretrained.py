"""Transfer: the weights that a training starts from, on files that look like torchvision's."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torchvision import models

from tuner.config import AdamW, Augment, DataConfig, Lion, ModelConfig, Muon, Sgd, TrialConfig
from tuner.data.splits import Splits, load_splits
from tuner.errors import DataError, SpaceError, UsageError
from tuner.models.build import StartsFromWeights, build_model
from tuner.models.catalogue import find_weights, model_names
from tuner.models.cost import count_cost
from tuner.models.families import Source
from tuner.models.pretrained import Pretrained, stages_of
from tuner.run.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from tuner.run.run import Run
from tuner.run.trial import TrialStatus, write_history, write_status, write_trial
from tuner.schema import to_json
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.training.epoch import Epoch
from tuner.training.initial_weights import (
    InitialWeights,
    load_initial_weights,
    notes_on_seen_images,
    start_key,
)
from tuner.training.loop import predict_epoch_seconds, probe_epochs, train
from tuner.training.rerun import rerun
from tuner.tuning.request import SearchRequest
from tuner.tuning.session import search

SPACE = """\
space:
  model:
    pretrained:
      name: {choice: [resnet18, mobilenet_v3_small]}
      image_size: {choice: [32, 64]}
      policy: {choice: [linear_probe, full, freeze]}
      layer_decay: {float: [0.5, 1.0]}
"""
CPU = torch.device("cpu")
WORDS = ("mobilenet_v3_small", "DEFAULT")
SMALL = {"name": "mobilenet_v3_small", "image_size": 16}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


ONE_OF_EACH_KIND = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
]


def model(**params: Any) -> ModelConfig:
    """Return the quickest of torchvision's models, or what ``params`` name."""
    base = {} if "name" in params or "run" in params else SMALL
    return ModelConfig("pretrained", {**base, **params})


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return torch hub's cache, empty, with no network behind it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def put(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Tensor]]:
    """Return what puts a file of random weights, as torchvision writes it, into the cache.

    Its name ends in its own hash, as torchvision's does, and torchvision's entry is made to say so.
    """

    def put(
        name: str, change: Callable[[dict[str, Tensor]], object] = lambda weights: None
    ) -> dict[str, Tensor]:
        torch.manual_seed(5)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        weights = models.get_model(name, weights=None, **options).state_dict()
        change(weights)
        hub.mkdir(parents=True, exist_ok=True)
        torch.save(weights, hub / "new.pth")
        digest = hashlib.sha256((hub / "new.pth").read_bytes()).hexdigest()[:8]
        path = (hub / "new.pth").rename(hub / f"{name}-{digest}.pth")
        url = f"https://download.pytorch.org/models/{path.name}"
        entry = find_weights(name, "DEFAULT")
        monkeypatch.setattr(entry.value, "url", url)
        return dict(weights)

    return put


def begin(config: ModelConfig, splits: Splits, storage: Path = Path("runs")) -> InitialWeights:
    start = load_initial_weights(config, splits.classes, splits.image_shape, storage)
    assert start is not None
    return start


def few(splits: Splits, count: int = 32) -> Splits:
    """Leave only so many images to train and to validate."""
    train_images, val_images = (
        dataclasses.replace(part, images=part.images[:count], labels=part.labels[:count])
        for part in (splits.train, splits.val)
    )
    return dataclasses.replace(splits, train=train_images, val=val_images)


def tiny(config: ModelConfig, **changes: Any) -> TrialConfig:
    plain = TrialConfig(
        model=config, epochs=2, batch_size=16, optimizer=Sgd(lr=0.05), precision="float32"
    )
    return dataclasses.replace(plain, **changes)


def backbone(network: nn.Module) -> dict[str, Tensor]:
    """Copy all weights and statistics but the head's."""
    assert isinstance(network, Pretrained)
    state = network.network.state_dict()
    return {
        name: tensor.clone()
        for name, tensor in state.items()
        if not name.startswith(f"{network.head_name}.")
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# Every model of torchvision


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow)
        for name in model_names()
    ],
)
def test_every_model_of_torchvision_gets_a_head_and_stages(name: str) -> None:
    with torch.device("meta"):
        network = build_model(ModelConfig("pretrained", {"name": name}), 7)
    assert isinstance(network, Pretrained)
    head = network.network.get_submodule(network.head_name)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    assert len(head.weight) == 7
    stages = stages_of(network.network, network.head_name)
    assert 4 <= len(stages) <= 33
    staged = sorted(itertools.chain.from_iterable(stages))
    rest = [
        name
        for name, _ in network.network.named_parameters()
        if not name.startswith(f"{network.head_name}.")
    ]
    assert staged == sorted(rest), "each parameter but the head's is in one stage"


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_the_stages_come_in_the_order_of_the_forward(name: str) -> None:
    with torch.device("meta"):
        network = build_model(ModelConfig("pretrained", {"name": name}), 7).eval()
        images = torch.zeros(1, 3, 32, 32)
    assert isinstance(network, Pretrained)
    stages = stages_of(network.network, network.head_name)
    stage_of = {name: index for index, names in enumerate(stages) for name in names}
    seen: list[int] = []
    for path, layer in network.network.named_modules():
        own = [f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False)]
        if own and own[0] in stage_of:
            stage = stage_of[own[0]]
            layer.register_forward_pre_hook(lambda *_, stage=stage: seen.append(stage))
    with torch.no_grad():
        assert network(images).shape == (1, 7)
    assert len(set(seen)) > 3
    assert seen == sorted(seen)


def test_what_cannot_be_built_or_saved_is_refused_with_a_reason() -> None:
    every = set(models.list_models(module=models))
    assert every - set(model_names()) == {"mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"}
    for params, message in [
        ({}, "give either name, of a torchvision model, or run"),
        ({"name": "resnet18", "run": "old"}, "give either name"),
        ({"name": "resnet18", "trial": 3}, "trial is one of a run"),
        ({"name": "mnasnet1_0"}, "take mobilenet_v2"),
        ({"name": "resnet"}, r"no model 'resnet' to start from; did you mean 'resnet\d+'"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V2"}, "did you mean 'IMAGENET1K_V1'"),
        ({"name": "vgg16", "weights": "IMAGENET1K_FEATURES"}, "vgg16 has no weights"),
        ({"name": "vit_b_16", "image_size": 100}, "needs a multiple of 16, not 100; write 96"),
        ({"name": "vit_b_32", "image_size": 16}, "at least 32 pixels"),
        ({"name": "maxvit_t", "image_size": 256}, "needs a multiple of 224"),
        ({"name": "inception_v3", "image_size": 64}, "at least 75 pixels, not 64"),
        ({"run": "old"}, "the architecture of old is missing"),
        ({"name": "resnet18", "policy": "ful"}, "policy: .*did you mean 'full'"),
    ]:
        with pytest.raises(UsageError, match=message):
            build_model(ModelConfig("pretrained", params), 10)


@pytest.mark.parametrize(
    ("name", "size"),
    [("alexnet", 63), ("densenet121", 29), ("inception_v3", 75), ("swin_t", 8), ("swin_v2_t", 8)],
)
def test_the_smallest_images_that_are_let_through_do_pass(name: str, size: int) -> None:
    config = ModelConfig("pretrained", {"name": name, "image_size": size})
    assert count_cost(config, 7, (3, 32, 32)).flops > 0


def test_images_are_resized_and_repeated_to_three_channels() -> None:
    network = build_model(model(), 10, (1, 8, 8)).eval()
    assert isinstance(network, Pretrained)
    seen: list[Tensor] = []
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.rand(2, 1, 8, 8)
    network(grey)
    network(grey.repeat(1, 3, 1, 1))
    network(torch.rand(2, 3, 16, 16))
    assert all(images.shape == (2, 3, 16, 16) for images in seen)
    torch.testing.assert_close(seen[0], seen[1])
    from torchvision.transforms.functional import resize

    expected = resize(grey, [16, 16], antialias=True).repeat(1, 3, 1, 1)
    torch.testing.assert_close(seen[0], expected)


def test_without_a_size_images_get_that_of_the_weights() -> None:
    with torch.device("meta"):
        network = build_model(ModelConfig("pretrained", {"name": "efficientnet_b3"}), 10)
    assert isinstance(network, Pretrained)
    assert network._size == [300, 300]


def test_its_cost_grows_with_the_size_of_its_images() -> None:
    small, large = (count_cost(model(image_size=size), 10, (3, 32, 32)) for size in (32, 64))
    assert small.parameters == large.parameters
    assert 2 < large.flops / small.flops <= 4, "padding makes small images dearer than a quarter"
    plain = models.mobilenet_v3_small(num_classes=10)
    assert small.parameters == sum(parameter.numel() for parameter in plain.parameters())


# Weights from files


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "googlenet", "squeezenet1_1"])
def test_a_file_of_torchvision_fills_all_but_the_head(
    name: str, put: Callable[..., dict[str, Tensor]], digits: Splits
) -> None:
    weights = put(name)
    config = ModelConfig("pretrained", {"name": name, "image_size": 32})
    start = begin(config, digits)
    assert (start.mean, start.std) == IMAGENET
    torch.manual_seed(1)
    network = build_model(config, 10, (1, 8, 8))
    assert isinstance(network, Pretrained)
    head = network.network.get_submodule(network.head_name)
    before = [parameter.clone() for parameter in head.parameters()]
    network.start_from(start.tensors)
    assert all(map(torch.equal, before, head.parameters()))
    taken = backbone(network)
    assert all(torch.equal(taken[key], weights[key]) for key in taken)


def test_the_features_are_those_that_torchvision_computes(
    put: Callable[..., dict[str, Tensor]], digits: Splits
) -> None:
    weights = put("inception_v3")
    config = ModelConfig("pretrained", {"name": "inception_v3", "image_size": 75})
    network = build_model(config, 1000, (3, 75, 75)).eval()
    network.start_from(begin(config, digits).tensors)
    network.network.fc.weight.data = weights["fc.weight"]
    network.network.fc.bias.data = weights["fc.bias"]
    theirs = models.inception_v3(weights=None, init_weights=False, transform_input=True)
    theirs.load_state_dict(weights)
    images = torch.randn(2, 3, 75, 75)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs.eval()(images))


def test_the_old_names_in_the_files_of_a_densenet_are_understood(
    put: Callable[..., dict[str, Tensor]], digits: Splits
) -> None:
    def to_old(weights: dict[str, Tensor]) -> None:
        for key in list(weights):
            old = key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
            weights[old] = weights.pop(key)
            if "num_batches" in old:
                del weights[old]

    put("densenet121", to_old)
    config = ModelConfig("pretrained", {"name": "densenet121", "image_size": 32})
    network = build_model(config, 10)
    network.start_from(begin(config, digits).tensors)
    theirs = torch.load(next(cached_files()), weights_only=True)
    own = network.network.state_dict()
    layer = "features.denseblock1.denselayer1"
    assert torch.equal(own[f"{layer}.norm1.weight"], theirs[f"{layer}.norm.1.weight"])
    assert torch.equal(own[f"{layer}.conv2.weight"], theirs[f"{layer}.conv.2.weight"])


def cached_files() -> Any:
    return (Path(torch.hub.get_dir()) / "checkpoints").glob("*.pth")


def test_the_positions_of_a_vit_are_resized_and_the_old_names_in_its_files_understood() -> None:
    with torch.device("meta"):
        network = build_model(model(name="vit_b_32", image_size=64), 10)
        weights = models.vit_b_32(weights=None).state_dict()
    start = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in weights.items()
        if not name.startswith("heads.")
    }
    assert len(start) == len(weights) - 2
    positions = network.network.encoder.pos_embedding
    assert positions.shape == (1, 1 + 4, 768)
    assert start["encoder.pos_embedding"].shape == (1, 1 + 49, 768)
    network.start_from(start)


def test_a_missing_file_is_named_with_its_folder(hub: Path, digits: Splits) -> None:
    message = (
        rf"no mobilenet_v3_small-047dcff4.pth in {hub}, and it could not be fetched "
        rf"\(no network in tests\). Put https://\S+/mobilenet_v3_small-047dcff4.pth into {hub}."
    )
    with pytest.raises(DataError, match=message):
        begin(model(), digits)
    assert not list(cached_files())


def test_a_damaged_file_is_told_by_its_path(
    put: Callable[..., dict[str, Tensor]], digits: Splits
) -> None:
    put("mobilenet_v3_small")
    (path,) = cached_files()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path}: damaged: .*Remove it"):
        begin(model(), digits)


def test_a_file_is_fetched_once_and_only_whole(
    put: Callable[..., dict[str, Tensor]], digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("mobilenet_v3_small")
    (path,) = cached_files()
    served = path.parent.parent / path.name
    path.rename(served)
    monkeypatch.setattr(find_weights(*WORDS).value, "url", served.as_uri())
    first = begin(model(), digits)
    assert path.exists()
    served.unlink()
    assert same(dict(first.tensors), dict(begin(model(), digits).tensors))
    served.write_bytes(path.read_bytes()[:-1])
    path.unlink()
    with pytest.raises(DataError, match=r"could not be fetched \(invalid hash value"):
        begin(model(), digits)
    assert not path.exists()


def test_a_file_that_would_run_code_is_not_run(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('executed')",)

    hub.mkdir(parents=True)
    torch.save({"features.0.0.weight": Evil()}, hub / "x.pth")
    digest = hashlib.sha256((hub / "x.pth").read_bytes()).hexdigest()[:8]
    (hub / "x.pth").rename(hub / f"x-{digest}.pth")
    monkeypatch.setattr(find_weights(*WORDS).value, "url", f"https://host.invalid/x-{digest}.pth")
    with pytest.raises(DataError, match=r"x-\w+.pth: not a file of weights") as caught:
        load_initial_weights(model(), ("a", "b"), (3, 32, 32), Path("runs"))
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


def test_weights_of_another_network_are_refused(
    put: Callable[..., dict[str, Tensor]], digits: Splits
) -> None:
    put("mobilenet_v3_small")
    tensors = begin(model(), digits).tensors
    with pytest.raises(UsageError, match=r'do not fit \(Missing key.* "conv1'):
        build_model(model(name="resnet18"), 10).start_from(tensors)
    network = build_model(model(), 10)
    with pytest.raises(UsageError, match=r'do not fit \(Unexpected key.*"extra"'):
        network.start_from({**tensors, "extra": torch.ones(1)})
    with pytest.raises(UsageError, match=r"do not fit \(size mismatch for features.0.0.weight"):
        network.start_from({**tensors, "features.0.0.weight": torch.ones(1)})


def test_a_training_without_its_weights_is_refused(digits: Splits) -> None:
    with pytest.raises(UsageError, match="the weights to start from are missing"):
        next(train(tiny(model()), digits, CPU))


# Training


@pytest.fixture
def start(put: Callable[..., dict[str, Tensor]], digits: Splits) -> InitialWeights:
    put("mobilenet_v3_small")
    return begin(model(), digits)


POLICIES = {"full": [True, True], "linear_probe": [False, False], "freeze": [False, True]}
"""Whether the backbone moves in each of two epochs."""
OPTIMIZERS = {
    "Sgd": Sgd(),
    "AdamW": AdamW(),
    "Lion": Lion(),
    "Muon": Muon(),
    "Muon with Sgd": Muon(partner="sgd", bias_factor=4.0),
}


def run(config: TrialConfig, splits: Splits, start: InitialWeights, **options: Any) -> list[Epoch]:
    return list(train(config, splits, CPU, start=start, **options))


@pytest.mark.parametrize(
    ("policy", "moves", "optimizer"),
    [
        pytest.param(
            policy,
            moves,
            optimizer,
            id=f"{policy}-{name}",
            # To freeze, then thaw, is both of what the others do.
            marks=() if policy == "freeze" or name == "Sgd" else pytest.mark.slow,
        )
        for policy, moves in POLICIES.items()
        for name, optimizer in OPTIMIZERS.items()
    ],
)
def test_a_policy_moves_what_it_says(
    start: InitialWeights, digits: Splits, policy: str, moves: list[bool], optimizer: Any
) -> None:
    config = tiny(model(policy=policy), optimizer=optimizer, ema_decay=0.9)
    epochs = train(config, few(digits), CPU, start=start)
    heads = []
    for epoch, is_moved in zip(epochs, moves, strict=True):
        for network in (epoch.learner.network, epoch.network):
            assert isinstance(network, Pretrained)
            assert same(backbone(network), start.tensors) is not is_moved
        heads.append(network.network.classifier[3].weight.clone())
        assert epoch.is_finite
    assert not torch.equal(*heads)


def test_frozen_layers_take_no_gradients_and_thaw_for_good(start: InitialWeights) -> None:
    network = build_model(model(policy="freeze", freeze_epochs=2), 10)
    assert isinstance(network, Pretrained)
    assert isinstance(network, StartsFromWeights)
    for number, is_frozen in [(1, True), (2, True), (3, False)]:
        network.start_epoch(number)
        network.train()
        network(torch.randn(4, 3, 16, 16)).sum().backward()
        graded = {name for name, p in network.named_parameters() if p.grad is not None}
        head = {"network.classifier.3.weight", "network.classifier.3.bias"}
        assert (graded == head) is is_frozen
        assert network.network.features.training is not is_frozen
        assert network.network.classifier[3].training


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_rate_falls_by_a_factor_for_each_stage_from_the_head(layer_decay: float) -> None:
    config = model(name="resnet18", image_size=16, layer_decay=layer_decay)
    shares = build_model(config, 10).lr_shares()
    expected = {"layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "conv1": 5, "bn1": 5}
    for name, share in shares.items():
        assert share == pytest.approx(layer_decay ** expected[name.split(".")[1]])
    assert not any(".fc." in name for name in shares), "the head learns at the whole rate"
    assert len(shares) == 60


@pytest.mark.parametrize(
    "optimizer", [Sgd(), AdamW(), Lion(), Muon()], ids=lambda o: type(o).__name__
)
def test_the_optimizers_hold_the_rates_of_the_layers(
    start: InitialWeights, digits: Splits, optimizer: Any
) -> None:
    config = tiny(model(layer_decay=0.5), optimizer=optimizer)
    epoch = next(train(config, few(digits, 16), CPU, start=start))
    network, groups = epoch.learner.network, epoch.learner.optimizer.param_groups
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    peaks = {optimizer.lr, getattr(optimizer, "adamw_lr", optimizer.lr)}
    shares = network.lr_shares()
    assert len(rates) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        share = shares.get(name, 1.0)
        assert any(rates[id(parameter)] == pytest.approx(peak * share) for peak in peaks), name


def test_a_lower_rate_moves_the_first_layers_less(start: InitialWeights, digits: Splits) -> None:
    def moved(layer_decay: float) -> float:
        optimizer = Sgd(lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0)
        config = tiny(model(layer_decay=layer_decay), optimizer=optimizer, batch_size=32, epochs=1)
        (epoch,) = run(config, few(digits), start)
        name = "features.0.0.weight"
        return (
            (epoch.learner.network.network.state_dict()[name] - start.tensors[name]).norm().item()
        )

    depth = len(stages_of(build_model(model(), 10).network, "classifier.3"))
    assert moved(0.9) == pytest.approx(0.9**depth * moved(1.0), rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": AdamW(lr=0.01)},
        {"optimizer": Muon(lr=0.01), "clip_norm": 1.0},
        {"optimizer": Lion(lr=0.001), "augment": Augment(crop=1, mixup=0.2)},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_a_training_that_goes_on_thaws_as_if_never_interrupted(
    start: InitialWeights, digits: Splits, tmp_path: Path, changes: dict[str, Any]
) -> None:
    params = {"policy": "freeze", "freeze_epochs": 2, "layer_decay": 0.8}
    config, splits, done = tiny(model(**params), epochs=3, **changes), few(digits), 1
    whole = run(config, splits, start)
    begun = train(config, splits, CPU, start=start)
    for epoch, _ in zip(begun, range(done), strict=False):
        save_state(tmp_path / "state.safetensors", epoch.learner.state(), [epoch.figures])
    begun.close()
    state = load_state(tmp_path / "state.safetensors")
    rest = run(config, splits, start, state=state, epochs_done=done)
    assert [e.figures.val_loss for e in rest] == [e.figures.val_loss for e in whole[done:]]
    mine, theirs = rest[-1].learner.state(), whole[-1].learner.state()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_frozen_statistics_make_parts_of_a_batch_the_same_step(
    start: InitialWeights, digits: Splits
) -> None:
    config = tiny(model(policy="linear_probe"))
    (*_, one), (*_, other) = (
        run(config, few(digits), start, micro_batches=parts) for parts in (1, 4)
    )
    torch.testing.assert_close(other.val_probs, one.val_probs, rtol=1e-3, atol=1e-4)


def test_the_images_are_normalized_as_the_weights_want_it(
    start: InitialWeights, digits: Splits
) -> None:
    seen: list[Tensor] = []

    def look(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(network, Pretrained) and not network.training:
            seen.append(inputs[0])

    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        epoch = next(train(tiny(model()), few(digits), CPU, start=start))
    finally:
        hook.remove()
    assert (epoch.mean, epoch.std) == IMAGENET
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    expected = (few(digits).val.images / 255 - mean) / std
    torch.testing.assert_close(torch.cat(seen), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_needs_no_weights_to_start_from(
    start: InitialWeights, digits: Splits, hub: Path, tmp_path: Path
) -> None:
    config = tiny(model(policy="linear_probe"), epochs=1)
    (epoch,) = run(config, few(digits), start)
    described = Checkpoint(
        model=config.model,
        epoch=1,
        classes=digits.classes,
        image_shape=digits.image_shape,
        mean=epoch.mean,
        std=epoch.std,
    )
    save_checkpoint(tmp_path / "c.safetensors", epoch.network, described)
    shutil.rmtree(hub)
    network, checkpoint = load_checkpoint(tmp_path / "c.safetensors", config.model)
    assert checkpoint == described
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(images), epoch.network(images), rtol=1e-4, atol=1e-5)


def test_the_length_of_an_epoch_is_foreseen(start: InitialWeights, digits: Splits) -> None:
    config = tiny(model(policy="linear_probe"))
    assert predict_epoch_seconds(config, few(digits, 64), CPU, start=start) > 0


def test_the_length_of_an_epoch_is_foreseen_with_all_that_will_be_trained(
    start: InitialWeights, digits: Splits
) -> None:
    config = tiny(model(policy="freeze", freeze_epochs=3), epochs=5)
    with contextlib.closing(probe_epochs(config, few(digits, 64), CPU, start=start)) as epochs:
        network = next(epochs).learner.network
    assert all(parameter.requires_grad for parameter in network.parameters())


# From an earlier run


def from_run(finished_run: Run, trial: int | None = None, **params: Any) -> ModelConfig:
    """Return the model that a space with ``run`` leads to."""
    plain = {"run": "tiny", **({} if trial is None else {"trial": trial}), **params}
    space = finished_run.path.parent / "again.yaml"
    space.write_text(json.dumps({"space": {"model": {"pretrained": plain}}}))
    loaded = load_space(space, (), finished_run.path.parent)
    return loaded.sample(RandomTrial(), epochs=2, seed=0).model


def test_a_run_gives_the_weights_of_its_best_trial(finished_run: Run, digits: Splits) -> None:
    config = from_run(finished_run)
    best = finished_run.top(1)[0]
    assert config.params["trial"] == best.number
    start = begin(config, digits, finished_run.path.parent)
    theirs, described = load_checkpoint(best.checkpoint, best.config.model)
    assert (start.mean, start.std) == (described.mean, described.std)
    network = build_model(config, 10, digits.image_shape).eval()
    network.start_from(start.tensors)
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images))


def test_other_classes_get_a_new_head(finished_run: Run, digits: Splits) -> None:
    config = from_run(finished_run, 0, policy="linear_probe")
    odd = dataclasses.replace(
        digits,
        classes=("even", "odd"),
        train=dataclasses.replace(digits.train, labels=digits.train.labels % 2),
        val=dataclasses.replace(digits.val, labels=digits.val.labels % 2),
    )
    start = begin(config, odd, finished_run.path.parent)
    assert not any(name.startswith("classifier") for name in start.tensors)
    *_, last = run(tiny(config, epochs=4, optimizer=Sgd(lr=0.5)), odd, start)
    assert same(backbone(last.network), dict(start.tensors))
    # The features of ten digits tell odd from even.
    assert last.figures.val_accuracy > 0.85
    assert last.val_probs.shape[1] == 2


def test_a_start_from_a_run_begins_where_that_run_ended(finished_run: Run, digits: Splits) -> None:
    config = tiny(from_run(finished_run), optimizer=Sgd(lr=1e-9), epochs=1)
    start = begin(config.model, digits, finished_run.path.parent)
    (epoch,) = run(config, digits, start)
    best = finished_run.top(1)[0].best
    assert best is not None
    assert epoch.figures.val_accuracy == pytest.approx(best.val_accuracy, abs=0.03)


def test_a_start_from_a_start_keeps_the_whole_chain(
    start: InitialWeights, finished_run: Run, digits: Splits
) -> None:
    """From torchvision's weights to a trial, and from that trial on."""
    config = tiny(model(policy="linear_probe", layer_decay=0.9), epochs=1)
    path = finished_run.trial_path(3)
    write_trial(path, config)
    (epoch,) = run(config, few(digits), start)
    described = Checkpoint(
        model=config.model,
        epoch=1,
        classes=tuple("abcdefghij"),
        image_shape=digits.image_shape,
        mean=epoch.mean,
        std=epoch.std,
    )
    save_checkpoint(path / "checkpoint.safetensors", epoch.network, described)
    write_history(path, [epoch.figures])
    write_status(path, TrialStatus(state="completed"))
    second = from_run(finished_run, 3)
    again = begin(second, digits, finished_run.path.parent)
    assert (again.mean, again.std) == IMAGENET
    (last,) = run(tiny(second, epochs=1), few(digits), again)
    assert last.is_finite
    assert len(last.network.lr_shares()) > 100


def test_the_run_has_to_be_what_it_was(finished_run: Run, digits: Splits) -> None:
    config, storage = from_run(finished_run, 0), finished_run.path.parent
    checkpoint = finished_run.trial(0).checkpoint
    shutil.copy(finished_run.trial(2).checkpoint, checkpoint)
    with pytest.raises(DataError, match="not the weights that were"):
        begin(config, digits, storage)
    checkpoint.unlink()
    with pytest.raises(DataError, match="the weights to start from are gone"):
        begin(config, digits, storage)
    with pytest.raises(SpaceError, match=r"again.yaml:1:\d+: .*trial 0 was not kept"):
        from_run(finished_run, 0)


def test_colour_images_cannot_start_from_grey_ones(finished_run: Run, digits: Splits) -> None:
    config, message = from_run(finished_run), "trained on images of 1 channel, not of 3"
    with pytest.raises(UsageError, match=message):
        build_model(config, 10, (3, 32, 32))
    # By the driver, before a trial starts.
    with pytest.raises(UsageError, match=message):
        load_initial_weights(config, digits.classes, (3, 32, 32), finished_run.path.parent)


def test_a_run_that_may_have_trained_on_the_validation_images_is_noted(
    finished_run: Run, digits: Splits, tmp_path: Path
) -> None:
    config = from_run(finished_run)

    def divided(**settings: Any) -> Splits:
        return load_splits(DataConfig(source="digits", **settings), tmp_path)

    def noted(splits: Splits) -> list[str]:
        return notes_on_seen_images([config, config], splits, finished_run.path.parent)

    assert noted(digits) == noted(divided(train_limit=100)) == []
    assert noted(divided(val_fraction=0.05)) == [], "they are among those of the run"
    for settings, advice in (
        ({"folds": 5}, "search without --folds"),
        ({"val_fraction": 0.2}, "search with --val-fraction 0.1 or less"),
    ):
        (note,) = noted(divided(**settings))
        assert note.startswith("tiny, from whose weights trials start, may have trained on images")
        assert note.endswith(f"To avoid that, {advice}.")
    finished_run.update(data=dataclasses.replace(finished_run.record.data, all_data=True))
    (note,) = noted(digits)
    assert note.endswith("start from a run without --all-data.")
    assert noted(divided(all_data=True)) == [], "nothing is chosen by them"
    finished_run.update(data_fingerprint="others")
    assert noted(digits) == []


def test_a_run_that_a_run_started_from_is_noted_unless_it_is_in_another_storage(
    finished_run: Run, digits: Splits, tmp_path: Path
) -> None:
    first, storage = from_run(finished_run), finished_run.path.parent
    finished_run.update(data=dataclasses.replace(finished_run.record.data, all_data=True))
    for copy in (storage / "second", tmp_path / "outside"):
        shutil.copytree(finished_run.path, copy)
    Run.open(storage / "second").update(data_fingerprint="others")

    def noted(run: str) -> list[str]:
        started = ModelConfig("pretrained", {**first.params, "run": run})
        source = to_json(Source(model=started, image_shape=(1, 8, 8)), sort_keys=True)
        second = ModelConfig("pretrained", {"run": "second", "trial": 0, "source": source})
        return notes_on_seen_images([second], digits, storage)

    assert [note.partition(",")[0] for note in noted("tiny")] == ["tiny"]
    assert noted(str(finished_run.path)) == noted("tiny")
    assert noted(str(tmp_path / "outside")) == noted("s3://elsewhere/tiny") == noted("gone") == []


def test_a_trial_is_rerun_from_the_same_weights(
    start: InitialWeights, finished_run: Run, digits: Splits
) -> None:
    config = tiny(model(policy="linear_probe"), optimizer=AdamW(lr=0.01), batch_size=128)
    path = finished_run.trial_path(3)
    write_trial(path, config)
    write_status(path, TrialStatus(state="completed"))
    write_history(path, [next(train(config, digits, CPU, start=start)).figures])
    finished_run.update(hardware={"threads_per_trial": 1})
    for recorded, found in rerun(finished_run, 3, CPU):
        assert (found.val_loss, found.train_loss) == (recorded.val_loss, recorded.train_loss)


# Searches


@pytest.mark.ray
def test_a_search_ships_the_weights_to_workers_that_cannot_read_them(
    session: None,
    torch_home_of_workers: Path,
    put: Callable[..., dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    weights = put("mobilenet_v3_small")
    text = SPACE.replace("resnet18, mobilenet_v3_small", "mobilenet_v3_small")
    text = text.replace("[32, 64]", "[16, 24]").replace(
        "linear_probe, full, freeze", "linear_probe"
    )
    (tmp_path / "s.yaml").write_text(
        f"dataset: digits\nsearch: {{trials: 2, epochs: 1, scheduler: none}}\n{text}"
        "  batch_size: 64\n  precision: float32\n"
    )
    space = load_space(tmp_path / "s.yaml")
    request = SearchRequest(
        space=space,
        space_name="s.yaml",
        search=space.search,
        data=DataConfig(source="digits", train_limit=128),
        data_dir=tmp_path,
        storage=tmp_path / "runs",
        name="moved",
        command="cifar-tune search",
        keep=2,
    )
    # TORCH_HOME is this test's own, and the workers, which are processes of Ray, have another.
    found = search(request, Console(file=io.StringIO()))
    assert not torch_home_of_workers.exists()
    for trial in found.trials():
        assert trial.status.state == "completed", trial.status.traceback
        network, checkpoint = load_checkpoint(trial.checkpoint, trial.config.model)
        assert (checkpoint.mean, checkpoint.std) == IMAGENET
        taken = backbone(network)
        assert all(torch.equal(taken[key], weights[key]) for key in taken)
    row = found.trials()[0].as_row()
    assert row["model.pretrained.name"] == "mobilenet_v3_small"
    assert "model.pretrained.source" not in row


# Spaces


def load(folder: Path, text: str) -> SearchSpace:
    (folder / "s.yaml").write_text(text)
    return load_space(folder / "s.yaml", (), folder / "runs")


def test_a_space_names_all_weights_that_it_may_start_from(tmp_path: Path) -> None:
    space = load(tmp_path, SPACE)
    keys = {start_key(config) for config in space.starting_models()}
    assert keys == {"resnet18/DEFAULT", "mobilenet_v3_small/DEFAULT"}
    for seed in range(20):
        config = space.sample(RandomTrial(seed=seed), epochs=2, seed=0)
        assert start_key(config.model) in keys
    assert load(tmp_path, "space: {model: cnn}\n").starting_models() == []


def test_pairs_that_do_not_exist_are_not_drawn_and_not_loaded(tmp_path: Path) -> None:
    text = SPACE.replace("mobilenet_v3_small]}", "resnet50]}, weights: {choice: [DEFAULT, X]}")
    text = text.replace("name: {", "name: {").replace("}, weights", "}\n      weights")
    text = text.replace("X", "IMAGENET1K_V2")
    keys = {start_key(config) for config in load(tmp_path, text).starting_models()}
    assert keys == {"resnet18/DEFAULT", "resnet50/DEFAULT", "resnet50/IMAGENET1K_V2"}


def test_a_baseline_may_name_the_weights(tmp_path: Path) -> None:
    first = "baseline: [{model: {pretrained: {name: resnet18, weights: IMAGENET1K_V1}}}]\n"
    keys = {start_key(config) for config in load(tmp_path, first + SPACE).starting_models()}
    assert "resnet18/IMAGENET1K_V1" in keys
    assert "mobilenet_v3_small/DEFAULT" in keys


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mobilenet_v3_small", "mobilnet_v3_small", "4:33: .*did you mean 'mobilenet_v3_small'"),
        ("image_size:", "weights: IMAGENET_V1\n      image_size:", "5:16: .*'IMAGENET1K_V1'"),
        ("name: {choice: [resnet18, mobilenet_v3_small]}", "trial: 3", "give either name"),
        ("name: {choice: [resnet18, mobilenet_v3_small]}", "run: none", "4:12: .*no run 'none'"),
        (
            "name: {choice: [resnet18, mobilenet_v3_small]}",
            "run: {choice: [a, b]}",
            "cannot be searched",
        ),
        ("layer_decay: {float: [0.5", "layer_decay: {float: [0.0", "7:29: .*must be above 0"),
        ("policy:", "polcy:", "6:7: .*did you mean 'policy'"),
    ],
)
def test_a_mistake_is_told_with_its_place_before_anything_is_fetched(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SPACE
    with pytest.raises(SpaceError, match=message):
        load(tmp_path, SPACE.replace(old, new))


def test_the_space_of_a_run_is_whole_without_the_run_it_starts_from(
    finished_run: Run, tmp_path: Path
) -> None:
    space = load(tmp_path, "space: {model: {pretrained: {run: tiny}}}\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "space.yaml").write_text(space.resolved())
    shutil.rmtree(finished_run.path)
    again = load_space(tmp_path / "elsewhere" / "space.yaml")
    config = again.sample(RandomTrial(), epochs=2, seed=0)
    assert config == space.sample(RandomTrial(), epochs=2, seed=0)
    assert isinstance(build_model(config.model, 10, (1, 8, 8)), Pretrained)
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_run_is_found_by_its_folder_from_anywhere(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Splits
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("space: {model: {pretrained: {run: runs/tiny}}}\n")
    space = load_space(tmp_path / "s.yaml", (), tmp_path / "none")
    (config,) = space.starting_models()
    monkeypatch.chdir("/")
    assert begin(config, digits, Path("none")).tensors
