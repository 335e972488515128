"""Everything that changes during a training, as named tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuner.optim import WeightAverage


class UnfitStateError(Exception):
    """A saved state, written by another version of the program, that this one cannot resume from.

    The message says why, in one line.
    """


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's global generators, as named tensors."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def set_random_state(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Set torch's global generators to a state that ``random_state`` returned."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """Everything that changes during a training."""

    network: nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Source of shuffles and augmentation, on the device; dropout uses the global generators."""

    @property
    def device(self) -> torch.device:
        """Device of the training."""
        return self.generator.device

    def state(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors, for ``restore``."""
        tensors = {
            f"{part}.{name}": tensor
            for part, module in (("network", self.network), ("average", self.average.model))
            for name, tensor in module.state_dict().items()
        }
        for index, parameter in enumerate(self._parameters()):
            for name, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = tensor
        tensors["average_updates"] = torch.tensor(self.average.num_updates)
        tensors["random.generator"] = self.generator.get_state()
        return tensors | random_state(self.device)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that ``state`` returned, with the same numbers on a CPU.

        On another kind of device, the random numbers differ from then on.

        Raises:
            UnfitStateError: If a part of the optimizer's state is not what it keeps for that
                parameter. Then nothing has changed.
        """
        self._check_fits(tensors)
        for part, module in (("network", self.network), ("average", self.average.model)):
            module.load_state_dict(_under(f"{part}.", tensors))
        parameters = list(self._parameters())
        for key, tensor in _under("optimizer.", tensors).items():
            index, name = key.split(".", 1)
            parameter = parameters[int(index)]
            # Moments take their parameter's memory layout, which the fused steps rely on.
            like = parameter if tensor.shape == parameter.shape else tensor.to(parameter.device)
            self.optimizer.state[parameter][name] = torch.empty_like(
                like, dtype=tensor.dtype, requires_grad=False
            ).copy_(tensor)
        self.average.num_updates = int(tensors["average_updates"])
        random = tensors["random.generator"]
        if random.shape == self.generator.get_state().shape:
            self.generator.set_state(random)
        else:
            seed = self.generator.initial_seed() + self.average.num_updates
            self.generator.manual_seed(seed % 2**63)
        set_random_state(tensors, self.device)

    def _check_fits(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse the state of an optimizer with other parameters, or in another order."""
        fit = [
            (group["state_names"], parameter.shape)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        for key, tensor in _under("optimizer.", tensors).items():
            index, name = key.split(".", 1)
            names, shape = fit[int(index)] if int(index) < len(fit) else (frozenset(), None)
            if name not in names or (tensor.ndim and tensor.shape != shape):
                raise UnfitStateError(
                    f"its saved optimizer state does not fit this version: optimizer.{key} of "
                    f"shape {tuple(tensor.shape)}"
                )

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldedLearner:
    """Everything that changes during the trainings of all folds."""

    learners: Sequence[Learner]
    random: Sequence[Mapping[str, Tensor]]
    """The states of the global generators after each training."""

    @property
    def device(self) -> torch.device:
        """Device of the trainings."""
        return self.learners[0].device

    def state(self) -> dict[str, Tensor]:
        """Return the whole state as named tensors."""
        return {
            _prefix(fold) + name: tensor
            for fold, (learner, random) in enumerate(zip(self.learners, self.random, strict=True))
            for name, tensor in (learner.state() | dict(random)).items()
        }


def state_of_fold(state: Mapping[str, Tensor], fold: int) -> dict[str, Tensor]:
    """Return the part of ``FoldedLearner.state()`` from which the training of a fold resumes."""
    return _under(_prefix(fold), state)


def _prefix(fold: int) -> str:
    return f"folds.{fold}."


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, named without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
