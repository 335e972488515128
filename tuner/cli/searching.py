"""``search``: flags, environment and file brought into one request."""

import json
import math
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tuner.cli.options import DATA_DIR, IMAGE_SIZE, JSON, STORAGE, Duration, option
from tuner.cli.reporting import learnt, print_advice
from tuner.cli.tables import leaderboard_rows, print_json, print_leaderboard, short_path
from tuner.errors import TunerError, UsageError


@click.command(epilog="Example: cifar-tune search --space cnn.yaml search.trials=20 --epochs 9")
@option("--space", metavar="FILE|NAME", help="Search space; with --resume, the run's own.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@option("--name", help="Name of the run. [default: the space's, with the time]")
@option("--resume", is_flag=True, help="Go on with the run of that name, or the newest.")
@option("--warm-start", metavar="RUN", help="Learn from the trials of an earlier run first.")
@option("--data", help="cifar10, cifar100, digits, or a folder with train/ and test/.")
@DATA_DIR
@IMAGE_SIZE
@option("--train-limit", type=int, help="Take a stratified part of the training images.")
@option("--trials", type=int, help="How many configurations to try.")
@option("--epochs", type=int, help="The most epochs of a trial.")
@option("--time-budget", type=Duration(), help="Such as 90s, 30m, 2h: then end as if done.")
@option("--gpu-hours", type=click.FloatRange(min=0, min_open=True), help="The same, of GPUs.")
@option("--sampler", help="tpe, random, gp, cmaes or grid.")
@option("--scheduler", help="asha, hyperband, median or none.")
@option(
    "--study-storage",
    metavar="FILE|URL",
    help="Journal file or database where optuna-dashboard can watch; give it again to resume.",
)
@option(
    "--log",
    type=click.Choice(["wandb", "mlflow"]),
    multiple=True,
    help="Record the trials there, too; TensorBoard's files lie in the run folder anyway.",
)
@option("--seed", type=int, help="Of the sampler and, with its number, of each trial.")
@option("--gpus-per-trial", type=click.FloatRange(min=0), help="May be a fraction.")
@option("--cpus-per-trial", type=click.FloatRange(min=0, min_open=True), help="[default: 1]")
@option("--concurrent", type=click.IntRange(min=1), help="Trials at once. [default: what fits]")
@option("--address", help="A Ray cluster: auto or HOST:PORT. [default: start Ray here]")
@option(
    "--max-failures",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Workers that a trial may lose.",
)
@option(
    "--compile",
    "compile_mode",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Compile networks; auto: on a GPU, where it pays.",
)
@STORAGE
@option(
    "--keep",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Checkpoints that stay on disk, the best ones.",
)
@JSON
@option("--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def search(context: click.Context, /, **options: Any) -> None:
    """Search a space, ending with the leaderboard.

    KEY=VALUE overrides a value of the space file by its dotted path.
    """
    from tuner.config import DataConfig
    from tuner.run import find_run
    from tuner.search.driver import SearchRequest
    from tuner.search.driver import search as run_search
    from tuner.sources import find_source
    from tuner.space import find_space, load_space

    resumed = find_run(options["storage"], options["name"]) if options["resume"] else None
    if options["space"]:
        path = find_space(options["space"])
    elif resumed:
        path = resumed.path / "space.yaml"
    else:
        raise click.UsageError("Missing option '--space'.", context)
    storage = resumed.path.parent if resumed else options["storage"]
    space = load_space(path, _overrides(context, options["overrides"]), storage)
    known = resumed.record.data if resumed else DataConfig()
    data = DataConfig(
        source=find_source(space.dataset) if space.dataset else known.source,
        image_size=options["image_size"] or known.image_size,
        train_limit=options["train_limit"] or known.train_limit,
    )
    if resumed and data != known:
        raise UsageError(f"--resume: the images of {resumed.path} are fixed; start a new run")
    name = options["name"] or f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if resumed:
        name = resumed.path.name
    warm_start = options["warm_start"] and find_run(options["storage"], options["warm_start"])
    request = SearchRequest(
        space=space,
        space_name=str(path),
        search=space.search,
        data=data,
        data_dir=options["data_dir"].absolute(),
        storage=storage,
        name=name,
        command=shlex.join(["cifar-tune", *sys.argv[1:]]),
        keep=options["keep"],
        resume=bool(resumed),
        warm_start=warm_start or None,
        study_storage=options["study_storage"],
        seconds=options["time_budget"] or math.inf,
        gpu_hours=options["gpu_hours"] or math.inf,
        log=options["log"],
        max_failures=options["max_failures"],
        compile_mode=options["compile_mode"],
        address=options["address"],
        gpus_per_trial=options["gpus_per_trial"],
        cpus_per_trial=options["cpus_per_trial"],
        concurrent=options["concurrent"],
    )
    run = run_search(request, Console(stderr=True, quiet=options["quiet"], highlight=False))
    if options["as_json"]:
        document = {"run": str(run.path), "status": run.record.status}
        print_json(document | {"trials": leaderboard_rows(run)})
    else:
        print_leaderboard(run, 10)
        if run.record.status == "finished" and not options["quiet"]:
            print_advice(learnt(run).advice)
    if run.record.status == "interrupted":
        raise Interrupted(run.path)


def _overrides(context: click.Context, given: tuple[str, ...]) -> list[str]:
    """Put environment, KEY=VALUE and flags into one list, in which the last word counts."""
    keys = {name: f"search.{name}" for name in ("trials", "epochs", "sampler", "scheduler", "seed")}
    keys["data"] = "dataset"
    sources: dict[Any, list[str]] = {}
    for name, key in keys.items():
        if (value := context.params[name]) is not None:
            source = context.get_parameter_source(name)
            sources.setdefault(source, []).append(f"{key}={json.dumps(value)}")
    environment = sources.pop(click.core.ParameterSource.ENVIRONMENT, [])
    return [*environment, *given, *(word for words in sources.values() for word in words)]


class Interrupted(TunerError):
    """A search that a signal ended."""

    exit_code = 130

    def __init__(self, path: Path) -> None:
        folder = short_path(path.parent)
        storage = "" if folder == "runs" else f" --storage {shlex.quote(folder)}"
        super().__init__(
            f"interrupted; {short_path(path)} keeps what the trials have left. Go on with: "
            f"cifar-tune search --resume --name {path.name}{storage}"
        )
