"""Shared by the commands that run trials: their options, and the final output."""

import math
import shlex
import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from tuner.cli.insights import insights_of, print_advice
from tuner.cli.options import JSON, STORAGE, TRUST_CODE, Amount, Duration, option, together
from tuner.cli.output import leaderboard_document, print_json
from tuner.cli.student_table import print_student
from tuner.cli.trials_table import print_best, print_leaderboard, print_next
from tuner.config import CompileMode, Target
from tuner.errors import TunerError

if TYPE_CHECKING:
    from tuner.run.run import Run

cost_options = together(
    option(
        "--time-budget",
        type=Duration(),
        help="Train for at most this long, such as 90s, 30m or 2h; trials are cut in mid-epoch. "
        "[default: none; 30m for a space that is made]",
    ),
    option(
        "--gpu-hours",
        type=Amount(min=0, min_open=True),
        help="Use at most this many GPU-hours; trials are cut in mid-epoch. [default: none]",
    ),
    option(
        "--gpus-per-trial",
        type=Amount(min=0),
        help="GPUs per trial; may be a fraction. [default: from the space, or 1 if there are GPUs]",
    ),
    option(
        "--cpus-per-trial",
        type=Amount(min=0, min_open=True),
        help="CPUs per trial; may be a fraction. [default: from the space, or 1]",
    ),
    option(
        "--concurrent",
        type=click.IntRange(min=1),
        help="Number of trials to run at once. [default: as many as fit]",
    ),
    option(
        "--address",
        help="Ray cluster: auto, HOST:PORT, or http://HOST:8265 to submit a job. [default: none]",
    ),
    option(
        "--compile",
        "compile_mode",
        type=click.Choice(get_args(CompileMode)),
        help="Compile networks; auto compiles on a GPU if it saves time. [default: auto]",
    ),
    STORAGE,
    TRUST_CODE,
    JSON,
    option("--quiet", is_flag=True, help="Show no progress."),
)
"""Declare the options that affect the cost of trials, and common ones such as ``--json``."""
running_options = together(
    cost_options,
    option(
        "--max-failures",
        type=click.IntRange(min=0),
        help="Number of workers that a trial may lose before it counts as failed. [default: 3]",
    ),
    option(
        "--save-seconds",
        type=Amount(min=0),
        help="Seconds of training that a kill costs a trial at most, or one epoch if that is "
        "longer; 0 saves every epoch. [default: 10]",
    ),
    option(
        "--log",
        type=click.Choice(get_args(Target)),
        multiple=True,
        help="Record trials there, too; TensorBoard files are always written to the run folder.",
    ),
)
"""Declare the options of all commands that run trials."""


def common_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return these options as fields of ``RunRequest``; the space has the resources of a trial."""
    names = ("log", "max_failures", "save_seconds", "compile_mode", "address", "trust_code")
    return {name: options[name] for name in (*names, "concurrent") if name in options} | {
        "seconds": options["time_budget"] or math.inf,
        "gpu_hours": options["gpu_hours"] or math.inf,
        "command": shlex.join(["cifar-tune", *sys.argv[1:]]),
    }


def print_outcome(run: "Run", *, as_json: bool, quiet: bool) -> None:
    """Print the leaderboard, the best configuration, and the commands that may come next.

    Args:
        run: A run that has ended.
        as_json: Whether to print JSON.
        quiet: Whether to leave out advice.

    Raises:
        Interrupted: If a signal ended it.
    """
    ranked = run.ranked()
    comparison = None
    are_students = run.record.teacher is not None and run.record.status == "finished"
    if are_students:
        from tuner.ensemble.students import find_student

        comparison = find_student(run)
    if as_json:
        from tuner.schema import to_plain

        document = {"status": run.record.status} | leaderboard_document(run, ranked)
        if run.record.reason:
            document["reason"] = run.record.reason
        if are_students:
            document["student"] = to_plain(comparison)
        print_json(document)
    else:
        from tuner.space.searched import ALL, columns

        known = insights_of(run, ranked)
        shown = columns(known.space, known.importance.get(ALL, {}))
        print_leaderboard(run, ranked, 10, searched=shown)
        print_best(run, ranked)
        if comparison is not None:
            print_student(comparison, run.metric)
        if run.record.status == "finished":
            if not quiet and not run.record.refit:
                print_advice(known.advice)
            print_next(run, ranked)
    if run.record.status == "interrupted":
        raise Interrupted(run)


class Interrupted(TunerError):
    """A run that was ended by a signal."""

    exit_code = 130

    def __init__(self, run: "Run") -> None:
        super().__init__(f"interrupted; {run.how_to_go_on()}")
