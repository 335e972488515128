"""SGD whose weights may begin to learn one after another."""

from collections.abc import Callable

import torch


class FusedSgd(torch.optim.SGD):
    """Torch's fused SGD, which by itself fails where some weights have a momentum and others none.

    A momentum of zeros leads to the very step that is taken without one.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not for it."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = self.state[parameter]
                if parameter.grad is not None and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
        super().step()
