"""Weights with all that is needed to use them again: save, load, rebuild."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tuner.config import ModelConfig
from tuner.errors import TunerError, UsageError
from tuner.files import replacing
from tuner.models import build_model
from tuner.storage import AnyPath, on_disk
from tuner.trial import EpochRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What stands beside the weights in a checkpoint file."""

    model: ModelConfig
    epoch: int
    """The epoch after which the weights were saved, from 1."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(C, H, W) of the images that the model takes."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and deviation a channel by which images in [0, 1] are normalized."""


def save_checkpoint(path: AnyPath, network: nn.Module, checkpoint: Checkpoint) -> None:
    """Write weights and description as one safetensors file, whole or not at all."""
    description = asdict(checkpoint) | {"model": checkpoint.model.to_plain()}
    _write(path, network.state_dict(), {"checkpoint": json.dumps(description)})


def save_state(path: AnyPath, state: Mapping[str, Tensor], history: Sequence[EpochRow]) -> None:
    """Write what a training goes on from, with the epochs that led there, whole or not at all."""
    rows = [asdict(row) for row in history]
    _write(path, state, {"history": json.dumps(rows)})


def _write(path: AnyPath, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        if any(tensor.dtype == torch.bfloat16 for tensor in on_cpu.values()):
            safetensors.torch.save_file(on_cpu, temporary, metadata)
        else:
            # The same file in 0.03 ms a tensor instead of 0.1, but NumPy has no bfloat16.
            arrays = {name: tensor.numpy() for name, tensor in on_cpu.items()}
            safetensors.numpy.save_file(arrays, temporary, metadata)


def load_state(path: AnyPath) -> dict[str, Tensor]:
    """Read the tensors that ``save_state`` wrote."""
    with on_disk(path) as local, safe_open(local, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_history(path: AnyPath) -> list[EpochRow]:
    """Read the epochs that led to a saved state, and not the state; none if there is no file."""
    if not path.exists():
        return []
    with on_disk(path) as local, safe_open(local, framework="pt") as file:
        return [EpochRow(**row) for row in json.loads(file.metadata()["history"])]


def load_checkpoint(path: AnyPath) -> tuple[nn.Module, Checkpoint]:
    """Rebuild a saved model, on the CPU and in evaluation mode.

    Raises:
        TunerError: If the file is missing, damaged, or not a checkpoint of this program.
    """
    try:
        with on_disk(path) as local, safe_open(local, framework="pt") as file:
            checkpoint = _parse((file.metadata() or {}).get("checkpoint", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.random.fork_rng(devices=[]):
            network = build_model(checkpoint.model, len(checkpoint.classes), checkpoint.image_shape)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, ValueError, RuntimeError, UsageError) as error:
        reason = str(error).splitlines()[0]  # Of missing weights, torch gives a line each.
        raise TunerError(f"{path}: not a usable checkpoint: {reason}") from error
    return network.to(memory_format=torch.channels_last).eval(), checkpoint


def read_description(path: AnyPath) -> Checkpoint:
    """Read what stands beside the weights, and not the weights.

    Raises:
        TunerError: As ``load_checkpoint``.
    """
    try:
        with on_disk(path) as local, safe_open(local, framework="pt") as file:
            return _parse((file.metadata() or {}).get("checkpoint", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise TunerError(f"{path}: not a usable checkpoint: {error}") from error


def _parse(description: str) -> Checkpoint:
    """Read what ``save_checkpoint`` wrote beside the weights.

    Raises:
        ValueError: If it is something else.
    """
    try:
        plain = json.loads(description)
        ((family, params),) = plain["model"].items()
        return Checkpoint(
            model=ModelConfig(family, params),
            epoch=plain["epoch"],
            **{name: tuple(plain[name]) for name in ("classes", "image_shape", "mean", "std")},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its description is not ours ({error})") from error
