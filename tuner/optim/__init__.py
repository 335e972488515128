"""Optimizer, learning-rate schedule and weight average, each from its config."""

import torch
from torch import nn

from tuner.config import AdamW, Lion, Muon, Sgd
from tuner.optim import lion, muon
from tuner.optim.average import WeightAverage
from tuner.optim.schedule import lr_factor

__all__ = ["WeightAverage", "lr_factor", "make_optimizer"]


def make_optimizer(model: nn.Module, config: Sgd | AdamW | Lion | Muon) -> torch.optim.Optimizer:
    """Build the optimizer, with weight decay on matrices and kernels alone.

    Norm scales and biases are left out of the decay (He et al. 2019, "Bag of Tricks"). Each group
    of parameters holds its peak learning rate as ``initial_lr``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = muon.hidden_matrices(model) if isinstance(config, Muon) else []
    taken = {id(p) for p in matrices}
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1 and id(p) not in taken],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused: a step of the 290k-parameter CNN on a CPU core takes 0.17 ms instead of 0.70 (SGD),
    # 0.34 instead of 1.77 (AdamW).
    optimizer: torch.optim.Optimizer
    match config:
        case Sgd():
            optimizer = torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                fused=True,
            )
        case AdamW():
            betas = (config.beta1, config.beta2)
            optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
        case Lion():
            optimizer = lion.Lion(groups, lr=config.lr, betas=(config.beta1, config.beta2))
        case Muon():
            optimizer = muon.Muon(
                matrices,
                groups,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                adamw_lr=config.adamw_lr,
            )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
