"""Muon, which steps by an orthogonal matrix near its momentum, with a partner for other weights.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. ``torch.optim.Muon`` accepts only
matrices, no convolutions, updates them one by one, and computes in bfloat16 everywhere, which most
CPUs emulate.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: steep at 0, so that a few iterations bring every singular value near 1."""
SMALLEST_NORM = 1e-7
"""Matrices with a smaller norm are not scaled to a larger one: zeros stay zeros."""


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal steps for hidden matrices; a partner updates the rest.

    A convolution's kernel counts as the matrix (out, in * k * k). The size of a step is the
    learning rate times the root of max(1, rows / columns), the rule of Jordan's muon.py and of
    ``torch.optim.Muon`` for matrices. For a kernel, muon.py uses the ratio of its last two sides
    instead, and airbench94_muon has no such factor. So kernels with more rows than columns take
    larger steps here, by that root, and all others the same.

    A group's ``lr`` may be a 0-dim tensor, which no step reads on the host.

    Args:
        matrices: Groups of the parameters from ``hidden_matrices``, each with its ``weight_decay``.
        partner: The optimizer of all other parameters. Its groups and its state become part of this
            optimizer, after those of the matrices.
        lr: Learning rate of the matrices.
        momentum: Decay of the moving average of gradients, which steps look ahead of (Nesterov).
        iterations: See ``orthogonalize``.
        normalized: Whether each matrix is scaled to the norm sqrt(rows) before every step, as in
            Jordan's airbench94_muon; then its ``weight_decay`` has no effect.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        partner: torch.optim.Optimizer,
        *,
        lr: float,
        momentum: float,
        iterations: int,
        normalized: bool,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})
        self._num_matrix_groups = len(matrices)
        self._iterations = iterations
        self._normalized = normalized
        self._partner = partner
        # One list of groups and one state for both, for callers that set rates or save the state.
        self.param_groups.extend(partner.param_groups)
        self.state = partner.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; ``closure`` is not supported."""
        assert closure is None
        self._partner.step()
        alike = defaultdict(list)
        for group in self.param_groups[: self._num_matrix_groups]:
            for parameter, update in self._updates(group):
                flat = update.flatten(1)
                alike[flat.shape].append((parameter, flat, group["lr"]))
        # Matrices of the same shape are iterated together.
        for (rows, columns), entries in alike.items():
            steps = orthogonalize(torch.stack([flat for _, flat, _ in entries]), self._iterations)
            _descend(
                [parameter for parameter, _, _ in entries],
                steps,
                [rate for _, _, rate in entries],
                factor=max(1.0, rows / columns) ** 0.5,
            )

    def _updates(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Scale or decay a group's parameters; return them with the directions of their steps."""
        learning = [(p, p.grad) for p in group["params"] if p.grad is not None]
        if not learning:
            return []
        parameters, gradients = map(list, zip(*learning, strict=True))
        momenta = [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if self._normalized:
            _normalize(parameters)
        elif group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        return list(zip(parameters, updates, strict=True))

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]  # type: ignore[no-any-return]


def _normalize(parameters: list[Tensor]) -> None:
    norms = torch._foreach_norm(parameters)
    torch._foreach_clamp_min_(norms, SMALLEST_NORM)
    torch._foreach_div_(norms, [len(parameter) ** 0.5 for parameter in parameters])
    torch._foreach_div_(parameters, norms)


def _descend(
    parameters: list[Tensor], steps: Tensor, rates: list[float | Tensor], *, factor: float
) -> None:
    """Move each parameter against its step, shape (B, rows, columns), times its rate and factor."""
    moves = [step.view(p.shape) for p, step in zip(parameters, steps, strict=True)]
    on_device = [rate for rate in rates if isinstance(rate, Tensor)]
    if on_device:
        # One multiplication for all; ``alpha`` would read the tensors on the host.
        steps *= (torch.stack(on_device) * factor).view(-1, 1, 1)
        torch._foreach_sub_(parameters, moves)
        return
    for parameter, move, rate in zip(parameters, moves, rates, strict=True):
        parameter.sub_(move, alpha=rate * factor)  # type: ignore[arg-type]


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of matrices close to 1 by Newton-Schulz iterations.

    Args:
        matrices: Shape (B, rows, columns).
        iterations: Number of iterations; fewer leave small singular values smaller.

    Returns:
        Matrices with the same singular vectors. After five iterations their singular values are
        between 0.5 and 1.5 except for the very smallest.
    """
    a, b, c = COEFFICIENTS
    dtype = torch.bfloat16 if _is_fast_in_bfloat16(matrices.device) else matrices.dtype
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (x.mT if is_tall else x).to(dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.mT if is_tall else x
    return result.to(matrices.dtype)


def _is_fast_in_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that Muon updates, as its author advises.

    These are the weights of linear layers and convolutions, except for the first and the last
    layer, which the partner updates, like norms, biases, embeddings and tokens. A layer keeps its
    place in the order of the model's modules even if its weight is frozen or a buffer: no other
    layer takes its place. Kernels with one input channel are also left out, as in depthwise
    convolutions, because no matrix maps channels to channels there.
    """
    weights = list(_weights(model))
    return [
        weight
        for weight in weights[1:-1]
        if isinstance(weight, nn.Parameter)
        and weight.requires_grad
        and not (weight.ndim == 4 and weight.shape[1] == 1)
    ]


def _weights(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
            for name, weight in own:
                if name.endswith("weight") and weight.ndim in (2, 4):
                    yield weight
