"""Compiled training steps: whether they pay for their compilation, and making them."""

import json
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tuner.config import TrialConfig

CompileMode = Literal["auto", "always", "never"]

SAVING = 0.19
"""Share of an epoch that compilation saves on a GPU: airbench94 on an A100 takes 3.09 s instead of
3.83. On a CPU it loses: 0.73 to 0.94 times the speed of channels-last without it."""
COLD_SECONDS = 90.0
"""What compiling a network takes, forward and backward, the first time."""
WARM_SECONDS = 10.0
"""The same from the cache on disk, once this process has compiled the like."""

_known: set[str] = set()
"""What this process has compiled, so that a later trial of the same shape finds it on disk."""


class Forward:
    """A network's way forward in training, compiled once that pays.

    Args:
        network: What is trained.
        config: Its training.
        device: Where.
        mode: ``auto`` compiles where the epochs to come save more time than it takes.
        num_parts: Parts of a batch that go through the network one after the other.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrialConfig,
        device: torch.device,
        mode: CompileMode,
        num_parts: int,
    ) -> None:
        self._network = network
        self._mode = mode
        self._device = device
        self._key = json.dumps([config.model.to_plain(), config.batch_size, config.precision])
        # Graphs keep gradients in memory of their own, which a second part would overwrite.
        self._uses_graphs = device.type == "cuda" and num_parts == 1
        self._call: Callable[[Tensor], Any] = network
        if mode == "always":
            self._compile()

    def __call__(self, images: Tensor) -> Tensor:
        """Give logits, shape (N, K), for normalized images, shape (N, C, H, W)."""
        return self._call(images)  # type: ignore[no-any-return]

    def consider(self, seconds_left: float) -> None:
        """Compile, if the epochs to come, which take so long as it is, make up for it."""
        if self._call is not self._network or self._mode != "auto" or self._device.type != "cuda":
            return
        cost = WARM_SECONDS if self._key in _known else COLD_SECONDS
        if SAVING * seconds_left > cost:
            self._compile()

    def start_step(self) -> None:
        """Tell the compiled graphs that what the last step left is not needed any more."""
        if self._uses_graphs and self._call is not self._network:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def _compile(self) -> None:
        mode = "reduce-overhead" if self._uses_graphs else "default"
        self._call = torch.compile(self._network, mode=mode, dynamic=False)
        _known.add(self._key)
