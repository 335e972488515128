"""Saves, loads and rebuilds checkpoints: weights with everything needed to use them again."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tuner.config import MOST_FOLDS, Count, ModelConfig, Positive
from tuner.errors import TunerError, UsageError, first_line
from tuner.models.build import build_folded
from tuner.models.custom import to_channels_last
from tuner.run.layout import CONFIG, ENSEMBLE
from tuner.run.trial import EpochMetrics
from tuner.schema import Bounds, Opaque, from_json, quoted, to_json
from tuner.storage.files import replacing
from tuner.storage.paths import AnyPath, on_disk, sha256_of
from tuner.storage.patience import is_unwritable
from tuner.storage.records import explaining_damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The description stored with the weights in a checkpoint file."""

    model: Annotated[ModelConfig, Opaque]
    epoch: Count
    """The epoch after which the weights were saved, from 1."""
    classes: tuple[str, ...]
    image_shape: tuple[Count, Count, Count]
    """(C, H, W) of the images that the model takes."""
    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    """Mean and deviation per channel with which images in [0, 1] are normalized."""
    computed: str = ""
    """The kind of device and the number type of its validation, such as ``cpu float32``; empty if
    an earlier version did not record it."""
    folds: Annotated[int, Bounds(ge=0, le=MOST_FOLDS)] = 0
    """Number of networks in the file, each trained without one fold of the images; they are loaded
    as one ``FoldedNetwork``. 0 for a single network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The epoch of a trial whose weights are kept."""

    checkpoint: Checkpoint
    weights: Mapping[str, Tensor]
    val_probs: Tensor
    """Class probabilities of the validation images, as ``write_val_probs`` takes them."""


_WEIGHTS, _VAL_PROBS = "kept.weights.", "kept.val_probs"
"""Prefix of the weights, and name of the probabilities, of a kept epoch in a state file."""
_AVERAGE = "average."
"""Prefix of the averaged weights of a training; see ``Learner.state``."""


def save_checkpoint(
    path: AnyPath, weights: nn.Module | Mapping[str, Tensor], checkpoint: Checkpoint
) -> str:
    """Write weights and description as one safetensors file, whole or not at all.

    Returns:
        Its SHA-256.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return _write(path, tensors, {"checkpoint": to_json(checkpoint)})


def save_state(
    path: AnyPath,
    state: Mapping[str, Tensor],
    history: Sequence[EpochMetrics],
    kept: Kept | None = None,
) -> str:
    """Write the state of a training as one safetensors file, whole or not at all.

    Args:
        path: The file.
        state: The tensors to resume from.
        history: The epochs trained so far.
        kept: The epoch of these whose weights are kept, unless they are on disk elsewhere. If they
            equal the averaged weights of the state, they are not written twice.

    Returns:
        Its SHA-256.
    """
    tensors = dict(state)
    # Better epochs may have followed one whose loss is infinite.
    metadata = {"history": to_json(history, allow_nan=True)}
    if kept is not None:
        metadata["kept"] = to_json(kept.checkpoint)
        tensors[_VAL_PROBS] = kept.val_probs
        if not _is_newest(kept, state):
            tensors |= {_WEIGHTS + name: tensor for name, tensor in kept.weights.items()}
    # Written in their memory layout: reordering 80 MB took 16 to 64 ms.
    turned = [name for name, tensor in tensors.items() if _is_channels_last(tensor)]
    tensors |= {name: tensors[name].permute(0, 2, 3, 1) for name in turned}
    return _write(path, tensors, metadata | {"channels_last": to_json(turned)})


def _is_newest(kept: Kept, state: Mapping[str, Tensor]) -> bool:
    """Whether the kept weights equal the averaged ones of the state."""
    return all(
        (averaged := state.get(_AVERAGE + name)) is not None and torch.equal(tensor, averaged)
        for name, tensor in kept.weights.items()
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _write(path: AnyPath, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> str:
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        if any(tensor.dtype == torch.bfloat16 for tensor in on_cpu.values()):
            safetensors.torch.save_file(on_cpu, temporary, metadata)
        else:
            # Writes the same file in 0.03 ms per tensor instead of 0.1, but NumPy has no bfloat16.
            arrays = {name: tensor.numpy() for name, tensor in on_cpu.items()}
            safetensors.numpy.save_file(arrays, temporary, metadata)
        # Reread from the page cache: writing and hashing 5 MB takes 8 ms, and 20 ms if the file is
        # built and hashed in memory.
        return sha256_of(temporary)


def load_state(path: AnyPath) -> dict[str, Tensor]:
    """Read the tensors from which a training resumes."""
    with on_disk(path) as local, safe_open(local, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith("kept.")]  # noqa: SIM118
        return _read(file, names)


def _read(file: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors of a state file in the memory layout that they were written from."""
    turned = frozenset(from_json(list[str], (file.metadata() or {}).get("channels_last", "[]")))
    tensors = {name: file.get_tensor(name) for name in names}
    for name in turned & tensors.keys():
        if tensors[name].ndim != 4:
            raise ValueError(f"{name} has no channels that could be last")
        tensors[name] = tensors[name].permute(0, 3, 1, 2)
    return tensors


def load_progress(path: AnyPath) -> tuple[list[EpochMetrics], Kept | None]:
    """Read everything in a state file except the state.

    Returns:
        The epochs trained so far, empty if there is no file, and the kept one of them; ``None`` if
        the file does not hold it.

    Raises:
        TunerError: If the file is damaged.
    """
    if not path.exists():
        return [], None
    with explaining_damage(path), on_disk(path) as local, safe_open(local, framework="pt") as file:
        metadata = file.metadata() or {}
        history = from_json(list[EpochMetrics], metadata["history"])
        if "kept" not in metadata:
            return history, None
        names = list(file.keys())
        is_own = any(name.startswith(_WEIGHTS) for name in names)
        prefix = _WEIGHTS if is_own else _AVERAGE
        weights = _read(file, [name for name in names if name.startswith(prefix)])
        return history, Kept(
            checkpoint=_description(metadata["kept"]),
            weights={name.removeprefix(prefix): tensor for name, tensor in weights.items()},
            val_probs=file.get_tensor(_VAL_PROBS),
        )


def load_checkpoint(path: AnyPath, model: ModelConfig) -> tuple[nn.Module, Checkpoint]:
    """Rebuild a saved model, on the CPU and in evaluation mode; its custom code, if any, is run.

    Args:
        path: The file.
        model: The model expected in it, from the record next to it, which is shown and checked.

    Raises:
        TunerError: If the file is missing, damaged, not a checkpoint of this program, or one of
            another model.
    """
    with _explaining_use(path):
        with on_disk(path) as local, safe_open(local, framework="pt") as file:
            checkpoint = _description((file.metadata() or {}).get("checkpoint", "{}"))
            _check_model(checkpoint, model)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.random.fork_rng(devices=[]):
            network = build_folded(
                checkpoint.model, len(checkpoint.classes), checkpoint.image_shape, checkpoint.folds
            )
        network.load_state_dict(weights)
    to_channels_last(network)
    network.eval()
    return network, checkpoint


def read_description(path: AnyPath, model: ModelConfig | None = None) -> Checkpoint:
    """Read the description in a checkpoint without the weights.

    Args:
        path: The file.
        model: As in ``load_checkpoint``; ``None`` if no record names it.

    Raises:
        TunerError: As ``load_checkpoint``.
    """
    with _explaining_use(path):
        with on_disk(path) as local, safe_open(local, framework="pt") as file:
            checkpoint = _description((file.metadata() or {}).get("checkpoint", "{}"))
        if model is not None:
            _check_model(checkpoint, model)
    return checkpoint


@contextmanager
def _explaining_use(path: AnyPath) -> Iterator[None]:
    """Report that the file at ``path`` is not a checkpoint that can be used."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError, UsageError) as error:
        if is_unwritable(error):
            raise  # By the disk to which it is fetched from a bucket.
        # For missing weights, torch writes one line each.
        raise TunerError(f"{path}: not a usable checkpoint: {first_line(error)}") from error


def _check_model(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Make sure that a checkpoint holds the given model, so that no code is run that is not shown.

    Raises:
        ValueError: If they are of another one.
    """
    held, told = (json.dumps(m.to_plain(), sort_keys=True) for m in (checkpoint.model, model))
    if held != told:
        is_alike = checkpoint.model.family == model.family
        what = "other parameters" if is_alike else quoted(checkpoint.model.family)
        raise ValueError(
            f"the model in it ({what}) is not the one that {CONFIG} or {ENSEMBLE} names "
            f"({quoted(model.family)})"
        )


def _description(text: str) -> Checkpoint:
    """Read the description that ``save_checkpoint`` wrote with the weights.

    Raises:
        UsageError: If it is something else.
    """
    return from_json(Checkpoint, text, is_strict=False)
