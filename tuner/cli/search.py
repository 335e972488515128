"""``search``: search a space for the best configuration."""

from collections.abc import Sequence
from typing import Any

import click

from tuner.cli import completion
from tuner.cli.jobs import submit_search
from tuner.cli.options import option
from tuner.cli.running import print_outcome, running_options
from tuner.cli.search_options import (
    MISSING_SPACE,
    PatientCommand,
    auto_request,
    is_auto,
    named_space,
    search_overrides,
    search_request,
    searched_options,
    space_option,
)
from tuner.console import Console
from tuner.errors import UsageError
from tuner.monitor.steps import loading
from tuner.run.resuming import resume_command
from tuner.storage.paths import AnyPath
from tuner.tuning.address import find_dashboard


class _Search(PatientCommand):
    """Accepts several runs after ``--warm-start``, up to the next option or KEY=VALUE."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        return super().parse_args(ctx, repeated("--warm-start", args))


def repeated(flag: str, words: Sequence[str]) -> list[str]:
    """Return words in which an option with several values is repeated before each of them."""
    rest = list(words)
    spread: list[str] = []
    while rest and rest[0] != "--":
        spread.append(word := rest.pop(0))
        if word.partition("=")[0] != flag:
            continue
        if word == flag and rest:
            spread.append(rest.pop(0))
        while rest and not rest[0].startswith("-") and "=" not in rest[0]:
            spread += [flag, rest.pop(0)]
    return spread + rest


@click.command(
    cls=_Search,
    epilog="Example: cifar-tune search --space cnn search.trials=20 --epochs 9",
)
@space_option("auto with --data; with --resume, the run's own")
@option("--name", help="Name of the run. [default: the space's, with the time]")
@option(
    "--resume",
    is_flag=True,
    help="Resume the run given by --name, or the newest; options for its trials keep their values "
    "unless given again.",
)
@option(
    "--warm-start",
    metavar="RUN...",
    multiple=True,
    shell_complete=completion.runs,
    help="Earlier runs, whose best configurations (by ranks) are tried first. A single run also "
    "teaches the sampler, if it learns.",
)
@option(
    "--study-storage",
    metavar="FILE|URL",
    help="Journal file or database where optuna-dashboard can show the study. To resume, give it "
    "again, unless it is a file in the folder of the runs.",
)
@searched_options
@running_options
@click.pass_context
def search(context: click.Context, /, **options: Any) -> None:
    """Search a space for the best configuration.

    KEY=VALUE overrides a value of the space file by its dotted path.
    """
    if address := find_dashboard(options["address"]):
        return submit_search(context, address, search_overrides(context, options["overrides"]))

    from tuner.run.layout import SPACE
    from tuner.run.run import check_name_free, find_run, find_runs
    from tuner.space import find_space

    resumed = find_run(options["storage"], options["name"]) if options["resume"] else None
    if resumed and resumed.record.refit:
        line = resume_command(resumed.path, "refit")
        raise UsageError(f"--resume: {resumed.path} is a refit; resume it with:\n  {line}")
    if options["name"] and not resumed:
        # Checked before anything slow, and once more when the run is created.
        check_name_free(options["storage"], options["name"])
    console = Console(stderr=True, quiet=options["quiet"], highlight=False)
    own = {
        "warm_start": find_runs(options["storage"], options["warm_start"]),
        "study_storage": options["study_storage"],
    }
    if is_auto(options):
        with loading(console, "PyTorch and Ray"):
            from tuner.tuning.session import search as run_search
        with auto_request(context, console, name=options["name"], **own) as request:
            run = run_search(request, console)
            return print_outcome(run, as_json=options["as_json"], quiet=options["quiet"])
    if space := named_space(options):
        path: AnyPath = find_space(space)
    elif resumed:
        path = resumed.path / SPACE
    else:
        raise click.UsageError(MISSING_SPACE, context)
    with loading(console, "PyTorch and Ray"):
        from tuner.tuning.session import search as run_search

        request = search_request(context, path, resumed, name=options["name"], **own)
    run = run_search(request, console)
    print_outcome(run, as_json=options["as_json"], quiet=options["quiet"])
