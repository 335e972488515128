"""``refit``: train the best configurations of a run again."""

from typing import Any

import click

from tuner.cli import completion
from tuner.cli.help import SearchCommand
from tuner.cli.jobs import submit_refit
from tuner.cli.options import DATA, METRIC, MOVED_DATA_DIR, option
from tuner.cli.running import (
    common_options,
    print_outcome,
    running_options,
)
from tuner.config import REFIT_SEEDS, REFIT_TOP
from tuner.console import Console
from tuner.errors import UsageError
from tuner.monitor.steps import loading
from tuner.run.resuming import resume_command
from tuner.tuning.address import find_dashboard


@click.command(cls=SearchCommand, epilog="Example: cifar-tune refit --top 5 --seeds 3 --epochs 100")
@click.argument("run", required=False, shell_complete=completion.runs)
@option(
    "--top",
    type=click.IntRange(min=1),
    help=f"Number of configurations to train. [default: {REFIT_TOP}]",
)
@option(
    "--seeds",
    type=click.IntRange(min=1),
    help=f"Trials per configuration, each with its own seed. [default: {REFIT_SEEDS}]",
)
@option("--epochs", type=click.IntRange(min=1), help="Epochs of each trial. [default: RUN's]")
@option("--all-data", is_flag=True, help="Train on the validation images, too.")
@option(
    "--seed",
    type=click.IntRange(min=0),
    help="Seed from which the seeds of the trials are derived. [default: RUN's plus 1]",
)
@METRIC
@option("--name", help="Name of the new run. [default: RUN's, with -refit]")
@option(
    "--resume",
    is_flag=True,
    help="Resume the refit given by --name, or the newest run; options for its trials keep their "
    "values unless given again.",
)
@option("--keep", type=click.IntRange(min=1), help="Number of checkpoints to keep. [default: all]")
@DATA
@MOVED_DATA_DIR
@running_options
@click.pass_context
def refit(context: click.Context, /, run: str | None, **options: Any) -> None:
    """Train the best trials longer and with more seeds.

    The best configurations of RUN are trained in a new run next to it, for 'ensemble' to combine.
    With --all-data, no images are left to show which trial is best; a plain vote does not need to
    know.
    """
    if address := find_dashboard(options["address"]):
        return submit_refit(context, address)

    from tuner.run.run import find_run

    console = Console(stderr=True, quiet=options["quiet"], highlight=False)
    resume = options["resume"]
    found = find_run(options["storage"], options["name"] if resume else run)
    if resume and found.record.refit is None:
        line = resume_command(found.path, "search")
        raise UsageError(f"--resume: {found.path} is a search; resume it with:\n  {line}")
    with loading(console, "PyTorch and Ray"):
        from tuner.tuning.refit import make_refit_request
        from tuner.tuning.refit import refit as run_refit
    own = (
        *("resume", "top", "seeds", "epochs", "all_data", "seed", "metric", "name", "keep", "data"),
        *("data_dir", "gpus_per_trial", "cpus_per_trial"),
    )
    request = make_refit_request(
        found,
        source=run,
        **{name: options[name] for name in own},
        **common_options(options),
    )
    made = run_refit(request, console)
    print_outcome(made, as_json=options["as_json"], quiet=options["quiet"])
