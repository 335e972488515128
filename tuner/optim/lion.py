"""Lion, which steps in the direction of its momentum's sign."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Moves every weight up or down by the learning rate (Chen et al. 2023, arXiv 2302.06675).

    Its only state is the momentum, half of AdamW's state. A group's ``lr`` may be a 0-dim tensor,
    which no step reads on the host.

    Args:
        params: Groups of parameters, each with its ``weight_decay``.
        lr: Learning rate.
        betas: Share of the momentum in a step's direction, and its decay.
    """

    def __init__(
        self, params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            momenta = [self._momentum(p) for p in parameters]
            beta1, beta2 = group["betas"]
            directions = torch._foreach_lerp(gradients, momenta, beta1)
            torch._foreach_sign_(directions)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            # Not as ``alpha``, which would read a learning-rate tensor on the host.
            torch._foreach_mul_(directions, group["lr"])
            torch._foreach_sub_(parameters, directions)
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]  # type: ignore[no-any-return]
