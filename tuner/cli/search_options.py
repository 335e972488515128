"""Shared by ``search``, ``plan`` and ``distill``: make a request of flags, environment and file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from tuner.cli import completion
from tuner.cli.help import SearchCommand
from tuner.cli.options import (
    DATA,
    FOLDS,
    IMAGE_SIDE,
    IMAGE_SIZE,
    MOVED_DATA_DIR,
    RESIZE,
    SKIP_BROKEN,
    VAL_FRACTION,
    Amount,
    option,
    together,
)
from tuner.cli.running import common_options
from tuner.config import AUTO, DATA_SETTINGS, SPACE_KEYS, Metric, Resize, SearchConfig
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.console import Console
    from tuner.run.run import Run
    from tuner.space import SearchSpace
    from tuner.tuning.request import SearchRequest

FROM_SPACE = "[default: from the space]"
MISSING_SPACE = "Missing option '--space', or '--data' to make one for."
USUAL_PATIENCE = 0.1
"""Points of ``--patience`` without a number."""
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_PROPOSED = (
    option("--trials", type=int, help=f"Number of configurations to try. {FROM_SPACE}"),
    option("--epochs", type=int, help=f"Maximum number of epochs per trial. {FROM_SPACE}"),
    option(
        "--sampler",
        type=click.Choice(get_args(get_type_hints(SearchConfig)["sampler"])),
        help=f"How to propose configurations. {FROM_SPACE}",
    ),
    option(
        "--scheduler",
        type=click.Choice(get_args(get_type_hints(SearchConfig)["scheduler"])),
        help=f"When to end trials early. {FROM_SPACE}",
    ),
    option(
        "--metric",
        type=click.Choice(get_args(Metric)),
        help=f"Metric to rank, stop and keep trials by. {FROM_SPACE}",
    ),
    option(
        "--patience",
        type=Amount(min=0),
        metavar="[POINTS]",
        help="End when the next quarter of the budget is expected to improve the best trial by "
        f"fewer points; {USUAL_PATIENCE} without a number, 0 never ends. {FROM_SPACE}",
    ),
    option(
        "--for",
        "purpose",
        type=click.Choice(get_args(get_type_hints(SearchConfig)["purpose"])),
        help="Purpose of promotions: the best trial or, with asha in the last third of the budget, "
        f"an ensemble, too. {FROM_SPACE}",
    ),
    option(
        "--seed",
        type=click.IntRange(min=0),
        help=f"Seed of the sampler and, with the trial's number, of each trial. {FROM_SPACE}",
    ),
    option(
        "--keep",
        type=click.IntRange(min=1),
        help="Number of best checkpoints to keep on disk. [default: 20, or as before]",
    ),
)
searched_options = together(
    _OVERRIDES,
    option(
        "--data",
        help="Images: cifar10, cifar100, digits, noisy-digits, or a folder, an archive or a "
        f"manifest. {FROM_SPACE}",
    ),
    option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Folder for downloaded data. [default: ~/.cache/cifar-tune, or as before]",
    ),
    IMAGE_SIZE,
    RESIZE,
    VAL_FRACTION,
    FOLDS,
    SKIP_BROKEN,
    option(
        "--train-limit",
        type=click.IntRange(min=1),
        help="Use only this many training images, stratified by class.",
    ),
    *_PROPOSED,
)
"""Declare the options that define a search."""
distilled_options = together(
    _OVERRIDES,
    DATA,
    MOVED_DATA_DIR,
    option(
        "--image-size",
        type=IMAGE_SIDE,
        help="Resize the students' images to this many pixels per side. [default: the space's, "
        "else the ensemble's]",
    ),
    option(
        "--resize",
        type=click.Choice(get_args(Resize)),
        help="How to make the students' images square. [default: the space's, else the ensemble's]",
    ),
    *_PROPOSED,
)
"""Declare the options that define a search of students; its images are the teacher's."""


def space_option(default: str) -> Callable[..., Any]:
    """Declare ``--space``, whose default is described by a text."""
    return option(
        "--space",
        metavar="FILE|NAME|auto",
        shell_complete=completion.spaces,
        help="Search space: a YAML file; a shipped space (quick, cnn_small, small, cnn, speed, "
        "augment, vit, transfer, wide); or auto, which makes one for the images, the machine and "
        f"the time. [default: {default}]",
    )


class PatientCommand(SearchCommand):
    """A command with ``--patience``, whose number may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        return super().parse_args(ctx, completed("--patience", str(USUAL_PATIENCE), args))


def completed(flag: str, usual: str, words: Sequence[str]) -> list[str]:
    """Return words with the usual value inserted after an option that has none.

    click could do so itself, but would take -1 for an option, and KEY=VALUE for the value.
    """
    rest = list(words)
    found: list[str] = []
    while rest and rest[0] != "--":
        found.append(rest.pop(0))
        if found[-1] == flag and not (rest and _is_value(rest[0])):
            found.append(usual)
    return found + rest


def _is_value(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return not word.startswith("-") and "=" not in word
    return True


def search_request(
    context: click.Context, path: AnyPath, resumed: "Run | None", *, name: str | None, **own: Any
) -> "SearchRequest":
    """Turn the options of a search, and further entries, into a request.

    Args:
        context: Context of a command with ``searched_options``.
        path: Path of the space.
        resumed: The run to resume, if any.
        name: Name of the run; ``None`` for one from the space and the time.
        own: Further entries of the request.
    """
    from tuner.space import load_run_space, load_space
    from tuner.tuning.request import load_searched

    options = context.params
    storage = resumed.path.parent if resumed else options["storage"]
    overrides = search_overrides(context, options["overrides"])

    def load(words: Sequence[str]) -> "SearchSpace":
        if named_space(options):
            assert isinstance(path, Path)
            return load_space(path, words, storage)
        return load_run_space(path, words, storage)

    space = load_searched(load, overrides, resumed)
    return _request(context, space, path, resumed, name=name, **own)


@contextmanager
def auto_request(
    context: click.Context, console: "Console", *, name: str | None, **own: Any
) -> Iterator["SearchRequest"]:
    """Turn options into a request with a space made for it; see ``make_space.making_space``."""
    from tuner.tuning.planning.make_space import making_space

    def make(space: "SearchSpace") -> "SearchRequest":
        return _request(context, space, Path(AUTO), None, name=name, **own)

    overrides = search_overrides(context, context.params["overrides"])
    with making_space(make, overrides, console) as request:
        yield request


def is_auto(options: Mapping[str, Any]) -> bool:
    """Whether to make a space: because it is called ``auto``, or for data without a space."""
    space = options["space"]
    return bool(space == AUTO or (not space and options["data"])) and not options.get("resume")


def named_space(options: Mapping[str, Any]) -> str | None:
    """Return the space that ``--space`` names; ``None`` without it, or for ``auto``."""
    space: str | None = options["space"]
    return None if space == AUTO else space


def _request(
    context: click.Context,
    space: "SearchSpace",
    path: AnyPath,
    resumed: "Run | None",
    *,
    name: str | None,
    **own: Any,
) -> "SearchRequest":
    from tuner.tuning.request import make_search_request

    options = context.params | dict.fromkeys(overridden(context))
    return make_search_request(
        space,
        space_name=str(path),
        stem=PurePath(path.name).stem,
        resumed=resumed,
        storage=resumed.path.parent if resumed else options["storage"],
        name=name,
        data_settings={key: options[key] for key in DATA_SETTINGS},
        data_dir=options["data_dir"],
        keep=options["keep"],
        **own,
        **common_options(options),
    )


def overridden(context: click.Context) -> frozenset[str]:
    """Return the ``DATA_SETTINGS`` from the environment that a KEY=VALUE replaces."""
    from tuner.space.source import said_of

    said = said_of(context.params["overrides"])
    environment = click.core.ParameterSource.ENVIRONMENT
    return frozenset(
        name
        for name in DATA_SETTINGS
        if f"dataset.{name}" in said and context.get_parameter_source(name) == environment
    )


def search_overrides(
    context: click.Context, given: tuple[str, ...], keys: Mapping[str, str] = SPACE_KEYS
) -> list[str]:
    """Merge environment, KEY=VALUE and flags into one list, in which the last word counts.

    Args:
        context: Context of the command.
        given: ``KEY=VALUE`` each.
        keys: Option -> key of the space that it replaces.
    """
    from tuner.space.source import word_of

    sources: dict[Any, list[str]] = {}
    for name, key in keys.items():
        if (value := context.params[name]) is not None:
            source = context.get_parameter_source(name)
            sources.setdefault(source, []).append(word_of(key, value))
    environment = sources.pop(click.core.ParameterSource.ENVIRONMENT, [])
    return [*environment, *given, *(word for words in sources.values() for word in words)]
