"""Muon, which steps by an orthogonal matrix near its momentum, with AdamW for what is no matrix.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. ``torch.optim.Muon`` takes matrices
alone, no convolutions, goes through them one by one, and computes in bfloat16 everywhere, which
most CPUs emulate.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's quintic: steep at 0, so that five iterations bring every singular value near 1."""
NUM_ITERATIONS = 5
PARTNER_BETAS = (0.9, 0.95)
"""Of AdamW beside Muon, from Jordan's README."""


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, for hidden matrices; AdamW for the rest.

    A convolution's kernel counts as the matrix (out, in * k * k). A step's size is that of
    Jordan's code: the learning rate times the root of max(1, rows / columns).

    Args:
        matrices: Groups of what ``hidden_matrices`` gave, each with its ``weight_decay``.
        others: Groups of the other parameters, each with its ``weight_decay``, for AdamW.
        lr: Learning rate of the matrices.
        momentum: Decay of the moving average of gradients, which steps look ahead of (Nesterov).
        adamw_lr: Learning rate of the others.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        adamw_lr: float,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})
        self._num_matrix_groups = len(matrices)
        self._partner = torch.optim.AdamW(others, lr=adamw_lr, betas=PARTNER_BETAS, fused=True)
        # One list of groups and one state for both, for whoever sets rates or saves the state.
        self.param_groups.extend(self._partner.param_groups)
        self.state = self._partner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not for it."""
        assert closure is None
        self._partner.step()
        alike = defaultdict(list)
        for group in self.param_groups[: self._num_matrix_groups]:
            for parameter, update in self._updates(group):
                flat = update.flatten(1)
                alike[flat.shape].append((parameter, flat, group["lr"]))
        # Matrices of one shape go through the iterations together.
        for (rows, columns), entries in alike.items():
            steps = orthogonalize(torch.stack([flat for _, flat, _ in entries]))
            for (parameter, _, lr), step in zip(entries, steps, strict=True):
                size = lr * max(1.0, rows / columns) ** 0.5
                parameter.add_(step.view(parameter.shape), alpha=-size)

    def _updates(self, group: dict[str, Any]) -> list[tuple[nn.Parameter, Tensor]]:
        """Decay a group's parameters and give them with the directions of their steps."""
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return []
        gradients = [p.grad for p in parameters]
        momenta = [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        return list(zip(parameters, updates, strict=True))

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]  # type: ignore[no-any-return]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices near 1 by Newton-Schulz iterations.

    Args:
        matrices: Shape (B, rows, columns).

    Returns:
        Matrices of the same singular vectors, whose singular values lie between 0.5 and 1.5 but
        for the very smallest.
    """
    a, b, c = COEFFICIENTS
    dtype = torch.bfloat16 if _is_fast_in_bfloat16(matrices.device) else matrices.dtype
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (x.mT if is_tall else x).to(dtype)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.mT if is_tall else x
    return result.to(matrices.dtype)


def _is_fast_in_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Give the parameters that Muon is for, as its author advises.

    Weights of linear layers and convolutions, but for the first and the last one, which are
    AdamW's like norms, biases, embeddings and tokens; so are kernels with one input channel, as in
    depthwise convolutions, since no matrix maps channels to channels there.
    """
    weights = list(_weights(model))
    return [
        weight
        for weight in weights[1:-1]
        if weight.requires_grad and not (weight.ndim == 4 and weight.shape[1] == 1)
    ]


def _weights(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("weight") and parameter.ndim in (2, 4):
                    yield parameter
