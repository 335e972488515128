"""``plan``: estimate what a search takes."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import Duration, option
from tuner.cli.output import WIDE, make_console, print_json, print_table
from tuner.cli.running import cost_options
from tuner.cli.search_options import (
    MISSING_SPACE,
    PatientCommand,
    auto_request,
    is_auto,
    named_space,
    search_request,
    searched_options,
    space_option,
)
from tuner.console import Console
from tuner.errors import UsageError
from tuner.monitor.steps import loading
from tuner.tuning.address import find_dashboard

if TYPE_CHECKING:
    from tuner.run.forecast import Forecast, Spread

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@click.command(
    cls=PatientCommand,
    epilog="Example: cifar-tune plan --space cnn --gpus-per-trial 0.5 --trials 200",
)
@space_option("auto with --data")
@option(
    "--measure",
    type=Duration(),
    default="60s",
    show_default=True,
    help="Time to spend on training a few steps of many configurations.",
)
@searched_options
@cost_options
@click.pass_context
def plan(context: click.Context, /, **options: Any) -> None:
    """Estimate time, memory and disk of a search.

    Reports the time, how many trials reach each rung, disk and memory, and which configurations
    would not fit.

    Give it the options of the search. The report of the search then compares the estimate with the
    result, except for a space made by auto, which differs each time.
    """
    if find_dashboard(options["address"]):
        raise UsageError(
            "plan: cannot be submitted as a job. Run it on a machine of the cluster with "
            "--address auto."
        )

    from dataclasses import asdict

    from tuner.space import find_space

    console = Console(stderr=True, quiet=options["quiet"], highlight=False)
    with loading(console, "PyTorch and Ray"):
        from tuner.tuning.planning.plan import plan as make_plan
    if is_auto(options):
        with auto_request(context, console, name="plan") as request:
            made = make_plan(request, options["measure"], console)
    elif space := named_space(options):
        request = search_request(context, find_space(space), None, name="plan")
        made = make_plan(request, options["measure"], console)
    else:
        raise click.UsageError(MISSING_SPACE, context)
    if options["as_json"]:
        print_json({"plan": str(made.path), **asdict(made.forecast)})
    else:
        print_forecast(made.forecast)
        if request.search.patience:
            click.echo("\nIts patience may end it sooner: accuracies cannot be predicted.")


def print_forecast(forecast: "Forecast") -> None:
    """Print a forecast, no wider than a narrow terminal."""
    families = [
        {
            "family": family.family,
            "measured": str(family.configs),
            "seconds an epoch": _range(family.epoch_seconds, _number),
            "parameters": _range(family.parameters, _number),
            "memory": _range(family.memory, _bytes) if family.memory else "-",
        }
        for family in forecast.families
    ]
    if make_console().width < WIDE:
        for row in families:
            del row["parameters"]
    slots = forecast.slots
    print_table(families, f"What a trial costs, {slots['count']:g} at a time")
    rungs = [
        {
            "epochs": str(rung.epoch),
            "trials that reach it": _range(rung.trials, _whole),
        }
        for rung in forecast.rungs
    ]
    click.echo()
    print_table(rungs, f"Trials at each rung, of {_range(forecast.started, _whole)}")
    totals = {
        "time of the search": _range(forecast.seconds, _time),
        "training, all trials": _range(forecast.training_seconds, _time),
        "GPU-hours": _range(forecast.gpu_hours, _number),
        "disk, at the most": _range(forecast.disk_most, _bytes),
        "disk, afterwards": _range(forecast.disk_kept, _bytes),
    }
    if not forecast.gpu_hours.high:
        del totals["GPU-hours"]
    click.echo()
    print_table([{"in all": name, "": text} for name, text in totals.items()], "")
    click.echo(
        f"\nMedians, and ranges of four in five: of {forecast.simulations} simulated "
        f"searches, or of\nthe configurations that were measured, in "
        f"{forecast.measured_seconds:.0f} s."
    )
    alike = Counter(
        f"{entry.family}, {_number(entry.parameters)} parameters: {entry.reason}"
        for entry in forecast.misfits
    )
    for line, number in alike.items():
        click.echo(f"Would not fit: {line}" + (f" ({number} configurations)" * (number > 1)))
    if forecast.refused:
        click.echo(f"Constraints refuse {forecast.refused:.0%} of the configurations drawn.")
    if forecast.done and forecast.seconds_of_all:
        click.echo(f"\n{_advice(forecast, forecast.done, forecast.seconds_of_all)}")


def _advice(forecast: "Forecast", done: "Spread", seconds_of_all: "Spread") -> str:
    """Say how many trials fit into the budget, and what it takes for all to fit."""
    several = f"{done.median:.0f} of {forecast.trials} trials fit into the budget"
    time = f"all take {_range(seconds_of_all, _time)}"
    if forecast.fitting_epochs:
        return f"{several};\nwith --epochs {forecast.fitting_epochs}, all do. As it is, {time}."
    return f"{several}, and\nwith fewer epochs not all would; {time}."


def _range(spread: "Spread", write: Callable[[float], str]) -> str:
    low, median, high = (write(value) for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _time(seconds: float) -> str:
    from tuner.run.run import clock

    return clock(seconds)


def _number(value: float) -> str:
    """Format a number with three digits."""
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    for size, prefix in PREFIXES:
        if value >= size:
            return f"{value / size:.3g} {prefix}B"
    return f"{value:.0f} B"
