"""The folder that ``evaluate --output`` writes."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tuner.deploy.evaluation import Evaluation
from tuner.ensemble.plots import plot_confusion, plot_reliability
from tuner.storage.files import write_json, write_text


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation as JSON, tables and pictures; each file whole or not at all."""
    write_json(folder / "evaluation.json", evaluation.to_plain())
    rows = zip(evaluation.classes, evaluation.confusion.tolist(), strict=True)
    _write_csv(
        folder / "confusion.csv",
        ["true \\ predicted", *evaluation.classes],
        ([label, *row] for label, row in rows),
    )
    _write_csv(
        folder / "mistakes.csv",
        ["path", "true", "predicted", "confidence"],
        ((m.path, m.true, m.predicted, f"{m.confidence:.6f}") for m in evaluation.mistakes),
    )
    if evaluation.corrupted:
        _write_csv(
            folder / "corrupted.csv",
            ["kind", "severity", "accuracy"],
            ((c.kind, c.severity, f"{c.accuracy:.6f}") for c in evaluation.corrupted),
        )
    name = f"{evaluation.ensemble.name} on {Path(evaluation.source).name}"
    title = f"{name}, accuracy {evaluation.scores.accuracy:.2%}"
    plot_confusion(folder / "confusion.png", evaluation.confusion, evaluation.classes, title)
    plot_reliability(folder / "reliability.png", evaluation.reliability, title)


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, table.getvalue())
