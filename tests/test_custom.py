"""A user's own network, from the file beside the space to a checkpoint without that file."""

import random
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml

import tuner
from tuner.config import ModelConfig, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import SpaceError, UsageError
from tuner.models.build import build_model
from tuner.models.cost import count_cost
from tuner.models.custom import to_channels_last
from tuner.models.folded import FoldedNetwork
from tuner.models.user_code import load_module
from tuner.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tuner.space import RandomTrial, SearchSpace, json_schema, load_space
from tuner.training.loop import train

NETS = """\
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Shape:
    width: int


class Net(nn.Module):
    def __init__(self, num_classes, image_shape, width=8, activation="relu", dropout=0.0):
        super().__init__()
        shape = Shape(width)
        self.conv = nn.Conv2d(image_shape[0], shape.width, 3, padding=1)
        self.activation = {"relu": torch.relu, "tanh": torch.tanh}[activation]
        self.drop = nn.Dropout(dropout)
        self.head = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.head(self.drop(self.activation(self.conv(images)).mean(dim=(2, 3))))


def make_linear(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(image_shape).numel(), num_classes))


def make_number(num_classes, image_shape):
    return 3


def make_features(num_classes, image_shape):
    return nn.Flatten()


def make_pair(num_classes, image_shape):
    class Pair(nn.Flatten):
        def forward(self, images):
            return images, images

    return Pair()


def make_misfit(num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))


def make_failure(num_classes, image_shape):
    raise ValueError("no such depth")


def anything(**arguments):
    return make_linear(**arguments)


WIDTH = 3


def Deep(num_classes, image_shape):
    layers = [nn.Conv2d(image_shape[0], 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.LazyLinear(num_classes))


def make_probs(**arguments):
    return nn.Sequential(make_linear(**arguments), nn.Softmax(dim=1))


class Viewing(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * height * width, num_classes)

    def forward(self, images):
        features = self.conv2(self.conv1(images).relu())
        return self.head(features.view(features.size(0), -1))


class Quiet(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.layer = make_linear(num_classes, image_shape)

    def train(self, mode=True):
        super().train(mode)

    def forward(self, images):
        return self.layer(images)


class Fitting(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.register_buffer("is_fitted", torch.tensor(False))
        self.register_buffer("num_seen", torch.tensor(0))
        self.register_buffer("last", torch.zeros(()))
        self.register_buffer("blank", torch.zeros(0))
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))
        self.layer = make_linear(num_classes, image_shape)

    def forward(self, images):
        self.last = self.scale.detach()
        if not self.is_fitted:
            self.is_fitted.fill_(True)
            self.scale.data = 1 / (images.std() + 1e-3)
            self.shift.data.copy_(images.mean() - 1)
            self.blank = images.new_ones(images.shape[1:])
        self.num_seen = self.num_seen + len(images)
        return self.layer((images - self.shift) * self.scale * self.blank)
"""
SPACE = """\
space:
  model:
    custom:
      path: my_models.py
      name: Net
      params:
        width: {int: [4, 16], step: 4}
        activation: {choice: [relu, tanh]}
        dropout: {float: [0.0, 0.5]}
"""
IMAGES = torch.rand(3, 1, 8, 8)


@pytest.fixture(autouse=True)
def _a_folder_with_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_models.py").write_text(NETS)


def load(text: str, *overrides: str) -> SearchSpace:
    Path("s.yaml").write_text(text)
    return load_space(Path("s.yaml"), overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(SpaceError) as caught:
        load(text, *overrides)
    return str(caught.value)


def custom(name: str, **params: Any) -> ModelConfig:
    plain = {"path": "my_models.py", "name": name, "params": params, "source": NETS}
    return ModelConfig("custom", plain)


def params_of(config: TrialConfig) -> Any:
    return config.model.params["params"]


def test_a_network_of_ones_own_is_searched() -> None:
    space = load(SPACE)
    assert space.rows() == [
        ("model.custom.params.width", "int 4 to 16, step 4"),
        ("model.custom.params.activation", "one of relu, tanh"),
        ("model.custom.params.dropout", "float 0 to 0.5"),
    ]
    for seed in range(8):
        config = space.sample(RandomTrial(seed), epochs=1, seed=0)
        assert TrialConfig.from_dict(config.to_dict()) == config
        network = build_model(config.model, 5, (1, 8, 8))
        assert network(IMAGES).shape == (3, 5)
        assert network.training
        assert network.get_parameter("conv.weight").shape[0] == params_of(config)["width"]


def test_the_space_of_a_run_needs_the_file_no_more() -> None:
    space = load(SPACE)
    elsewhere = Path("run")
    elsewhere.mkdir()
    (elsewhere / "space.yaml").write_text(space.resolved())
    Path("my_models.py").unlink()
    again = load_space(elsewhere / "space.yaml")
    assert again == space
    assert "source: |" in space.resolved()
    assert "\n        class Net(nn.Module):\n" in space.resolved()
    config = again.sample(RandomTrial(), epochs=1, seed=0)
    assert build_model(config.model, 5, (1, 8, 8))(IMAGES).shape == (3, 5)


def test_reading_the_space_of_a_run_runs_no_code() -> None:
    text = load(SPACE).resolved()
    line = "from dataclasses import dataclass\n"
    assert text.count(line) == 1
    Path("s.yaml").write_text(text.replace(line, "raise SystemExit" + " " * 8 + "# " + line))
    assert len(load_space(Path("s.yaml")).rows()) == 3


def test_a_checkpoint_is_rebuilt_without_the_file(tmp_path: Path) -> None:
    model = custom("Net", width=4, dropout=0.5)
    network = build_model(model, 2, (1, 8, 8)).eval()
    checkpoint = Checkpoint(
        model=model, epoch=1, classes=("a", "b"), image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,)
    )
    save_checkpoint(tmp_path / "c.safetensors", network, checkpoint)
    Path("my_models.py").unlink()
    loaded, described = load_checkpoint(tmp_path / "c.safetensors", model)
    assert described == checkpoint
    torch.testing.assert_close(loaded(IMAGES), network(IMAGES))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_needs_the_usual_layout_is_given_it(channels: int, tmp_path: Path) -> None:
    model, shape = custom("Viewing"), (channels, 8, 8)
    images = torch.rand(3, *shape).contiguous(memory_format=torch.channels_last)
    network = FoldedNetwork([to_channels_last(build_model(model, 2, shape)) for _ in range(2)])
    network(images).sum().backward()
    checkpoint = Checkpoint(
        model=model,
        epoch=1,
        classes=("a", "b"),
        image_shape=shape,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        folds=2,
    )
    save_checkpoint(tmp_path / "c.safetensors", network, checkpoint)
    loaded, _ = load_checkpoint(tmp_path / "c.safetensors", model)
    torch.testing.assert_close(loaded(images), network(images))


def test_only_a_network_that_needs_it_is_given_the_usual_layout(digits: Splits) -> None:
    def kernel_of(name: str) -> torch.Tensor:
        config = TrialConfig(model=custom(name), epochs=1, batch_size=512)
        return next(train(config, digits, torch.device("cpu"))).network.get_parameter(name_of[name])

    name_of = {"Viewing": "conv2.weight", "Deep": "1.weight"}
    assert kernel_of("Viewing").is_contiguous()
    assert kernel_of("Deep").is_contiguous(memory_format=torch.channels_last)


def test_a_network_is_fitted_to_the_images_of_its_training() -> None:
    network = build_model(custom("Fitting"), 5, (1, 8, 8))
    values = {name: value.tolist() for name, value in network.state_dict().items()}
    assert [values[name] for name in ("is_fitted", "num_seen", "last")] == [False, 0, 0.0]
    assert [values[name] for name in ("scale", "shift")] == [1.0, 0.0]
    # What it made for images of this shape is part of every checkpoint.
    assert network.get_buffer("blank").shape == (1, 8, 8)
    network(IMAGES)
    scale = network.get_parameter("scale").item()
    assert scale == pytest.approx(1 / (IMAGES.std().item() + 1e-3))
    assert network.get_buffer("last") == 1


def test_a_train_method_may_return_nothing(digits: Splits, tmp_path: Path) -> None:
    model = custom("Quiet")
    config = TrialConfig(model=model, epochs=1, batch_size=512)
    epoch = next(train(config, digits, torch.device("cpu")))
    assert count_cost(model, 10, digits.image_shape).parameters == epoch.num_parameters
    checkpoint = Checkpoint(
        model=model,
        epoch=1,
        classes=digits.classes,
        image_shape=digits.image_shape,
        mean=digits.mean,
        std=digits.std,
    )
    save_checkpoint(tmp_path / "c.safetensors", epoch.network, checkpoint)
    loaded, _ = load_checkpoint(tmp_path / "c.safetensors", model)
    assert not loaded.training
    torch.testing.assert_close(loaded(IMAGES), epoch.network(IMAGES))


@pytest.mark.parametrize("name", ["make_linear", "anything"])
def test_a_function_may_give_the_network(name: str) -> None:
    assert build_model(custom(name), 5, (1, 8, 8))(IMAGES).shape == (3, 5)


def test_the_seed_decides_the_weights_and_the_trial_run_draws_nothing() -> None:
    def draws() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        network = build_model(custom("Net", dropout=0.5), 5, (1, 8, 8))
        return torch.nn.utils.parameters_to_vector(network.parameters()), torch.rand(3)

    for first, second in zip(draws(), draws(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_file_is_run_once_a_process_and_under_a_name_of_its_own() -> None:
    def count() -> int:
        return sum(name.startswith("cifar_tune_custom_") for name in sys.modules)

    build_model(custom("Net"), 5, (1, 8, 8))
    before = count()
    build_model(custom("Net", width=16), 5, (1, 8, 8))
    build_model(custom("make_linear"), 5, (1, 8, 8))
    assert count() == before


def test_running_the_file_leaves_the_random_numbers_of_the_training_alone() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    lines = (
        "import random, numpy, torch",
        "random.seed(1)",
        "numpy.random.seed(1)",
        "torch.manual_seed(1)",
    )
    seed()
    expected = drawn()
    seed()
    load_module("nets.py", "\n".join(lines))
    assert drawn() == expected


def test_a_base_names_the_file_from_its_own_folder() -> None:
    Path("bases").mkdir()
    Path("my_models.py").rename("bases/my_models.py")
    Path("bases/base.yaml").write_text(SPACE)
    child = "extends: bases/base.yaml\nspace: {model: {custom: {params: {width: 12}}}}\n"
    config = load(child).sample(RandomTrial(), epochs=1, seed=0)
    assert params_of(config)["width"] == 12
    assert params_of(config).keys() == {"width", "activation", "dropout"}


def test_an_override_reaches_a_parameter_and_the_file() -> None:
    Path("others.py").write_text(NETS.replace("class Net", "class Other"))
    space = load(
        SPACE,
        "space.model.custom.params.width=8",
        "space.model.custom.path=others.py",
        "space.model.custom.name=Other",
    )
    assert params_of(space.sample(RandomTrial(), epochs=1, seed=0))["width"] == 8


def test_it_stands_beside_the_families_and_in_a_baseline() -> None:
    space = load(
        "baseline:\n"
        "  - {model: {custom: {params: {width: 8, activation: tanh}}}}\n"
        "space:\n"
        "  model:\n"
        "    choice:\n"
        "      cnn: {stages: 2}\n"
        "      custom: {path: my_models.py, name: Net, params: {width: {int: [4, 16]}}}\n"
    )
    assert space.baseline_params(0) == {"model": "custom", "model.custom.params.width": 8}
    trial = RandomTrial(params=space.baseline_params(0))
    config = space.sample(trial, epochs=1, seed=0, baseline=0)
    assert params_of(config) == {"width": 8, "activation": "tanh"}


def test_the_name_may_be_searched() -> None:
    names = SPACE.split("      params")[0].replace(
        "name: Net", "name: {choice: [Net, make_linear]}"
    )
    assert load(names).cardinality() == 2


def test_the_editor_knows_it() -> None:
    editor = jsonschema.Draft202012Validator(json_schema())
    editor.validate(yaml.safe_load(SPACE))
    assert not editor.is_valid(yaml.safe_load(SPACE.replace("width:", "width: {size: 3} #")))


HEAD = "space:\n  model:\n    custom: {path: my_models.py, name: Net, params: {"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPACE.replace("my_models", "my_model"), "s.yaml:4:13: space.model.custom.path: there is"),
        (SPACE.replace("my_models.py", "[a.py]"), "4:13: space.model.custom.path: is not the name"),
        (SPACE.replace("name: Net", "name: Nett"), "5:13: .*no class or .* did you mean 'Net'"),
        (SPACE.replace("name: Net", "name: zzz"), "it has Shape, Net, make_linear"),
        (SPACE.replace("name: Net", "name: WIDTH"), "5:13: .*WIDTH is 3, not a class"),
        (SPACE.replace("width:", "widht:"), "7:9: .*no such argument; did you mean 'width'"),
        (SPACE.replace("width:", "num_classes:"), "num_classes: .*is given by the data; remove it"),
        (SPACE.replace("      name: Net\n", ""), "'name' is missing; add it"),
        (SPACE.replace("      path: my_models.py\n", ""), "'path' is missing; add it"),
        (HEAD + "width: [1, 2]}}\n", "a list is not a plain value; .*choice"),
        (HEAD + "width: 1e-4}}\n", "'1e-4' is text, not a number. Write 1.0e-4"),
        (HEAD + "width: {choice: [1e-4]}}}\n", "'1e-4' is text, not a number"),
        (HEAD + "width: {low: 3}}}\n", "low: unknown key; known are int, float, choice|known are"),
        (HEAD + "width: }}\n", "the value is missing is not a plain value|the value is missing"),
        (HEAD + "choice: [1, 2]}}\n", "an axis in place of a whole mapping"),
        (HEAD + "'a b': 3}}\n", "is not a name; write letters|no such argument"),
        ("space:\n  model: custom\n", "'name' is missing"),
    ],
)
def test_a_mistake_in_the_space_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        load(text)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch\ndef Net(:\n", "4:13: .*my_models.py:2: not Python: invalid syntax"),
        ("import torch\n\n1 / 0\n", "my_models.py:3: ZeroDivisionError: division by zero"),
        (
            "import no_such_package\n",
            "my_models.py:1: ModuleNotFoundError: .*only this file travels",
        ),
        ("def Net(num_classes): ...\n", "the network does not take image_shape; add the argument"),
        (
            "def Net(num_classes, image_shape, depth, **rest): ...\n",
            "the network needs 'depth'; add it",
        ),
        ("", "its text is missing|is empty"),
    ],
)
def test_a_mistake_in_the_file_is_refused_with_its_line(source: str, message: str) -> None:
    Path("my_models.py").write_text(source)
    with pytest.raises(SpaceError, match=message):
        load(SPACE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (custom("make_number"), r"make_number\(...\) returns int, not a torch nn.Module"),
        (
            custom("make_features"),
            r"returns \(2, 64\) for images of shape \(2, 1, 8, 8\).*5\)",
        ),
        (custom("make_pair"), "make_pair returns tuple for images"),
        (custom("make_probs"), "returns probabilities; .* logits. Remove its softmax"),
        (custom("make_misfit"), r"make_misfit failed, on images of shape \(2, 1, 8, 8\): Runtime"),
        (custom("make_failure"), "my_models.py:52: make_failure failed: ValueError: no such depth"),
        (custom("Net", depth=3), "Net failed: TypeError: .*unexpected keyword argument 'depth'"),
        (custom("Net", width=[3]), r"model.custom.params.width: \[3\] is not a plain value"),
        (custom("Net", width=float("nan")), "nan is not a finite number"),
        (ModelConfig("custom", {"path": "a.py", "name": "Net"}), "its text is missing"),
        (ModelConfig("custom", {"name": "Net"}), "model.custom.path: is missing"),
    ],
)
def test_a_network_that_is_none_is_refused(model: ModelConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(model, 5, (1, 8, 8))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from tuner.gone import Thing", "tuner.gone"),
        ("import tuner.gone.deeper", "tuner.gone"),
        ("from tuner.run.run import Thing", "tuner.run.run.Thing"),
        ("from tuner import thing", "tuner.thing"),
    ],
)
def test_an_import_by_an_earlier_name_is_told_the_present_one(
    line: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "MOVED", {name: "tuner.here"})
    with pytest.raises(
        UsageError, match=rf"^nets\.py:1: .*; {re.escape(name)} is tuner\.here now$"
    ):
        load_module("nets.py", line)


def test_an_import_of_what_never_was_is_told_as_such() -> None:
    with pytest.raises(UsageError, match="; it may import installed packages alone"):
        load_module("nets.py", "import tuner.never")


def test_another_file_takes_the_place_of_the_text_that_a_space_holds() -> None:
    Path("first.yaml").write_text(load(SPACE).resolved())
    Path("v2.py").write_text(NETS + "VERSION = 2\n")
    space = load_space(Path("first.yaml"), ["space.model.custom.path=v2.py"])
    models = [model for model in space.models_with_code() if model.family == "custom"]
    assert models
    assert all(model.params["source"].endswith("VERSION = 2\n") for model in models)


def test_a_file_that_ends_the_program_is_refused() -> None:
    Path("my_models.py").write_text(NETS + "import sys\nsys.exit()\n")
    assert "SystemExit" in refusal(SPACE)
