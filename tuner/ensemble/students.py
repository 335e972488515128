"""Students compared with their teacher: what they are worth, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tuner.config import Tta
from tuner.data.datasets import DatasetPart
from tuner.data.splits import Splits, load_test
from tuner.ensemble.members import Network
from tuner.ensemble.plan import Plan, Say
from tuner.ensemble.teacher import Teacher, num_parameters_of, open_teacher, total_latency
from tuner.errors import TunerError
from tuner.metrics.figures import Interval, Latency
from tuner.metrics.intervals import LEVEL
from tuner.metrics.predict import Scores, score
from tuner.metrics.significance import paired_gain
from tuner.run.layout import STUDENT
from tuner.run.run import Run
from tuner.run.run_record import TeacherRecord
from tuner.run.teacher_probs import read_teacher_probs
from tuner.storage.paths import lies_in, to_path
from tuner.storage.records import find_record


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A teacher or a student: what it is worth, and what it costs."""

    name: str
    val: Scores
    """On the validation images, which both were chosen on."""
    test: Scores | None
    """``None`` if the test images were not read, or the teacher is gone."""
    num_parameters: int
    latency: Latency | None
    """Time of all its networks, one after the other; ``None`` for a teacher that is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherComparison:
    """A student compared with its teacher."""

    teacher: Contender
    student: Contender
    device: str
    """Where both were timed, such as ``cpu``."""
    val_gain: Interval
    """The student's gain in validation accuracy; below 0, the teacher is better."""
    test_gain: Interval | None
    level: float = LEVEL


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownTeacher:
    """The teacher of a run, to compare students with."""

    record: TeacherRecord
    val: Tensor
    """Its probabilities of the validation images, shape (N, K)."""
    teacher: Teacher | None
    """``None`` if it is gone: then it is neither timed nor run on test images."""

    def compare(
        self,
        name: str,
        networks: Sequence[Network],
        *,
        image_shape: tuple[int, int, int],
        tta: Tta,
        device: torch.device,
        val: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> TeacherComparison:
        """Compare a student, or an ensemble of students, with the teacher.

        Args:
            name: Name of the student.
            networks: Its networks.
            image_shape: Shape (C, H, W) of the images that they take.
            tta: Views of an image that each averages.
            device: Where both are timed.
            val: The student's probabilities of the validation images, and the labels.
            test: The teacher's and the student's probabilities of the test images, and the labels.
        """
        (on_val, labels), (of_teacher, on_test, truth) = val, test or (None, None, None)
        return TeacherComparison(
            teacher=Contender(
                name=self.record.ensemble,
                val=score(self.val, labels),
                test=_score(of_teacher, truth),
                num_parameters=self.record.num_parameters or 0,
                latency=None if self.teacher is None else self.teacher.latency(device),
            ),
            student=Contender(
                name=name,
                val=score(on_val, labels),
                test=_score(on_test, truth),
                num_parameters=sum(map(num_parameters_of, networks)),
                latency=total_latency(networks, image_shape, tta, device),
            ),
            device=device.type,
            val_gain=_gain(self.val, on_val, labels),
            test_gain=None if test is None else _gain(*test),
        )


def find_teacher(
    run: Run, say: Say, *, trust_code: bool, is_named: bool = False
) -> KnownTeacher | None:
    """Return the teacher of a run; ``None`` if it has none, or its probabilities are damaged.

    Args:
        run: The run of its students.
        say: Receives what cannot be compared.
        trust_code: Run code that came with it even if it is not known here.
        is_named: Whether the user has named the teacher, and not only the run's record, which leads
            to no teacher outside the run's storage.
    """
    record = run.record.teacher
    if record is None:
        return None
    try:
        val = read_teacher_probs(run.path, record).val
    except TunerError as error:
        say(f"not compared with its teacher: {error}")
        return None
    teacher = None
    try:
        path, storage = to_path(record.path), run.path.parent
        if not (is_named or lies_in(path, storage)):
            raise TunerError(
                f"{path} is outside {storage}, and the record of a run leads no further"
            )
        teacher = open_teacher(path, record.sha256, trust_code=trust_code)
    except TunerError as error:
        say(f"compared with its teacher on the validation images alone: {error}")
    return KnownTeacher(record=record, val=val, teacher=teacher)


def compare_best_student(
    run: Run,
    splits: Splits,
    device: torch.device,
    say: Say,
    *,
    trust_code: bool,
    is_teacher_named: bool,
) -> TeacherComparison | None:
    """Compare the best trial of a finished run with its teacher, if the run had one.

    Args:
        run: The run.
        splits: Images of the run.
        device: Where both are timed.
        say: Receives what cannot be compared.
        trust_code: As for ``find_teacher``.
        is_teacher_named: Likewise.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        TunerError: If a file of the trial is damaged.
    """
    known = find_teacher(run, say, trust_code=trust_code, is_named=is_teacher_named)
    if known is None:
        return None
    (best,) = run.top(1)
    config = best.config
    network = Network(file=best.checkpoint, model=config.model, precision=config.precision)
    return known.compare(
        f"trial {best.number}",
        [network],
        image_shape=splits.image_shape,
        tta="none",
        device=device,
        val=(torch.from_numpy(best.val_probs()).float(), splits.val.labels),
    )


def compare_ensemble(
    known: KnownTeacher,
    plan: Plan,
    networks: Sequence[Network],
    test: DatasetPart | None,
    vote: Tensor,
) -> TeacherComparison:
    """Compare an ensemble of students with their teacher, in the ensemble's test reading.

    Args:
        known: The teacher.
        plan: Plan of the ensemble.
        networks: Its networks.
        test: The test images; ``None`` if there are none.
        vote: The ensemble's probabilities of these, shape (N, K).
    """
    on_test = None
    if test is not None and known.teacher is not None:
        assert plan.splits.config is not None, "they were loaded"
        prepared = known.teacher.prepared(plan.splits.config)
        seen = test if prepared == plan.splits.config else load_test(prepared, plan.data_dir)
        probs = known.teacher.probs(seen.images.images, plan.predict)
        on_test = (probs, vote, test.images.labels)
    return known.compare(
        f"{plan.run.record.name}/{plan.request.folder_name}",
        networks,
        image_shape=plan.splits.image_shape,
        tta=plan.request.tta,
        device=plan.device,
        val=(plan.choice.val, plan.pool.labels),
        test=on_test,
    )


def find_student(run: Run) -> TeacherComparison | None:
    """Read how the best trial compared with its teacher when the run last ended.

    Returns:
        ``None`` if no comparison was made, as before the run has ended.

    Raises:
        TunerError: If the file is damaged.
    """
    return find_record(run.path / STUDENT, TeacherComparison)


def _score(probs: Tensor | None, labels: Tensor | None) -> Scores | None:
    return None if probs is None or labels is None else score(probs, labels)


def _gain(teacher: Tensor, student: Tensor, labels: Tensor) -> Interval:
    correct = [probs.argmax(dim=1) == labels for probs in (student, teacher)]
    return paired_gain(*correct)
