"""The command line: parse, call, print; nothing else.

What a command needs is imported when it runs: torch and Ray take seconds, ``--help`` should not.
"""

import sys

import click

from tuner import __version__
from tuner.cli import (
    cluster_template,
    compare,
    data,
    doctor,
    ensemble,
    evaluate,
    export,
    leaderboard,
    plan,
    predict,
    refit,
    report,
    rerun,
    runs,
    search,
    show,
    space,
)
from tuner.errors import TunerError, UsageError


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: cifar-tune search --space quick && cifar-tune ensemble --top 5",
)
@click.version_option(__version__, prog_name="cifar-tune")
def cli() -> None:
    """Search hyperparameters and architectures of image classifiers, then combine the best."""


COMMANDS = (
    search.search,
    plan.plan,
    refit.refit,
    ensemble.ensemble,
    predict.predict,
    evaluate.evaluate,
    export.export,
    leaderboard.leaderboard,
    runs.runs,
    show.show,
    report.report,
    compare.compare,
    rerun.rerun,
    space.space,
    data.data,
    doctor.doctor,
    cluster_template.cluster_template,
)
for command in COMMANDS:
    cli.add_command(command)


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
