"""An ensemble loaded from its folder: images in, class probabilities out."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tuner.config import ModelConfig, Precision
from tuner.data.datasets import ImageMode, decode_file, resized, resized_pixels
from tuner.errors import TunerError, UsageError
from tuner.metrics.predict import Tta, predict_probs
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.checkpoint import load_checkpoint, read_description
from tuner.run.trial import explaining_damage
from tuner.storage.paths import AnyPath, inside, on_disk, read_text
from tuner.training.device import compute_dtype
from tuner.voting import floored, soft_vote
from tuner.voting.temperature import soften, soften_each

SCHEMA_VERSION = 1
"""Version of ``ensemble.json``; a later one is refused."""
BATCH = 500

ImageLike = Image.Image | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleMember:
    """One network of an ensemble."""

    file: str
    """Relative to the ensemble's folder."""
    trial: int | None
    """``None`` for a soup."""
    soup_of: tuple[int, ...]
    """The trials of a soup; empty for any other."""
    weight: float
    temperature: float
    precision: Precision
    floor: float
    """Probabilities are raised to it before they are mixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """A network, and by what it wants its images normalized: pretrained ones by their own."""

    network: nn.Module
    mean: Tensor
    """Per channel, shape (1, C, 1, 1)."""
    std: Tensor


class Ensemble:
    """The networks of an ensemble, loaded, with their weights; see ``read_ensemble``."""

    def __init__(
        self,
        *,
        path: AnyPath,
        description: Mapping[str, Any],
        metrics: Mapping[str, Any],
        members: Sequence[EnsembleMember],
        networks: Sequence[LoadedNetwork],
        device: torch.device,
    ) -> None:
        preprocessing = description["preprocessing"]
        self.path = path
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.members = tuple(members)
        self.metrics = metrics
        """What ``metrics.json`` holds: the figures of the ensemble and of its members."""
        self.temperature: float = description["temperature"]
        self.image_shape: tuple[int, int, int] = tuple(preprocessing["image_shape"])
        """(C, H, W) of the images that the networks take; others are resized."""
        self.tta: Tta = preprocessing["tta"]
        self._networks = networks
        self._device = device

    def __repr__(self) -> str:
        return f"<Ensemble {self.path}: members {len(self.members)}, classes {len(self.classes)}>"

    def predict(self, images: np.ndarray | ImageLike | Sequence[ImageLike]) -> np.ndarray:
        """Return the class probabilities of images, float32, shape (N, K), as ``classes`` stand.

        Images are prepared as those that the networks were trained on. The CPU computes in float32,
        a GPU in the precision of each member's training.

        Args:
            images: uint8, shape (N, H, W, C), or Pillow's images, or files; or one of these alone.

        Raises:
            UsageError: On an array of another type or shape.
            DataError: On a file that cannot be read.
        """
        probs = [self._vote(batch).float() for batch in self._batches(images)]
        return torch.cat([torch.empty(0, len(self.classes)), *probs]).numpy()

    def _vote(self, images: Tensor) -> Tensor:
        """Return the probabilities, float64 (N, K), of images uint8 (N, C, H, W)."""
        alone = [
            floored(
                predict_probs(
                    loaded.network,
                    images,
                    loaded.mean,
                    loaded.std,
                    device=self._device,
                    dtype=self._dtype(member.precision),
                    tta=self.tta,
                ),
                member.floor,
            )
            for member, loaded in zip(self.members, self._networks, strict=True)
        ]
        softened = soften_each(torch.stack(alone), [m.temperature for m in self.members])
        weights = torch.tensor([member.weight for member in self.members], dtype=torch.float64)
        return soften(soft_vote(softened, weights), self.temperature)

    def _dtype(self, precision: Precision) -> torch.dtype:
        is_on_gpu = self._device.type == "cuda"
        return compute_dtype(precision, self._device) if is_on_gpu else torch.float32

    def _batches(self, images: np.ndarray | ImageLike | Sequence[ImageLike]) -> Iterator[Tensor]:
        """Prepare images, uint8 (N, C, H, W), at most ``BATCH`` at a time."""
        channels, size, _ = self.image_shape
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
                raise UsageError(
                    f"images: {images.dtype} of shape {images.shape}; an array has to be uint8 of "
                    f"shape (N, height, width, {channels})"
                )
            for start in range(0, len(images), BATCH):
                batch = np.ascontiguousarray(images[start : start + BATCH].transpose(0, 3, 1, 2))
                yield resized(torch.from_numpy(batch), size)
            return
        if isinstance(images, Image.Image | str | os.PathLike):
            images = [images]
        for start in range(0, len(images), BATCH):
            pixels = [self._pixels(image) for image in images[start : start + BATCH]]
            batch = np.stack(pixels).reshape(len(pixels), size, size, channels)
            yield torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))

    def _pixels(self, image: ImageLike) -> np.ndarray:
        channels, size, _ = self.image_shape
        mode: ImageMode = "L" if channels == 1 else "RGB"
        if isinstance(image, Image.Image):
            return resized_pixels(image, size, mode)
        return decode_file(image, size, mode)


def read_ensemble(path: AnyPath, device: torch.device, *, trust_code: bool = False) -> Ensemble:
    """Load an ensemble from its folder.

    Args:
        path: The folder.
        device: Where it will compute.
        trust_code: Run code that came with it, also where it is not known here.

    Raises:
        UsageError: If there is none, or it was written by a later version.
        UntrustedCodeError: If code would be run that is neither known nor trusted.
        TunerError: If a file is damaged, or is not the one that was written.
    """
    file = path / "ensemble.json"
    if not file.exists():
        raise UsageError(f"{path}: no ensemble here (no ensemble.json)")
    with explaining_damage(file):
        description = json.loads(read_text(file))
        is_later = description["schema_version"] > SCHEMA_VERSION
    if is_later:
        raise UsageError(f"{path}: written by a later cifar-tune; upgrade to read it")
    with explaining_damage(path / "metrics.json"):
        metrics = json.loads(read_text(path / "metrics.json"))
    with explaining_damage(file):
        digests = [plain.get("sha256") for plain in description["members"]]
        members = [_member(plain) for plain in description["members"]]
        files = [inside(path, member.file) for member in members]
        told = [_model(plain.get("model")) for plain in description["members"]]
    # Ensembles of earlier versions do not say what their members are.
    models = [
        model or read_description(file).model for file, model in zip(files, told, strict=True)
    ]
    check_code_trusted(code_of(models), path, trust=trust_code)
    networks = [
        _load(network, model, digest, device)
        for network, model, digest in zip(files, models, digests, strict=True)
    ]
    with explaining_damage(file):
        return Ensemble(
            path=path,
            description=description,
            metrics=metrics,
            members=members,
            networks=networks,
            device=device,
        )


def _member(plain: Mapping[str, Any]) -> EnsembleMember:
    return EnsembleMember(
        file=plain["file"],
        trial=plain["trial"],
        soup_of=tuple(plain.get("soup_of", ())),
        weight=plain["weight"],
        temperature=plain["temperature"],
        precision=plain["precision"],
        floor=plain.get("floor", 0.0),
    )


def _model(plain: Mapping[str, Any] | None) -> ModelConfig | None:
    if plain is None:
        return None
    ((family, params),) = plain.items()
    return ModelConfig(family, params)


def _load(
    file: AnyPath, model: ModelConfig, digest: str | None, device: torch.device
) -> LoadedNetwork:
    """Load a network, having made sure that its file is the one that was written."""
    with explaining_damage(file), on_disk(file) as local:
        found = _sha256(local)
    if digest is not None and found != digest:
        raise TunerError(
            f"{file}: is not the file that the ensemble was made with (its SHA-256 differs); make "
            "the ensemble again"
        )
    network, checkpoint = load_checkpoint(file, model)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (checkpoint.mean, checkpoint.std))
    return LoadedNetwork(network=network.to(device), mean=mean, std=std)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
