"""Checks whose code builds a network: the user's own, which is known here, or somebody else's.

A run contains the text of its custom networks, and building one runs that text. ``search`` records
the hashes of the user's own files. Text that came with a run is run if its hash is recorded, or if
the user allows it. Workers run the code that the command that started them has checked.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tuner.config import ModelConfig
from tuner.errors import TunerError, UntrustedCodeError, UsageError
from tuner.models.families import Source
from tuner.schema import from_json

Code = Mapping[str, str]
"""Text of each Python file -> the file's name."""
_searched: set[str] = set()
"""Hashes of the user's own files that this process has searched, recorded or not."""


def code_of(models: Iterable[ModelConfig]) -> Code:
    """Return the code that runs when these networks are built.

    Raises:
        TunerError: If what a model starts from is damaged.
    """
    return dict(pair for model in models for pair in _pairs(model))


def _pairs(model: ModelConfig) -> Iterator[tuple[str, str]]:
    source = model.params.get("source")
    if not isinstance(source, str) or not source:
        return
    if model.family == "custom":
        yield source, str(model.params.get("path"))
    elif model.family == "pretrained":
        try:
            start = from_json(Source, source)
        except UsageError as error:
            raise TunerError(f"model.pretrained.source: damaged: {error}") from error
        yield from _pairs(start.model)


def remember(code: Code) -> None:
    """Record the user's own code, so that runs with its networks need no ``trust_code``."""
    for text, name in code.items():
        digest = _digest(text)
        if _is_known(digest):
            continue
        _searched.add(digest)
        try:
            folder = _folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / digest).touch(mode=0o600)
        except (OSError, RuntimeError) as error:
            _tell(
                f"The code of {name!r} could not be recorded ({error}): later commands that build "
                "its network will need --trust-code."
            )


def check_code_trusted(code: Code, whose: object, *, trust: bool) -> None:
    """Make sure that code is the user's own or trusted, and print which foreign code is run.

    Args:
        code: The code that would be run.
        whose: What the code came with, for messages.
        trust: Whether the user trusts it.

    Raises:
        UntrustedCodeError: If it is neither.
    """
    foreign = {text: name for text, name in code.items() if not _is_known(_digest(text))}
    if not foreign:
        return
    names = ", ".join(
        f"{name[:200]!r} (SHA-256 {_digest(text)[:12]})" for text, name in foreign.items()
    )
    if not trust:
        raise UntrustedCodeError(
            f"{whose}: its networks are made by code that was never searched with here: {names}. "
            "Read it in config.json or space.yaml; to run it, give --trust-code (in Python, "
            "trust_code=True)."
        )
    _tell(f"Running code that came with {whose}: {names}.")


def _is_known(digest: str) -> bool:
    try:
        return digest in _searched or (_folder() / digest).is_file()
    except (OSError, RuntimeError):
        return False


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "cifar-tune/known_code"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@functools.cache
def _tell(line: str) -> None:
    """Print a line once per process, even if progress is not shown."""
    print(line, file=sys.stderr)
