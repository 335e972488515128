"""What a search varies, as columns of a table and as a configuration to copy."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.test_run import add_trial, make_run
from tests.test_tuner import read_space
from tuner.cli.trials_table import print_leaderboard
from tuner.config import CostObjective
from tuner.run.trial import OWN_COLUMNS
from tuner.space import TRIAL, load_space
from tuner.space.axes import Branch, Choice, Group
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


@pytest.mark.parametrize(
    ("key", "heading"),
    [
        ("depth", "depth"),
        ("loss", "model.params.loss"),
        ("max_epochs", "model.params.max_epochs"),
        ("batch_size", "model.params.batch_size"),
    ],
)
def test_a_parameter_named_like_another_column_is_headed_by_its_full_name(
    key: str, heading: str
) -> None:
    axis = Choice(name=f"model.custom.params.{key}", values=(1, 2))
    custom = Group(entries={"params": Group(entries={key: axis})})
    axes = Group(entries={"model": Branch(name="model", options={"custom": custom})})
    (column,) = columns(replace(read_space(SPACE), axes=axes), {})
    assert column.heading == heading


def test_the_columns_of_each_trial_are_known(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    add_trial(run, 0)
    costs = (CostObjective(cost="latency_ms"), CostObjective(cost="size_mb"))
    row = replace(run.trial(0), costs=costs).as_row()
    assert row.keys() >= OWN_COLUMNS
    assert {key for key in row if "." not in key} <= OWN_COLUMNS | TRIAL.fields.keys()


def test_epochs_that_were_trained_and_planned_have_columns_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    add_trial(run, 0, state="interrupted")
    space = read_space(
        "search: {epochs: 9, scheduler: none}\nspace: {model: cnn, epochs: {choice: [3, 9]}}\n"
    )
    print_leaderboard(run, run.ranked(), None, searched=columns(space, {}))
    _, headings, line, *_ = capsys.readouterr().out.splitlines()
    told = dict(zip(headings.split(), line.split(), strict=True))
    assert (told["epochs"], told["max_epochs"]) == ("2", "3")


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
