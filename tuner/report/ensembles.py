"""What the folder of an ensemble holds, for a page."""

import base64
import csv
import io
import json
from typing import Any

from tuner.run.trial import explaining_damage
from tuner.storage.paths import (
    AnyPath,
    check_no_link,
    inside,
    read_bytes,
    read_text,
)

MOST_MISTAKES = 40
PNG = b"\x89PNG\r\n\x1a\n"
"""With which such a picture begins."""
MOST_IMAGE_BYTES = 1_500_000
"""Most bytes of the mistakes' pictures together, before they are written as text."""


def read_ensemble(folder: AnyPath) -> dict[str, Any]:
    """Read an ensemble's figures, its confusion matrix and its mistakes.

    Returns:
        What ``metrics.json`` holds, with ``confusion``, rows true, and ``mistakes``, each with its
        ``image`` as a data URI; without those whose file is not there.

    Raises:
        TunerError: If a file is damaged.
    """
    with explaining_damage(folder / "metrics.json"):
        check_no_link(folder.parent)
        check_no_link(folder)
        ensemble: dict[str, Any] = json.loads(read_text(folder / "metrics.json"))
        ensemble["ensemble"]["test"]["accuracy"]
    ensemble["name"] = ensemble.get("name", folder.name)
    if (folder / "confusion.csv").exists():
        with explaining_damage(folder / "confusion.csv"):
            ensemble |= _read_confusion(folder / "confusion.csv")
    if (folder / "mistakes" / "mistakes.csv").exists():
        with explaining_damage(folder / "mistakes"):
            ensemble["mistakes"] = _read_mistakes(folder / "mistakes")
    return ensemble


def _read_confusion(path: AnyPath) -> dict[str, Any]:
    (_, *classes), *rows = csv.reader(io.StringIO(read_bytes(path).decode(), newline=""))
    return {"classes": classes, "confusion": [[int(cell) for cell in row[1:]] for row in rows]}


def _read_mistakes(folder: AnyPath) -> list[dict[str, Any]]:
    check_no_link(folder)
    text = read_bytes(folder / "mistakes.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    mistakes = []
    room = MOST_IMAGE_BYTES
    for row in rows[:MOST_MISTAKES]:
        image = read_bytes(inside(folder, row["file"]), most=MOST_IMAGE_BYTES)
        if not image.startswith(PNG):
            raise ValueError(f"{row['file']!r} is no PNG")
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
