"""The names of the files in a run folder, and which names a folder may have.

::

    runs/NAME/
        run.json  space.yaml  leaderboard.csv  report.html  plan.json  issues.json
        test_readings.jsonl  teacher.safetensors  student.json
        tensorboard/
        trials/0042/
            config.json  history.csv  status.json
            checkpoint.safetensors  val_probs.npy  state.safetensors  digests.json
        ensembles/NAME/
            ensemble.json  metrics.json  confusion.csv  confusion.png  reliability.png
            members/0042.safetensors  probe.safetensors  model_card.md  evaluations.jsonl
            mistakes/mistakes.csv  mistakes/00.png
"""

from tuner.storage.paths import MOST_NAME, AnyPath

RUN = "run.json"
"""The request and its outcome; a folder with this file is a run."""
SPACE = "space.yaml"
"""The resolved search space."""
LEADERBOARD = "leaderboard.csv"
REPORT = "report.html"
PLAN = "plan.json"
"""The forecast in the folder of a run that was planned."""
ISSUES = "issues.json"
"""Images whose labels may be wrong, and test images that are among the training images."""
TEST_READINGS = "test_readings.jsonl"
"""One line for each time that the test images were read."""
TENSORBOARD = "tensorboard"
TEACHER = "teacher.safetensors"
"""The class probabilities that the teacher of a run's students gives the images."""
STUDENT = "student.json"
"""The best student compared with its teacher, when the run last ended."""

TRIALS = "trials"
CONFIG = "config.json"
HISTORY = "history.csv"
STATUS = "status.json"
CHECKPOINT = "checkpoint.safetensors"
"""Weights of the kept epoch, with everything needed to rebuild the model."""
VAL_PROBS = "val_probs.npy"
"""Class probabilities of the validation images after the kept epoch."""
STATE = "state.safetensors"
"""The state from which the training resumes."""
DIGESTS = "digests.json"
"""SHA-256 of the trial's other files; written last."""
RECORDS = (STATUS, HISTORY, CONFIG, DIGESTS)
"""Small files, which are read for all trials together."""

ENSEMBLES = "ensembles"
ENSEMBLE = "ensemble.json"
"""What is needed to predict with an ensemble."""
METRICS = "metrics.json"
"""Figures of an ensemble; written last, so that a folder with this file is an ensemble."""
PROBE = "probe.safetensors"
"""Images with each member's predictions, with which a loaded ensemble checks itself."""
EVALUATIONS = "evaluations.jsonl"
"""One line for each evaluation on labelled images."""
MODEL_CARD = "model_card.md"
MEMBERS = "members"
CONFUSION = "confusion.csv"
CONFUSION_PLOT = "confusion.png"
RELIABILITY_PLOT = "reliability.png"
MISTAKES = "mistakes"
MISTAKES_TABLE = "mistakes.csv"


def trial_folder(number: int) -> str:
    """Return the name of a trial's folder."""
    return f"{number:04d}"


def is_number(name: str) -> bool:
    """Whether a trial's folder can have this name; each trial has exactly one such name."""
    return name.isascii() and name.isdecimal() and len(name) < 10 and name == f"{int(name):04d}"


def number_of(folder: AnyPath) -> int | None:
    """Return the number of the trial that a folder belongs to; ``None`` if it is not a trial's."""
    return int(folder.name) if is_number(folder.name) else None


def check_trial(folder: AnyPath, recorded: int | None) -> None:
    """Make sure that a record in a trial's folder belongs to this trial.

    Args:
        folder: The trial's folder.
        recorded: The trial that the record names, if any.

    Raises:
        ValueError: If it is of another one.
    """
    if recorded is not None and recorded != number_of(folder):
        raise ValueError(f"is of trial {recorded}, whose folder is {trial_folder(recorded)}")


def member_file(trial: int | None) -> str:
    """Return a member's file, relative to the ensemble's folder; ``None`` means the soup."""
    return f"{MEMBERS}/{'soup' if trial is None else trial_folder(trial)}.safetensors"


def why_not_name(name: str) -> str | None:
    """Return why a new run or ensemble cannot have a name; ``None`` if it can."""
    if not name or name.startswith(".") or "/" in name:
        return "is not a plain name"
    if name.startswith("-"):
        return "begins as an option does"
    if not name.isprintable():
        return "holds characters that cannot be printed"
    if len(name.encode()) > MOST_NAME:
        return f"is longer than {MOST_NAME} bytes"
    return None
