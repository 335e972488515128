"""The moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers.

    The decay is warmed up as ``min(decay, t / (t + 10))`` at step ``t``, so that a short training
    is not dragged by its first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        """The averaged model, in evaluation mode."""
        self.decay = decay
        self.num_updates = 0
        self._pairs = _float_pairs(self.model, model)
        self._counters = [
            (mine, theirs)
            for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True)
            if not mine.is_floating_point()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 10))
        averaged, current = self._pairs
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in self._counters:
            mine.copy_(theirs)


def _float_pairs(averaged: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Give the floating-point parameters and buffers of both models, in the same order."""
    mine, theirs = (
        [t.detach() for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
        for m in (averaged, model)
    )
    return mine, theirs
