"""Tables of learning curves on which searches are played.

A folder of tables contains, in any number:

- ``NAME.npz``: ``params`` (N, D) numbers, ``param_names`` (D,), and for each table in it
  ``TABLE/valid_loss`` and ``TABLE/test_loss`` (N, 1 + E), or ``valid_accuracy`` and
  ``test_accuracy``, where column 0 is before the training; ``TABLE/seconds`` (N, E), if known.
- ``NAME.onnx`` with ``NAME-space.json`` and ``NAME-encoding.json``: a surrogate of YAHPO gym
  (Pfisterer et al. 2022), one table per task. Its inputs are ``x_cat`` (N, 1), the task, and
  ``x_cont`` (N, D), the epoch and the parameters by name; its outputs begin with the seconds since
  the start, and columns 3 and 5 are the balanced accuracy on validation and test images.

Recorded tables answer with the row nearest to the requested configuration, like the tabulated
benchmarks of Syne Tune (Salinas et al. 2022), but never twice with the same row in one search: a
network that differs a little from an earlier one is not the same network either.
"""

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Scale = Literal["linear", "log", "log of 1 - x"]
CELLS = ("LSTM", "GRU", "IRNN", "VRNN")
"""Kinds of recurrent cells, by which Taskset's tables are grouped."""
FIFTHS = 5
"""Number of parts of a surrogate's tasks; each part is left out as a whole."""
NUM_KNOWN = 1000
"""Number of configurations from which a surrogate's best and median are computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A parameter and the scale on which it is searched."""

    name: str
    low: float
    high: float
    scale: Scale
    is_whole: bool = False

    @property
    def searched_name(self) -> str:
        """Name of the parameter in the space."""
        return f"one_minus_{self.name}" if self.scale == "log of 1 - x" else self.name

    def to_searched(self, value: float) -> float | int:
        """Return the value in the space."""
        if self.scale == "log of 1 - x":
            return 1 - value
        return round(value) if self.is_whole else value

    def unit(self, searched: Array) -> Array:
        """Map searched values to [0, 1], evenly on the scale."""
        low, high = sorted((self.to_searched(self.low), self.to_searched(self.high)))
        if self.scale == "linear":
            return (searched - low) / (high - low)
        return np.log(np.maximum(searched, low) / low) / np.log(high / low)  # type: ignore[no-any-return]

    def choice(self) -> dict[str, Any]:
        """Return the axis as written in a space."""
        low, high = sorted((self.to_searched(self.low), self.to_searched(self.high)))
        bounds = {"int" if self.is_whole else "float": [low, high]}
        return bounds | ({} if self.scale == "linear" else {"log": True})


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The learning curve of one configuration."""

    scores: Array
    """(E,) scores on validation images after each epoch; larger is better, NaN if it diverged."""
    seconds: Array
    """(E,) seconds of each epoch."""
    test: float
    """Score on test images after the last epoch, NaN if it diverged."""


class Table(ABC):
    """The learning curves of a task; ``RecordedTable`` or ``SurrogateTable``.

    Attributes:
        name: Name of the table.
        family: Name of the file that contains it.
        group: Tables of one group are alike: a portfolio is not learnt and tried in the same group.
        axes: The parameters.
        known: (N, D) searched values of configurations, equal for all tables of a family.
    """

    name: str
    family: str
    group: str
    axes: Sequence[Axis]
    known: Array

    @abstractmethod
    def curve(self, searched: Mapping[str, float], taken: set[int] | None = None) -> Curve:
        """Return the curve of a configuration.

        Args:
            searched: Its searched values.
            taken: Rows of a recorded table that may not be used again; the used row is added.
        """

    @functools.cached_property
    def finals(self) -> Array:
        """(N,) test scores of the known configurations; NaN if they diverged."""
        return np.array([self.curve(self.searched(row)).test for row in range(len(self.known))])

    @functools.cached_property
    def full_seconds(self) -> float:
        """Mean seconds of a whole training."""
        rows = range(0, len(self.known), 10)
        return float(np.mean([self.curve(self.searched(row)).seconds.sum() for row in rows]))

    @property
    def num_epochs(self) -> int:
        """Number of epochs of a whole training."""
        return len(self.curve(self.searched(0)).scores)

    def searched(self, row: int) -> dict[str, float]:
        """Return the searched values of a known configuration."""
        values = map(float, self.known[row])
        return {
            axis.searched_name: round(value) if axis.is_whole else value
            for axis, value in zip(self.axes, values, strict=True)
        }

    def regret(self, test: float) -> float:
        """Return (best - test) / (best - median) of the known configurations, at most 1."""
        finite = self.finals[np.isfinite(self.finals)]
        if not np.isfinite(test):
            return 1.0
        best, median = float(finite.max()), float(np.median(finite))
        return min(1.0, (best - test) / (best - median))


class RecordedTable(Table):
    """Curves of a fixed set of configurations that were really trained."""

    def __init__(
        self,
        name: str,
        family: str,
        axes: Sequence[Axis],
        known: Array,
        valid: Array,
        test: Array,
        seconds: Array,
    ) -> None:
        self.name, self.family, self.axes, self.known = name, family, axes, known
        self.group = next((cell for cell in CELLS if cell in name), name)
        self._valid, self._test, self._seconds = valid, test, seconds
        self._units = np.stack(
            [axis.unit(column) for axis, column in zip(axes, known.T, strict=True)], axis=1
        )

    def curve(self, searched: Mapping[str, float], taken: set[int] | None = None) -> Curve:
        """See ``Table``."""
        asked = np.array([axis.unit(np.array(searched[axis.searched_name])) for axis in self.axes])
        distances = np.square(self._units - asked).sum(axis=1)
        if taken is not None:
            # Once all rows are used, they may be used again.
            distances[list(taken)] += 0 if len(taken) == len(distances) else np.inf
        row = int(distances.argmin())
        if taken is not None:
            taken.add(row)
        return Curve(
            scores=self._valid[row], seconds=self._seconds[row], test=float(self._test[row, -1])
        )


class SurrogateTable(Table):
    """Curves that a network predicts for any configuration."""

    def __init__(
        self, name: str, family: str, group: str, session: Any, task: int, axes: Sequence[Axis]
    ) -> None:
        self.name, self.family, self.group, self.axes = name, family, group, axes
        self._session, self._task = session, task
        generator = np.random.default_rng(0)
        drawn = generator.uniform(size=(NUM_KNOWN, len(axes)))
        self.known = np.stack(
            [_at(axis, column) for axis, column in zip(axes, drawn.T, strict=True)], axis=1
        )
        self._curves: dict[bytes, Curve] = {}

    num_surrogate_epochs = 52

    @property
    def num_epochs(self) -> int:
        """See ``Table``."""
        return self.num_surrogate_epochs

    def curve(self, searched: Mapping[str, float], taken: set[int] | None = None) -> Curve:
        """See ``Table``."""
        values = np.array([[searched[axis.searched_name] for axis in self.axes]], np.float32)
        key = values.tobytes()
        if key not in self._curves:
            self._curves[key] = self._predict(values)[0]
        return self._curves[key]

    @functools.cached_property
    def finals(self) -> Array:
        """See ``Table``."""
        return np.array([curve.test for curve in self._predict(self.known.astype(np.float32))])

    def _predict(self, values: NDArray[np.float32]) -> list[Curve]:
        epochs = np.arange(1, self.num_epochs + 1, dtype=np.float32)
        numbers = np.concatenate(
            [
                np.tile(epochs, len(values))[:, None],
                np.repeat(values, self.num_epochs, axis=0),
            ],
            axis=1,
        )
        tasks = np.full((len(numbers), 1), self._task, np.int32)
        (output,) = self._session.run(None, {"x_cat": tasks, "x_cont": numbers})
        figures = output.astype(np.float64).reshape(len(values), self.num_epochs, -1)
        # A surrogate's clock may briefly run backwards.
        clocks = np.maximum.accumulate(np.maximum(figures[:, :, 0], 0.0), axis=1)
        return [
            Curve(
                scores=np.clip(rows[:, 3], 0.0, 1.0),
                seconds=np.diff(clock, prepend=0.0),
                test=float(rows[-1, 5]),
            )
            for rows, clock in zip(figures, clocks, strict=True)
        ]


def read_tables(folder: Path) -> list[Table]:
    """Read all tables of a folder."""
    tables: list[Table] = []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".npz":
            tables.extend(_read_recorded(file))
        elif file.suffix == ".onnx":
            tables.extend(_read_surrogate(file))
    if not tables:
        raise SystemExit(f"{folder}: holds no tables; see the head of tests/benchmarks/tables.py")
    return tables


def _read_recorded(file: Path) -> list[RecordedTable]:
    arrays = np.load(file)
    names = [str(name) for name in arrays["param_names"]]
    params = arrays["params"].astype(np.float64)
    axes = [_axis_of(name, column) for name, column in zip(names, params.T, strict=True)]
    known = np.stack(
        [
            np.array([axis.to_searched(float(value)) for value in column])
            for axis, column in zip(axes, params.T, strict=True)
        ],
        axis=1,
    )
    tables = []
    for key in sorted(arrays.files):
        name, _, kind = key.partition("/")
        if kind not in ("valid_loss", "valid_accuracy"):
            continue
        valid = arrays[key].astype(np.float64)[:, 1:]
        test = arrays[f"{name}/{kind.replace('valid', 'test')}"].astype(np.float64)
        if kind == "valid_loss":
            # A monotone map to [0, 1], because the program expects an accuracy.
            valid, test = 1 / (1 + np.maximum(valid, 0.0)), -test
            valid[valid == 0.0] = np.nan
        test[~np.isfinite(test)] = np.nan
        given = f"{name}/seconds" in arrays.files
        seconds = arrays[f"{name}/seconds"].astype(np.float64) if given else np.ones_like(valid)
        tables.append(RecordedTable(name, file.stem, axes, known, valid, test, seconds))
    return tables


def _read_surrogate(file: Path) -> list[SurrogateTable]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    space = json.loads(file.with_name(f"{file.stem}-space.json").read_text())["hyperparameters"]
    encoding = json.loads(file.with_name(f"{file.stem}-encoding.json").read_text())
    (task,) = (parameter for parameter in space if parameter["type"] == "categorical")
    axes = [
        Axis(
            name=parameter["name"],
            low=parameter["lower"],
            high=parameter["upper"],
            scale="log" if parameter["log"] else "linear",
            is_whole=parameter["type"] == "uniform_int",
        )
        for parameter in space
        if parameter["type"] != "categorical" and parameter["name"] != "epoch"
    ]
    # The order of the network's inputs after the epoch.
    order = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units")
    order = (*order, "max_dropout")
    axes.sort(key=lambda axis: order.index(axis.name))
    codes = encoding[task["name"]]
    return [
        SurrogateTable(
            f"{file.stem}-{name}",
            file.stem,
            f"{file.stem}-fifth-{place % FIFTHS}",
            session,
            codes[name],
            axes,
        )
        for place, name in enumerate(task["choices"])
    ]


def _axis_of(name: str, values: Array) -> Axis:
    """Return a recorded parameter on the scale on which its values are most even."""
    low, high = float(values.min()), float(values.max())
    is_whole = bool((values == np.round(values)).all())
    scales: list[Scale] = ["linear"]
    if low > 0:
        scales.append("log")
    if high < 1 and not is_whole:
        scales.append("log of 1 - x")

    def unevenness(scale: Scale) -> float:
        axis = Axis(name=name, low=low, high=high, scale=scale, is_whole=is_whole)
        units = np.sort(axis.unit(np.array([axis.to_searched(float(value)) for value in values])))
        return float(np.abs(units - np.linspace(0, 1, len(units))).max())

    return Axis(name=name, low=low, high=high, scale=min(scales, key=unevenness), is_whole=is_whole)


def _at(axis: Axis, units: Array) -> Array:
    """Return the searched values at positions in [0, 1]; the inverse of ``Axis.unit``."""
    if axis.scale == "linear":
        values = axis.low + units * (axis.high - axis.low)
    else:
        values = axis.low * (axis.high / axis.low) ** units
    return np.round(values) if axis.is_whole else values
