import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import (
    OPTIMIZERS,
    SCHEDULES,
    AdamW,
    Augment,
    Cosine,
    DataConfig,
    ModelConfig,
    OneCycle,
    SearchConfig,
    Sgd,
    TrialConfig,
)
from tuner.errors import UsageError
from tuner.schema import (
    AnyOf,
    Anything,
    Bounds,
    ListOf,
    MappingOf,
    Maybe,
    OneOf,
    Opaque,
    Record,
    Scalar,
    Schema,
    Tagged,
    build,
    did_you_mean,
    from_json,
    join,
    parse,
    plural,
    schema_of,
    to_json,
    to_plain,
    unknown_key,
    whole_number,
)

CONFIGS = [SearchConfig, DataConfig, Sgd, AdamW, Cosine, OneCycle, Augment]
ROUGH = {"model": "cnn", "epochs": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A record in a record."""

    size: Annotated[int, Bounds(ge=1, lt=9)] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """One field of every kind."""

    name: str
    share: Annotated[float, Bounds(gt=0, le=1)] = 0.5
    kernel: Literal[3, 5] = 3
    norm: Literal["batch", "group"] = "batch"
    flip: bool = False
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    shape: tuple[int, int] = (1, 2)
    inners: list[Inner] = field(default_factory=list)
    optimizers: tuple[Annotated[Sgd | AdamW, OneOf(options=OPTIMIZERS)], ...] = ()
    by_name: dict[str, Inner | None] = field(default_factory=dict)
    size: int | float = 1
    kind: str = field(default="", metadata={"key": "class"})
    hardware: dict[str, Any] = field(default_factory=dict)
    model: Annotated[ModelConfig, Opaque] | None = None

    def __post_init__(self) -> None:
        if self.flip and self.kernel == 5:
            raise ValueError("flip needs kernel 3; lower kernel")


def plain_values(schema: Schema) -> st.SearchStrategy[Any]:
    """Return plain values that ``schema`` allows."""
    match schema:
        case Scalar(choices=words) if words:
            return st.sampled_from(words)
        case Scalar(kind=kind, bounds=bounds):
            # Drawn between the ends, which filter() below would hardly meet.
            low = max((end for end in (bounds.ge, bounds.gt) if end is not None), default=-1e6)
            high = min((end for end in (bounds.le, bounds.lt) if end is not None), default=1e6)
            number = st.floats(low, high)
            number = number.map(round) if kind is int else number | number.map(round)
            return {bool: st.booleans(), str: st.text()}.get(kind, number.filter(bounds.admits))
        case Record():
            fields = {key: plain_values(value) for key, value in schema.fields.items()}
            required = {key: fields.pop(key) for key in schema.required}
            return st.fixed_dictionaries(required, optional=fields)
        case Tagged():
            tagged = [
                plain_values(record).map(lambda params, tag=tag: {tag: params})
                for tag, record in schema.options.items()
            ]
            return st.one_of(st.sampled_from(list(schema.options)), *tagged)
        case Opaque():
            return st.just({"cnn": {"width": 16}}) | st.just("resnet")
        case ListOf(item=item, length=length):
            few = {"min_size": length or 0, "max_size": length or 3}
            return st.lists(plain_values(item), **few)
        case MappingOf(value=value):
            return st.dictionaries(st.text(), plain_values(value), max_size=3)
        case Maybe(schema=inner):
            return st.none() | plain_values(inner)
        case AnyOf(options=options):
            return st.one_of(*map(plain_values, options))
        case Anything():
            scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text()
            return st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
    raise TypeError(schema)


@pytest.mark.parametrize("cls", [*CONFIGS, TrialConfig, Outer])
@given(data=st.data())
def test_a_dataclass_is_rebuilt_from_its_plain_values(cls: type, data: st.DataObject) -> None:
    plain = data.draw(plain_values(schema_of(cls)))
    try:
        built = build(cls, plain)
    except UsageError as error:
        if "nesterov needs" in str(error) or "flip needs" in str(error):
            return
        raise
    assert build(cls, to_plain(built)) == built
    assert from_json(cls, to_json(built)) == built


def test_a_config_is_written_as_plain_values() -> None:
    config = TrialConfig(
        model=ModelConfig("cnn", {"width": 16}), epochs=3, optimizer=AdamW(lr=0.002)
    )
    plain = config.to_dict()
    assert plain["model"] == {"cnn": {"width": 16}}
    assert plain["optimizer"]["adamw"]["lr"] == 0.002
    assert plain["schedule"] == {"cosine": {"warmup": 0.05}}
    assert plain["augment"]["flip"] is False
    assert TrialConfig.from_dict(plain) == config


def test_what_is_left_out_or_none_has_its_default() -> None:
    config = TrialConfig.from_dict(ROUGH | {"batch_size": None, "optimizer": {"sgd": None}})
    assert config == TrialConfig(model=ModelConfig("cnn"), epochs=3)
    assert build(DataConfig, {"image_size": None}).image_size is None


def test_a_name_alone_stands_for_its_defaults() -> None:
    config = TrialConfig.from_dict(ROUGH | {"optimizer": "adamw", "schedule": {"one_cycle": {}}})
    assert (config.optimizer, config.schedule) == (AdamW(), OneCycle())


def test_whole_numbers_become_floats_where_floats_stand() -> None:
    assert type(build(Sgd, {"lr": 1}).lr) is float


def test_every_option_is_reached_by_its_name() -> None:
    for key, options in {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}.items():
        schema = schema_of(TrialConfig).fields[key]
        assert isinstance(schema, Tagged)
        assert {name: record.cls for name, record in schema.options.items()} == options


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"epochs": 3}, "model: is missing"),
        (ROUGH | {"batch_sise": 3}, "batch_sise: unknown key; did you mean 'batch_size'?"),
        (ROUGH | {"batch_size": 0}, "batch_size: 0 is out of range; it must be at least 1"),
        (ROUGH | {"batch_size": 8.0}, "batch_size: 8.0 is not a whole number; write 8"),
        (ROUGH | {"batch_size": True}, "batch_size: true is not a whole number"),
        (ROUGH | {"batch_size": "8"}, "batch_size: '8' is not a whole number"),
        (ROUGH | {"epochs": 10**400}, f"epochs: 1{199 * '0'}... is not a finite number"),
        (ROUGH | {"ema_decay": math.nan}, "ema_decay: nan is not a finite number"),
        (ROUGH | {"ema_decay": "x"}, "ema_decay: 'x' is not a number"),
        (ROUGH | {"optimizer": {"sgd": {"lr": math.inf}}}, "optimizer.sgd.lr: inf is not a finite"),
        (ROUGH | {"optimizer": {"sgd": {"lr": 0}}}, "optimizer.sgd.lr: 0 is out of range; it must"),
        (ROUGH | {"optimizer": {"sgd": 3}}, "optimizer.sgd: 3 is not a mapping"),
        (ROUGH | {"optimizer": "sdg"}, "optimizer: unknown key; did you mean 'sgd'?"),
        (ROUGH | {"optimizer": 3}, "optimizer: 3 is not one name with its parameters, as in"),
        (ROUGH | {"optimizer": {"sgd": {}, "adamw": {}}}, "optimizer: {'sgd': {}, 'adamw': {}} is"),
        (ROUGH | {"optimizer": {"sgd": {"momentum": 0}}}, "optimizer.sgd: nesterov needs momentum"),
        (ROUGH | {"augment": {"flip": 1}}, "augment.flip: 1 is not true or false"),
        (ROUGH | {"precision": "float33"}, "precision: 'float33' is not one of auto, float32,"),
        (ROUGH | {"model": 3}, "model: 3 is not one name with its parameters"),
        ("cnn", "'cnn' is not a mapping"),
    ],
)
def test_a_mistake_is_refused_with_its_path(plain: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrialConfig.from_dict(plain)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"name": 3}, "name: 3 is not text; quote it"),
        ({"kernel": 4}, "kernel: 4 is not one of 3, 5"),
        ({"kernel": 3.0}, "kernel: 3.0 is not one of 3, 5"),
        ({"norm": "grup"}, "norm: 'grup' is not one of batch, group; did you mean 'group'?"),
        ({"norm": [1]}, "norm: [1] is not one of batch, group"),
        ({"share": 1.5}, "share: 1.5 is out of range; it must be above 0 and at most 1"),
        (
            {"inner": {"size": 9}},
            "inner.size: 9 is out of range; it must be at least 1 and below 9",
        ),
        ({"flip": True, "kernel": 5}, "top: flip needs kernel 3; lower kernel"),
        ({"shape": 3}, "shape: 3 is not a list"),
        ({"shape": [1]}, "shape: has 1 entries; it must have 2"),
        ({"shape": [1, "x"]}, "shape[1]: 'x' is not a whole number"),
        (
            {"inners": [{}, {"size": 0}]},
            "inners[1].size: 0 is out of range; it must be at least 1 and below 9",
        ),
        (
            {"optimizers": [{"sgd": {"lr": 0}}]},
            "optimizers[0].sgd.lr: 0 is out of range; it must be above 0",
        ),
        ({"by_name": []}, "by_name: [] is not a mapping"),
        ({"by_name": {"a": 1}}, "by_name.a: 1 is not a mapping"),
        ({"size": "x"}, "size: 'x' is not a number"),
        (
            {"kind": "x"},
            "kind: unknown key; known are by_name, class, flip, hardware, inner, "
            "inners, kernel, limit, model, name, norm, optimizers, shape, share, size",
        ),
        ({"hardware": {"a": [math.inf]}}, "hardware.a[0]: inf is not a finite number"),
        ({"hardware": {"a": {"b": {1, 2}}}}, "hardware.a.b: {1, 2} is not a plain value"),
        ({"model": {"cnn": 3}}, "model.cnn: 3 is not a mapping"),
        ({"name": "\ud800"}, "name: '\\ud800' holds half of a character"),
        ({"limit": 2**63}, f"limit: {2**63} is out of range; it must fit 64 bits"),
    ],
)
def test_every_kind_of_field_says_what_it_needs(plain: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Outer, {"name": "x", **plain}, "top")
    assert str(caught.value).removeprefix("top.") == message


@pytest.mark.parametrize("annotation", [set[int], dict[int, str], tuple[int, str], bytes])
def test_an_annotation_that_plain_values_cannot_hold_is_our_mistake(annotation: Any) -> None:
    cls = dataclass(type("Odd", (), {"__annotations__": {"odd": annotation}}))
    with pytest.raises(TypeError, match="no schema"):
        schema_of(cls)


@given(
    value=st.floats(allow_nan=False) | st.integers(),
    low=st.none() | st.integers(-9, 9),
    high=st.none() | st.integers(-9, 9),
)
def test_bounds_admit_what_lies_between_them(
    value: float, low: int | None, high: int | None
) -> None:
    above = low is None or value >= low
    below = high is None or value <= high
    assert Bounds(ge=low, le=high).admits(value) == (above and below)
    strictly = (low is None or value > low) and (high is None or value < high)
    assert Bounds(gt=low, lt=high).admits(value) == strictly


def test_bounds_never_admit_nan() -> None:
    assert not Bounds().admits(math.nan)


def test_an_unknown_key_is_answered_with_the_nearest_or_with_all() -> None:
    assert unknown_key("epoch", ["seed", "epochs"]) == "unknown key; did you mean 'epochs'?"
    assert unknown_key("zzz", ["seed", "epochs"]) == "unknown key; known are epochs, seed"
    assert did_you_mean("zzz", ["seed"]) == ""


def test_a_path_grows_by_dots() -> None:
    assert join(join("", "optimizer"), "sgd") == "optimizer.sgd"


def test_a_whole_number_is_written_in_digits_alone() -> None:
    texts = {"7": 7, "007": 7, "9" * 4300: 10**4300 - 1, "9" * 4301: None}
    texts |= dict.fromkeys(("", "-1", "1.0", "1_0", " 1", "\u00b2", "\u0663"))
    assert {text: whole_number(text) for text in texts} == texts


def test_opaque_parameters_are_any_plain_values() -> None:
    assert parse(Opaque(cls=ModelConfig), "cnn") == ModelConfig("cnn", {})
    assert parse(Opaque(cls=ModelConfig), {"x": {"y": [1]}}) == ModelConfig("x", {"y": [1]})


def nested(levels: int, *, of: str = "[]") -> str:
    return of[0] * levels + of[1] * levels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value"),
        ('{"name": "x"', "not JSON: Expecting"),
        (nested(200_000), "brackets are nested too deep"),
        (f'{{"name": {nested(900)}}}', "name: .* is not text"),
        (f'{{"name": "x", "hardware": {{"a": {nested(30)}}}}}', "is nested deeper than 20 levels"),
        ('{"name": "x", "name": "y"}', "not JSON: the key 'name' appears twice"),
        ('{"name": "x", "share": NaN}', "share: nan is not a finite number"),
        ('{"name": "x", "share": 1e400}', "share: inf is not a finite number"),
        (f'{{"name": "x", "limit": {"9" * 5000}}}', "not JSON: Exceeds the limit"),
        (f'{{"name": {"9" * 4000}}}', "name: 9{200}... is not text"),
        (f'{{"name": "x", "{"k" * 999}": 1}}', "^k{200}: unknown key"),
    ],
)
def test_json_that_is_no_record_is_told_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        from_json(Outer, text)
    assert len(str(caught.value)) < 600


def test_unknown_keys_are_passed_by_where_later_versions_may_tell_more() -> None:
    plain = {"name": "x", "colour": 3, "inner": {"size": 2, "colour": 3}}
    assert build(Outer, plain, is_strict=False) == Outer(name="x", inner=Inner(size=2))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 images"),
        (1, "1 image"),
        (1_234_567, "1,234,567 images"),
        (1.0, "1 image"),
        (0.5, "0.5 images"),
        (1 / 3, "0.333333 images"),
    ],
)
def test_a_noun_is_in_the_plural_but_for_one(number: float, text: str) -> None:
    assert plural(number, "image") == text


def test_losses_may_be_infinite_where_the_annotation_says_so() -> None:
    loss = Scalar(kind=float, bounds=Bounds(is_finite=False))
    assert parse(loss, math.inf) == math.inf
    assert math.isnan(parse(loss, math.nan))
    with pytest.raises(UsageError, match="is not a number"):
        parse(loss, "nan")
