"""``ensemble``: combine the best trials."""

import contextlib
import os
from pathlib import Path
from typing import Any, get_args

import click

from tuner.cli import completion
from tuner.cli.ensemble_tables import print_ensemble, print_plan
from tuner.cli.options import (
    DATA,
    DEVICE,
    JSON,
    METRIC,
    MOVED_DATA_DIR,
    STORAGE,
    TRUST_CODE,
    Amount,
    option,
)
from tuner.cli.output import print_json
from tuner.config import AskedMethod, Diverse, Tta
from tuner.console import Console
from tuner.monitor.steps import loading, telling
from tuner.storage.paths import AnyPath
from tuner.storage.temporary import TemporaryFolder


@click.command(epilog="Example: cifar-tune ensemble --top 5 --method greedy --calibrate")
@option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of members; an upper limit for methods other than vote.",
)
@option(
    "--run",
    "run_name",
    metavar="RUN",
    shell_complete=completion.runs,
    help="Name or folder of the run. [default: the newest]",
)
@STORAGE
@option(
    "--method",
    type=click.Choice(get_args(AskedMethod)),
    default="vote",
    show_default=True,
    help="How to choose and combine members. A soup averages weights; auto takes the vote, or the "
    "single trial, that cross-fitted validation figures advise.",
)
@METRIC
@option("--calibrate", is_flag=True, help="Calibrate the vote with one temperature.")
@option(
    "--tta",
    type=click.Choice(get_args(Tta)),
    default="none",
    show_default=True,
    help="Views of an image that each member averages.",
)
@option(
    "--pool",
    type=click.IntRange(min=1),
    help="Number of best trials to choose from, of those kept by search --keep. [default: 50]",
)
@option(
    "--diverse",
    type=click.Choice(get_args(Diverse)),
    help="Take only one trial per family, config or seed. In a refit, all --seeds of a config are "
    "the same config; seeds within a run differ anyway.",
)
@option(
    "--max-parameters",
    type=click.IntRange(min=1),
    help="Maximum number of parameters of all members together.",
)
@option(
    "--max-latency-ms",
    type=Amount(min=0, min_open=True),
    help="Maximum milliseconds of all members together on one image, measured here.",
)
@option(
    "--front",
    is_flag=True,
    help="Use the trials on the front of the space's objectives, instead of --top.",
)
@option("--frontier", is_flag=True, help="Show which members are best for their time.")
@option("--compare", is_flag=True, help="Show all methods, with a single reading of test images.")
@option(
    "--duplicates",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="CSV of CIFAR's test images that have near-duplicates in the training data.",
)
@option("--skip-damaged", is_flag=True, help="Leave out trials whose files are damaged.")
@DATA
@MOVED_DATA_DIR
@option("--dry-run", is_flag=True, help="Choose on validation images; read no test images.")
@option("--name", help="Name of the ensemble. [default: top<K>, greedy<K>, ...]")
@option("--verbose", is_flag=True, help="Print all tables, as 'show' does.")
@DEVICE
@TRUST_CODE
@option("--address", help="Spread the members over a Ray cluster: auto or HOST:PORT.")
@JSON
def ensemble(
    run_name: str | None,
    storage: AnyPath,
    dry_run: bool,
    device: str,
    address: str | None,
    verbose: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Combine the best trials into an ensemble, and test it.

    The test images are read once. Members, weights and temperature are chosen on validation images,
    from the files that each trial left in the run folder. The search may still be running.
    """
    from tuner.run.run import find_run

    source = click.get_current_context().get_parameter_source("top")
    if asked["front"] and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--front takes all trials of the front; leave --top out.")
    run = find_run(storage, run_name)
    console = Console(stderr=True, highlight=False)
    with loading(console, "PyTorch"):
        from tuner.ensemble import make_ensemble, planning
        from tuner.ensemble.request import EnsembleRequest
        from tuner.training.device import find_devices

    request = EnsembleRequest(**asked)
    with contextlib.ExitStack() as stack:
        say = stack.enter_context(telling(console))
        predict = None
        beside = None
        if address:
            from tuner.tuning.ray_backend.cluster_predict import predicting_on_cluster

            predict = stack.enter_context(predicting_on_cluster(address))
        elif dry_run and isinstance(run.path, Path) and not os.access(run.path, os.W_OK):
            # A dry run also works on a run that may only be read.
            beside = Path(stack.enter_context(TemporaryFolder()))
        plan = stack.enter_context(
            planning(
                run,
                request,
                devices=find_devices(device),
                predict=predict,
                beside=beside,
                say=say,
            )
        )
        result = None if dry_run else make_ensemble(plan, say=say)
        document = (result or plan).to_plain()
    if as_json:
        print_json(document)
    elif result is None:
        print_plan(document, plan.left_out)
    else:
        print_ensemble(
            result.path, is_whole=verbose, moved=request.moved, trust_code=request.trust_code
        )
