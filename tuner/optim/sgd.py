"""SGD whose weights may start to learn at different times."""

from collections.abc import Callable

import torch


class FusedSgd(torch.optim.SGD):
    """Torch's fused SGD, except that it also works if only some weights have a momentum.

    A momentum of zeros leads to exactly the same step as none.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = self.state[parameter]
                if parameter.grad is not None and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
        super().step()
