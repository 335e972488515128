"""From a run to an ensemble: members, weights, one reading of the test set, the folder."""

import csv
import hashlib
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tuner.checkpoint import Checkpoint, load_checkpoint
from tuner.data import load_splits, load_test
from tuner.device import compute_dtype
from tuner.errors import UsageError
from tuner.evaluate import Interval, Scores, confusion_matrix, paired_gain, predict_probs, score
from tuner.files import replacing, write_json, write_text
from tuner.plots import plot_confusion
from tuner.run import Run, now
from tuner.schema import to_plain
from tuner.trial import TrialRecord
from tuner.voting import soft_vote


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberResult:
    """One member of an ensemble, alone."""

    trial: int
    family: str
    weight: float
    val: Scores
    test: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleResult:
    """An ensemble on the test set, beside its members."""

    path: Path
    classes: tuple[str, ...]
    val: Scores
    """Of the vote, on the validation images that the members were chosen on."""
    test: Scores
    members: tuple[MemberResult, ...]
    """Best by validation accuracy first: the first is the best single member."""
    gain: Interval
    """In test accuracy over the best single member, 95 % paired bootstrap."""
    confusion: Tensor
    """Counts on the test set, shape (K, K), rows true."""

    def to_plain(self) -> dict[str, Any]:
        """Give what ``metrics.json`` holds."""
        return {
            "path": str(self.path),
            "ensemble": {"val": to_plain(self.val), "test": to_plain(self.test)},
            "members": [to_plain(member) for member in self.members],
            "best_single": self.members[0].trial,
            "gain_over_best_single": {**to_plain(self.gain), "level": 0.95},
            "test_images": int(self.confusion.sum()),
        }


def make_ensemble(run: Run, *, top: int, name: str, device: torch.device) -> EnsembleResult:
    """Combine the best trials of a run by a uniform soft vote and read the test set once.

    Members are the ``top`` usable trials by validation accuracy; test images decide nothing. The
    folder ``ensembles/NAME`` of the run takes the place of one of the same name.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        UsageError: If it has fewer than ``top``, or ``name`` is not a plain name.
        DataError: If the images cannot be read, or have changed since.
        TunerError: If a member's files are damaged.
    """
    # What is there under this name is removed, so it must lie in the folder of ensembles.
    if name != Path(name).name or name.startswith(".") or not name:
        raise UsageError(f"--name {name!r}: is not a plain name, such as top{top}")
    trials = run.top(top)
    data_dir = Path(run.record.data_dir)
    splits = load_splits(run.record.data, data_dir)
    splits.expect(run.record.data_fingerprint, run.record.split_fingerprint, run.path)
    weights = torch.full((len(trials),), 1 / len(trials), dtype=torch.float64)
    val_probs = torch.stack([torch.from_numpy(trial.val_probs()).float() for trial in trials])
    # Before the test images are read, so that a damaged file does not cost a reading.
    members = [load_checkpoint(trial.checkpoint) for trial in trials]

    test = load_test(run.record.data, data_dir)
    run.log_test_reading(
        {
            "by": "ensemble",
            "name": name,
            "trials": [trial.number for trial in trials],
            "fingerprint": test.fingerprint,
        }
    )
    test_probs = torch.stack(
        [
            _predict(trial, *member, test.images.images, device)
            for trial, member in zip(trials, members, strict=True)
        ]
    )
    labels = test.images.labels
    vote = soft_vote(test_probs, weights)
    result = EnsembleResult(
        path=run.path / "ensembles" / name,
        classes=splits.classes,
        val=score(soft_vote(val_probs, weights), splits.val.labels),
        test=score(vote, labels),
        members=tuple(
            MemberResult(
                trial=trial.number,
                family=trial.config.model.family,
                weight=float(weight),
                val=score(val, splits.val.labels),
                test=score(alone, labels),
            )
            for trial, weight, val, alone in zip(
                trials, weights, val_probs, test_probs, strict=True
            )
        ),
        gain=paired_gain(vote.argmax(dim=1) == labels, test_probs[0].argmax(dim=1) == labels),
        confusion=confusion_matrix(vote, labels, len(splits.classes)),
    )
    _write(result, run, trials)
    return result


def _predict(
    trial: TrialRecord,
    network: nn.Module,
    checkpoint: Checkpoint,
    images: Tensor,
    device: torch.device,
) -> Tensor:
    """Give a trial's class probabilities, as its validation was computed, shape (N, K)."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (checkpoint.mean, checkpoint.std))
    dtype = compute_dtype(trial.config.precision, device)
    return predict_probs(network.to(device), images, mean, std, device=device, dtype=dtype)


def _write(result: EnsembleResult, run: Run, trials: list[TrialRecord]) -> None:
    """Write the ensemble's folder, whole, then put it in its place."""
    result.path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ensemble-", dir=result.path.parent) as scratch:
        folder = Path(scratch) / "new"
        files = {f"members/{trial.number:04d}.safetensors": trial.checkpoint for trial in trials}
        for name, checkpoint in files.items():
            with replacing(folder / name) as temporary:
                shutil.copyfile(checkpoint, temporary)
        description = {
            "schema_version": 1,
            "run": run.record.name,
            "made": now(),
            "classes": result.classes,
            "image_size": run.record.data.image_size,
            "temperature": 1.0,
            "members": [
                {
                    "file": name,
                    "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                    "trial": member.trial,
                    "weight": member.weight,
                }
                for name, member in zip(files, result.members, strict=True)
            ],
        }
        write_json(folder / "ensemble.json", description)
        write_json(folder / "metrics.json", result.to_plain())
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["true \\ predicted", *result.classes])
        for label, row in zip(result.classes, result.confusion.tolist(), strict=True):
            writer.writerow([label, *row])
        write_text(folder / "confusion.csv", table.getvalue())
        title = (
            f"{run.record.name}: vote of {len(trials)}, test accuracy {result.test.accuracy:.2%}"
        )
        plot_confusion(folder / "confusion.png", result.confusion, result.classes, title)
        if result.path.exists():
            result.path.rename(Path(scratch) / "old")
        folder.rename(result.path)
