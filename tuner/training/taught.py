"""The images of a run whose trials learn from a teacher."""

from dataclasses import replace

from tuner.data.splits import Splits
from tuner.errors import TunerError
from tuner.run.run import Run
from tuner.run.teacher_probs import read_teacher_probs


def taught(splits: Splits, run: Run) -> Splits:
    """Add the teacher's probabilities to a run's images; return them unchanged without a teacher.

    Raises:
        TunerError: If the file is missing or damaged.
    """
    teacher = run.record.teacher
    if teacher is None:
        return splits
    probs = read_teacher_probs(run.path, teacher)
    shapes = tuple(probs.train.shape), tuple(probs.val.shape)
    if shapes != tuple((len(part), splits.num_classes) for part in (splits.train, splits.val)):
        raise TunerError(
            f"{run.path}: its teacher's probabilities, of shapes {shapes}, are of other images"
        )
    assert teacher.probs_sha256 is not None, "it was read"
    return replace(splits, teacher=probs.train, teacher_fingerprint=teacher.probs_sha256)
