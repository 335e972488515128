"""The command line: parse, call, print; nothing else."""

import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tuner import __version__
from tuner.errors import TunerError, UsageError
from tuner.tables import (
    figure,
    leaderboard_rows,
    print_ensemble,
    print_json,
    print_leaderboard,
    print_table,
    short_path,
)

# What a command needs is imported when it runs: torch and Ray take seconds, --help should not.

DATA_DIR = Path.home() / ".cache" / "cifar-tune"


class Option(click.Option):
    """An option that can come from the environment as ``CIFAR_TUNE_<OPTION>``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.name and not self.is_flag:
            self.envvar = f"CIFAR_TUNE_{self.name.upper()}"


class Duration(click.ParamType[float]):
    """A time such as ``90s``, ``30m``, ``2h`` or ``1h30m``, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Give seconds."""
        found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(value).strip())
        days, hours, minutes, seconds = (int(n or 0) for n in found.groups()) if found else [0] * 4
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        if not total:
            self.fail(f"'{value}' is not a time above 0; write 90s, 30m, 2h or 1h30m", param, ctx)
        return float(total)


def option(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Declare an ``Option``."""
    return click.option(*args, cls=Option, **kwargs)


STORAGE = option(
    "--storage",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs.",
)
JSON = option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
DATA_DIR_OPTION = option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=DATA_DIR,
    show_default="~/.cache/cifar-tune",
    help="Where downloaded data are kept.",
)

IMAGE_SIZE = option("--image-size", type=int, help="Resize images to this many pixels a side.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: cifar-tune search --space quick && cifar-tune ensemble --top 5",
)
@click.version_option(__version__, prog_name="cifar-tune")
def cli() -> None:
    """Search hyperparameters and architectures of image classifiers, then combine the best."""


@cli.command(epilog="Example: cifar-tune search --space cnn.yaml search.trials=20 --epochs 9")
@option("--space", metavar="FILE|NAME", help="Search space; with --resume, the run's own.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@option("--name", help="Name of the run. [default: the space's, with the time]")
@option("--resume", is_flag=True, help="Go on with the run of that name, or the newest.")
@option("--warm-start", metavar="RUN", help="Learn from the trials of an earlier run first.")
@option("--data", help="cifar10, cifar100, digits, or a folder with train/ and test/.")
@DATA_DIR_OPTION
@IMAGE_SIZE
@option("--train-limit", type=int, help="Take a stratified part of the training images.")
@option("--trials", type=int, help="How many configurations to try.")
@option("--epochs", type=int, help="The most epochs of a trial.")
@option("--time-budget", type=Duration(), help="Such as 90s, 30m, 2h: then end as if done.")
@option("--gpu-hours", type=click.FloatRange(min=0, min_open=True), help="The same, of GPUs.")
@option("--sampler", help="tpe or random.")
@option("--scheduler", help="asha or none.")
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
    from tuner.space import find_space, load_space

    resumed = find_run(options["storage"], options["name"]) if options["resume"] else None
    if options["space"]:
        path = find_space(options["space"])
    elif resumed:
        path = resumed.path / "space.yaml"
    else:
        raise click.UsageError("Missing option '--space'.", context)
    space = load_space(path, _overrides(context, options["overrides"]))
    known = resumed.record.data if resumed else DataConfig()
    data = DataConfig(
        source=space.dataset or known.source,
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
        data_dir=options["data_dir"],
        storage=resumed.path.parent if resumed else options["storage"],
        name=name,
        command=shlex.join(["cifar-tune", *sys.argv[1:]]),
        keep=options["keep"],
        resume=bool(resumed),
        warm_start=warm_start or None,
        seconds=options["time_budget"] or math.inf,
        gpu_hours=options["gpu_hours"] or math.inf,
        max_failures=options["max_failures"],
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


@cli.command(epilog="Example: cifar-tune ensemble --top 5")
@option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many members.")
@option("--run", "run_name", metavar="RUN", help="Name or folder. [default: the newest]")
@STORAGE
@option("--name", help="Name of the ensemble. [default: top<K>]")
@option(
    "--device", default="auto", show_default=True, help="Where to compute: auto, cpu, cuda, ..."
)
@JSON
def ensemble(
    top: int, run_name: str | None, storage: Path, name: str | None, device: str, as_json: bool
) -> None:
    """Combine the best trials by a soft vote and read the test set once."""
    from tuner.device import find_device
    from tuner.ensemble import make_ensemble
    from tuner.run import find_run

    run = find_run(storage, run_name)
    result = make_ensemble(run, top=top, name=name or f"top{top}", device=find_device(device))
    if as_json:
        print_json(result.to_plain())
        return
    print_ensemble(run, result)


@cli.command(epilog="Example: cifar-tune leaderboard")
@click.argument("run", required=False)
@STORAGE
@option("--rows", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@JSON
def leaderboard(run: str | None, storage: Path, rows: int, as_json: bool) -> None:
    """Show the trials of a run, best first; also while it is searched."""
    from tuner.run import find_run

    found = find_run(storage, run)
    if as_json:
        print_json({"run": str(found.path), "trials": leaderboard_rows(found)})
    else:
        print_leaderboard(found, rows)


@cli.command(epilog="Example: cifar-tune runs")
@STORAGE
@JSON
def runs(storage: Path, as_json: bool) -> None:
    """List the runs."""
    from tuner.run import Run, list_runs

    records = [Run.open(storage / name).record for name in list_runs(storage)]
    records.sort(key=lambda record: record.started)
    rows = [
        {
            "run": record.name,
            "status": record.status,
            "data": record.data.source,
            "trials": record.search.trials,
            "started": record.started[:19].replace("T", " "),
        }
        for record in records
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, f"Runs in {storage}" if rows else f"No run in {storage} yet.")


@cli.command(epilog="Example: cifar-tune show quick-20260101-120000 7")
@click.argument("run")
@click.argument("trial", type=click.IntRange(min=0), required=False)
@STORAGE
@JSON
def show(run: str, trial: int | None, storage: Path, as_json: bool) -> None:
    """Show a run, or one of its trials, in full."""
    from tuner.run import find_run
    from tuner.schema import to_plain

    found = find_run(storage, run)
    if trial is None:
        plain = {"path": str(found.path), **to_plain(found.record)}
        history = []
    else:
        record = found.trial(trial)
        history = [asdict(row) for row in record.history]
        status = {key: value for key, value in to_plain(record.status).items() if value}
        plain = {"path": str(record.path), **status, "config": record.config.to_dict()}
    if as_json:
        print_json(plain | ({"history": history} if trial is not None else {}))
        return
    import yaml

    click.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip())
    if history:
        columns = ("epoch", "train_loss", "val_loss", "val_accuracy", "lr", "seconds")
        rows = [{key: figure(row[key]) for key in columns} for row in history]
        print_table(rows, "")


@cli.group()
def space() -> None:
    """Look at a search space."""


@space.command("check", epilog="Example: cifar-tune space check search_spaces/wide.yaml")
@click.argument("file")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@JSON
def space_check(file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a space and list its parameters."""
    from tuner.space import find_space, load_space

    checked = load_space(find_space(file), list(overrides))
    rows = [{"parameter": path, "values": values} for path, values in checked.rows()]
    if as_json:
        print_json(rows)
        return
    size = checked.cardinality()
    count = f"{size} configurations" if size is not None else "continuous"
    print_table(rows, f"{file}: {len(rows)} parameters, {count}, {len(checked.baseline)} baselines")


@space.command("sample", epilog="Example: cifar-tune space sample search_spaces/wide.yaml -n 5")
@click.argument("file")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@option("-n", "--number", type=click.IntRange(min=1), default=1, show_default=True)
@option("--seed", type=int, default=0, show_default=True)
@JSON
def space_sample(
    file: str, overrides: tuple[str, ...], number: int, seed: int, as_json: bool
) -> None:
    """Print configurations drawn from a space, as a search would."""
    import yaml

    from tuner.search.sampler import Sampler
    from tuner.space import find_space, load_space

    drawn = load_space(find_space(file), list(overrides))
    sampler = Sampler(drawn, replace(drawn.search, seed=seed, sampler="random"))
    configs = [sampler.ask(index).to_dict() for index in range(number)]
    if as_json:
        print_json(configs)
    else:
        click.echo(yaml.safe_dump_all(configs, sort_keys=False).rstrip())


@space.command("schema", epilog="Example: cifar-tune space schema > space.schema.json")
def space_schema() -> None:
    """Print the JSON schema of search spaces, for editors."""
    from tuner.space import json_schema

    print_json(json_schema())


@cli.group()
def data() -> None:
    """Prepare data sets and look at them."""


@data.command("prepare", epilog="Example: cifar-tune data prepare cifar10")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR_OPTION
@IMAGE_SIZE
@JSON
def data_prepare(source: str, data_dir: Path, image_size: int | None, as_json: bool) -> None:
    """Fetch and decode a data set, so that searches start at once."""
    from tuner.config import DataConfig
    from tuner.data import load_splits, load_test

    config = DataConfig(source=source, image_size=image_size)
    splits = load_splits(config, data_dir)
    test = load_test(config, data_dir)
    total = len(splits.train.labels) + len(splits.val.labels) + len(test.images.labels)
    if as_json:
        print_json({"data": source, "images": total})
    else:
        click.echo(f"{source} is ready: {total} images.")


@data.command("info", epilog="Example: cifar-tune data info digits")
@click.argument("source", metavar="[DATA]", default="cifar10")
@DATA_DIR_OPTION
@IMAGE_SIZE
@JSON
def data_info(source: str, data_dir: Path, image_size: int | None, as_json: bool) -> None:
    """Describe a data set's training images: sizes, classes, fingerprint."""
    from tuner.config import DataConfig
    from tuner.data import load_splits

    splits = load_splits(DataConfig(source=source, image_size=image_size), data_dir)
    info = {
        "data": source,
        "classes": list(splits.classes),
        "image_shape": list(splits.image_shape),
        "training_images": len(splits.train.labels),
        "validation_images": len(splits.val.labels),
        "mean": [round(value, 4) for value in splits.mean],
        "std": [round(value, 4) for value in splits.std],
        "fingerprint": splits.fingerprint,
        "split_fingerprint": splits.split_fingerprint,
    }
    if as_json:
        print_json(info)
        return
    for key, value in info.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{key.replace('_', ' '):18} {text}")


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


def main() -> None:
    """Run the program; a mistake that the user can mend is told in a line or two."""
    try:
        code = cli.main(prog_name="cifar-tune", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = UsageError.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See '{context.command_path} --help'." if context else ""
        _fail(f"{error.format_message()}{hint}", UsageError.exit_code)
    except TunerError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(f"cifar-tune: {message}", err=True)
    sys.exit(code)
