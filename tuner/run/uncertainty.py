"""How far the validation accuracies of a run can be trusted, given the number of its images."""

from tuner.metrics.intervals import margin
from tuner.run.run import Run


def validated_on(run: Run) -> str:
    """Describe the validation set: ``120 validation images`` or ``600 images in 5 folds``."""
    count, folds = run.record.num_val, run.record.data.folds
    return f"{count} validation images" if folds is None else f"{count} images in {folds} folds"


def val_margin(run: Run, accuracy: float) -> str:
    """Format the margin: ``120 validation images: ± 7 points``; empty if it would mean nothing.

    It covers only the choice of the images. The bias from choosing the best of many trials by the
    accuracy comes on top.
    """
    if run.record.data.all_data:
        return ""
    return f"{validated_on(run)}: {margin(accuracy, run.record.num_val)}"
