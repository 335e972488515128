"""``teacher.safetensors`` in a run's folder: a teacher's predictions on the run's images."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from tuner.errors import TunerError
from tuner.run.layout import TEACHER
from tuner.run.run_record import TeacherRecord
from tuner.storage.files import replacing
from tuner.storage.paths import AnyPath, copy_file, on_disk, sha256_of
from tuner.storage.records import explaining_damage


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherProbs:
    """A teacher's class probabilities of the unaugmented images of a run."""

    train: Tensor
    """Class probabilities of the training images, float32, shape (N, K); students learn these."""
    val: Tensor
    """The same for the validation images, for comparison only; they are never taught."""


def write_teacher_probs(run: AnyPath, probs: TeacherProbs) -> str:
    """Write ``teacher.safetensors`` into a run's folder, and return its SHA-256."""
    with replacing(run / TEACHER) as temporary:
        safetensors.torch.save_file({"train": probs.train, "val": probs.val}, temporary)
        return sha256_of(temporary)


def copy_teacher_probs(source: AnyPath, run: AnyPath, teacher: TeacherRecord) -> None:
    """Copy a teacher's probabilities from one run to another one with the same images.

    Raises:
        TunerError: If they are missing, damaged, or not what was written.
    """
    read_teacher_probs(source, teacher)
    with replacing(run / TEACHER) as temporary:
        copy_file(source / TEACHER, temporary)


def read_teacher_probs(run: AnyPath, teacher: TeacherRecord) -> TeacherProbs:
    """Read ``teacher.safetensors`` from a run's folder.

    Args:
        run: The run's folder.
        teacher: The teacher in the run's record.

    Raises:
        TunerError: If the file is missing, damaged, or not what was written.
    """
    file = run / TEACHER
    mend = (
        "Put the file back; resumed without it, a search computes it again, and a refit copies "
        "it from its run."
    )
    if not file.exists():
        raise TunerError(f"{file}: the teacher's probabilities are missing. {mend}")
    with explaining_damage(file), on_disk(file) as local:
        found = sha256_of(local)
        if found != teacher.probs_sha256:
            raise TunerError(f"{file}: damaged, or not what was written (SHA-256). {mend}")
        return _read(local)


def _read(file: Path) -> TeacherProbs:
    with safe_open(file, framework="pt") as opened:
        train, val = opened.get_tensor("train"), opened.get_tensor("val")
    for name, probs in (("train", train), ("val", val)):
        if probs.ndim != 2 or probs.dtype != torch.float32 or not bool(probs.isfinite().all()):
            raise ValueError(f"{name} holds no class probabilities")
    return TeacherProbs(train=train, val=val)
