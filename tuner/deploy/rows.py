"""Format predictions as lines of a table, CSV or JSON, batch by batch."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tuner.data.names import cut
from tuner.deploy.stream import Batch
from tuner.storage.spreadsheet import harmless

Format = Literal["table", "csv", "jsonl"]
LONGEST_LABEL = 24
"""Maximum characters of a class name in a table; longer names are cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Writes one line per image; unreadable images have a line in JSON only."""

    classes: Sequence[str]
    form: Format
    top: int = 3
    """Number of most probable classes to write per image; JSON has all of them."""
    reject: float | None = None
    """Confidence below which an image is marked as rejected."""

    @property
    def shown(self) -> int:
        """Number of classes written per image."""
        return min(self.top, len(self.classes))

    @property
    def width(self) -> int:
        """Width of a class column in a table, in characters."""
        return min(LONGEST_LABEL, max(map(len, (*self.classes, "class"))))

    def head(self) -> str:
        """Return the heading line; JSON has none."""
        match self.form:
            case "csv":
                names = ["path", "class", "confidence"]
                names += [f"{n}_{i}" for i in range(2, self.shown + 1) for n in names[1:3]]
                return _csv([*names, "disagreement", "rejected"])
            case "table":
                columns = [f"{'class':{self.width}}  confidence"]
                columns += [f"{f'class {i}':{self.width + 7}}" for i in range(2, self.shown + 1)]
                return f"{'  '.join([*columns, 'disagree', 'path'])}\n"
            case "jsonl":
                return ""

    def lines(self, batch: Batch) -> Iterator[str]:
        """Yield the lines of a batch in its order."""
        confidences, order = batch.vote.probs.topk(self.shown)
        columns = (
            batch.vote.probs.tolist() if self.form == "jsonl" else confidences.tolist(),
            order.tolist(),
            batch.vote.disagreement.tolist(),
        )
        answers = zip(*columns, strict=True)
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error is None:
                probs, classes, disagreement = next(answers)
                yield self._line(path, probs, classes, disagreement)
            elif self.form == "jsonl":
                yield json.dumps({"path": path, "error": error}) + "\n"

    def _line(self, path: str, probs: list[float], order: list[int], disagreement: float) -> str:
        names = [self.classes[index] for index in order]
        confidence = probs[order[0]] if self.form == "jsonl" else probs[0]
        rejected = self.reject is not None and confidence < self.reject
        match self.form:
            case "jsonl":
                plain = {
                    "path": path,
                    "class": names[0],
                    "confidence": _rounded(confidence),
                    "probabilities": dict(zip(self.classes, map(_rounded, probs), strict=True)),
                    "disagreement": _rounded(disagreement),
                }
                marked = {} if self.reject is None else {"rejected": rejected}
                return json.dumps(plain | marked) + "\n"
            case "csv":
                pairs = zip(names, probs, strict=True)
                cells = [cell for name, prob in pairs for cell in (name, f"{prob:.6f}")]
                last = [f"{disagreement:.4g}", str(rejected).lower()]
                return _csv([path, *cells, *last])
            case "table":
                width = self.width
                cells = [f"{cut(names[0], width):{width}}  {probs[0]:10.1%}"]
                others = zip(names[1:], probs[1:], strict=True)
                cells += [f"{cut(name, width):{width}} {prob:6.1%}" for name, prob in others]
                shown = path.replace("\n", "\\n") + ("  rejected" if rejected else "")
                return f"{'  '.join([*cells, f'{disagreement:8.0%}', shown])}\n"


def _rounded(value: float) -> float:
    """Round to seven digits, the precision of float32."""
    return float(f"{value:.7g}")


def _csv(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([harmless(cell) for cell in cells])
    return line.getvalue()
