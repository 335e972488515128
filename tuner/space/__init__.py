"""Search spaces: a YAML file defines what may vary, and each trial is sampled from it.

``source`` reads the text into nodes that know their place. ``plugin`` adds the user's own networks,
and ``transfer`` the starting points of pretrained ones. ``grammar`` checks the nodes against the
schema and makes ``axes`` of them. ``baseline`` reads the configurations to try first,
``objectives`` the objectives of the search, and ``editor`` prints the grammar as a JSON schema.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuner.config import (
    DATA_SETTINGS,
    Constraints,
    DataConfig,
    LargeShareConfig,
    ModelConfig,
    Resources,
    SearchConfig,
    ShareConfig,
    TrialConfig,
)
from tuner.errors import UsageError
from tuner.models.families import FAMILIES, params_of
from tuner.schema import (
    Record,
    Scalar,
    Tagged,
    build,
    parse,
    schema_of,
    to_plain,
    unknown_key,
)
from tuner.space.axes import Branch, Choice, Group, Plain, RandomTrial, Range, Trial, parameters
from tuner.space.baseline import Baseline, read_baseline, without_misfits
from tuner.space.editor import describe, mapping
from tuner.space.grammar import check_possible, read_record
from tuner.space.objectives import Objectives, describe_objectives, read_objectives
from tuner.space.plugin import with_sources
from tuner.space.source import check_no_files, find_space, load, said_of, with_short_dataset
from tuner.space.transfer import with_origins
from tuner.space.tree import Mistakes, Node, dump
from tuner.storage.paths import AnyPath, on_disk
from tuner.storage.records import explaining_damage

__all__ = [
    "RandomTrial",
    "SearchSpace",
    "Trial",
    "find_space",
    "json_schema",
    "load_run_space",
    "load_space",
]

MODELS = {name: schema_of(params) for name, params in FAMILIES.items()}
ORIGIN = ("name", "weights", "run", "trial", "source", "sha256")
"""Parameters of a ``pretrained`` model that name its starting point."""
CODE = ("path", "source")
"""Parameters of a ``custom`` model that hold its code."""
RUN_KEYS = {
    "seed": "belongs to the whole run; write it under search:, as in search: {seed: 0}",
}
"""Keys of a trial that a space cannot set, with what to do instead."""
TRIAL = Record(
    cls=dict,
    fields={
        key: Tagged(options=MODELS) if key == "model" else schema
        for key, schema in schema_of(TrialConfig).fields.items()
        if key not in RUN_KEYS
    },
    required=frozenset({"model"}),
)
"""What ``space:`` may contain; a dict, because without the run's keys it is not a config."""
SEARCH = Record(
    cls=SearchConfig,
    fields={key: field for key, field in schema_of(SearchConfig).fields.items() if key != "costs"},
    required=frozenset(),
    names=schema_of(SearchConfig).names,
)
"""What ``search:`` may contain; costs are in ``objectives``."""
BLOCKS = {"search": SEARCH, "space": TRIAL}
RESOURCES = Record(
    cls=Resources,
    fields={
        **schema_of(ShareConfig).fields,
        "by": Record(
            cls=dict,
            fields=dict.fromkeys(FAMILIES, schema_of(ShareConfig)),
            required=frozenset(),
        ),
        "large": schema_of(LargeShareConfig),
    },
    required=frozenset(),
)
"""Defined here, because ``tuner.config`` does not know the families."""
TEXT = Scalar(kind=str)
DATASET = Record(
    cls=dict,
    fields={key: schema_of(DataConfig).fields[key] for key in ("source", *DATA_SETTINGS)},
    required=frozenset(),
)
"""``dataset: NAME`` is short for a mapping with that source."""
FILE = Record(
    cls=dict,
    fields={
        "description": TEXT,
        "extends": TEXT,
        "dataset": DATASET,
        "constraints": schema_of(Constraints),
        "resources": RESOURCES,
        **BLOCKS,
    },
    required=frozenset(),
)
"""The top level of a file, except ``objectives`` and ``baseline``, which are lists."""
TOP_LEVEL = (*FILE.fields, "objectives", "baseline")
MOST_MISTAKES = 20
"""Maximum number of mistakes of a space that are reported at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """The axes of a search, how they are searched, and what is tried first."""

    description: str
    dataset: str | None
    """As ``DataConfig.source``; ``None`` leaves it to the command line."""
    data: Mapping[str, Any]
    """Other values of ``DataConfig`` that the space sets."""
    search: SearchConfig
    constraints: Constraints
    resources: Resources
    baseline: tuple[Baseline, ...]
    axes: Group
    text: str
    """The resolved space, in YAML."""
    own_code: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Text of the user's own file -> its name, if it was read for this space."""

    def sample(
        self, trial: Trial, *, epochs: int, seed: int, baseline: int | None = None
    ) -> TrialConfig:
        """Draw one configuration.

        Args:
            trial: Suggests each parameter by its dotted path, such as ``optimizer.sgd.lr``; the
                name of a branch is a parameter too, such as ``optimizer``.
            epochs: As in ``TrialConfig``; the maximum, if the space has epochs of its own.
            seed: As in ``TrialConfig``.
            baseline: The index of a baseline, which adds the values of keys that the space leaves
                out. ``trial`` must return ``baseline_params(baseline)``.

        Raises:
            UsageError: If the values drawn do not go together.
        """
        plain = self.axes.sample(trial)
        if baseline is not None:
            plain = self.baseline[baseline].complete(plain)
        if len(plain["model"]) > 1:
            # A baseline of another network than the trial's.
            raise UsageError(f"model: {' and '.join(plain['model'])} do not go together")
        ((family, params),) = plain["model"].items()
        complete = to_plain(build(FAMILIES[family], params, f"model.{family}"))
        if plain.get("epochs", 0) > epochs:
            raise UsageError(
                f"epochs: {plain['epochs']} is more than the search allows; write "
                f"search: {{epochs: {plain['epochs']}}}"
            )
        run = {"epochs": epochs} | plain | {"seed": seed}
        return TrialConfig.from_dict(run | {"model": {family: complete}})

    def baseline_params(self, index: int) -> dict[str, Plain]:
        """Return the parameters that a baseline pins, by name, for enqueueing in a study."""
        return dict(self.baseline[index].params)

    def resolved(self) -> str:
        """Return the space in YAML, with its bases merged and its overrides applied."""
        return self.text

    def rows(self) -> list[tuple[str, str]]:
        """Return each parameter's name and a description of its axis."""
        return [(axis.name, axis.text) for axis in parameters(self.axes)]

    def has_key(self, *keys: str) -> bool:
        """Whether the space or one of its baselines sets ``space.KEY.KEY...``."""
        axis: object = self.axes
        rests: list[Any] = [baseline.rest for baseline in self.baseline]
        for key in keys:
            axis = axis.entries.get(key) if isinstance(axis, Group) else None
            rests = [rest.get(key) for rest in rests if isinstance(rest, Mapping)]
        return axis is not None or any(rest is not None for rest in rests)

    def starting_models(self) -> list[ModelConfig]:
        """Return one model for each set of weights that ``pretrained`` models start from."""
        found = []
        for model in self._models("pretrained", ORIGIN):
            with contextlib.suppress(UsageError):
                params_of(model)
                found.append(model)
        return found

    def models_with_code(self) -> list[ModelConfig]:
        """Return the models that a user's own code may build, as the space describes them."""
        return [*self._models("custom", CODE), *self._models("pretrained", ORIGIN)]

    def _models(self, family: str, keys: Collection[str]) -> Iterator[ModelConfig]:
        """Yield a model for each combination of values of these parameters of a family."""
        models = self.axes.entries["model"]
        assert isinstance(models, Branch)
        group = models.options.get(family, Group(entries={}))
        axes = Group(entries={key: axis for key, axis in group.entries.items() if key in keys})
        # A baseline may set what the space leaves out.
        rests = [{}] + [b.rest.get("model", {}).get(family, {}) for b in self.baseline]
        for index, rest in itertools.product(range(int(axes.size())), rests):
            params = axes.sample(RandomTrial(params=axes.pick(index))) | rest
            yield ModelConfig(family, {k: v for k, v in params.items() if k in keys})

    def cardinality(self) -> int | None:
        """Count the configurations; ``None`` if an axis is continuous."""
        size = self.axes.size()
        return None if math.isinf(size) else int(size)


def load_space(
    path: Path,
    overrides: Sequence[str] = (),
    storage: AnyPath = Path("runs"),
    *,
    text: str | None = None,
    is_recorded: bool = False,
) -> SearchSpace:
    """Read a space from a YAML file, or from its text.

    Args:
        path: The file.
        overrides: ``KEY=VALUE`` each; see ``tuner.space.source.load``.
        storage: Folder of the runs that ``pretrained`` models start from.
        text: Read instead of the file; ``path`` then names it in messages, and paths in it are
            relative to where that file would be.
        is_recorded: Whether it is the space of a run: in those of earlier versions, searched epochs
            may be above the maximum.

    Raises:
        SpaceError: With every mistake, one a line, as
            ``file:line:column: path: what; how to mend``.
    """
    own_code: dict[str, str] = {}
    axes, plain, objectives = None, None, None
    baseline: list[Baseline] = []
    with Mistakes(MOST_MISTAKES) as mistakes:
        root = load(path, overrides, FILE, text)
        with mistakes.collected():
            root, own_code = with_sources(root, path)
        with mistakes.collected():
            root = with_origins(root, storage)
        assert isinstance(root.value, dict)
        nodes = root.value
        with mistakes.collected():
            plain = _read_head(root, mistakes)
        if "objectives" in nodes:
            with mistakes.collected():
                objectives = read_objectives(nodes["objectives"])
        if plain is not None:
            with mistakes.collected():
                _check_search(root, plain.get("search", {}), objectives, mistakes)
        if "space" in nodes:
            with mistakes.collected():
                axes = read_record(_without_run_keys(nodes["space"], mistakes), TRIAL)
        elif nodes.keys() <= {*TOP_LEVEL}:
            # Otherwise, an unknown key may be this one, misspelt.
            mistakes.add(root.error("'space' is missing; add it, with a 'model:' below it"))
        entries = _entries(nodes["baseline"]) if "baseline" in nodes else ()
        if (
            plain is not None
            and plain.get("search", {}).get("scheduler", SearchConfig().scheduler) != "none"
        ):
            _check_epochs(mistakes, *entries, *([nodes["space"]] if "space" in nodes else []))
        if axes is not None:
            entries = _fitting(entries, axes, path, overrides)
            if entries:
                baseline_node = replace(nodes["baseline"], value=entries)
                root = root.with_value({**nodes, "baseline": baseline_node})
            elif "baseline" in nodes:
                root = root.with_value({k: v for k, v in nodes.items() if k != "baseline"})
        for node in entries:
            with mistakes.collected():
                entry = _without_run_keys(node, mistakes)
                if axes is None:
                    read_record(entry, TRIAL, searched=False)
                else:
                    baseline.append(read_baseline(entry, TRIAL, axes))
    assert plain is not None
    assert axes is not None
    search = build(SearchConfig, plain.get("search", {}), "search")
    if objectives is not None:
        search = replace(search, metric=objectives.metric, costs=objectives.costs)
    space = SearchSpace(
        description=plain.get("description", ""),
        dataset=plain.get("dataset", {}).get("source"),
        data={k: v for k, v in plain.get("dataset", {}).items() if k != "source"},
        search=search,
        constraints=build(Constraints, plain.get("constraints", {}), "constraints"),
        resources=parse(RESOURCES, plain.get("resources", {}), "resources"),
        baseline=tuple(baseline),
        axes=axes,
        text=dump(with_short_dataset(root)),
        own_code=own_code,
    )
    if not is_recorded:
        _check_highest_epochs(space, nodes["space"])
    _check_draws(space, nodes["space"], entries)
    return space


def _check_highest_epochs(space: SearchSpace, node: Node) -> None:
    """Make sure that the search allows every number of epochs of the space."""
    match space.axes.entries.get("epochs"):
        case Range(high=high):
            highest = int(high)
        case Choice(values=values):
            highest = max(map(int, values))
        case _:
            return
    if highest > space.search.epochs:
        what = f"{highest} is more than the search allows; write search: {{epochs: {highest}}}"
        raise node.key_error("epochs", f"{what} or lower it")


def _check_draws(space: SearchSpace, axes: Node, baseline: Sequence[Node]) -> None:
    """Make sure that configurations can be drawn from the space and from each baseline."""
    draw = functools.partial(space.sample, epochs=space.search.epochs, seed=0)
    with Mistakes() as mistakes:
        with mistakes.collected():
            check_possible(axes, draw, {})
        for index, node in enumerate(baseline):
            with mistakes.collected():
                if space.baseline[index] in space.baseline[:index]:
                    raise node.error("is the same as one before it; remove one")
                pinned = functools.partial(draw, baseline=index)
                check_possible(node, pinned, space.baseline_params(index))


def load_run_space(
    path: AnyPath, overrides: Sequence[str] = (), storage: AnyPath = Path("runs")
) -> SearchSpace:
    """Load the space of a run; its file may not name other files, but overrides may.

    Args:
        path: The run's ``space.yaml``.
        overrides: As in ``load_space``.
        storage: As in ``load_space``.

    Raises:
        SpaceError: As ``load_space``.
        TunerError: If the file is missing, or no file that a run writes.
    """
    with contextlib.ExitStack() as stack:
        with explaining_damage(path):
            file = stack.enter_context(on_disk(path))
            check_no_files(file)
        return load_space(file, overrides, storage, is_recorded=True)


def load_resources(path: Path) -> Resources:
    """Read the resources of trials from a run's own space, and nothing else.

    Raises:
        SpaceError: As ``load_space``.
    """
    check_no_files(path)
    root = load(path, (), FILE)
    assert isinstance(root.value, dict)
    if (node := root.value.get("resources")) is None:
        return Resources()
    alone = root.with_value({"resources": _with_large_numbers(node)})
    plain = read_record(alone, FILE, searched=False).sample(RandomTrial())
    resources: Resources = parse(RESOURCES, plain["resources"], "resources")
    return resources


def _entries(node: Node) -> tuple[Node, ...]:
    if not isinstance(node.value, tuple):
        raise node.error("is not a list; begin each entry with '- '")
    return node.value


def _fitting(
    entries: Sequence[Node],
    axes: Group,
    path: Path,
    overrides: Sequence[str],
) -> tuple[Node, ...]:
    """Return baselines without the values that no longer fit their space.

    A value that the space lacks is a mistake in the baseline, unless the space has changed since:
    it extends the baseline's file, or an override changes it.

    Args:
        entries: The baselines.
        axes: The axes of the space.
        path: The space's own file; in a text read instead of it, places have no lines.
        overrides: As in ``load_space``.
    """
    said = said_of(overrides)
    is_overridden = any(key.partition(".")[0] == "space" for key in said)
    found: list[Node] = []
    for node in entries:
        is_own = node.place == str(path) or node.place.startswith(f"{path}:")
        if "baseline" in said or (is_own and not is_overridden):
            found.append(node)
            continue
        fitting = without_misfits(node, axes)
        # Two may have differed only in the removed values.
        if fitting is not None and all(dump(fitting) != dump(one) for one in found):
            found.append(fitting)
    return tuple(found)


def _with_large_numbers(node: Node) -> Node:
    """Read text such as 5.0e6 as a number, where it can be nothing else.

    PyYAML reads it as text, because YAML 1.1 requires a sign in the exponent.
    """
    if isinstance(node.value, dict):
        return node.with_value({key: _with_large_numbers(v) for key, v in node.value.items()})
    if isinstance(node.value, str) and re.fullmatch(r"[0-9]+(\.[0-9]*)?e[0-9]{1,2}", node.value):
        return dataclasses.replace(node, value=float(node.value))
    return node


def _read_head(root: Node, mistakes: Mistakes) -> dict[str, Any]:
    """Read the top level except ``space``, ``objectives`` and ``baseline``."""
    assert isinstance(root.value, dict)
    head = {}
    for key, node in root.value.items():
        if key not in TOP_LEVEL:
            blocks = [name for name in ("space", "search") if key in BLOCKS[name].fields]
            elsewhere = f"belongs elsewhere; put it under {blocks[0]}:" if blocks else ""
            mistakes.add(root.key_error(key, elsewhere or unknown_key(key, TOP_LEVEL)))
        elif key in ("constraints", "resources"):
            head[key] = _with_large_numbers(node)
        elif key not in ("space", "objectives", "baseline"):
            head[key] = node
    plain = read_record(root.with_value(head), FILE, searched=False).sample(RandomTrial())
    if "parameters" not in plain.get("resources", {}).get("large", {"parameters": 0}):
        raise root.value["resources"].error("'large' needs 'parameters'; add it")
    return plain


def _check_search(
    root: Node, search: Mapping[str, Any], objectives: Objectives | None, mistakes: Mistakes
) -> None:
    """Check that the settings of a search are compatible with each other."""
    assert isinstance(root.value, dict)
    scheduler = search.get("scheduler", SearchConfig().scheduler)
    if search.get("for") == "ensemble" and scheduler != "asha":
        what = f"only asha promotes trials, and {scheduler} does not; write scheduler: asha, or"
        mistakes.add(root.value["search"].key_error("for", f"{what} leave it out"))
    if objectives is None:
        return
    node = root.value["objectives"]
    assert isinstance(node.value, tuple)
    if (said := search.get("metric", objectives.metric)) != objectives.metric:
        what = f"is {objectives.metric}, and search.metric (--metric) is {said}; write {said} here"
        mistakes.add(node.value[0].error(f"{what}, or leave the other out"))
    if objectives.costs and scheduler not in ("asha", "none"):
        what = f"{scheduler} uses only the metric; write search: {{scheduler: asha}}, which"
        mistakes.add(node.error(f"{what} promotes by all objectives, or none"))


def _without_run_keys(node: Node, mistakes: Mistakes) -> Node:
    if not isinstance(node.value, dict):
        return node
    for key in RUN_KEYS.keys() & node.value.keys():
        mistakes.add(node.key_error(key, RUN_KEYS[key]))
    return node.with_value({k: v for k, v in node.value.items() if k not in RUN_KEYS})


def _check_epochs(mistakes: Mistakes, *nodes: Node) -> None:
    # At one rung, a short schedule is almost over while a long one has hardly begun.
    what = (
        "trials of different lengths cannot be compared midway; write "
        "search: {scheduler: none} too, or all trials' epochs as search: {epochs: 27}"
    )
    for node in nodes:
        if isinstance(node.value, dict) and "epochs" in node.value:
            mistakes.add(node.key_error("epochs", what))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of space files, for editors."""
    trial = describe(TRIAL, searched=False)
    keys = {key: describe(schema, searched=False) for key, schema in FILE.fields.items()}
    keys["dataset"] = {"anyOf": [describe(TEXT, searched=False), keys["dataset"]]}
    keys |= {
        "objectives": describe_objectives(),
        "space": describe(TRIAL, searched=True),
        "baseline": {"type": "array", "items": trial},
    }
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | {"title": "A search space of cifar-tune"} | mapping(keys)
