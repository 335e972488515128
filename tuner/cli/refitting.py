"""``refit``: the best configurations of a run, trained anew."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from tuner.cli.clusters import is_dashboard, submit_refit
from tuner.cli.options import option
from tuner.cli.running import (
    asked_of_all,
    free_name,
    print_outcome,
    resume_command,
    running_options,
)
from tuner.errors import UsageError

if TYPE_CHECKING:
    from tuner.config import RefitConfig
    from tuner.run import Run

TOP, SEEDS = 5, 3


@click.command(epilog="Example: cifar-tune refit --top 5 --seeds 3 --epochs 100")
@click.argument("run", required=False)
@option("--top", type=click.IntRange(min=1), help=f"How many configurations. [default: {TOP}]")
@option("--seeds", type=click.IntRange(min=1), help=f"Trials of each. [default: {SEEDS}]")
@option("--epochs", type=click.IntRange(min=1), help="Of each trial. [default: RUN's]")
@option("--all-data", is_flag=True, help="Train on the validation images, too.")
@option("--seed", type=click.IntRange(min=0), help="Of them all. [default: RUN's and 1 more]")
@option("--name", help="Name of the new run. [default: RUN's, with -refit]")
@option("--resume", is_flag=True, help="Go on with the refit of that name, or the newest run.")
@option("--keep", type=click.IntRange(min=1), help="Checkpoints that stay. [default: all]")
@running_options
@click.pass_context
def refit(context: click.Context, /, run: str | None, **options: Any) -> None:
    """Train the best configurations of a run anew: longer, with several seeds.

    The trials are a run of their own, beside RUN, from which 'ensemble' draws. With --all-data
    nothing tells any more which of them is best; a plain vote needs not know.
    """
    if is_dashboard(address := options["address"] or os.environ.get("RAY_ADDRESS")):
        return submit_refit(context, str(address))

    from tuner.run import find_run
    from tuner.tuning.refit import begin_refit, plan_refit, resume_refit
    from tuner.tuning.refit import refit as run_refit

    asked = asked_of_all(options)
    storage = options["storage"]
    if options["resume"]:
        found = find_run(storage, options["name"])
        plan = _settled(found, run, options)
        plan = replace(plan, seeds=options["seeds"] or plan.seeds)
        request = resume_refit(found, plan, keep=options["keep"] or plan.num_trials, **asked)
    else:
        source = find_run(storage, run)
        plan = plan_refit(
            source,
            top=options["top"] or TOP,
            seeds=options["seeds"] or SEEDS,
            epochs=options["epochs"] or source.record.search.epochs,
        )
        request = begin_refit(
            source,
            plan,
            name=options["name"] or free_name(source.path.parent, f"{source.path.name}-refit"),
            all_data=options["all_data"],
            seed=source.record.search.seed + 1 if options["seed"] is None else options["seed"],
            keep=options["keep"] or plan.num_trials,
            **asked,
        )
    console = Console(stderr=True, quiet=options["quiet"], highlight=False)
    print_outcome(run_refit(request, console), "refit", as_json=options["as_json"])


def _settled(found: "Run", run: str | None, options: dict[str, Any]) -> "RefitConfig":
    """Give the plan of a refit to go on with, having made sure that no other one is asked for."""
    record = found.record
    if record.refit is None:
        line = resume_command(found.path, "search")
        raise UsageError(f"--resume: {found.path} is a search; go on with: {line}")
    settled = {
        "RUN": (run and Path(run).name, record.refit.run),
        "--top": (options["top"], len(record.refit.configs)),
        "--epochs": (options["epochs"], record.search.epochs),
        "--seed": (options["seed"], record.search.seed),
        "--all-data": (options["all_data"] or None, record.data.all_data),
    }
    for name, (asked, was) in settled.items():
        if asked is not None and asked != was:
            raise UsageError(
                f"--resume: {name} was settled when {found.path} began; leave it out, or start a "
                "new refit"
            )
    return record.refit
