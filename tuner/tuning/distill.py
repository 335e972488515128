"""``distill``: an ensemble teaches the trials of an ordinary search.

A single small network then predicts nearly the same as the whole ensemble (Hinton et al. 2015,
"Distilling the knowledge in a neural network", arXiv 1503.02531). The ensemble predicts each
training image once, unaugmented, and never teaches a validation image. It was trained on the same
images and is more confident on them than on others; searching the temperature deals with that.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tuner.config import DATA_DIR, DATA_SETTINGS, DIVISION, DataConfig
from tuner.data.splits import Splits, located
from tuner.ensemble.students import compare_best_student
from tuner.ensemble.teacher import Teacher, num_parameters_of, open_teacher, record_teacher
from tuner.errors import SpaceError, UsageError
from tuner.metrics.predict import score
from tuner.models.families import FAMILIES
from tuner.monitor.steps import step
from tuner.monitor.terminal import tell
from tuner.run.ensemble_record import read_ensemble_record
from tuner.run.ensembles import run_of
from tuner.run.layout import STUDENT, TEACHER
from tuner.run.run import Run, free_name
from tuner.run.teacher_probs import TeacherProbs, read_teacher_probs, write_teacher_probs
from tuner.schema import build, did_you_mean, plural, quoted
from tuner.space import SearchSpace, find_space, load_space
from tuner.storage.paths import AnyPath, lies_in, to_path
from tuner.storage.records import write_record
from tuner.training.device import find_device
from tuner.tuning.ray_backend.cluster_predict import predict_on_cluster
from tuner.tuning.request import (
    RunRequest,
    SearchRequest,
    data_dir_of,
    make_search_request,
)

AXES = {
    "alpha": {"float": [0.3, 1.0]},
    "temperature": {"float": [1.0, 10.0], "log": True},
}
"""The axes of ``space.distill`` that are searched unless the space sets them."""

_SGD_OR_ADAMW = {
    "sgd": {"lr": {"float": [0.02, 0.2], "log": True}},
    "adamw": {"lr": {"float": [1.0e-3, 1.0e-2], "log": True}},
}
_ADAMW = {
    "adamw": {
        "lr": {"float": [3.0e-4, 3.0e-3], "log": True},
        "weight_decay": {"float": [1.0e-2, 2.0e-1], "log": True},
    }
}
STUDENTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "cnn": (
        {"stages": 3, "width": {"int": [16, 32], "step": 8}, "residual": True},
        _SGD_OR_ADAMW,
    ),
    "resnet": (
        {"depth": {"choice": [10, 20]}, "width_factor": {"choice": [0.25, 0.5]}},
        _SGD_OR_ADAMW,
    ),
    "wide_resnet": ({"depth": 10, "widen_factor": {"int": [1, 2]}}, _SGD_OR_ADAMW),
    "speednet": (
        {"width": {"int": [16, 32], "step": 8}, "widening": 2.0},
        {"sgd": {"lr": {"float": [0.02, 0.5], "log": True}}},
    ),
    "convnext": ({"blocks": 2, "width": {"int": [16, 32], "step": 8}}, _ADAMW),
    "vit": ({"layers": {"int": [2, 4]}, "width": {"int": [64, 128], "step": 32}}, _ADAMW),
}
"""Family -> its small networks and their optimizers, as written in a space; ``--into FAMILY``
searches them."""


def student_space(into: str, overrides: Sequence[str], storage: AnyPath) -> SearchSpace:
    """Load the search space of the students.

    Args:
        into: A family, whose small networks are searched, or a space: its file, or the name of a
            shipped one. A name that is both, such as ``cnn``, means the family.
        overrides: ``KEY=VALUE`` each.
        storage: Folder of the runs that ``pretrained`` models start from.

    Raises:
        SpaceError: If it cannot be read.
        UsageError: If it is neither, or a family that has no network of its own.
    """
    if into in FAMILIES and into not in STUDENTS:
        raise UsageError(
            f"--into {into}: has no networks before a space names them; write one, and give its "
            "file"
        )
    path, text = (Path(into), _space_of(into)) if into in STUDENTS else (_find_space(into), None)
    space = load_space(path, overrides, storage, text=text)
    added = [
        f"space.distill.{key}={json.dumps(axis)}"
        for key, axis in AXES.items()
        if not space.has_key("distill", key)
    ]
    return load_space(path, [*added, *overrides], storage, text=text) if added else space


def _find_space(name: str) -> Path:
    try:
        return find_space(name)
    except SpaceError:
        known = ", ".join(STUDENTS)
        hint = did_you_mean(name, STUDENTS) or f"; families are {known}, and a file may be named"
        raise SpaceError(
            f"--into {quoted(name)}: neither a family of networks nor a space{hint}"
        ) from None


def _space_of(family: str) -> str:
    network, optimizers = STUDENTS[family]
    plain = {
        "description": f"Small students of the family {family}",
        "search": {"trials": 16, "epochs": 27, "grace": 3, "reduction": 3},
        "space": {
            "batch_size": {"choice": [64, 128]},
            "model": {family: dict(network)},
            "optimizer": {"choice": dict(optimizers)},
            "schedule": {"cosine": {"warmup": 0.1}},
            # The best choice depends on the images: digits, for example, differ when mirrored.
            "augment": {"crop": {"choice": [0, 2]}, "flip": {"choice": [True, False]}},
        },
    }
    return yaml.safe_dump(plain, sort_keys=False)


def make_distill_request(
    ensemble: AnyPath,
    *,
    into: str,
    overrides: Sequence[str] = (),
    storage: AnyPath,
    name: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    image_size: int | None = None,
    resize: str | None = None,
    **asked: Any,
) -> SearchRequest:
    """Make a search request from the user's options and the ensemble's record.

    Args:
        ensemble: The teacher's folder.
        into: See ``student_space``.
        overrides: Likewise.
        storage: Folder of the runs.
        name: Name of the run; ``None`` names it after the teacher's run.
        data: Where the teacher's images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.
        image_size: Side of the students' images; ``None`` for the space's, or the teacher's.
        resize: Likewise.
        asked: Other fields of ``SearchRequest``.

    Raises:
        UsageError: If there is no such ensemble, or it cannot teach, or the space wants other
            images than the teacher's.
        SpaceError: If the space cannot be read.
    """
    teacher = record_teacher(ensemble)
    for word in overrides:
        if word.partition("=")[0].strip() in ("dataset", "dataset.source"):
            raise UsageError(
                f"{word}: a student learns from the teacher's images; leave it out, or say where "
                "they are now with --data"
            )
    known, folder = _images_of(ensemble)
    config, folder = located(known, folder, data, data_dir)
    mine = {"image_size": image_size, "resize": resize}
    space = student_space(
        into,
        [
            *overrides,
            f"dataset={json.dumps(config.source)}",
            *(f"dataset.{key}={json.dumps(value)}" for key, value in mine.items() if value),
        ],
        storage,
    )
    for key in DIVISION:
        if space.data.get(key, getattr(config, key)) != getattr(config, key):
            raise UsageError(
                f"dataset.{key}: a student learns from the teacher's images, as they were divided "
                "for it; leave it out"
            )
    settings = {key: getattr(config, key) for key in DATA_SETTINGS if key not in space.data}
    if name is None:
        name = free_name(storage, f"{teacher.ensemble.partition('/')[0]}-student")
    return make_search_request(
        space,
        space_name=into,
        stem="student",
        storage=storage,
        name=name,
        data_settings=settings,
        data_dir=folder,
        teacher=teacher,
        **asked,
    )


def _images_of(ensemble: AnyPath) -> tuple[DataConfig, Path]:
    """Return the images that an ensemble was trained on, and the data folder."""
    run = run_of(ensemble)
    if run is not None:
        run.check_unseen_validation("distill")
        return run.record.data, data_dir_of(run.record)
    record = read_ensemble_record(ensemble)
    assert record.data is not None, "record_teacher has made sure"
    known = {
        "source": record.data.source,
        "image_size": record.image_size,
        "resize": record.preprocessing.resize,
    }
    return build(DataConfig, known, "preprocessing"), DATA_DIR


@dataclass(frozen=True, kw_only=True, slots=True)
class Teaching:
    """A teacher that has not predicted the images of a run yet."""

    teacher: Teacher
    seen: Splits
    """The images, prepared as the teacher expects them."""

    def teach(self, run: Run, console: Console) -> None:
        """Predict the images with the teacher, and store its probabilities in the run's folder."""
        record = run.record.teacher
        assert record is not None, "there is a teacher"
        seen, networks = self.seen, plural(len(self.teacher.networks), "network")
        what = f"{record.ensemble} looks at {len(seen.train):,} training images, {networks}"
        with step(console, what):
            probs = TeacherProbs(
                train=self.teacher.probs(seen.train.images, predict_on_cluster),
                val=self.teacher.probs(seen.val.images, predict_on_cluster),
            )
        on_train = score(probs.train, seen.train.labels)
        on_val = score(probs.val, seen.val.labels)
        tell(
            console,
            f"Its accuracy there is {on_train.accuracy:.2%}, its NLL {on_train.nll:.4f}; on the "
            f"validation images {on_val.accuracy:.2%} and {on_val.nll:.4f}.",
        )
        count = sum(map(num_parameters_of, self.teacher.networks))
        digest = write_teacher_probs(run.path, probs)
        run.update(teacher=replace(record, num_parameters=count, probs_sha256=digest))


def prepare_teaching(request: SearchRequest, splits: Splits) -> Teaching | None:
    """Return the teacher if it still has to predict the images; ``None`` if not.

    Probabilities from an earlier session of the run are read, to check that they are undamaged.

    Raises:
        UsageError: If the teacher is gone, or that of a resumed run is not in its storage.
        UntrustedCodeError: If its code would be run, and is neither known nor trusted.
        DataError: If its images are others, or divided otherwise.
        TunerError: If a file is damaged.
    """
    record = request.teacher
    if request.resume:
        run = Run.open(request.storage / request.name)
        record = run.record.teacher
        if record is not None and record.probs_sha256 and (run.path / TEACHER).exists():
            read_teacher_probs(run.path, record)
            return None
    if record is None:
        return None
    path = to_path(record.path)
    if request.resume and not lies_in(path, request.storage):
        raise UsageError(
            f"--resume: the teacher {record.path} has not predicted the images yet, and is not in "
            f"{request.storage}; start a new run with cifar-tune distill"
        )
    teacher = open_teacher(path, record.sha256, trust_code=request.trust_code)
    return Teaching(teacher=teacher, seen=teacher.splits_like(splits, request.data_dir))


def note_best_student(
    request: RunRequest,
    run: Run,
    splits: Splits,
    console: Console,
    *,
    is_teacher_named: bool = False,
) -> None:
    """Record how the best trial of a finished run compares with its teacher.

    Args:
        request: The request that was run.
        run: Its run.
        splits: Images of the run.
        console: Where it is told what cannot be compared.
        is_teacher_named: As in ``find_teacher``.
    """
    if run.record.status == "finished":
        comparison = compare_best_student(
            run,
            splits,
            find_device(),
            partial(tell, console),
            trust_code=request.trust_code,
            is_teacher_named=is_teacher_named,
        )
        if comparison is not None:
            write_record(run.path / STUDENT, comparison)
