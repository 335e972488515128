"""An ensemble as a teacher: its files, its predictions and its latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tuner.config import DataConfig, Tta
from tuner.data.splits import Splits, load_splits
from tuner.ensemble.latency import measure_latency
from tuner.ensemble.members import Network, Predict
from tuner.errors import DataError, TunerError, UsageError
from tuner.metrics.figures import Latency
from tuner.models.layers import num_weights
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.checkpoint import load_checkpoint
from tuner.run.ensemble_record import EnsembleRecord, read_ensemble_record
from tuner.run.layout import ENSEMBLE
from tuner.run.run_record import TeacherRecord
from tuner.schema import build, to_plain
from tuner.storage.paths import AnyPath, inside, sha256_of
from tuner.storage.records import explaining_damage
from tuner.voting.temperature import mix


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A finished ensemble whose files were checked."""

    folder: AnyPath
    record: EnsembleRecord
    networks: tuple[Network, ...]

    @property
    def tta(self) -> Tta:
        """Views of an image that each member averages."""
        return self.record.preprocessing.tta

    def prepared(self, config: DataConfig) -> DataConfig:
        """Return the same images, prepared as the ensemble expects them."""
        preprocessing = self.record.preprocessing
        prepared = {
            "image_size": preprocessing.image_shape[1],
            "resize": preprocessing.resize,
            "black": preprocessing.black,
            "white": preprocessing.white,
        }
        return build(DataConfig, to_plain(config) | prepared, "preprocessing")

    def splits_like(self, splits: Splits, data_dir: Path) -> Splits:
        """Return the same images in the same order, prepared as the ensemble expects them.

        Args:
            splits: The images of its students.
            data_dir: Where downloads and decoded images are kept.

        Raises:
            DataError: If they are not those that the ensemble was trained and chosen on.
        """
        assert splits.config is not None, "they were loaded"
        data = self.record.data
        assert data is not None, "open_teacher has made sure"
        seen = load_splits(self.prepared(splits.config), data_dir)
        is_divided_alike = seen.split_fingerprint == splits.split_fingerprint
        if seen.fingerprint != data.fingerprint or not is_divided_alike:
            raise DataError(
                f"these are not the images that {self.folder} was trained on (their fingerprint "
                "differs), and it could have seen the validation images; name the place of its own "
                "with --data"
            )
        if seen.split_fingerprint != data.split_fingerprint:
            raise DataError(
                f"{self.folder}: these images were divided differently for its training, which may "
                "have seen the validation images; take an ensemble in the folder of its run, of a "
                "run without --all-data"
            )
        return seen

    def probs(self, images: Tensor, predict: Predict) -> Tensor:
        """Return the vote, float32, shape (N, K), on uint8 images of shape (N, C, H, W)."""
        alone = predict(self.networks, images, self.tta)
        members = self.record.members
        weights = torch.tensor([member.weight for member in members])
        temperatures = [member.temperature for member in members]
        return mix(alone, weights, temperatures, self.record.temperature).float()

    def latency(self, device: torch.device) -> Latency:
        """Time all its networks, one after the other."""
        shape = self.record.preprocessing.image_shape
        return total_latency(self.networks, shape, self.tta, device)


def record_teacher(folder: AnyPath) -> TeacherRecord:
    """Return the record that a run keeps of the ensemble that teaches it.

    Raises:
        UsageError: If there is no ensemble, or one of an earlier version.
        TunerError: If it is damaged.
    """
    record = _read(folder)
    return TeacherRecord(
        ensemble=f"{record.run}/{folder.name}",
        path=str(folder.absolute()),
        sha256=sha256_of(folder / ENSEMBLE),
        members=tuple(member.name for member in record.members),
    )


def open_teacher(folder: AnyPath, sha256: str, *, trust_code: bool) -> Teacher:
    """Open an ensemble that has not changed since a run recorded it.

    Args:
        folder: Its folder.
        sha256: SHA-256 of its ``ensemble.json``.
        trust_code: Run code that came with it even if it is not known here.

    Raises:
        UsageError: If it is gone.
        UntrustedCodeError: If code would be run that is neither known nor trusted.
        TunerError: If a file is damaged or another one.
    """
    record = _read(folder)
    files = [inside(folder, member.file) for member in record.members]
    wanted = [sha256, *(str(member.sha256) for member in record.members)]
    for file, digest in zip([folder / ENSEMBLE, *files], wanted, strict=True):
        with explaining_damage(file):
            found = sha256_of(file)
        if found != digest:
            raise TunerError(
                f"{file}: not the file of the ensemble that teaches (its SHA-256 differs). Put it "
                "back, or distill again."
            )
    networks = tuple(
        Network(file=file, model=member.model, precision=member.precision, floor=member.floor)
        for file, member in zip(files, record.members, strict=True)
        if member.model is not None
    )
    check_code_trusted(code_of(n.model for n in networks), folder, trust=trust_code)
    return Teacher(folder=folder, record=record, networks=networks)


def _read(folder: AnyPath) -> EnsembleRecord:
    record = read_ensemble_record(folder)
    if record.data is None or any(m.model is None or m.sha256 is None for m in record.members):
        raise UsageError(
            f"{folder}: was made by an earlier cifar-tune, and does not say what it was trained "
            "on; make the ensemble again"
        )
    if any(member.folds for member in record.members):
        raise UsageError(
            f"{folder}: was made with --folds and was trained on every image, so that none is left "
            "to validate students on; take an ensemble of a run without --folds"
        )
    return record


def num_parameters_of(network: Network) -> int:
    """Count the parameters of a network on disk."""
    model, _ = load_checkpoint(network.file, network.model)
    return num_weights(model)


def total_latency(
    networks: Sequence[Network], image_shape: tuple[int, int, int], tta: Tta, device: torch.device
) -> Latency:
    """Time networks one after the other."""
    times = [measure_latency(network, image_shape, tta, device) for network in networks]
    return Latency(
        one_ms=sum(time.one_ms for time in times), batch_ms=sum(time.batch_ms for time in times)
    )
