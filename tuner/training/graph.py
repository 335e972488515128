"""A training step as a CUDA graph: checking whether it can be captured, and capturing it."""

import random
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuner.errors import first_line

_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed. The allocator still refers to them, so they must not be freed."""


class CaptureError(Exception):
    """A step that cannot be captured; the message says why, in one line."""


def why_not_capturable(
    step: Callable[[], None], tensors: Callable[[], Iterable[torch.Tensor]] = tuple
) -> str | None:
    """Run a step eagerly, and return why a graph of it would behave differently, or ``None``.

    A graph repeats what the device did. A value that is read on the host, and a random number that
    is drawn there, would keep the values from the time of the capture.

    Args:
        step: The step. It is run once, with all its effects.
        tensors: Returns the network's current parameters and buffers.
    """
    # While these refer to the old memory, no new tensor can have the same address.
    held = [tensor.detach() for tensor in tensors()]
    before, mode = _host_random_state(), torch.cuda.get_sync_debug_mode()
    places: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = partial(_note_read, places, threading.get_ident())
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    if places:
        return f"{places[0]} reads a value on the host"
    if _host_random_state() != before:
        return "the step draws random numbers on the host"
    if any(old.data_ptr() != new.data_ptr() for old, new in zip(held, tensors(), strict=False)):
        return "the network puts another tensor in the place of a weight or buffer; use copy_"
    return None


def capture(
    step: Callable[[], None], stream: torch.cuda.Stream, generator: torch.Generator
) -> torch.cuda.CUDAGraph:
    """Capture a step that has been run on this stream before, without running it.

    Args:
        step: The step.
        stream: Stream on which it was run and is captured.
        generator: Its source of random numbers in addition to the device's default generator.

    Raises:
        CaptureError: If that fails. Weights and random numbers are as before then.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    generators = (generator, torch.cuda.default_generators[stream.device.index])
    states = [each.clone_state() for each in generators]
    try:
        # Meanwhile, other threads may copy a snapshot or capture a graph of their own.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except Exception as error:
        if not _has_ended(graph):
            _failed.append(graph)
        for each, state in zip(generators, states, strict=True):
            # The old state would refuse to draw, because for it the capture has not ended.
            each.graphsafe_set_state(state)
        raise CaptureError(f"{type(error).__name__}: {first_line(error)}") from error
    return graph


def _note_read(
    places: list[str],
    thread: int,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    *ignored: Any,
) -> None:
    """Add a warning's location to ``places`` if it reports that ``thread`` read a value."""
    # The mode applies to the process: the thread that saves an epoch is warned, too. PyTorch also
    # warns once that this mode may miss some "synchronizing operations".
    if threading.get_ident() == thread and "called a synchronizing" in str(message):
        places.append(f"{Path(filename).name}:{lineno}")


def _has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Return whether a capture ended although the step failed, for lack of memory, say."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _host_random_state() -> tuple[Any, ...]:
    _, keys, position, *_ = np.random.get_state()
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.asarray(keys).tobytes(),
        position,
    )
