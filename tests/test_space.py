import json
import math
import pickle
import re
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.config import SearchConfig, Sgd
from tuner.errors import SpaceError, UsageError
from tuner.schema import Record, Scalar, Schema, Tagged
from tuner.space import (
    TRIAL,
    RandomTrial,
    SearchSpace,
    find_space,
    json_schema,
    load_run_space,
    load_space,
)
from tuner.space.axes import Range, parameters
from tuner.space.source import said_of, word_of

SHIPPED = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))
EDITOR = jsonschema.Draft202012Validator(json_schema())
HEAD = "space:\n  model: cnn\n"
EXAMPLE = """\
description: A small look at CNNs and ResNets
dataset: cifar10
search: {trials: 64, epochs: 27, grace: 3, reduction: 3, sampler: tpe, scheduler: asha}
baseline:
  - {model: {resnet: {depth: 18}}}
space:
  batch_size: {choice: [128, 256, 512]}
  model:
    choice:
      cnn:
        stages: {int: [2, 4]}
        width: {int: [16, 128], log: true}
        norm: {choice: [batch, group]}
        dropout: {float: [0.0, 0.5]}
      resnet:
        depth: {choice: [10, 18]}
  optimizer:
    choice:
      sgd: {lr: {float: [0.01, 1.0], log: true}, momentum: 0.9, nesterov: true}
      adamw: {lr: {float: [1.0e-4, 1.0e-2], log: true}}
  label_smoothing: {float: [0.0, 0.2], step: 0.05}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    path = tmp_path_factory.mktemp("example") / "s.yaml"
    path.write_text(EXAMPLE)
    return load_space(path)


def load(text: str, *overrides: str) -> SearchSpace:
    Path("s.yaml").write_text(text, encoding="utf-8")
    return load_space(Path("s.yaml"), overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(SpaceError) as caught:
        load(text, *overrides)
    return str(caught.value)


def sample(space: SearchSpace, seed: int = 0, **params: Any) -> dict[str, Any]:
    return space.sample(RandomTrial(seed, params), epochs=2, seed=seed).to_dict()


class Recorder(RandomTrial):
    """Keeps what it was asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.asked: dict[str, Any] = {}

    def suggest_float(self, name: str, *args: Any, **kwargs: Any) -> float:
        assert name not in self.asked
        self.asked[name] = super().suggest_float(name, *args, **kwargs)
        return self.asked[name]

    def suggest_int(self, name: str, *args: Any, **kwargs: Any) -> int:
        assert name not in self.asked
        self.asked[name] = super().suggest_int(name, *args, **kwargs)
        return self.asked[name]

    def suggest_categorical(self, name: str, *args: Any) -> Any:
        assert name not in self.asked
        self.asked[name] = super().suggest_categorical(name, *args)
        return self.asked[name]


def test_what_is_said_of_a_data_set_merges_with_its_source() -> None:
    model = "\nspace: {model: {cnn: {}}}\n"
    space = load(
        "dataset: {source: photos, image_size: 96, resize: crop, val_fraction: 0.2}" + model
    )
    assert space.dataset == "photos"
    assert space.data == {"image_size": 96, "resize": "crop", "val_fraction": 0.2}
    moved = load("dataset: {source: photos, image_size: 96}" + model, "dataset=others")
    assert (moved.dataset, moved.data) == ("others", {"image_size": 96})
    sized = load("dataset: cifar10" + model, "dataset.image_size=64")
    assert (sized.dataset, sized.data) == ("cifar10", {"image_size": 64})
    assert load(sized.resolved()) == sized
    assert load("dataset: cifar10" + model).resolved().startswith("dataset: cifar10\n")


def test_the_example_of_the_contract_is_read() -> None:
    space = load(EXAMPLE)
    assert space.description == "A small look at CNNs and ResNets"
    assert space.dataset == "cifar10"
    assert space.search == SearchConfig(trials=64)
    assert space.rows() == [
        ("batch_size", "one of 128, 256, 512"),
        ("model", "one of cnn, resnet"),
        ("model.cnn.stages", "int 2 to 4"),
        ("model.cnn.width", "int 16 to 128, log"),
        ("model.cnn.norm", "one of batch, group"),
        ("model.cnn.dropout", "float 0 to 0.5"),
        ("model.resnet.depth", "one of 10, 18"),
        ("optimizer", "one of sgd, adamw"),
        ("optimizer.sgd.lr", "float 0.01 to 1, log"),
        ("optimizer.adamw.lr", "float 0.0001 to 0.01, log"),
        ("label_smoothing", "float 0 to 0.2, step 0.05"),
    ]
    assert len(space.rows()) == 11
    assert space.cardinality() is None


@given(seed=st.integers(0, 2**32))
def test_only_the_parameters_of_the_drawn_branches_are_asked_for(
    example: SearchSpace, seed: int
) -> None:
    trial = Recorder(seed)
    config = example.sample(trial, epochs=3, seed=5)
    family, optimizer = trial.asked["model"], trial.asked["optimizer"]
    assert config.model.family == family
    assert {name for name in trial.asked if name.startswith("model.")} == {
        name for name, _ in example.rows() if name.startswith(f"model.{family}.")
    }
    assert config.optimizer.lr == trial.asked[f"optimizer.{optimizer}.lr"]
    assert (config.epochs, config.seed) == (3, 5)


@given(seed=st.integers(0, 2**32))
def test_the_same_draws_give_the_same_configuration(example: SearchSpace, seed: int) -> None:
    assert sample(example, seed) == sample(example, seed)


def test_the_model_is_sampled_with_every_parameter() -> None:
    params = sample(load("space:\n  model: {cnn: {width: 16}}\n"))["model"]["cnn"]
    assert params == {**sample(load(HEAD))["model"]["cnn"], "width": 16}
    assert {"stages", "blocks", "norm", "dropout"} <= params.keys()


def test_steps_of_a_tenth_give_tenths() -> None:
    space = load(HEAD + "  label_smoothing: {float: [0.0, 0.3], step: 0.1}\n")
    drawn = {sample(space, seed)["label_smoothing"] for seed in range(40)}
    assert drawn == {0.0, 0.1, 0.2, 0.3}


def test_a_choice_of_one_is_fixed() -> None:
    space = load("space:\n  model: {choice: [cnn]}\n  batch_size: {choice: [64]}\n")
    assert len(space.rows()) == 0
    assert space.cardinality() == 1
    assert sample(space)["batch_size"] == 64


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ("  batch_size: {choice: [1, 2, 3]}\n", 3),
        ("  batch_size: {int: [2, 10], step: 2}\n", 5),
        ("  label_smoothing: {float: [0.0, 0.2], step: 0.05}\n", 5),
        ("  optimizer: {choice: {sgd: {nesterov: {choice: [true, false]}}, adamw: {}}}\n", 3),
        ("  batch_size: {choice: [1, 2]}\n  augment: {crop: {int: [0, 3]}}\n", 8),
        ("  batch_size: {choice: [1, 2]}\n  ema_decay: {float: [0.0, 0.5]}\n", None),
    ],
)
def test_configurations_are_counted(lines: str, count: int | None) -> None:
    assert load(HEAD + lines).cardinality() == count


def test_whole_numbers_are_numbers() -> None:
    space = load(HEAD + "  optimizer: {sgd: {lr: {int: [1, 3]}}}\n  label_smoothing: 0\n")
    drawn = sample(space)
    assert type(drawn["optimizer"]["sgd"]["lr"]) is float
    assert type(drawn["label_smoothing"]) is float


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "{sgd: {}}", "{sgd: }", "{choice: [sgd]}", "{choice: {sgd: {}}}", "{choice: {sgd: }}"],
)
def test_a_name_alone_brings_its_defaults(optimizer: str) -> None:
    space = load(f"{HEAD}  optimizer: {optimizer}\n")
    assert space.sample(RandomTrial(), epochs=1, seed=0).optimizer == Sgd()


def test_an_alias_repeats_a_value() -> None:
    space = load(
        HEAD + "  batch_size: {choice: &sizes [1, 2]}\n  augment: {crop: {choice: *sizes}}\n"
    )
    assert space.cardinality() == 4


def test_a_space_survives_pickling(example: SearchSpace) -> None:
    assert pickle.loads(pickle.dumps(example)) == example


def test_optuna_takes_every_axis_without_a_warning() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = load(EXAMPLE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.baseline_params(0))
    for number in range(40):
        trial = study.ask()
        config = space.sample(trial, epochs=1, seed=0, baseline=0 if number == 0 else None)
        study.tell(trial, 0.0)
        assert number or config.model.params["depth"] == 18


def leaf(schema: Scalar) -> st.SearchStrategy[Any]:
    """Return plain values and axes that the schema allows."""
    if schema.choices:
        plain = st.sampled_from(schema.choices)
    elif schema.kind in (bool, str):
        plain = st.booleans() if schema.kind is bool else st.text("abc")
    else:
        plain = numbers(schema)
    choice = st.lists(plain, min_size=1, max_size=4, unique=True).map(lambda c: {"choice": c})
    if schema.choices or schema.kind in (bool, str):
        return plain | choice
    form = schema.kind.__name__
    ends = st.lists(plain, min_size=2, max_size=2, unique=True).map(sorted)
    plain_range = ends.map(lambda ends: {form: ends})
    log_range = ends.filter(lambda ends: ends[0] > 0).map(lambda ends: {form: ends, "log": True})
    return plain | choice | plain_range | log_range


def numbers(schema: Scalar) -> st.SearchStrategy[Any]:
    bounds = schema.bounds
    low = max(limit for limit in (bounds.ge, bounds.gt, -1000) if limit is not None)
    high = min(limit for limit in (bounds.le, bounds.lt, 1000) if limit is not None)
    if schema.kind is int:
        return st.integers(math.ceil(low), math.floor(high))
    floats = st.floats(low, high, allow_subnormal=False)
    # 0.0 and -0.0 are equal, yet YAML writes them apart.
    return floats.filter(bounds.admits).map(lambda number: number + 0.0)


def grow(schema: Schema) -> st.SearchStrategy[Any]:
    """Return what may stand where ``schema`` is searched."""
    match schema:
        case Scalar():
            return leaf(schema)
        case Record():
            optional = {
                key: grow(field)
                for key, field in schema.fields.items()
                # With these, not every value of another key would be valid.
                if key not in schema.required
                and key not in ("nesterov", "stochastic_depth", "epochs")
            }
            required = {key: grow(schema.fields[key]) for key in schema.required}
            if schema.cls is Sgd:
                required["nesterov"] = st.just(False)
            return st.fixed_dictionaries(required, optional=optional)
        case Tagged():
            branches = st.fixed_dictionaries(
                {},
                optional={
                    name: grow(record)
                    for name, record in schema.options.items()
                    # They need a file or a name: test_custom.py, test_pretrained.py.
                    if name not in ("custom", "pretrained")
                },
            ).filter(bool)
            return branches.map(lambda names: names if len(names) == 1 else {"choice": names})
    raise TypeError(schema)


def lies_on(axis: Any, value: Any) -> bool:
    """Whether ``value`` is one that the plain form of an axis allows."""
    match axis:
        case {"choice": dict(branches)}:
            ((tag, params),) = value.items()
            return lies_on(branches[tag], params)
        case {"choice": choices}:
            return value in choices
        case {"int": [low, high]} | {"float": [low, high]}:
            return bool(low <= value <= high)
        case dict():
            return all(lies_on(axis[key], value[key]) for key in axis)
    return bool(axis == value)


@settings(suppress_health_check=list(HealthCheck))
@given(plain=grow(TRIAL), seed=st.integers(0, 1000))
def test_a_sample_lies_on_every_axis_and_a_resolved_space_is_the_same_space(
    plain: dict[str, Any], seed: int
) -> None:
    space = load(yaml.safe_dump({"space": plain}))
    assert load(space.resolved()) == space
    assert EDITOR.is_valid({"space": plain})
    drawn = sample(space, seed)
    assert lies_on(plain, drawn)
    assert sample(space, seed) == drawn


def test_epochs_are_searched_where_no_scheduler_compares_trials_midway() -> None:
    space = load(
        "search: {epochs: 9, scheduler: none}\n"
        "baseline:\n  - {epochs: 3}\n"
        "space:\n  model: cnn\n  epochs: {choice: [3, 9]}\n"
    )
    drawn = {space.sample(RandomTrial(n), epochs=9, seed=0).epochs for n in range(20)}
    assert drawn == {3, 9}
    pinned = RandomTrial(0, space.baseline_params(0))
    assert space.sample(pinned, epochs=9, seed=0, baseline=0).epochs == 3


def test_no_trial_has_more_epochs_than_the_search() -> None:
    text = "search: {epochs: 9, scheduler: none}\nspace:\n  model: cnn\n  epochs: 27\n"
    assert refusal(text) == (
        "s.yaml:3:3: space: epochs: 27 is more than the search allows; write search: {epochs: 27}"
    )


@pytest.mark.parametrize("axis", ["{choice: [3, 27]}", "{int: [3, 27]}"])
def test_no_searched_epochs_are_above_those_of_the_search(axis: str) -> None:
    head = "search: {epochs: 9, scheduler: none}\nspace:\n  model: cnn\n  epochs: "
    assert refusal(head + axis) == (
        "s.yaml:4:3: space.epochs: 27 is more than the search allows; write search: {epochs: 27} "
        "or lower it"
    )
    load(head + axis, "search.epochs=27")
    Path("s.yaml").write_text(head + axis)
    assert load_run_space(Path("s.yaml")).search.epochs == 9, "of an earlier version"


def test_what_a_baseline_leaves_out_is_sampled() -> None:
    space = load(EXAMPLE)
    assert space.baseline_params(0) == {"model": "resnet", "model.resnet.depth": 18}
    sizes = set()
    for seed in range(20):
        trial = RandomTrial(seed, space.baseline_params(0))
        config = space.sample(trial, epochs=1, seed=0, baseline=0)
        assert config.model.params["depth"] == 18
        sizes.add(config.batch_size)
    assert sizes == {128, 256, 512}


def test_a_baseline_sets_what_the_space_leaves_out() -> None:
    space = load(
        "baseline:\n"
        "  - {optimizer: {adamw: {beta1: 0.5}}, augment: {crop: 3}, model: {cnn: {width: 24}}}\n"
        "space:\n  model: {cnn: {stages: 2}}\n  augment: {flip: true}\n"
    )
    assert space.baseline_params(0) == {}
    config = space.sample(RandomTrial(), epochs=1, seed=0, baseline=0).to_dict()
    assert config["optimizer"]["adamw"]["beta1"] == 0.5
    assert (config["augment"]["crop"], config["augment"]["flip"]) == (3, True)
    assert (config["model"]["cnn"]["stages"], config["model"]["cnn"]["width"]) == (2, 24)
    assert "sgd" in sample(space)["optimizer"]


def test_a_baseline_may_repeat_what_the_space_fixes() -> None:
    space = load("baseline: [{batch_size: 64, model: cnn}]\n" + HEAD + "  batch_size: 64\n")
    assert space.baseline_params(0) == {}


BASE = """\
baseline:
  - {batch_size: 64, model: {resnet: {depth: 18}}, label_smoothing: 0.1}
  - {batch_size: 128, label_smoothing: 0.1}
  - {model: {cnn: {width: 24}}}
space:
  batch_size: {choice: [64, 128]}
  model: {choice: {resnet: {depth: {choice: [10, 18]}}, cnn: {width: {int: [8, 64]}}}}
  label_smoothing: {float: [0.0, 0.2]}
"""


def test_an_inherited_baseline_keeps_what_fits(tmp_path: Path) -> None:
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text(BASE)
    depths = "{resnet: {depth: {choice: [18, 34]}}}"
    own.write_text(f"extends: base.yaml\nspace:\n  batch_size: 32\n  model: {depths}\n")
    space = load_space(own)
    kept = [space.baseline_params(index) for index in range(len(space.baseline))]
    # The third is of a network that is searched no more.
    assert kept == [{"model.resnet.depth": 18, "label_smoothing": 0.1}, {"label_smoothing": 0.1}]
    again = load_space(Path("space.yaml"), text=space.resolved())
    assert again.baseline == space.baseline, "a run goes on with the same"
    text = load_space(tmp_path / "space", text=own.read_text())
    assert text.baseline == space.baseline, "a mapping extends as a file does"


def test_an_override_goes_before_a_baseline(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    space = load_space(base, ["space.batch_size=64", "space.model.cnn.width=32"])
    kept = [space.baseline_params(index) for index in range(len(space.baseline))]
    assert kept == [
        {"model": "resnet", "model.resnet.depth": 18, "label_smoothing": 0.1},
        {"label_smoothing": 0.1},
        {"model": "cnn"},
    ]
    with pytest.raises(SpaceError, match="256 is outside the space's axis"):
        load_space(base, ["space.label_smoothing=0.1", "baseline=[{batch_size: 256}]"])
    base.write_text(BASE.replace("batch_size: 64", "batch_size: 256"))
    with pytest.raises(SpaceError, match="256 is outside the space's axis"):
        load_space(base)


def test_a_space_that_is_overridden_as_a_whole_goes_before_a_baseline(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    whole = load_space(base, ["space={model: {resnet: {depth: {choice: [18, 34]}}}}"])
    kept = [whole.baseline_params(index) for index in range(len(whole.baseline))]
    assert kept == [{"model.resnet.depth": 18}, {}], "the third is of a network that is gone"
    axes = "space={model: {cnn: {}}, batch_size: {choice: [32, 64]}}"
    with pytest.raises(SpaceError, match=r"256 .* outside the space's axis"):
        load_space(base, [axes, "baseline=[{batch_size: 256}]"])


def test_a_baseline_on_a_whole_axis_is_a_whole_number() -> None:
    lines = "  optimizer: {sgd: {lr: {int: [1, 3]}}}\n"
    space = load("baseline: [{optimizer: {sgd: {lr: 2.0}}}]\n" + HEAD + lines)
    assert repr(space.baseline_params(0)) == "{'optimizer.sgd.lr': 2}"


def test_a_baseline_may_lie_on_a_step() -> None:
    lines = "  label_smoothing: {float: [0.0, 0.3], step: 0.1}\n"
    space = load("baseline: [{label_smoothing: 0.3}]\n" + HEAD + lines)
    assert space.baseline_params(0) == {"label_smoothing": 0.3}


def test_mappings_merge_and_everything_else_replaces() -> None:
    Path("base.yaml").write_text(EXAMPLE)
    space = load(
        "extends: base.yaml\n"
        "search: {trials: 8}\n"
        "baseline: []\n"
        "space:\n"
        "  batch_size: 64\n"
        "  model: {choice: {cnn: {stages: {choice: [3, 5]}}}}\n"
        "  label_smoothing: {choice: [0.0, 0.1]}\n"
        "  augment: {flip: true}\n"
    )
    assert space.search == SearchConfig(trials=8)
    assert space.description == "A small look at CNNs and ResNets"
    assert space.baseline == ()
    rows = dict(space.rows())
    assert "batch_size" not in rows
    assert rows["model"] == "one of cnn, resnet"
    assert rows["model.cnn.stages"] == "one of 3, 5"
    assert rows["model.cnn.width"] == "int 16 to 128, log"
    assert rows["label_smoothing"] == "one of 0, 0.1"
    Path("base.yaml").unlink()
    assert load(space.resolved()) == space


@pytest.mark.parametrize(
    ("base", "child", "names"),
    [
        ("{choice: {sgd: {}, adamw: {}}}", "{sgd: {lr: 0.1}}", ["sgd"]),
        ("{choice: {sgd: {}, adamw: {}}}", "adamw", ["adamw"]),
        ("{choice: {sgd: {}, adamw: {}}}", "{choice: [sgd]}", ["sgd"]),
        ("{choice: [sgd, adamw]}", "{choice: {sgd: {}}}", ["sgd"]),
        ("{choice: {sgd: {}}}", "{choice: {adamw: {}}}", ["sgd", "adamw"]),
        ("{sgd: {lr: 0.1}}", "{adamw: {lr: 0.1}}", ["adamw"]),
        ("{sgd: {lr: 0.1}}", "{choice: {adamw: {}}}", ["adamw"]),
        ("sgd", "{adamw: {}}", ["adamw"]),
    ],
)
def test_a_name_replaces_and_branches_merge(base: str, child: str, names: list[str]) -> None:
    Path("base.yaml").write_text(f"{HEAD}  optimizer: {base}\n")
    space = load(f"extends: base.yaml\nspace: {{optimizer: {child}}}\n")
    drawn = {name for seed in range(20) for name in sample(space, seed)["optimizer"]}
    assert drawn == set(names)


def test_the_parameters_of_the_same_name_merge() -> None:
    Path("base.yaml").write_text(HEAD + "  optimizer: {sgd: {lr: 0.5, momentum: 0.5}}\n")
    drawn = sample(load("extends: base.yaml\nspace: {optimizer: {sgd: {lr: {choice: [0.7]}}}}\n"))
    assert (drawn["optimizer"]["sgd"]["lr"], drawn["optimizer"]["sgd"]["momentum"]) == (0.7, 0.5)


def test_bases_form_a_chain_relative_to_each_file() -> None:
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/one.yaml").write_text(HEAD + "  batch_size: 1\n  ema_decay: 0.5\n")
    Path("deep/two.yaml").write_text("extends: er/one.yaml\nspace: {batch_size: 2}\n")
    drawn = sample(load("extends: deep/two.yaml\n"))
    assert (drawn["batch_size"], drawn["ema_decay"]) == (2, 0.5)


def test_a_shipped_space_is_a_base_by_its_name() -> None:
    # A folder of that name is no space.
    Path("quick").mkdir()
    space = load("extends: quick\nsearch: {trials: 3}\n")
    assert space.search.trials == 3
    assert space.axes == load_space(find_space("quick")).axes
    with pytest.raises(SpaceError, match="did you mean 'quick'"):
        load("extends: quik\n" + HEAD)


def test_an_error_in_a_base_names_the_base() -> None:
    Path("deep").mkdir()
    Path("deep/base.yaml").write_text(HEAD + "  batch_sise: 3\n")
    message = "deep/base.yaml:3:3: space.batch_sise: unknown key; did you mean 'batch_size'?"
    assert refusal("extends: deep/base.yaml\n") == message


def test_a_circle_of_bases_is_refused() -> None:
    Path("base.yaml").write_text("extends: s.yaml\n")
    message = "base.yaml:1:10: extends: s.yaml extends this file in turn; break the circle"
    assert refusal("extends: base.yaml\n" + HEAD) == message


@pytest.mark.parametrize(
    ("override", "row"),
    [
        ("space.batch_size=128", None),
        ("space.batch_size={int: [8, 16]}", ("batch_size", "int 8 to 16")),
        ("space.batch_size.choice=[8, 16]", ("batch_size", "one of 8, 16")),
        ("space.model.choice.cnn.stages=3", None),
        ("space.model.cnn.stages={int: [1, 2]}", ("model.cnn.stages", "int 1 to 2")),
        ("space.augment.crop={choice: [1, 2]}", ("augment.crop", "one of 1, 2")),
    ],
)
def test_an_override_replaces_what_stands_at_its_path(
    override: str, row: tuple[str, str] | None
) -> None:
    key = override.partition("=")[0].replace(".choice", "").removeprefix("space.")
    rows = dict(load(EXAMPLE, override).rows())
    assert rows.get(key) == (row and row[1])


def test_overrides_reach_every_block_in_order() -> None:
    space = load(EXAMPLE, "search.trials=8", "dataset=digits", "baseline=[]", "search.trials=9")
    assert (space.search.trials, space.search.epochs) == (9, 27)
    assert (space.dataset, space.baseline) == ("digits", ())
    assert load(space.resolved()) == space


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("space.batch_sise=3", "unknown key; did you mean 'batch_size'?"),
        ("serch.trials=3", "serch: unknown key; did you mean 'search'?"),
        ("search.trails=8", "unknown key; did you mean 'trials'?"),
        ("search.trials=1e2", "'1e2' is text, not a number. Write 100."),
        ("space.batch_size", "is not KEY=VALUE; write, say, space.batch_size=128"),
        ("=3", "is not KEY=VALUE; write, say, space.batch_size=128"),
        ("space..x=3", "is not KEY=VALUE; write, say, space.batch_size=128"),
        ("space.batch_size=0", "0 is out of range; it must be at least 1"),
        ("space.batch_size=", "the value is missing; write one"),
        ("space.batch_size.choice=[0]", "0 is out of range; it must be at least 1"),
        (
            "space.batch_size=[1",
            "not YAML: while parsing a flow sequence, expected ',' or ']', "
            "but got '<stream end>'; check brackets, colons, quotes and indentation",
        ),
        (
            "space.optimizer={sgd: {lr: 0}}",
            "space.optimizer.sgd.lr: 0 is out of range; it must be above 0",
        ),
        (
            "space.batch_size={choice: [1], choice: [2]}",
            "space.batch_size.choice: duplicate key; it is on line 1 already; keep one",
        ),
        (
            "space.model.choice.cnn.width=0",
            "0 is out of range; it must be at least 8 and at most 512",
        ),
        ("space.model.cnn.width=0", "0 is out of range; it must be at least 8 and at most 512"),
        ("space.model.cn.width=16", "space.model.cn: unknown key; did you mean 'cnn'?"),
        (
            "space.augment.flip=on",
            "'on' is read as true by YAML; write true, or quote it: 'on'",
        ),
        (
            "space.seed=3",
            "belongs to the whole run; write it under search:, as in search: {seed: 0}",
        ),
        ("extends=base.yaml", "a base cannot be overridden; name another file instead"),
        ("description.x=3", "description is not a mapping; override description as a whole"),
    ],
)
def test_a_wrong_override_is_named_as_the_place(override: str, problem: str) -> None:
    assert refusal(EXAMPLE, override) == f"{override}: {problem}"


def test_a_power_of_thousands_of_digits_is_no_number() -> None:
    zeros = "0" * 5000
    assert refusal(EXAMPLE, f"space.label_smoothing=1e{zeros}1").endswith("is not a number")


def test_an_override_of_two_lines_is_refused_in_one() -> None:
    assert refusal(EXAMPLE, "space=\n3").startswith("space= 3: 3 is not a mapping; write keys")


ABOVE_A_SPACE = """\
batch_size: 3
  => 1:1: batch_size: belongs elsewhere; put it under space:
trials: 3
  => 1:1: trials: belongs elsewhere; put it under search:
zebra: 3
  => 1:1: zebra: unknown key; known are baseline, constraints, dataset, description, extends
description: 3
  => 1:14: description: 3 is not text; quote it
dataset: [a]
  => 1:10: dataset: a list is not a mapping; write keys such as source:
search: 3
  => 1:9: search: 3 is not a mapping; write keys such as trials:
search:
  => 1:1: search: the value is missing; write keys such as trials:
search: {trials: {int: [1, 2]}}
  => 1:18: search.trials: a mapping in place of a plain value; write the value
search: {trails: 3}
  => 1:10: search.trails: unknown key; did you mean 'trials'?
search: {sampler: tpee}
  => 1:19: search.sampler: 'tpee' is not one of tpe, random, gp, cmaes, grid; did you mean 'tpe'?
search: {trials: 0}
  => 1:18: search.trials: 0 is out of range; it must be at least 1
search: {trials: 1e2}
  => 1:18: search.trials: '1e2' is text, not a number. Write 100.
baseline: {model: cnn}
  => 1:11: baseline: is not a list; begin each entry with '- '
baseline:
  => 1:1: baseline: is not a list; begin each entry with '- '
baseline: [3]
  => 1:12: baseline[0]: 3 is not a mapping; write keys such as model:
baseline: [{modle: cnn}]
  => 1:13: baseline[0].modle: unknown key; did you mean 'model'?
baseline: [{epochs: 3}]
  => 1:13: baseline[0].epochs: trials of different lengths cannot be compared midway; write
baseline: [{model: resnet}]
  => 1:20: baseline[0].model: 'resnet' is not among the space's cnn;
baseline: [{model: {cnn: {stages: 99}}}]
  => 1:35: baseline[0].model.cnn.stages: 99 is out of range; it must be at least 1 and at most 6
baseline: [{batch_size: {choice: [1, 2]}}]
  => 1:25: baseline[0].batch_size: a mapping in place of a plain value; write the value
baseline: [{batch_size: 17}, {batch_size: 17}]
  => 1:30: baseline[1]: is the same as one before it; remove one
extends: nope.yaml
  => 1:10: extends: no file nope.yaml from this file's folder, and no shipped space of that name
extends: 3
  => 1:10: extends: is not a name; write that of a file, or of a shipped space as cnn
extends: s.yaml
  => 1:10: extends: s.yaml extends this file in turn; break the circle
extends:
  => 1:1: extends: is not a name; write that of a file, or of a shipped space as cnn
extends: .
  => 1:10: extends: no file . from this file's folder, and no shipped space of that name
"""

INSIDE_A_SPACE = """\
batch_sise: 128
  => 3:3: space.batch_sise: unknown key; did you mean 'batch_size'?
epochs: 3
  => 3:3: space.epochs: trials of different lengths cannot be compared midway; write
seed: 3
  => 3:3: space.seed: belongs to the whole run; write it under search:, as in search: {seed: 0}
batch_size: 128
batch_size: 64
  => 4:3: space.batch_size: duplicate key; it is on line 3 already; keep one
batch_size: 0
  => 3:15: space.batch_size: 0 is out of range; it must be at least 1
batch_size: 128.0
  => 3:15: space.batch_size: 128.0 is not a whole number; write 128
batch_size: 12.5
  => 3:15: space.batch_size: 12.5 is not a whole number
batch_size: many
  => 3:15: space.batch_size: 'many' is not a whole number
batch_size: '128'
  => 3:15: space.batch_size: '128' is text, not a number. Write 128.
batch_size: 1e3
  => 3:15: space.batch_size: '1e3' is text, not a number. Write 1000.
batch_size: true
  => 3:15: space.batch_size: true is not a whole number
batch_size:
  => 3:3: space.batch_size: the value is missing; write one
batch_size: ~
  => 3:3: space.batch_size: the value is missing; write one
batch_size: [64, 128]
  => 3:15: space.batch_size: a list is not a plain value; to choose from it, write {choice: [...]}
batch_size: {}
  => 3:15: space.batch_size: a mapping without an axis; add one of int, float, choice
batch_size: {log: true}
  => 3:15: space.batch_size: a mapping without an axis; add one of int, float, choice
batch_size: {chioce: [64, 128]}
  => 3:16: space.batch_size.chioce: unknown key; did you mean 'choice'?
batch_size: {values: [64, 128]}
  => 3:16: space.batch_size.values: unknown key; known are choice, float, int
batch_size: {int: [64, 128], choice: [64]}
  => 3:32: space.batch_size.choice: cannot be combined with int:; keep one of the two
batch_size: {int: [64, 128], lgo: true}
  => 3:32: space.batch_size.lgo: unknown key; did you mean 'log'?
batch_size: {choice: [64, 128], log: true}
  => 3:35: space.batch_size.log: a choice takes no other keys; remove it
batch_size: {int: [128, 64]}
  => 3:21: space.batch_size: the range is empty, 128 is above 64; swap them
batch_size: {int: [64, 64]}
  => 3:21: space.batch_size: the range holds one number; write it plainly: 64
batch_size: {int: [64]}
  => 3:21: space.batch_size: a range has two ends; write {int: [low, high]}
batch_size: {int: 64}
  => 3:21: space.batch_size: a range has two ends; write {int: [low, high]}
batch_size: {int:}
  => 3:16: space.batch_size: a range has two ends; write {int: [low, high]}
batch_size: {int: [64.5, 128]}
  => 3:22: space.batch_size: 64.5 is not a whole number
batch_size: {int: [0, 128]}
  => 3:22: space.batch_size: 0 is out of range; it must be at least 1
batch_size: {float: [64, 128]}
  => 3:16: space.batch_size.float: only whole numbers are possible here; write {int: [low, high]}
batch_size: {int: [64, 128], step: 0}
  => 3:38: space.batch_size.step: 0 is out of range; it must be above 0
batch_size: {int: [64, 128], step: 65}
  => 3:38: space.batch_size.step: 65 is larger than the whole range; lower it
batch_size: {int: [64, 128], step: 30}
  => 3:38: space.batch_size.step: steps of 30 from 64 do not end at 128; write [64, 124]
batch_size: {int: [64, 128], step: 1.5}
  => 3:38: space.batch_size.step: 1.5 is not a whole number
batch_size: {int: [64, 128], step: 2, log: true}
  => 3:32: space.batch_size.step: log and step do not go together; drop one
batch_size: {int: [64, 128], log: 1}
  => 3:37: space.batch_size.log: 1 is not true or false
batch_size: {choice: []}
  => 3:24: space.batch_size: the choice is empty; write the values to choose from
batch_size: {choice: 64}
  => 3:24: space.batch_size: 64 is not a list; write {choice: [a, b]}
batch_size: {choice: {64: {}}}
  => 3:25: space.batch_size: a key is not a word; write 'name: value'
batch_size: {choice: {a: {}}}
  => 3:24: space.batch_size: a mapping is not a list; write {choice: [a, b]}
batch_size: {choice: [64, 128, 64]}
  => 3:34: space.batch_size: 64 is listed twice; remove one
batch_size: {choice: [0, 128]}
  => 3:25: space.batch_size: 0 is out of range; it must be at least 1
batch_size: {choice: [64, [128]]}
  => 3:29: space.batch_size: a list is not a plain value; write one
batch_size: {choice: [64, ]}
label_smoothing: {choice: [0, 0.0]}
  => 4:33: space.label_smoothing: 0 is listed twice; remove one
label_smoothing: {float: [0.0, 1.0]}
  => 3:34: space.label_smoothing: 1.0 is out of range; it must be at least 0 and below 1
label_smoothing: {float: [0.0, 0.2], log: true}
  => 3:29: space.label_smoothing: log needs low above 0, got 0; raise low or drop log
label_smoothing: {float: [0.0, 0.2], step: 0.15}
  => 3:46: space.label_smoothing.step: steps of 0.15 from 0 do not end at 0.2; write [0, 0.15]
label_smoothing: {float: [0.0, 0.2], step: -0.1}
  => 3:46: space.label_smoothing.step: -0.1 is out of range; it must be above 0
label_smoothing: .nan
  => 3:20: space.label_smoothing: '.nan' is not finite; write a finite number
label_smoothing: 1.0e+999
  => 3:20: space.label_smoothing: '1.0e+999' is not finite; write a finite number
batch_size: 99999999999999999999
  => 3:15: space.batch_size: 99999999999999999999 is too large a number; write one up to 2**53
optimizer: {sgd: {lr: 1e-4}}
  => 3:25: space.optimizer.sgd.lr: '1e-4' is text, not a number. Write 1.0e-4.
optimizer: {choice: {sgd: {lr: {float: [1e-4, 1.0]}}}}
  => 3:43: space.optimizer.sgd.lr: '1e-4' is text, not a number. Write 1.0e-4.
optimizer: {sgd: {lr: 1.5e3}}
  => 3:25: space.optimizer.sgd.lr: '1.5e3' is text, not a number. Write 1.5e+3.
optimizer: {sgd: {lr: -.5}}
  => 3:25: space.optimizer.sgd.lr: '-.5' is text, not a number. Write -0.5.
optimizer: {sgd: {lr: nan}}
  => 3:25: space.optimizer.sgd.lr: 'nan' is not a number
optimizer: {sgd: {lr: fast}}
  => 3:25: space.optimizer.sgd.lr: 'fast' is not a number
optimizer: {sgd: {lr: {float: [0, 1]}}}
  => 3:34: space.optimizer.sgd.lr: 0 is out of range; it must be above 0
optimizer: sdg
  => 3:14: space.optimizer: 'sdg' is not one of sgd
optimizer: {sdg: {}}
  => 3:15: space.optimizer.sdg: unknown key; did you mean 'sgd'?
optimizer: {choice: {sgd: {}, adamv: {}}}
  => 3:33: space.optimizer.adamv: unknown key; did you mean 'adamw'?
optimizer: {choice: [sgd, adamv]}
  => 3:29: space.optimizer: 'adamv' is not one of sgd
optimizer: {choice: [sgd, sgd]}
  => 3:29: space.optimizer: sgd is listed twice; remove one
optimizer: {choice: {}}
  => 3:23: space.optimizer: no list or mapping of names; write some of
optimizer: {choice: []}
  => 3:23: space.optimizer: the choice is empty; write the values to choose from
optimizer: {choice: sgd}
  => 3:23: space.optimizer: no list or mapping of names; write some of
optimizer: {choice:}
  => 3:15: space.optimizer: no list or mapping of names; write some of
optimizer: {}
  => 3:14: space.optimizer: no list or mapping of names; write some of
optimizer:
  => 3:3: space.optimizer: the value is missing; write one
optimizer: [sgd, adamw]
  => 3:14: space.optimizer: a list is not a plain value; to choose from it, write {choice: [...]}
optimizer: 3
  => 3:14: space.optimizer: 3 is not one of sgd
optimizer: {sgd: {}, adamw: {}}
  => 3:24: space.optimizer.adamw: a second name next to 'sgd';
optimizer: {int: [1, 2]}
  => 3:15: space.optimizer.int: a name is chosen here; write {choice: [name, name]}
optimizer: {choice: [sgd, adamw], log: true}
  => 3:37: space.optimizer.log: a choice takes no other keys; remove it
optimizer: {sgd: 3}
  => 3:20: space.optimizer.sgd: 3 is not a mapping; write keys such as lr:
optimizer: {sgd: {momentun: 0.9}}
  => 3:21: space.optimizer.sgd.momentun: unknown key; did you mean 'momentum'?
optimizer: {sgd: {nesterov: true, momentum: 0}}
  => 3:20: space.optimizer.sgd: nesterov needs momentum above 0;
optimizer:
  choice:
    adamw: {}
    sgd: {momentum: 0, lr: {float: [0.1, 1.0]}}
  => 6:12: space.optimizer.sgd: nesterov needs momentum above 0;
augment: 3
  => 3:12: space.augment: 3 is not a mapping; write keys such as crop:
augment:
  => 3:3: space.augment: the value is missing; write keys such as crop:
augment: {flip: on}
  => 3:19: space.augment.flip: 'on' is read as true by YAML; write true, or quote it: 'on'
augment: {flip: No}
  => 3:19: space.augment.flip: 'No' is read as false by YAML; write false, or quote it: 'No'
augment: {flip: y}
  => 3:19: space.augment.flip: 'y' is not true or false
augment: {flip: 1}
  => 3:19: space.augment.flip: 1 is not true or false
augment: {flip: {int: [0, 1]}}
  => 3:20: space.augment.flip.int: a range is not possible here; write {choice: [true, false]}
augment: {flip: {choice: [true, off]}}
  => 3:35: space.augment.flip: 'off' is read as false by YAML; write false, or quote it: 'off'
augment: {choice: [a, b]}
  => 3:13: space.augment.choice: unknown key; known are alternate
precision: {int: [1, 2]}
  => 3:15: space.precision.int: a range is not possible here; write {choice: [auto, float32]}
precision: float33
  => 3:14: space.precision: 'float33' is not one of auto
precision: 2024-01-01
  => 3:14: space.precision: '2024-01-01' is read as a date by YAML; quote it
batch_size: 1:30
  => 3:15: space.batch_size: '1:30' is read in base 60 by YAML; write a plain number, or quote it
batch_size: 010
  => 3:15: space.batch_size: '010' is not read as a decimal number by YAML; write it plainly
batch_size: 0x10
  => 3:15: space.batch_size: '0x10' is not read as a decimal number by YAML; write it plainly
label_smoothing: 1:30.5
  => 3:20: space.label_smoothing: '1:30.5' is read in base 60 by YAML;
on: 3
  => 3:3: space: the key 'on' is read as a truth value; quote it
3: 3
  => 3:3: space: a key is not a word; write 'name: value'
? [a]
: 3
  => 3:5: space: a key is not a word; write 'name: value'
batch_size: !!python/object:os.system 3
  => 3:15: space.batch_size: the tag !!python/object:os.system is not allowed; write plain values
batch_size: !!python/object/apply:os.system [ls]
  => 3:15: space.batch_size: the tag !!python/object/apply:os.system is not allowed;
batch_size: !!str {a: 3}
  => 3:15: space.batch_size: the tag !!str is not allowed; write plain values
batch_size: !foo 3
  => 3:15: space.batch_size: the tag !foo is not allowed; write plain values
batch_size: !!int x
  => 3:15: space.batch_size: 'x' is not read as a decimal number by YAML; write it plainly
label_smoothing: {float: [0.0, 0.5], step: 1.0e-12}
  => 3:46: space.label_smoothing.step: 1.0e-12 makes more than 1000000000 steps;
"""


def mistakes(table: str) -> list[Any]:
    """Take a table apart: lines of YAML, and after an arrow the beginning of the message."""
    return re.findall(r"((?:^(?!  => ).*\n)+)  => (.*)\n", table, re.MULTILINE)


@pytest.mark.parametrize(("lines", "message"), mistakes(ABOVE_A_SPACE))
def test_a_mistake_above_the_space_is_refused_with_its_place(lines: str, message: str) -> None:
    assert refusal(lines + HEAD).startswith(f"s.yaml:{message}")


@pytest.mark.parametrize(("lines", "message"), mistakes(INSIDE_A_SPACE))
def test_a_mistake_inside_the_space_is_refused_with_its_place(lines: str, message: str) -> None:
    assert refusal(HEAD + textwrap.indent(lines, "  ")).startswith(f"s.yaml:{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "1:1: the top level is not a mapping; begin with keys such as 'space:'"),
        ("hello\n", "1:1: the top level is not a mapping; begin with keys such as 'space:'"),
        ("description: small\n", "1:1: 'space' is missing; add it, with a 'model:' below it"),
        ("spce: {model: cnn}\n", "1:1: spce: unknown key; did you mean 'space'?"),
        ("space:\n", "1:1: space: the value is missing; write keys such as model:"),
        ("space: 3\n", "1:8: space: 3 is not a mapping; write keys such as model:"),
        ("space: {batch_size: 3}\n", "1:8: space: 'model' is missing; add it"),
        (
            "space: {model: {cnn: {kernel: 4}}}\n",
            "1:31: space.model.cnn.kernel: 4 is not one of 3, 5, 7",
        ),
        (
            "space: {model: {cnn: {kernel: {int: [3, 7]}}}}\n",
            "1:32: space.model.cnn.kernel.int: a range is not possible here; "
            "write {choice: [3, 5]}",
        ),
        (
            "a: &a {b: 1}\nspace:\n  <<: *a\n",
            "3:3: space: '<<' is not supported; use extends, or write it out",
        ),
        (
            "description: &a [*a]\n",
            "1:14: description: the alias contains itself; write the values out",
        ),
        (
            "a: &a [" + "x, " * 200 + "]\nb: [" + "*a, " * 200 + "]\n",
            "1:452: b: more than 10000 values; use fewer aliases",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused_with_its_place(text: str, message: str) -> None:
    assert refusal(text) == f"s.yaml:{message}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("space: {model: [cnn}\n", ":1:20"),
        ("space:\n  model: cnn\n batch_size: 3\n", ":3:2"),
        ("space:\n\tmodel: cnn\n", ":2:1"),
        ("a: 'x\n", ":2:1"),
        ("a: *x\n", ":1:4"),
        ("a: b\nc: \x07\n", ":2:4"),
        ("a: 1\n---\nb: 2\n", ":2:1"),
        ("[" * 3000, ""),
    ],
)
def test_what_is_not_yaml_is_refused_in_one_line(text: str, place: str) -> None:
    message = refusal(text)
    assert message.startswith(f"s.yaml{place}: not YAML: ")
    assert message.endswith("; check brackets, colons, quotes and indentation")
    assert "\n" not in message


def test_every_mistake_is_told_in_one_pass_in_the_order_of_the_lines() -> None:
    text = """\
serach: {trials: 3}
search: {epochs: 0, sampler: tpee}
constraints: {max_params: 1}
baseline:
  - {model: {cnn: {stages: 9}}}
  - {model: {resnett: {depth: 18}}}
space:
  batch_size: {choice: [128, 128, many]}
  model:
    choice:
      cnn: {stages: {int: [4, 2]}, widht: 3, dropout: 1e-3}
      vgg: {}
  optimizer: {choice: {sgd: {lr: {float: [-1, 9000]}}, adam: {}}}
  label_smoothing: yes
  seed: 3
"""
    with pytest.raises(SpaceError) as caught:
        load(text, "space.epochs=-1", "spade")
    places = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert places == ["s.yaml:14:20"], "what is not read is told alone"
    with pytest.raises(SpaceError) as caught:
        load(text.replace("yes", "2.0"), "space.ema_decay=7")
    lines = str(caught.value).splitlines()
    places = [tuple(line.split(": ")[:2]) for line in lines]
    assert places == [
        ("s.yaml:1:1", "serach"),
        ("s.yaml:2:18", "search.epochs"),
        ("s.yaml:2:30", "search.sampler"),
        ("s.yaml:3:15", "constraints.max_params"),
        ("s.yaml:5:28", "baseline[0].model.cnn.stages"),
        ("s.yaml:6:14", "baseline[1].model.resnett"),
        ("s.yaml:8:30", "space.batch_size"),
        ("s.yaml:8:35", "space.batch_size"),
        ("s.yaml:11:27", "space.model.cnn.stages"),
        ("s.yaml:11:36", "space.model.cnn.widht"),
        ("s.yaml:11:55", "space.model.cnn.dropout"),
        ("s.yaml:12:7", "space.model.vgg"),
        ("s.yaml:13:43", "space.optimizer.sgd.lr"),
        ("s.yaml:13:56", "space.optimizer.adam"),
        ("s.yaml:14:20", "space.label_smoothing"),
        ("s.yaml:15:3", "space.seed"),
        ("space.ema_decay=7", "7 is out of range; it must be at least 0 and below 1"),
    ]


def test_no_more_mistakes_are_told_than_can_be_read() -> None:
    choices = ", ".join(f"b{number}" for number in range(50))
    with pytest.raises(SpaceError) as caught:
        load(f"space: {{model: cnn, batch_size: {{choice: [{choices}]}}}}\n")
    assert len(lines := str(caught.value).splitlines()) == 21
    assert lines[-1] == "and 30 more mistakes"


def test_a_file_that_cannot_be_read_is_refused() -> None:
    Path("folder.yaml").mkdir()
    Path("latin.yaml").write_bytes(b"description: caf\xe9\n")
    Path("empty.yaml").write_text("# only a comment\n")
    for name, problem in {
        "absent.yaml": "there is no such file; check its name",
        "folder.yaml": "is a folder; name a YAML file in it",
        "latin.yaml": "is not UTF-8 text; save it as UTF-8",
        "empty.yaml": "is empty; write at least a 'space:' with a 'model:'",
    }.items():
        with pytest.raises(SpaceError) as caught:
            load_space(Path(name))
        assert str(caught.value) == f"{name}: {problem}"
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("entry", "line", "problem"),
    [
        (
            "batch_size: 256",
            "batch_size: {int: [16, 128]}",
            "2:17: baseline[0].batch_size: 256 is outside the space's axis (int 16 to 128); "
            "widen the axis or change the baseline",
        ),
        (
            "batch_size: 17",
            "batch_size: {int: [16, 128], step: 2}",
            "2:17: baseline[0].batch_size: 17 is outside the space's axis "
            "(int 16 to 128, step 2); widen the axis or change the baseline",
        ),
        (
            "batch_size: 17",
            "batch_size: {choice: [16, 128]}",
            "2:17: baseline[0].batch_size: 17 is outside the space's axis (one of 16, 128); "
            "widen the axis or change the baseline",
        ),
        (
            "batch_size: 17",
            "batch_size: 16",
            "2:17: baseline[0].batch_size: 17 differs from 16, which the space fixes; "
            "make it a choice there or change the baseline",
        ),
        (
            "optimizer: adamw",
            "optimizer: {choice: [sgd]}",
            "2:16: baseline[0].optimizer: 'adamw' is not among the space's sgd; "
            "add it there or change the baseline",
        ),
        (
            "optimizer: {sgd: {momentum: 0}}",
            "optimizer: {sgd: {lr: 0.1}}",
            "2:5: baseline[0]: optimizer.sgd: nesterov needs momentum above 0; "
            "raise momentum or write nesterov: false",
        ),
    ],
)
def test_a_baseline_that_the_space_lacks_is_refused(entry: str, line: str, problem: str) -> None:
    assert refusal(f"baseline:\n  - {entry}\n{HEAD}  {line}\n") == f"s.yaml:{problem}"


def test_a_combination_that_is_valid_for_some_draws_is_left_to_the_draw() -> None:
    space = load(HEAD + "  optimizer: {sgd: {momentum: {choice: [0.0, 0.9]}}}\n")
    assert sample(space, **{"optimizer.sgd.momentum": 0.9})
    with pytest.raises(UsageError, match="nesterov needs momentum"):
        sample(space, **{"optimizer.sgd.momentum": 0.0})


def test_a_space_is_found_by_its_file_or_its_name() -> None:
    assert find_space("s.yaml") == Path("s.yaml")
    assert find_space("some/s") == Path("some/s")
    assert find_space(SHIPPED[0].stem) == SHIPPED[0]
    with pytest.raises(SpaceError, match=f"did you mean '{SHIPPED[0].stem}'"):
        find_space(SHIPPED[0].stem + "_")
    Path(SHIPPED[0].stem).write_text(HEAD)
    assert find_space(SHIPPED[0].stem) == Path(SHIPPED[0].stem)


def test_the_json_schema_is_a_schema_of_the_shipped_spaces() -> None:
    EDITOR.check_schema(json.loads(json.dumps(json_schema())))
    for text in (EXAMPLE, *(path.read_text() for path in SHIPPED)):
        EDITOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "space",
    [
        "{batch_sise: 3}",
        "{batch_size: 0}",
        "{batch_size: {int: [1]}}",
        "{batch_size: {float: [1, 2]}}",
        "{batch_size: {int: [1, 2], lgo: true}}",
        "{precision: float33}",
        "{optimizer: {sgd: {momentun: 0.9}}}",
        "{optimizer: {sgd: {}, adamw: {}}}",
        "{optimizer: {choice: {}}}",
        "{seed: 3}",
    ],
)
def test_the_json_schema_refuses_mistakes(space: str) -> None:
    assert EDITOR.is_valid({"space": {}})
    assert not EDITOR.is_valid({"space": yaml.safe_load(space)})


@pytest.mark.parametrize(("low", "high"), [(2, 4), (1, 3), (1, 20), (16, 64), (5, 5)])
def test_random_whole_numbers_on_a_log_axis_follow_optunas_law(low: int, high: int) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draws = 3000
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    theirs = [study.ask().suggest_int("x", low, high, log=True) for _ in range(draws)]
    trial = RandomTrial(0)
    ours = [trial.suggest_int("x", low, high, log=True) for _ in range(draws)]
    assert set(ours) <= set(range(low, high + 1))
    for number in range(low, high + 1):
        share = math.log((number + 0.5) / (number - 0.5)) / math.log((high + 0.5) / (low - 0.5))
        # Four standard errors.
        tolerance = 4 * math.sqrt(share * (1 - share) / draws)
        assert ours.count(number) / draws == pytest.approx(share, abs=tolerance)
        assert theirs.count(number) / draws == pytest.approx(share, abs=tolerance)


def test_characters_beyond_16_bits_are_read_as_json_spells_them() -> None:
    place = "fotos\N{CAMERA}\N{GRINNING FACE}"
    space = load("dataset: cifar10\n" + HEAD, "dataset=" + json.dumps(place))
    assert space.dataset == place
    assert load(space.resolved()).dataset == place


def test_a_small_number_is_said_so_that_yaml_reads_it() -> None:
    space = load(HEAD, word_of("search.patience", 1e-5))
    assert space.search.patience == 1e-5


def test_what_overrides_say_stands_also_within_mappings() -> None:
    said = said_of(["search.epochs=9", "search = {epochs: 3, sampler: gp}", "dataset=digits"])
    assert (said["search.epochs"], said["search.sampler"], said["dataset"]) == (3, "gp", "digits")
    assert "search.trials" not in said


@pytest.mark.parametrize(
    "entry", ["{optimizer: [{sgd: {}}]}", "{optimizer: {sgd: {lr: 1e-3}}}", "{batch_size: [1]}"]
)
def test_an_override_hides_no_mistake_of_a_baseline(entry: str) -> None:
    axes = "  optimizer: {sgd: {lr: {float: [0.01, 1.0]}}}\n  batch_size: {choice: [32, 64]}\n"
    text = f"baseline:\n  - {entry}\n" + HEAD + axes
    with pytest.raises(SpaceError):
        load(text)
    with pytest.raises(SpaceError):
        load(text, "space.label_smoothing=0.1")


def test_a_range_can_be_widened_up_to_what_its_parameter_can_have() -> None:
    cnn = "dropout: {float: [0.0, 0.3]}, width: {int: [16, 64]}"
    axes = load(f"dataset: digits\nspace: {{model: {{cnn: {{{cnn}}}}}}}\n").axes
    dropout, width = (axis for axis in parameters(axes) if isinstance(axis, Range))
    assert [dropout.can_widen(upwards=up) for up in (False, True)] == [False, True]
    assert [width.can_widen(upwards=up) for up in (False, True)] == [True, True]


@pytest.mark.parametrize(("low", "is_lower_possible"), [(1, False), (2, True)])
def test_a_logarithmic_range_of_whole_numbers_begins_at_1(
    low: int, is_lower_possible: bool
) -> None:
    text = f"space: {{model: cnn, augment: {{cutout: {{int: [{low}, 16], log: true}}}}}}\n"
    (cutout,) = parameters(load(text).axes)
    assert isinstance(cutout, Range)
    assert cutout.can_widen(upwards=False) == is_lower_possible
