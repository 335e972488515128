"""Optimizer, learning-rate schedule and weight average, each from its config."""

import copy
import math

import torch
from torch import Tensor, nn

from tuner.config import AdamW, Cosine, OneCycle, Sgd


def make_optimizer(model: nn.Module, config: Sgd | AdamW) -> torch.optim.Optimizer:
    """Build the optimizer, with weight decay on matrices and kernels alone.

    Norm scales and biases are left out of the decay (He et al. 2019, "Bag of Tricks").
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # fused: a step of the 290k-parameter CNN on a CPU core takes 0.17 ms instead of 0.70 (SGD),
    # 0.34 instead of 1.77 (AdamW).
    match config:
        case Sgd():
            return torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                fused=True,
            )
        case AdamW():
            betas = (config.beta1, config.beta2)
            return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def lr_factor(schedule: Cosine | OneCycle, progress: float) -> float:
    """Give the learning rate as a share of its peak.

    Args:
        schedule: Which curve.
        progress: Share of all steps done, in [0, 1].

    Returns:
        A factor in [0, 1], 1 at the end of the warm-up.
    """
    if progress < schedule.warmup:
        done = progress / schedule.warmup
        match schedule:
            case Cosine():
                return done
            case OneCycle():
                return 1 / schedule.div + (1 - 1 / schedule.div) * (1 - _half_cosine(done))
    return _half_cosine((progress - schedule.warmup) / (1 - schedule.warmup))


def _half_cosine(done: float) -> float:
    """Fall from 1 to 0 as ``done`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


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
