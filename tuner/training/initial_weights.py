"""The weights that a training starts from: found or fetched once, and checked by their hash."""

import contextlib
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from tuner.config import ModelConfig
from tuner.data.known import quiet_network
from tuner.data.splits import Splits
from tuner.errors import DataError, TunerError, first_line
from tuner.models.build import build_model
from tuner.models.catalogue import find_weights
from tuner.models.cost import count_parameters
from tuner.models.families import ImageShape, params_of, source_of
from tuner.models.params import PretrainedParams
from tuner.models.pretrained import Pretrained, last_layer
from tuner.run.checkpoint import load_checkpoint, read_description
from tuner.run.layout import why_not_name
from tuner.run.run import Run, find_run
from tuner.run.run_record import RunRecord
from tuner.storage.paths import AnyPath, lies_in, sha256_of, to_path
from tuner.storage.records import explaining_damage

AUXILIARY = re.compile(r"(aux1|aux2|AuxLogits)\.")
"""Auxiliary heads of GoogLeNet and Inception, which are not built."""
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)")
"""Old names, from when module names could contain dots; torchvision's DenseNet also renames them
when it loads its files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialWeights:
    """Weights to start from, with the normalization of images that they expect."""

    tensors: Mapping[str, Tensor]
    """Tensors by their names in the network; without the head if its classes differ."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel that normalize images in [0, 1]."""


def start_key(model: ModelConfig) -> str | None:
    """Return a key for a model's initial weights, without reading them; ``None`` if random."""
    if model.family != "pretrained":
        return None
    params: PretrainedParams = params_of(model)
    return params.sha256 if params.run else f"{params.name}/{params.weights}"


def weights_at_hand(names: Iterable[str]) -> list[str]:
    """Return the torchvision networks whose default weights are in torch hub's cache."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    # Looking up the file names requires importing torchvision.
    if not any(folder.glob("*.pth")):
        return []
    urls = {name: find_weights(name, "DEFAULT").url for name in names}
    return [name for name, url in urls.items() if (folder / url.rpartition("/")[2]).exists()]


def load_all_initial_weights(
    models: Iterable[ModelConfig], splits: Splits, storage: AnyPath
) -> dict[str, InitialWeights]:
    """Load the initial weights of ``models`` by ``start_key``; see ``load_initial_weights``."""
    wanted = {key: model for model in models if (key := start_key(model)) is not None}
    return {
        key: start
        for key, model in wanted.items()
        if (start := load_initial_weights(model, splits.classes, splits.image_shape, storage))
        is not None
    }


def load_initial_weights(
    model: ModelConfig, classes: tuple[str, ...], image_shape: ImageShape, storage: AnyPath
) -> InitialWeights | None:
    """Load the weights that a ``pretrained`` model starts from; ``None`` for any other model.

    Args:
        model: The model that starts from them.
        classes: Classes of the images to train on.
        image_shape: (C, H, W) of these images.
        storage: Folder of the runs.

    Raises:
        DataError: If the weights are missing and cannot be fetched, or damaged.
        UsageError: If there is no such run or trial, or the weights do not fit the network.
    """
    if model.family != "pretrained":
        return None
    params: PretrainedParams = params_of(model)
    if params.run:
        return _of_run(model, classes, image_shape, storage)
    entry = find_weights(params.name, params.weights)
    path = _intact_file(entry.url)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = first_line(error)
        raise DataError(f"{path}: not a file of weights ({reason}); remove it") from error
    tensors = {
        OLD_DENSENET.sub(r"\1\2", name): tensor
        for name, tensor in stored.items()
        if not AUXILIARY.match(name)
    }
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build_model(model, len(classes), image_shape)
    assert isinstance(network, Pretrained)
    preset = entry.transforms()
    return InitialWeights(
        tensors=_without_head(tensors, network.head_name),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def notes_on_seen_images(
    models: Iterable[ModelConfig], splits: Splits, storage: AnyPath
) -> list[str]:
    """Return a note on each run whose weights may have been trained on the validation images.

    A run is compared by the fingerprint of its images, so it is not noticed if they were prepared
    differently, or if only some of them are the same.

    Args:
        models: Models whose initial weights have been loaded.
        splits: The images to train and to validate on.
        storage: Folder of the runs.
    """
    notes = [
        f"{run.path.name}, from whose weights trials start, may have trained on images that they "
        "are validated on: their accuracies, and whatever is chosen by them, would be too good. "
        f"To avoid that, {advice}."
        for model in models
        for run in _runs_behind(model, storage)
        if (advice := _how_to_validate_unseen(run.record, splits))
    ]
    return list(dict.fromkeys(notes))


def _of_run(
    model: ModelConfig, classes: tuple[str, ...], image_shape: ImageShape, storage: AnyPath
) -> InitialWeights:
    params: PretrainedParams = params_of(model)
    assert params.trial is not None
    trial = find_run(storage, params.run).trial(params.trial)
    path, source = trial.checkpoint, source_of(params).model
    if not path.exists():
        raise DataError(
            f"{path}: the weights to start from are gone; name a trial whose checkpoint was kept"
        )
    with explaining_damage(path):
        found = sha256_of(path)
    if found != params.sha256:
        raise DataError(
            f"{path}: not the weights that were recorded to start from (SHA-256 {found[:8]}, not "
            f"{params.sha256[:8]}); put them back, or name the trial again"
        )
    # Images that the network cannot take are refused here, once, and not by each trial.
    count_parameters(model, len(classes), image_shape)
    read_description(path, trial.config.model)
    network, checkpoint = load_checkpoint(path, source)
    tensors = network.state_dict()
    if checkpoint.classes != classes:
        head_name, _ = last_layer(network)
        tensors = _without_head(tensors, head_name)
    return InitialWeights(tensors=tensors, mean=checkpoint.mean, std=checkpoint.std)


def _runs_behind(model: ModelConfig, storage: AnyPath) -> list[Run]:
    """Return the run that a model starts from, and those that this one started from in turn.

    The latter are left out if they are gone, or not in the same storage: their names come from the
    record of a run, which leads nowhere else.
    """
    runs: list[Run] = []
    while model.family == "pretrained":
        params: PretrainedParams = params_of(model)
        if not params.run:
            break
        if not runs:
            runs.append(find_run(storage, params.run))
            storage = runs[0].path.parent
        else:
            with contextlib.suppress(TunerError):
                is_elsewhere = why_not_name(params.run)
                path = to_path(params.run) if is_elsewhere else storage / params.run
                if lies_in(path, storage):
                    runs.append(Run.open(path))
        model = source_of(params).model
    return runs


def _how_to_validate_unseen(record: RunRecord, splits: Splits) -> str:
    """Return how to validate on images that a run did not train on; empty if that is the case."""
    if record.data_fingerprint != splits.fingerprint or splits.is_val_seen:
        return ""
    if record.data.all_data:
        return "start from a run without --all-data"
    if splits.num_folds:
        return "search without --folds"
    # A smaller validation part of the same images is contained in a larger one; see stratified().
    if len(splits.val) > record.num_val:
        return f"search with --val-fraction {record.data.val_fraction:g} or less"
    return ""


def _without_head(tensors: Mapping[str, Tensor], head_name: str) -> dict[str, Tensor]:
    return {k: tensor for k, tensor in tensors.items() if not k.startswith(f"{head_name}.")}


def _intact_file(url: str) -> Path:
    """Return a URL's file in torch hub's cache, checked, and fetched if it is missing."""
    name = url.rpartition("/")[2]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / name
    expected = name.removesuffix(".pth").rpartition("-")[2]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with quiet_network():
                torch.hub.download_url_to_file(url, str(path), expected)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DataError(
                f"no {name} in {folder}, and it could not be fetched "
                f"({getattr(error, 'reason', error)}). Put {url} into {folder}."
            ) from error
    if not (found := sha256_of(path)).startswith(expected):
        raise DataError(
            f"{path}: damaged: its SHA-256 begins with {found[: len(expected)]} and not with "
            f"{expected}. Remove it, and it will be downloaded again."
        )
    return path
