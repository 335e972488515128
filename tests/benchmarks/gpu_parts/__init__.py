"""What the parts of ``tests.benchmarks.gpu`` share: settings, results, and values with targets.

A part is a module with three functions. ``run(settings, report)`` measures, in a process of its
own that may be killed at any moment, and reports what it has after each figure. ``tables(figures)``
and ``judge(figures)`` turn what was reported into tables for people and values with targets.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PARTS = {
    "tests": "the tests of tests/gpu, one outcome each",
    "steps": "images a second of every family: captured, eager, earlier checkout, bare step",
    "sharing": "several trials on one GPU: processes, MPS, threads of one process",
    "recipe": "speed.yaml's baseline to its accuracy, beside the record's code if given",
    "search": "one search of speed.yaml's space, and its ensemble",
    "saving": "the share of slot time spent in epochs, with saving",
    "compile": "compilation: seconds cold and warm, and what it gains inside the graph",
}
"""By importance, which is the order in which they run."""
WEIGHTS = {
    "tests": 100,
    "steps": 90,
    "sharing": 60,
    "recipe": 35,
    "search": 60,
    "saving": 45,
    "compile": 45,
}
"""Shares of the time; what a part leaves over goes to those after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a part is told."""

    data: str
    """CIFAR-10 as class folders, or ``digits``."""
    data_dir: str
    """Where decoded images are kept."""
    device: str
    scratch: str
    """An empty folder for this part."""
    seconds: float
    """After which the part is killed."""
    is_tiny: bool = False
    """Use the smallest settings that run every line, for tests on a CPU."""
    before: str | None = None
    """Folder of an earlier checkout, whose ``train`` is measured beside this one's."""
    record: str | None = None
    """Folder of the record's code."""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Until the part is killed."""
        return self.began + self.seconds - time.monotonic()

    def write(self, path: Path) -> None:
        """Write the settings for the part's process."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read what ``write`` wrote; the monotonic clock is the same in all processes."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A value beside its target."""

    what: str
    value: float
    target: float
    is_most: bool = False
    """Whether the target is the most that the value may be, rather than the least."""

    @property
    def is_met(self) -> bool:
        """Whether the value keeps the target."""
        return self.value <= self.target if self.is_most else self.value >= self.target


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A table for people."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Report:
    """The figures of a part with their tables, on disk after each figure.

    Args:
        path: Where.
        tables: Of the part's module.
        judge: Likewise.
    """

    def __init__(
        self,
        path: Path,
        tables: Callable[[Mapping[str, Any]], Sequence[Rows]],
        judge: Callable[[Mapping[str, Any]], Sequence[Judged]],
    ) -> None:
        self._path = path
        self._tables = tables
        self._judge = judge
        self.figures: dict[str, Any] = {}

    def write(self) -> None:
        """Write all, whole or not at all."""
        summary = [asdict(each) | {"is_met": each.is_met} for each in self._judge(self.figures)]
        document = {
            "figures": self.figures,
            "tables": [asdict(rows) for rows in self._tables(self.figures)],
            "summary": summary,
        }
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document))
        temporary.replace(self._path)


def spread(values: Sequence[float], places: int = 0) -> str:
    """Return the median with the range, such as ``5.1 (4.9 to 5.3)``; ``-`` without values."""
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    text = f"{middle:,.{places}f}"
    return text if len(values) == 1 else f"{text} ({low:,.{places}f} to {high:,.{places}f})"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratios of figures that were measured in the same rounds."""
    return [value / other for value, other in zip(values, others, strict=False)]
