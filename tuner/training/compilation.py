"""Decides whether compiling a network pays off, from earlier measurements on this node."""

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from tuner.config import NonNegative, Positive, TrialConfig
from tuner.errors import UsageError
from tuner.schema import from_json, to_json

COLD_SECONDS = 18.5
"""Seconds of a first compilation if none was measured on this node: speednet's on one H100."""
MOST_LOST = 0.02
"""Maximum share of a training's time that a compilation of unknown benefit may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Known costs for one shape of network and batch on one kind of GPU."""

    cold_seconds: NonNegative | None = None
    """Seconds of the compilation with an empty cache."""
    warm_seconds: NonNegative | None = None
    """Seconds of the latest compilation from the compiler's cache on disk."""
    plain_step: Positive | None = None
    compiled_step: Positive | None = None
    """Seconds of a captured step without and with compilation."""


class CompilationCosts:
    """The costs of a shape, in a file next to the compiler's cache, shared by trials of a node.

    Args:
        path: The file.
        key: Key of the shape.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    @classmethod
    def on_this_node(
        cls,
        config: TrialConfig,
        batch_size: int,
        image_shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Return the costs of a training's network on its device.

        Args:
            config: The training.
            batch_size: Number of images that pass through the network at once.
            image_shape: (C, H, W).
            dtype: Number type of the forward pass.
            device: The GPU.
        """
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        kind = torch.cuda.get_device_name(device)
        shape = [config.model.to_plain(), batch_size, list(image_shape), str(dtype)]
        text = json.dumps([shape, kind, torch.__version__], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        return cls(Path(cache_dir()) / "cifar-tune-costs.json", key)

    def pay_off(self, step_seconds: float, seconds_left: float) -> bool:
        """Return whether to compile now.

        A known shape is compiled if the remaining steps save more time than it takes; an unknown
        one if a compilation that saves nothing would hardly be noticed.

        Args:
            step_seconds: Seconds of a captured step without compilation.
            seconds_left: Seconds that the remaining steps take unchanged, or until the budget ends.
        """
        known = self._read()
        costs = known.get(self._key, Costs())
        if costs.plain_step is None or costs.compiled_step is None:
            seconds = [c.cold_seconds for c in known.values() if c.cold_seconds is not None]
            cold = statistics.median(seconds) if seconds else COLD_SECONDS
            return cold <= MOST_LOST * seconds_left
        # The compiled step's time also depends on how busy the GPU was when it was measured.
        saved = 1 - costs.compiled_step / costs.plain_step
        cost = costs.warm_seconds or costs.cold_seconds or COLD_SECONDS
        return cost < seconds_left and saved * (seconds_left - cost) > cost

    def note_compilation(self, seconds: float) -> None:
        """Record the seconds of a compilation, including the first step."""
        costs = self._read().get(self._key, Costs())
        if costs.cold_seconds is None:
            self._write(replace(costs, cold_seconds=seconds))
        else:
            self._write(replace(costs, warm_seconds=seconds))

    def note_steps(self, *, plain: float, compiled: float) -> None:
        """Record the seconds of a captured step without and with compilation."""
        costs = self._read().get(self._key, Costs())
        self._write(replace(costs, plain_step=plain, compiled_step=compiled))

    def _read(self) -> dict[str, Costs]:
        try:
            return from_json(dict[str, Costs], self._path.read_text())
        except (OSError, UnicodeDecodeError, UsageError):
            # Lost with the cache, or written by another version: it is measured again.
            return {}

    def _write(self, costs: Costs) -> None:
        known = self._read() | {self._key: costs}
        text = to_json(known)
        # What a full or read-only disk rejects is measured again; no training fails because of it.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Trials of a node may write at the same time: each leaves a complete file.
            temporary = self._path.with_suffix(f".{os.getpid()}")
            temporary.write_text(text)
            temporary.replace(self._path)
