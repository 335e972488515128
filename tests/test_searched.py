"""What a search varies, as columns of a table and as a configuration to copy."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.test_tuner import read_space
from tuner.space import load_space
from tuner.space.searched import columns, searched_yaml
from tuner.tuning.sampling.sampler import Sampler

SPACE = """
space:
  batch_size: {choice: [32, 64]}
  model: {choice: {cnn: {width: {int: [8, 64]}, stages: 2}, resnet: {depth: {choice: [10, 18]}}}}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 1.0], log: true}, momentum: 0.9}
      adamw: {lr: {float: [0.0001, 0.01], log: true}}
"""


def test_parameters_of_several_branches_share_a_column_the_most_important_first() -> None:
    space = read_space(SPACE)
    headings = [column.heading for column in columns(space, {})]
    assert headings == ["batch_size", "width", "depth", "optimizer", "lr"]
    weighed = columns(space, {"optimizer.adamw.lr": 0.5, "model.cnn.width": 0.3})
    assert [column.heading for column in weighed[:2]] == ["lr", "width"]
    (rate,) = (column for column in weighed if column.heading == "lr")
    assert rate.names == ("optimizer.sgd.lr", "optimizer.adamw.lr")
    config = {"optimizer": {"adamw": {"lr": 0.00123456}}, "model": {"resnet": {"depth": 18}}}
    assert rate.text(config) == "0.00123"
    assert [column.text(config) for column in weighed[1:3]] == ["-", "-"]


@pytest.mark.parametrize("name", ["quick", "wide", "cnn_small", "augment"])
def test_the_best_configuration_copied_into_its_space_is_what_is_tried_first(
    name: str, tmp_path: Path
) -> None:
    """Every value comes back as it was, and what was not searched stays the space's own."""
    path = Path("search_spaces") / f"{name}.yaml"
    space = load_space(path)
    search = replace(space.search, sampler="random")
    for number in range(len(space.baseline), len(space.baseline) + 5):
        sampler = Sampler(space, search)
        config = [sampler.ask(one) for one in range(number + 1)][-1]
        assert config is not None
        text = path.read_text()
        (start, *_), end = text.partition("baseline:"), text.index("\nspace:")
        copied = f"{start}{searched_yaml(space, config.to_dict())}{text[end:]}"
        assert yaml.safe_load(copied)["baseline"]
        (tmp_path / "copied.yaml").write_text(copied)
        again = Sampler(load_space(tmp_path / "copied.yaml"), search).ask(0)
        assert again is not None
        assert replace(again, seed=config.seed) == config


def test_what_a_baseline_sets_beyond_the_space_is_copied_with_it() -> None:
    axes = "space: {model: {cnn: {width: {int: [8, 64]}}}}\n"
    entry = "{optimizer: {adamw: {lr: 0.001}}, label_smoothing: 0.1}"
    space = read_space(f"baseline: [{entry}]\n{axes}")
    sampler = Sampler(space, space.search)
    first, second = sampler.ask(0), sampler.ask(1)
    assert first is not None
    assert second is not None
    copied = read_space(searched_yaml(space, first.to_dict()) + axes)
    assert Sampler(copied, copied.search).ask(0) == first
    (chosen,) = yaml.safe_load(searched_yaml(space, second.to_dict()))["baseline"]
    assert chosen.keys() == {"model"}, "the space holds it"
