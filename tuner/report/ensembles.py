"""What the folder of an ensemble holds, for a page."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

from tuner.trial import explaining_damage

MOST_MISTAKES = 40
MOST_IMAGE_BYTES = 1_500_000
"""Of the mistakes' pictures together, before they are written as text."""


def ensemble_folders(run: Path) -> list[Path]:
    """Give the folders of a run's ensembles, the one that was made last first."""
    metrics = (run / "ensembles").glob("*/metrics.json")
    return [path.parent for path in sorted(metrics, key=lambda path: -path.stat().st_mtime_ns)]


def read_ensemble(folder: Path) -> dict[str, Any]:
    """Read an ensemble's figures, its confusion matrix and its mistakes.

    Returns:
        What ``metrics.json`` holds, with ``confusion``, rows true, and ``mistakes``, each with its
        ``image`` as a data URI; without those whose file is not there.

    Raises:
        TunerError: If a file is damaged.
    """
    with explaining_damage(folder / "metrics.json"):
        ensemble: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
        ensemble["ensemble"]["test"]["accuracy"]
    ensemble["name"] = ensemble.get("name", folder.name)
    if (folder / "confusion.csv").exists():
        with explaining_damage(folder / "confusion.csv"):
            ensemble |= _read_confusion(folder / "confusion.csv")
    if (folder / "mistakes" / "mistakes.csv").exists():
        with explaining_damage(folder / "mistakes"):
            ensemble["mistakes"] = _read_mistakes(folder / "mistakes")
    return ensemble


def _read_confusion(path: Path) -> dict[str, Any]:
    with path.open(newline="") as file:
        (_, *classes), *rows = csv.reader(file)
    return {"classes": classes, "confusion": [[int(cell) for cell in row[1:]] for row in rows]}


def _read_mistakes(folder: Path) -> list[dict[str, Any]]:
    with (folder / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    mistakes = []
    room = MOST_IMAGE_BYTES
    for row in rows[:MOST_MISTAKES]:
        image = (folder / row["file"]).read_bytes()
        room -= len(image)
        if room < 0:
            break
        mistakes.append(
            {
                "true": row["true"],
                "predicted": row["predicted"],
                "confidence": float(row["confidence"]),
                "image": f"data:image/png;base64,{base64.b64encode(image).decode()}",
            }
        )
    return mistakes
