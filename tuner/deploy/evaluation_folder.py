"""Write the folder of ``evaluate --output``."""

from pathlib import Path

from tuner.deploy.evaluation import Evaluation
from tuner.ensemble.plots import write_pictures
from tuner.storage.files import write_json
from tuner.storage.spreadsheet import write_csv


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation as JSON, tables and plots; each file whole or not at all."""
    write_json(folder / "evaluation.json", evaluation.to_plain())
    write_csv(
        folder / "mistakes.csv",
        ["path", "true", "predicted", "confidence"],
        ((m.path, m.true, m.predicted, f"{m.confidence:.6f}") for m in evaluation.mistakes),
    )
    if evaluation.corrupted:
        write_csv(
            folder / "corrupted.csv",
            ["kind", "severity", "accuracy"],
            ((c.kind, c.severity, f"{c.accuracy:.6f}") for c in evaluation.corrupted),
        )
    else:
        # An earlier evaluation may have left one.
        (folder / "corrupted.csv").unlink(missing_ok=True)
    name = f"{evaluation.ensemble.name} on {Path(evaluation.source).name}"
    title = f"{name}, accuracy {evaluation.scores.accuracy:.2%}"
    write_pictures(folder, evaluation.classes, evaluation.confusion, evaluation.reliability, title)
