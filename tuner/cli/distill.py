"""``distill``: train one small network on an ensemble's outputs."""

from typing import Any

import click

from tuner.cli.options import ENSEMBLE, option
from tuner.cli.running import common_options, print_outcome, running_options
from tuner.cli.search_options import (
    PatientCommand,
    distilled_options,
    overridden,
    search_overrides,
)
from tuner.config import SPACE_KEYS
from tuner.console import Console
from tuner.errors import UsageError
from tuner.tuning.address import find_dashboard

KEYS = {option: key for option, key in SPACE_KEYS.items() if option != "data"}


@click.command(
    cls=PatientCommand,
    epilog="Example: cifar-tune distill --ensemble first/top5 --into cnn --trials 16",
)
@ENSEMBLE
@option(
    "--into",
    metavar="FAMILY|FILE|NAME",
    required=True,
    help="Students: a family (small networks of it) or a search space.",
)
@option("--name", help="Name of the run. [default: that of the ensemble's run, with -student]")
@distilled_options
@running_options
@click.pass_context
def distill(context: click.Context, /, into: str, ensemble: str | None, **options: Any) -> None:
    """Search for a small network taught by an ensemble.

    The students form a run of their own. They learn from the labels and from the ensemble's
    probabilities of its training images; space.distill.alpha and space.distill.temperature say how
    much and how softly, and are searched unless the space sets them. KEY=VALUE overrides a value of
    the space by its dotted path. 'search --resume' resumes an interrupted run.
    """
    if address := find_dashboard(options["address"]):
        raise UsageError(
            f"--address {address}: distill is not sent as a job; run it on a machine of the "
            "cluster, with --address auto"
        )

    from tuner.run.ensembles import find_ensemble
    from tuner.tuning.distill import make_distill_request
    from tuner.tuning.session import search

    options |= dict.fromkeys(overridden(context))
    own = ("storage", "name", "data", "data_dir", "image_size", "resize", "keep")
    request = make_distill_request(
        find_ensemble(options["storage"], ensemble),
        into=into,
        overrides=search_overrides(context, options["overrides"], KEYS),
        **{name: options[name] for name in own},
        **common_options(options),
    )
    run = search(request, Console(stderr=True, quiet=options["quiet"], highlight=False))
    print_outcome(run, as_json=options["as_json"], quiet=options["quiet"])
