"""The command line: parse, call, print; nothing else.

Commands import what they need when they run: torch and Ray take seconds, ``--help`` should not.
"""

import errno
import os
import sys
from pathlib import Path

import click

from tuner import __version__
from tuner.cli import (
    check,
    cluster_template,
    compare,
    data,
    distill,
    doctor,
    ensemble,
    evaluate,
    export,
    guide,
    leaderboard,
    plan,
    predict,
    refit,
    report,
    rerun,
    runs,
    search,
    serve,
    show,
    space,
)
from tuner.cli.help import WorkflowGroup
from tuner.cli.output import print_json
from tuner.cli.running import Interrupted
from tuner.console import shortened, visible_output
from tuner.errors import StorageError, TunerError, UsageError
from tuner.passwords import hide_passwords
from tuner.storage.patience import storage_fault


@click.group(
    cls=WorkflowGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: cifar-tune search --space quick && cifar-tune ensemble --top 5",
)
@click.version_option(__version__, prog_name="cifar-tune")
def cli() -> None:
    """Search hyperparameters and architectures of image classifiers, and combine the best models.

    'COMMAND --help' explains the options of a command, with an example.
    """


IMPOSSIBLE_PATHS = (errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of paths that cannot exist, wherever a user gives one."""
FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Errors of a disk that is full or broken."""
NOT_ALLOWED = (errno.EACCES, errno.EPERM)
"""Errors of files that belong to others, or of a run that may only be read."""

cli.add_section(
    "Search", search.search, plan.plan, refit.refit, rerun.rerun, space.space, data.data
)
cli.add_section(
    "Look",
    leaderboard.leaderboard,
    show.show,
    runs.runs,
    report.report,
    compare.compare,
    check.check,
    guide.guide,
)
cli.add_section("Combine", ensemble.ensemble, distill.distill)
cli.add_section("Use", predict.predict, evaluate.evaluate, export.export, serve.serve)
cli.add_section("Cluster", doctor.doctor, cluster_template.cluster_template)


def main() -> None:
    """Run the program; mistakes that the user can fix are reported in a line or two.

    With ``--json`` they are also reported on stdout, unless the command has printed its document.
    """
    with visible_output() as output:
        code, message = _run()
        if message:
            click.echo(f"cifar-tune: {message}", err=True)
        try:
            if code and "--json" in sys.argv[1:] and not output.is_used:
                print_json({"error": message or "failed", "exit_code": code})
            output.flush()
        except OSError:
            # The message on stderr and the exit code are enough. Python would write the rest of the
            # buffer at exit, fail again, and change the exit code to 120.
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), output.fileno())
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Run the command; return its exit code and, if it failed, the reason."""
    try:
        words = sys.argv[1:]
        # Programs that record the command line, such as Weights & Biases, read it here.
        sys.argv[1:] = map(hide_passwords, words)
        try:
            code = cli.main(words, prog_name="cifar-tune", standalone_mode=False)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            code = UsageError.exit_code
        sys.stdout.flush()
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" See '{context.command_path} --help'." if context else ""
        return UsageError.exit_code, f"{shortened(error.format_message())}{hint}"
    except Interrupted as error:
        return error.exit_code, str(error)
    except TunerError as error:
        return error.exit_code, shortened(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:
            # The reader of the output, such as head, is gone; click and rich exit like this, too.
            return TunerError.exit_code, ""
        if error.errno in FULL_OR_BROKEN and error.filename is None:
            # Of all that is written, only the output has no file name.
            return TunerError.exit_code, f"the output cannot be written: {error.strerror}."
        if error.errno in IMPOSSIBLE_PATHS:
            mend = f"{error.filename}: {error.strerror}. Give another path."
            return UsageError.exit_code, shortened(mend)
        if error.filename is not None and (error.errno in NOT_ALLOWED or storage_fault(error)):
            mend = "Make it accessible, or use a copy in a folder of your own."
            if error.errno in FULL_OR_BROKEN:
                mend = "Make room there, or repair the disk."
            told = f"{error.filename}: cannot be used ({error.strerror}). {mend}"
            return StorageError.exit_code, shortened(told)
        raise
    except SystemExit as error:
        # From commands, and from click and rich if the reader of the output is gone.
        if isinstance(error.code, str):
            return TunerError.exit_code, error.code
        return error.code or 0, ""
    except (KeyboardInterrupt, click.Abort) as error:
        return 130, str(error) or "interrupted"
    return code if isinstance(code, int) else 0, ""
