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

    def share_at(self, num_updates: int) -> float:
        """Return the share of the model's present weights at an update, counted from 1."""
        return 1 - min(self.decay, num_updates / (num_updates + 10))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights."""
        self.num_updates += 1
        averaged, current = self._pairs
        torch._foreach_lerp_(averaged, current, self.share_at(self.num_updates))
        for mine, theirs in self._counters:
            mine.copy_(theirs)

    @torch.no_grad()
    def move(self, share: Tensor) -> None:
        """Do as ``update`` with a share on the device, for a graph; ``num_updates`` stays.

        Args:
            share: What ``share_at`` returns, shape ().
        """
        averaged, current = self._pairs
        if self.decay:
            # A lerp takes no share from the device.
            steps = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(steps, share)
            torch._foreach_add_(averaged, steps)
        else:
            torch._foreach_copy_(averaged, current)
        if self._counters:
            mine, theirs = zip(*self._counters, strict=True)
            torch._foreach_copy_(mine, theirs)


def _float_pairs(averaged: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the floating-point parameters and buffers of both models, in the same order."""
    mine, theirs = (
        [t.detach() for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
        for m in (averaged, model)
    )
    return mine, theirs
