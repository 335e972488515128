"""``search`` and ``plan``: flags, environment and file brought into one request."""

import json
import os
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from tuner.cli.clusters import is_dashboard, submit_search
from tuner.cli.forecasts import print_forecast
from tuner.cli.options import DATA_DIR, IMAGE_SIZE, Duration, option
from tuner.cli.reporting import learnt, print_advice
from tuner.cli.running import (
    common_options,
    cost_options,
    print_outcome,
    resume_command,
    running_options,
)
from tuner.cli.tables import print_json
from tuner.config import SPACE_KEYS
from tuner.errors import UsageError
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.run.run import Run
    from tuner.tuning.request import SearchRequest

_SEARCHED = (
    click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]..."),
    option("--data", help="cifar10, cifar100, digits, or a folder with train/ and test/."),
    DATA_DIR,
    IMAGE_SIZE,
    option("--train-limit", type=int, help="Take a stratified part of the training images."),
    option("--trials", type=int, help="How many configurations to try."),
    option("--epochs", type=int, help="The most epochs of a trial."),
    option("--sampler", help="tpe, random, gp, cmaes or grid."),
    option("--scheduler", help="asha, hyperband, median or none."),
    option("--seed", type=int, help="Of the sampler and, with its number, of each trial."),
    option(
        "--keep",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        help="Checkpoints that stay on disk, the best ones.",
    ),
)


def searched_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare what says which search is meant."""
    for declare in reversed(_SEARCHED):
        command = declare(command)
    return command


@click.command(epilog="Example: cifar-tune search --space cnn.yaml search.trials=20 --epochs 9")
@option("--space", metavar="FILE|NAME", help="Search space; with --resume, the run's own.")
@option("--name", help="Name of the run. [default: the space's, with the time]")
@option("--resume", is_flag=True, help="Go on with the run of that name, or the newest.")
@option("--warm-start", metavar="RUN", help="Learn from the trials of an earlier run first.")
@option(
    "--study-storage",
    metavar="FILE|URL",
    help="Journal file or database where optuna-dashboard can watch; give it again to resume.",
)
@searched_options
@running_options
@click.pass_context
def search(context: click.Context, /, **options: Any) -> None:
    """Search a space, ending with the leaderboard.

    KEY=VALUE overrides a value of the space file by its dotted path.
    """
    if is_dashboard(address := options["address"] or os.environ.get("RAY_ADDRESS")):
        return submit_search(context, str(address), _overrides(context, options["overrides"]))

    from tuner.run.run import find_run
    from tuner.space import find_space
    from tuner.tuning.session import search as run_search

    resumed = find_run(options["storage"], options["name"]) if options["resume"] else None
    if resumed and resumed.record.refit:
        line = resume_command(resumed.path, "refit")
        raise UsageError(f"--resume: {resumed.path} is a refit; go on with: {line}")
    if options["space"]:
        path: AnyPath = find_space(options["space"])
    elif resumed:
        path = resumed.path / "space.yaml"
    else:
        raise click.UsageError("Missing option '--space'.", context)
    warm_start = options["warm_start"] and find_run(options["storage"], options["warm_start"])
    request = _request(
        context,
        path,
        resumed,
        name=options["name"],
        warm_start=warm_start or None,
        study_storage=options["study_storage"],
    )
    run = run_search(request, Console(stderr=True, quiet=options["quiet"], highlight=False))
    print_outcome(run, "search", as_json=options["as_json"])
    if run.record.status == "finished" and not options["as_json"] and not options["quiet"]:
        print_advice(learnt(run, run.trials()).advice)


@click.command(epilog="Example: cifar-tune plan --space cnn.yaml --gpus-per-trial 0.5 --trials 200")
@option("--space", metavar="FILE|NAME", required=True, help="Search space.")
@option(
    "--measure",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long to train a few steps of many configurations.",
)
@searched_options
@cost_options
@click.pass_context
def plan(context: click.Context, /, **options: Any) -> None:
    """Foresee what a search takes: time, trials a rung, disk, memory, and what would not fit.

    Give it what the search will be given; the search's report then tells how right it was.
    """
    if is_dashboard(options["address"] or os.environ.get("RAY_ADDRESS")):
        raise UsageError(
            "plan: cannot be submitted as a job. Run it on a machine of the cluster with "
            "--address auto."
        )

    from dataclasses import asdict

    from tuner.space import find_space
    from tuner.tuning.planning.plan import plan as make_plan

    request = _request(context, find_space(options["space"]), None, name="plan")
    console = Console(stderr=True, quiet=options["quiet"], highlight=False)
    made = make_plan(request, options["measure"], console)
    if options["as_json"]:
        print_json({"plan": str(made.path), **asdict(made.forecast)})
    else:
        print_forecast(made.forecast)


def _request(
    context: click.Context, path: AnyPath, resumed: "Run | None", *, name: str | None, **own: Any
) -> "SearchRequest":
    """Bring the options of a search, and what is asked for besides, into a request.

    Args:
        context: Of a command with ``searched_options``.
        path: Of the space.
        resumed: The run that goes on, if one does.
        name: Of the run; ``None`` for one from the space and the time.
        own: Entries of the request besides.
    """
    from tuner.space import load_run_space, load_space
    from tuner.tuning.request import make_search_request

    options = context.params
    storage = resumed.path.parent if resumed else options["storage"]
    overrides = _overrides(context, options["overrides"])
    if options["space"]:
        assert isinstance(path, Path)
        space = load_space(path, overrides, storage)
    else:
        space = load_run_space(path, overrides, storage)
    return make_search_request(
        space,
        space_name=str(path),
        stem=PurePath(path.name).stem,
        resumed=resumed,
        storage=storage,
        name=name,
        image_size=options["image_size"],
        train_limit=options["train_limit"],
        data_dir=options["data_dir"],
        keep=options["keep"],
        **own,
        **common_options(options),
    )


def _overrides(context: click.Context, given: tuple[str, ...]) -> list[str]:
    """Put environment, KEY=VALUE and flags into one list, in which the last word counts."""
    sources: dict[Any, list[str]] = {}
    for name, key in SPACE_KEYS.items():
        if (value := context.params[name]) is not None:
            source = context.get_parameter_source(name)
            sources.setdefault(source, []).append(f"{key}={json.dumps(value)}")
    environment = sources.pop(click.core.ParameterSource.ENVIRONMENT, [])
    return [*environment, *given, *(word for words in sources.values() for word in words)]
