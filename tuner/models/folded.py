"""The networks of one configuration, each trained without a different fold, as one network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FoldedNetwork(nn.Module):
    """Averages the class probabilities of its networks.

    It returns the logarithms of the mean probabilities, whose softmax is that mean, so it can be
    used like any network that returns logits. Like the vote of an ensemble, it takes the mean of
    the probabilities, not of their logarithms.

    Args:
        networks: At least one; each maps normalized images (N, C, H, W) to logits (N, K).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities, float32, shape (N, K)."""
        logs = [network(inputs).float().log_softmax(dim=1) for network in self.networks]
        return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs))
