"""An ensemble loaded from its folder: images in, class probabilities out."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tuner.augment import per_channel
from tuner.config import ModelConfig, Share, Tta
from tuner.data.decoding import channels_first
from tuner.deploy.explanation import Explanation, explain
from tuner.deploy.graph import EnsembleGraph, MemberGraph
from tuner.deploy.preprocessing import ImageLike, Preprocessing
from tuner.deploy.samples import Sample, samples_in, samples_of
from tuner.errors import TunerError, UsageError
from tuner.metrics.predict import CIFAR_PIXELS, predict_probs
from tuner.models.defaults import usual_defaults
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.checkpoint import load_checkpoint, read_description
from tuner.run.ensemble_record import EnsembleMember, EnsembleRecord, read_ensemble_record
from tuner.run.layout import ENSEMBLE, METRICS
from tuner.run.probe import Probe, read_probe, total_variation
from tuner.schema import build, did_you_mean, quoted
from tuner.storage.paths import AnyPath, inside, sha256_of
from tuner.storage.records import explaining_damage, read_record
from tuner.training.device import prediction_dtype
from tuner.voting import floored
from tuner.voting.temperature import mix, soften_each

if TYPE_CHECKING:
    from tuner.deploy.export import Export

BATCH = 256
"""Maximum images prepared at a time; fewer if they are larger than CIFAR's."""
SAME, OTHER = 0.001, 0.02
"""Maximum mean difference from a probe that was computed in the same way, and in another way."""
PROBE_STEP, PROBE_SECONDS = 8, 1.0
"""Number of a probe's images compared at once, and time after which no more are compared: large
networks take seconds for all of them."""


GIVE = (
    "give images of Pillow's or paths of files, one or many, or one array uint8 of shape "
    "(N, height, width, channels)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedNetwork:
    """A network with the mean and std for its images; pretrained networks have their own."""

    network: nn.Module
    mean: Tensor
    """Per channel, shape (1, C, 1, 1)."""
    std: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """The predictions of an ensemble and of each of its members."""

    probs: Tensor
    """Probabilities of the ensemble, float64, shape (N, K)."""
    members: Tensor
    """Probabilities of each member alone, before its temperature, shape (M, N, K)."""

    @property
    def disagreement(self) -> Tensor:
        """Share of members that predict another class than the ensemble, float64, shape (N,)."""
        others = self.members.argmax(dim=2) != self.probs.argmax(dim=1)
        return others.double().mean(dim=0)


class Ensemble:
    """The loaded networks of an ensemble, with their weights; see ``read_ensemble``."""

    def __init__(
        self,
        *,
        path: AnyPath,
        record: EnsembleRecord,
        metrics: Mapping[str, Any],
        networks: Sequence[LoadedNetwork],
        device: torch.device,
    ) -> None:
        self.path = path
        self.record = record
        """Contents of ``ensemble.json``."""
        self.classes = record.classes
        self.members = record.members
        self.metrics = metrics
        """Contents of ``metrics.json``: the figures of the ensemble and of its members."""
        self.temperature = record.temperature
        self.preprocessing = Preprocessing.of(record.preprocessing)
        self.tta = record.preprocessing.tta
        """Views of an image that each member averages, unless ``predict`` overrides them."""
        self.weights = torch.tensor([member.weight for member in self.members], dtype=torch.float64)
        """Shares in the vote, shape (M,), summing to 1."""
        self.temperatures = tuple(member.temperature for member in self.members)
        """Temperatures of the members, each applied before mixing."""
        self._networks = networks
        self._device = device

    def __repr__(self) -> str:
        return f"<Ensemble {self.path}: members {len(self.members)}, classes {len(self.classes)}>"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the networks' images; others are resized."""
        return self.preprocessing.image_shape

    @property
    def batch_size(self) -> int:
        """Number of images prepared at a time."""
        return max(16, min(BATCH, BATCH * CIFAR_PIXELS // self.preprocessing.size**2))

    @usual_defaults()
    def predict(
        self, images: np.ndarray | ImageLike | Iterable[ImageLike], *, tta: Tta | None = None
    ) -> np.ndarray:
        """Return class probabilities in the order of ``classes``, float32, shape (N, K).

        Images are prepared like the training images. If they are cropped to squares, an array whose
        sides differ by an odd number is cropped half a pixel away from where a file is. The CPU
        computes in float32, a GPU in the precision of each member's training.

        Args:
            images: uint8, shape (N, H, W, C), or Pillow images, or files; a single image or file
                is fine, too.
            tta: Views of an image that each member averages: ``none``, ``flip``, ``flip+shift``;
                ``None`` uses those that the ensemble was made with.

        Raises:
            UsageError: On an array of another type or shape, or what is no image.
            DataError: On a file that cannot be read.
        """
        probs = [self.vote(batch, tta=tta).probs.float() for batch in self._batches(images)]
        return torch.cat([torch.empty(0, len(self.classes)), *probs]).numpy()

    @usual_defaults()
    def explain(
        self, images: np.ndarray | ImageLike | Iterable[ImageLike], *, tta: Tta | None = None
    ) -> list[Explanation]:
        """Explain the ensemble's answers, one ``Explanation`` per image.

        It explains the vote, not what the networks saw: each member's class, confidence and share,
        how many agree, the runner-up class and its margin, the members without which the answer
        would change, and how the image was prepared. ``print`` shows it as text.

        Args:
            images: As for ``predict``.
            tta: As for ``predict``.

        Raises:
            UsageError: As ``predict``.
            DataError: As ``predict``.
        """
        return [
            explanation
            for batch in self._batches(images)
            for explanation in self._explain(self.vote(batch, tta=tta))
        ]

    def _explain(self, vote: Vote) -> Iterator[Explanation]:
        channels, height, width = self.image_shape
        colours = "grey" if channels == 1 else "RGB"
        prepared = f"{colours}, {self.preprocessing.resize} to {height} x {width} pixels"
        mixed = soften_each(vote.members, self.temperatures)
        for number, probs in enumerate(vote.probs):
            yield explain(
                probs,
                mixed[:, number],
                self.weights,
                classes=self.classes,
                names=[member.name for member in self.members],
                prepared=prepared,
            )

    @usual_defaults()
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        check: str | os.PathLike[str] | None = None,
    ) -> "Export":
        """Write the ensemble as one file that does not need this program, and compare the two.

        The file takes images uint8 (N, H, W, C) of one size and returns probabilities float32
        (N, K); ``tuner.deploy.export`` shows how to use it. It computes in float32.

        Args:
            path: The file; replaced if it exists.
            format: ``onnx`` or ``pt2``, a program of ``torch.export``; ``None`` uses the suffix of
                the path.
            check: A folder of images for the comparison; ``None`` uses those kept with the
                ensemble.

        Raises:
            UsageError: If the ensemble is not on the CPU or cannot be exported, or something that
                is needed is not installed.
            TunerError: If the file gives other probabilities.
        """
        from tuner.deploy.export import export_graph, format_of

        file = Path(path)
        to = format_of(file, format)
        if self._device.type != "cpu":
            raise UsageError("only an ensemble on the CPU is exported: load it with device='cpu'")
        return export_graph(
            self.graph(),
            file,
            to,
            name=self.path.name,
            record=self.record,
            predict=self.predict,
            samples=self._kept_samples()
            if check is None
            else samples_in(Path(check), self.preprocessing.mode, self.preprocessing.value_range),
        )

    def graph(self) -> EnsembleGraph:
        """Return the ensemble as one exportable module that shares the networks."""
        members = [
            MemberGraph(
                loaded.network,
                file=member.file,
                mean=loaded.mean,
                std=loaded.std,
                weight=member.weight,
                temperature=member.temperature,
                floor=member.floor,
                tta=self.tta,
            )
            for member, loaded in zip(self.members, self._networks, strict=True)
        ]
        return EnsembleGraph(
            members,
            image_shape=self.image_shape,
            resize=self.preprocessing.resize,
            temperature=self.temperature,
        )

    def _kept_samples(self) -> Iterator[Sample]:
        probe = self.record.probe
        if probe is None:
            raise UsageError(
                f"{self.path}: keeps no images, as it was made by an earlier cifar-tune; name a "
                "folder of some for the comparison (--check)"
            )
        file = inside(self.path, probe.file)
        with explaining_damage(file):
            images = read_probe(file).images
        return samples_of(images.permute(0, 2, 3, 1).numpy())

    @usual_defaults()
    def vote(self, images: Tensor, *, tta: Tta | None = None) -> Vote:
        """Predict prepared images with the ensemble and its members.

        Args:
            images: uint8, shape (N, C, H, W), with C, H and W as in ``image_shape``.
            tta: As for ``predict``.

        Raises:
            UsageError: On views that are not known.
        """
        if tta is not None and tta not in (known := get_args(Tta)):
            hint = did_you_mean(tta, known) or f"; take {', '.join(known)}"
            raise UsageError(f"tta: there are no views {quoted(tta)}{hint}")
        alone = torch.stack(
            [
                floored(probs, member.floor)
                for member, probs in zip(
                    self.members,
                    self._alone(images, self.tta if tta is None else tta),
                    strict=True,
                )
            ]
        )
        return Vote(probs=self.mix(alone), members=alone)

    def _alone(self, images: Tensor, tta: Tta = "none") -> Iterator[Tensor]:
        """Yield the softmax outputs of each network, float32, shape (N, K)."""
        for member, loaded in zip(self.members, self._networks, strict=True):
            yield predict_probs(
                loaded.network,
                images,
                loaded.mean,
                loaded.std,
                device=self._device,
                dtype=prediction_dtype(member.precision, self._device),
                tta=tta,
            )

    def mix(self, alone: Tensor) -> Tensor:
        """Mix the members' probabilities, (M, N, K), into the ensemble's, float64 (N, K)."""
        return mix(alone, self.weights, self.temperatures, self.temperature)

    @usual_defaults()
    def check_against(self, probe: Probe) -> None:
        """Check that the networks give the same answers as when the probe was made.

        Raises:
            ValueError: If one does not.
        """
        expected = (len(self.members), len(probe.images), len(self.classes))
        if probe.probs.shape != expected or probe.images.shape[1:] != self.image_shape:
            raise ValueError(
                f"holds {tuple(probe.images.shape)} images and {tuple(probe.probs.shape)} "
                f"probabilities; this ensemble's are (N, {', '.join(map(str, self.image_shape))}) "
                f"and {expected}"
            )
        differences = torch.zeros(len(self.members), 0)
        began = time.monotonic()
        for start in range(0, len(probe.images), PROBE_STEP):
            if start and time.monotonic() - began > PROBE_SECONDS:
                break
            part = slice(start, start + PROBE_STEP)
            found = zip(self._alone(probe.images[part]), probe.probs[:, part], strict=True)
            new = torch.stack([total_variation(now, then) for now, then in found])
            differences = torch.cat([differences, new], dim=1)
        for number, (member, difference) in enumerate(
            zip(self.members, differences.mean(dim=1).tolist(), strict=True)
        ):
            dtype = prediction_dtype(member.precision, self._device)
            made = (probe.device, probe.dtypes[number])
            most = SAME if made == (self._device.type, str(dtype)) else OTHER
            if not difference <= most:
                raise ValueError(
                    f"{member.name} differs by {difference:.4f} from what it said of these images "
                    f"when the ensemble was made; at most {most} is rounding"
                )

    def _batches(self, images: np.ndarray | ImageLike | Iterable[ImageLike]) -> Iterator[Tensor]:
        """Yield prepared images, uint8 (N, C, H, W), at most ``batch_size`` at a time."""
        prepare, size = self.preprocessing, self.batch_size
        if isinstance(images, np.ndarray):
            prepare.check_array(images)
            for start in range(0, len(images), size):
                yield prepare.array_pixels(images[start : start + size])
            return
        if isinstance(images, Image.Image | str | os.PathLike):
            images = [images]
        if not isinstance(images, Iterable):
            raise UsageError(f"images: {type(images).__name__} is none; {GIVE}")
        left = enumerate(images)
        while pixels := [self._pixels(image, place) for place, image in islice(left, size)]:
            yield channels_first(np.stack(pixels))

    def _pixels(self, image: object, place: int) -> np.ndarray:
        """Return the pixels of a Pillow image or a file, uint8, shape (H, W, C)."""
        if isinstance(image, Image.Image):
            return self.preprocessing.image_pixels(image)
        if isinstance(image, str | os.PathLike):
            return self.preprocessing.file_pixels(image)
        raise UsageError(f"images[{place}]: {type(image).__name__} is not an image; {GIVE}")


@usual_defaults()
def read_ensemble(path: AnyPath, device: torch.device, *, trust_code: bool = False) -> Ensemble:
    """Load an ensemble from its folder, and check it with the probe images kept there.

    Args:
        path: The folder.
        device: Where it will compute.
        trust_code: Run code that came with it, even if the code is not known here.

    Raises:
        UsageError: If there is none, or it was written by a later version.
        UntrustedCodeError: If code would be run that is neither known nor trusted.
        TunerError: If a file is damaged, or is not the one that was written.
    """
    record = read_ensemble_record(path)
    metrics = read_record(path / METRICS, dict[str, Any])
    with explaining_damage(path / ENSEMBLE):
        files = [inside(path, member.file) for member in record.members]
        # Ensembles of earlier versions have no probe.
        probe_file = inside(path, record.probe.file) if record.probe else None
    with explaining_damage(path / METRICS):
        # The pages of ``serve`` show it.
        accuracy = metrics.get("ensemble", {}).get("test", {}).get("accuracy")
        build(Share, accuracy, "ensemble.test.accuracy")
    # Ensembles of earlier versions do not record the models of their members.
    models = [
        member.model or read_description(file).model
        for file, member in zip(files, record.members, strict=True)
    ]
    check_code_trusted(code_of(models), path, trust=trust_code)
    networks = [
        _load(file, model, member, record, device)
        for file, model, member in zip(files, models, record.members, strict=True)
    ]
    with explaining_damage(path / ENSEMBLE):
        ensemble = Ensemble(
            path=path,
            record=record,
            metrics=metrics,
            networks=networks,
            device=device,
        )
    if record.probe is not None and probe_file is not None:
        _check_digest(probe_file, record.probe.sha256)
        with explaining_damage(probe_file):
            ensemble.check_against(read_probe(probe_file))
    return ensemble


def _load(
    file: AnyPath,
    model: ModelConfig,
    member: EnsembleMember,
    record: EnsembleRecord,
    device: torch.device,
) -> LoadedNetwork:
    """Load a network after checking that its file is the one that was written."""
    _check_digest(file, member.sha256)
    network, checkpoint = load_checkpoint(file, model)
    # Recorded in both. The record's mean and std are only those of the best trial.
    for name, told in (
        ("classes", record.classes),
        ("image_shape", record.preprocessing.image_shape),
        ("folds", member.folds),
    ):
        if getattr(checkpoint, name) != told:
            raise TunerError(
                f"{file}: has other {name} than {ENSEMBLE} says; make the ensemble again"
            )
    # The mean and std of a pretrained network may have another number of channels.
    counts = {len(checkpoint.mean), len(checkpoint.std)}
    if counts != {channels := checkpoint.image_shape[0]} and model.family != "pretrained":
        raise TunerError(
            f"{file}: has no mean and std for each of {channels} channels; make the ensemble again"
        )
    return LoadedNetwork(
        network=network.to(device),
        mean=per_channel(checkpoint.mean),
        std=per_channel(checkpoint.std),
    )


def _check_digest(file: AnyPath, digest: str | None) -> None:
    with explaining_damage(file):
        found = sha256_of(file)
    if digest is not None and found != digest:
        raise TunerError(
            f"{file}: is not the file that the ensemble was made with (its SHA-256 differs); make "
            "the ensemble again"
        )
