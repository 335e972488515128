"""Command lines for the user to type: how to resume a run, and what to do with it next."""

import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tuner.storage.paths import AnyPath

WITHOUT_PATIENCE = ("--patience", "0")
"""Options that resume a search which was ended by its patience."""


def resume_command(path: AnyPath, command: str, *options: str) -> str:
    """Return the command line that resumes the run at ``path``."""
    words = ("--resume", "--name", path.name, *options, *storage_words(path.parent))
    return command_line(command, *words)


def budget_words(seconds: float | None, gpu_hours: float | None, factor: float = 1.0) -> list[str]:
    """Return the options that set ``factor`` times the budget of a run; empty if it has none."""
    words = [] if seconds is None else ["--time-budget", f"{math.ceil(factor * seconds)}s"]
    return words if gpu_hours is None else [*words, "--gpu-hours", f"{factor * gpu_hours:g}"]


def refit_command(path: AnyPath, top: int) -> str:
    """Return the command line that retrains the best trials of the run at ``path``."""
    options = ("--top", str(top), *storage_words(path.parent))
    return command_line("refit", *options, names=[path.name])


def leaderboard_command(path: AnyPath) -> str:
    """Return the command line that lists the trials of the run at ``path``."""
    return command_line("leaderboard", *storage_words(path.parent), names=[path.name])


def command_line(command: str, *options: str, names: Sequence[str] = ()) -> str:
    """Return a command line that calls the program as the user called it.

    Args:
        command: The subcommand, such as ``data issues``.
        options: Options, each followed by its value, which may begin like an option.
        names: Arguments, such as the name of a run. If one begins like an option, they come last,
            so that it is not parsed as one: the run may be somebody else's.
    """
    is_safe = not any(name.startswith("-") for name in names)
    words = (*names, *options) if is_safe else (*options, "--", *names)
    return f"{_program()} {shlex.join((*command.split(), *words))}"


def storage_words(storage: AnyPath) -> list[str]:
    """Return the option that names a folder of runs; empty for the default folder."""
    folder = short_path(storage)
    is_default = folder == "runs" and not os.environ.get("CIFAR_TUNE_STORAGE")
    return [] if is_default else ["--storage", folder]


def _program() -> str:
    """Return what the user typed to call the program; its name if it was not typed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == "tuner":
        return "python -m tuner"
    if called.name != "cifar-tune":
        return "cifar-tune"
    with suppress(OSError):  # The current folder may be gone.
        called = called.absolute()
    is_found = shutil.which("cifar-tune") == str(called)
    return "cifar-tune" if is_found else shlex.quote(short_path(called))


def short_path(path: AnyPath) -> str:
    """Return a path as the user would type it in the current folder."""
    if isinstance(path, Path):
        # The path may be elsewhere, and the current folder may be gone.
        with suppress(ValueError, OSError):
            path = path.relative_to(Path.cwd())
    return str(path)
