"""Shared by the parts of ``tests.benchmarks.gpu``: settings, results and values with targets.

A part is a module with three functions. ``run(settings, report)`` measures, in a process of its own
that may be killed at any moment, and writes its results after each figure. ``tables(figures)`` and
``judge(figures)`` turn the results into tables for people and values with targets.
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
"""Part -> description, by importance, which is the order in which they run."""
WEIGHTS = {
    "tests": 100,
    "steps": 90,
    "sharing": 60,
    "recipe": 35,
    "search": 60,
    "saving": 45,
    "compile": 45,
}
"""Shares of the time; time that a part leaves over goes to the later ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a part."""

    data: str
    """CIFAR-10 as class folders, or ``digits``."""
    data_dir: str
    """Folder for decoded images."""
    device: str
    scratch: str
    """An empty folder for this part."""
    seconds: float
    """Seconds after which the part is killed."""
    is_tiny: bool = False
    """Whether to use the smallest settings that run every line, for tests on a CPU."""
    before: str | None = None
    """Folder of an earlier checkout, whose ``train`` is also measured."""
    record: str | None = None
    """Folder of the record's code."""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """Seconds until the part is killed."""
        return self.began + self.seconds - time.monotonic()

    def write(self, path: Path) -> None:
        """Write the settings to a file for the part's process."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read the file of ``write``; the monotonic clock is the same in all processes."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A value and its target."""

    what: str
    value: float
    target: float
    is_most: bool = False
    """Whether the target is a maximum rather than a minimum."""

    @property
    def is_met(self) -> bool:
        """Whether the value meets the target."""
        return self.value <= self.target if self.is_most else self.value >= self.target


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A table for people."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Report:
    """The figures of a part and their tables, written to disk after each figure.

    Args:
        path: The file.
        tables: Function of the part's module.
        judge: Function of the part's module.
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
        """Write everything atomically."""
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
    """Format the median with the range, such as ``5.1 (4.9 to 5.3)``; ``-`` without values."""
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    text = f"{middle:,.{places}f}"
    return text if len(values) == 1 else f"{text} ({low:,.{places}f} to {high:,.{places}f})"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratios of figures from the same rounds."""
    return [value / other for value, other in zip(values, others, strict=False)]
