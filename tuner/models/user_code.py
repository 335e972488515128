"""Runs a user's Python file as a module, and looks up what it defines."""

import functools
import hashlib
import inspect
import linecache
import random
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import tuner
from tuner.errors import UsageError, first_line
from tuner.schema import did_you_mean

OURS = ("num_classes", "image_shape")
"""Arguments that a network receives in addition to its parameters."""


def load_callable(path: str, name: str, source: str) -> Callable[..., Any]:
    """Run the source and return the class or function ``name``.

    Args:
        path: File of the source, for messages.
        name: Name of a class or function.
        source: Python code.

    Raises:
        UsageError: If the source is no Python or fails, or has no such class or function.
    """
    if not source:
        raise UsageError(f"{path}: its text is missing; read the configuration from a space file")
    module = load_module(path, source)
    if callable(found := getattr(module, name, None)):
        return found  # type: ignore[no-any-return]
    if found is not None:
        raise UsageError(f"{path}: {name} is {found!r}, not a class or function")
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    hint = did_you_mean(name, own) or f"; it has {', '.join(own) or 'none'}"
    raise UsageError(f"{path}: there is no class or function {name!r}{hint}")


def check_arguments(make: Callable[..., Any], given: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return an unknown or missing argument and what to do about it, or ``None``."""
    try:
        parameters = inspect.signature(make).parameters
    except (ValueError, TypeError):
        return None
    kinds = {parameter.kind for parameter in parameters.values()}
    named = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    is_open = inspect.Parameter.VAR_KEYWORD in kinds
    for name in OURS:
        if name not in named and not is_open:
            return "", f"the network does not take {name}; add the argument to it"
    for name in given:
        if name in OURS:
            return name, "is given by the data; remove it"
        if name not in named and not is_open:
            known = [argument for argument in named if argument not in OURS]
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known) or 'none'}"
            return name, f"the network takes no such argument{hint}"
    for name in named:
        is_needed = parameters[name].default is inspect.Parameter.empty
        if is_needed and name not in given and name not in OURS:
            return "", f"the network needs '{name}'; add it"
    return None


@functools.lru_cache(maxsize=8)
def load_module(path: str, source: str) -> ModuleType:
    """Run the source as a module, once per process; see ``load_callable``."""
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UsageError(f"{path}:{line}: not Python: {getattr(error, 'msg', error)}") from error
    name = f"cifar_tune_custom_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    module = ModuleType(name)
    # Dataclasses look their module up there; tracebacks find their lines in linecache.
    sys.modules[name] = module
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    # Not earlier: spaces without custom networks are read without torch.
    import numpy as np
    import torch

    # It runs once per process, so it must not change the random numbers of the first training.
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            exec(code, vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ImportError):
            hint = _moved(error)
            hint = hint or "; it may import installed packages alone, for only this file travels"
        raise UsageError(f"{place_of(path, error)}: {first_line_of(error)}{hint}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return module


def _moved(error: ImportError) -> str:
    """Return where a module or name is now that an import did not find; empty if unknown."""
    name = error.name or ""
    if missing := re.match(r"cannot import name '(\w+)'", error.msg or ""):
        name = f"{name}.{missing[1]}"
    for old, new in tuner.MOVED.items():
        # A package may now replace a module: only what the package itself lacks has moved.
        is_elsewhere = name.rpartition(".")[0] in sys.modules.keys() - {old}
        if name == old or (name.startswith(f"{old}.") and not is_elsewhere):
            return f"; {old} is {new} now"
    return ""


def place_of(path: str, error: BaseException) -> str:
    """Return the file, with its deepest line that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def first_line_of(error: BaseException) -> str:
    """Return an error's kind and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
