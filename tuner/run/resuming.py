"""How a run goes on: the line that a user types."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.storage.protocol import StoragePath

if TYPE_CHECKING:
    from tuner.run.run import Run


def how_to_go_on(run: "Run") -> str:
    """Say what a run that ended early keeps, and the command that goes on with it."""
    command = "refit" if run.record.refit else "search"
    return (
        f"{short_path(run.path)} keeps what the trials have left. "
        f"Go on with: {resume_command(run.path, command)}"
    )


def resume_command(path: StoragePath, command: str) -> str:
    """Return the line that goes on with the run at ``path``."""
    folder = short_path(path.parent)
    storage = "" if folder == "runs" else f" --storage {shlex.quote(folder)}"
    return f"cifar-tune {command} --resume --name {shlex.quote(path.name)}{storage}"


def short_path(path: StoragePath) -> str:
    """Return a path as the user would type it here."""
    if isinstance(path, Path) and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)
