"""The moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers.

    The decay is warmed up as ``min(decay, t / (t + 10))`` at step ``t``, so that the first weights
    do not dominate a short training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        """The averaged model, in evaluation mode."""
        self.model.eval()
        self.decay = decay
        self.num_updates = 0
        self._parameters = _float_parameters(self.model), _float_parameters(model)
        # By module and name: a forward pass may replace a buffer with another tensor.
        places = (name.rpartition(".") for name, _ in model.named_buffers())
        self._buffers = [
            (self.model.get_submodule(path)._buffers, model.get_submodule(path)._buffers, name)
            for path, _, name in places
        ]

    def share_at(self, num_updates: int) -> float:
        """Return the share of the model's current weights at an update, counted from 1."""
        return 1 - min(self.decay, num_updates / (num_updates + 10))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's current weights."""
        self.num_updates += 1
        averaged, current, counters = self._pairs()
        torch._foreach_lerp_(averaged, current, self.share_at(self.num_updates))
        for mine, theirs in counters:
            mine.copy_(theirs)

    @torch.no_grad()
    def move(self, share: Tensor) -> None:
        """Do as ``update`` for a graph, with a share on the device; ``num_updates`` is unchanged.

        Args:
            share: What ``share_at`` returns, shape ().
        """
        averaged, current, counters = self._pairs()
        if self.decay:
            # A lerp accepts no share on the device.
            steps = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(steps, share)
            torch._foreach_add_(averaged, steps)
        else:
            torch._foreach_copy_(averaged, current)
        if counters:
            mine, theirs = zip(*counters, strict=True)
            torch._foreach_copy_(mine, theirs)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Return the averaged tensors, the model's tensors, and pairs whose second is copied."""
        averaged, current = map(list, self._parameters)
        counters = []
        for mine, theirs, name in self._buffers:
            one, other = mine[name], theirs[name]
            assert one is not None, "it has a name among the buffers"
            assert other is not None, "likewise"
            if one.is_floating_point():
                averaged.append(one)
                current.append(other)
            else:
                counters.append((one, other))
        return averaged, current, counters


def _float_parameters(model: nn.Module) -> list[Tensor]:
    # Not aliases of their memory: a forward pass may replace the `data` of a parameter.
    return [p for p in model.parameters() if p.is_floating_point()]
