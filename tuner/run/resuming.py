"""Lines that a user can type: how a run goes on, and what is done with it next."""

import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.storage.protocol import StoragePath

WITHOUT_PATIENCE = ("--patience", "0")
"""Options with which a search goes on that was ended by its patience."""


def resume_command(path: StoragePath, command: str, *options: str) -> str:
    """Return the line that goes on with the run at ``path``."""
    words = ("--resume", "--name", path.name, *options, *storage_words(path.parent))
    return command_line(command, *words)


def budget_words(seconds: float | None, gpu_hours: float | None, factor: float = 1.0) -> list[str]:
    """Return the options that give a run so many times its budget; none where it has none."""
    words = [] if seconds is None else ["--time-budget", f"{math.ceil(factor * seconds)}s"]
    return words if gpu_hours is None else [*words, "--gpu-hours", f"{factor * gpu_hours:g}"]


def refit_command(path: StoragePath, top: int) -> str:
    """Return the line that trains the best of the run at ``path`` anew."""
    options = ("--top", str(top), *storage_words(path.parent))
    return command_line("refit", *options, names=[path.name])


def command_line(command: str, *options: str, names: Sequence[str] = ()) -> str:
    """Return a line that runs the program, called as the user called it.

    Args:
        command: Of the program, such as ``data issues``.
        options: Options, each with its value after it, which may begin as an option does.
        names: Arguments, such as the name of a run. Where one begins as an option does, they come
            last, so that it is not taken for one: the run may be somebody else's.
    """
    is_safe = not any(name.startswith("-") for name in names)
    words = (*names, *options) if is_safe else (*options, "--", *names)
    return f"{_program()} {shlex.join((*command.split(), *words))}"


def storage_words(storage: StoragePath) -> list[str]:
    """Return the option that names a folder of runs; none for the one that is the default."""
    folder = short_path(storage)
    return [] if folder == "runs" else ["--storage", folder]


def _program() -> str:
    """Return what the user typed to call the program; its name where it was not typed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == "tuner":
        return "python -m tuner"
    if called.name != "cifar-tune" or shutil.which("cifar-tune") == str(called.absolute()):
        return "cifar-tune"
    return shlex.quote(short_path(called)) if len(called.parts) > 1 else "cifar-tune"


def short_path(path: StoragePath) -> str:
    """Return a path as the user would type it here."""
    if isinstance(path, Path) and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)
