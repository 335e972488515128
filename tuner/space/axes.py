"""The axes of a space: fixed values, ranges, choices and branches, as a tree to sample from."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from tuner.schema import Bounds

Plain = bool | int | float | str


class Trial(Protocol):
    """The source of sampled values, such as a trial of Optuna or a ``RandomTrial``."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number from ``low`` to ``high``, both included."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Return a whole number from ``low`` to ``high``, both included."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of ``choices``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """A plain value, the same in every trial."""

    value: Plain

    def sample(self, trial: Trial) -> Plain:
        """Return the value."""
        return self.value

    def size(self) -> float:
        """Return 1."""
        return 1

    def pick(self, index: int) -> dict[str, Plain]:
        """Return no parameters."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The numbers from ``low`` to ``high``, both included."""

    name: str
    low: float
    high: float
    whole: bool
    """Whether only whole numbers are drawn."""
    log: bool = False
    """Draw uniformly in log space; needs ``low > 0``."""
    step: float | None = None
    """Draw only ``low``, ``low + step``, ... ``high``."""
    valid: Bounds = field(default=Bounds(), compare=False)
    """The numbers that the parameter can have in any space."""

    def can_widen(self, *, upwards: bool) -> bool:
        """Whether a space may have numbers above ``high`` (or below ``low``)."""
        sign = 1 if upwards else -1
        end = self.high if upwards else self.low
        beyond = end + sign if self.whole else math.nextafter(end, sign * math.inf)
        return self.valid.admits(beyond) and not (self.log and beyond <= 0)

    def sample(self, trial: Trial) -> Plain:
        """Draw one number."""
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        drawn = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        if self.step is None:
            return drawn
        # Optuna returns 0.30000000000000004 for three steps of 0.1.
        num_steps = round((drawn - self.low) / self.step)
        return float(exact(self.low) + num_steps * exact(self.step))

    def admits(self, value: object) -> bool:
        """Whether ``sample`` can return ``value``, which may be text or a list of another space."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        step = self.step or (1 if self.whole else None)
        return self.low <= value <= self.high and not (step and remainder(self.low, value, step))

    def size(self) -> float:
        """Count the numbers that can be drawn; infinity if there is no step."""
        step = self.step or (1 if self.whole else None)
        return int((exact(self.high) - exact(self.low)) / exact(step)) + 1 if step else math.inf

    def pick(self, index: int) -> dict[str, Plain]:
        """Return number ``index``, counted from ``low``; needs a step or whole numbers."""
        step = self.step or 1
        value = exact(self.low) + index * exact(step)
        return {self.name: int(value) if self.whole else float(value)}

    @property
    def text(self) -> str:
        """Description of the range."""
        ends = f"{'int' if self.whole else 'float'} {to_yaml(self.low)} to {to_yaml(self.high)}"
        step = f", step {to_yaml(self.step)}" if self.step else ""
        return f"{ends}{', log' if self.log else ''}{step}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One of several plain values."""

    name: str
    values: tuple[Plain, ...]

    def sample(self, trial: Trial) -> Plain:
        """Draw one value."""
        return trial.suggest_categorical(self.name, self.values)  # type: ignore[no-any-return]

    def admits(self, value: object) -> bool:
        """Whether ``sample`` can return ``value``."""
        return value in self.values

    def size(self) -> float:
        """Count the values."""
        return len(self.values)

    def pick(self, index: int) -> dict[str, Plain]:
        """Return value ``index``."""
        return {self.name: self.values[index]}

    @property
    def text(self) -> str:
        """Description of the values."""
        return f"one of {', '.join(map(to_yaml, self.values))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A mapping whose entries are sampled separately."""

    entries: Mapping[str, "Axis"]

    def sample(self, trial: Trial) -> dict[str, Any]:
        """Draw every entry."""
        return {key: axis.sample(trial) for key, axis in self.entries.items()}

    def size(self) -> float:
        """Count the combinations."""
        return math.prod(axis.size() for axis in self.entries.values())

    def pick(self, index: int) -> dict[str, Plain]:
        """Return the parameters of combination ``index``; the first entry changes fastest."""
        params: dict[str, Plain] = {}
        for axis in self.entries.values():
            index, place = divmod(index, int(axis.size()))
            params |= axis.pick(place)
        return params


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """One of several names, each with its own parameters; a single name is not sampled."""

    name: str
    options: Mapping[str, Group]

    def sample(self, trial: Trial) -> dict[str, Any]:
        """Draw a name and its parameters, but not those of other names."""
        names = list(self.options)
        tag = names[0] if len(names) == 1 else trial.suggest_categorical(self.name, names)
        return {tag: self.options[tag].sample(trial)}

    def size(self) -> float:
        """Count the combinations."""
        return sum(group.size() for group in self.options.values())

    def pick(self, index: int) -> dict[str, Plain]:
        """Return the parameters of combination ``index``; those of the first name come first."""
        for tag, group in self.options.items():
            if index < group.size():
                name: dict[str, Plain] = {self.name: tag} if len(self.options) > 1 else {}
                return name | group.pick(index)
            index -= int(group.size())
        raise IndexError(index)

    @property
    def text(self) -> str:
        """Description of the names."""
        return f"one of {', '.join(self.options)}"


Axis = Fixed | Range | Choice | Group | Branch


def parameters(axis: Axis) -> Iterator[Range | Choice | Branch]:
    """Yield every axis that a trial samples, in the order of the file."""
    return (found for _, found in placed(axis))


def placed(
    axis: Axis, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Range | Choice | Branch]]:
    """Yield each parameter's place (its name without those of branches) and its axis."""
    match axis:
        case Range() | Choice():
            yield place, axis
        case Group(entries=entries):
            for key, entry in entries.items():
                yield from placed(entry, (*place, key))
        case Branch(options=options):
            if len(options) > 1:
                yield place, axis
            for group in options.values():
                yield from placed(group, place)


def value_of(plain: Mapping[str, Any], name: str) -> Plain | None:
    """Return a trial's value of the parameter ``name``; ``None`` if it has none.

    Args:
        plain: The trial's configuration, as ``TrialConfig.to_dict`` returns it.
        name: Dotted, as in ``Trial.suggest_float``.
    """
    value: Any = plain
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    # For a branch, the value is the name that was chosen.
    found: Plain = next(iter(value)) if isinstance(value, Mapping) else value
    return found


@dataclass(slots=True)
class RandomTrial:
    """A trial that draws at random and needs no study."""

    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters that are not drawn, by name."""
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return the given number or a random one."""
        if name in self.params:
            return float(self.params[name])
        if step is not None:
            return min(high, low + step * self._random.randint(0, round((high - low) / step)))
        if log:
            drawn = math.exp(self._random.uniform(math.log(low), math.log(high)))
            return min(high, max(low, drawn))
        return self._random.uniform(low, high)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Return the given whole number or a random one."""
        if name in self.params:
            return int(self.params[name])
        if log:
            # Like Optuna: each end has its whole rounding interval, as the other numbers do.
            drawn = self._random.uniform(math.log(low - 0.5), math.log(high + 0.5))
            return min(high, max(low, round(math.exp(drawn))))
        return self._random.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the given choice or a random one."""
        return self.params[name] if name in self.params else self._random.choice(choices)


def exact(number: float) -> Decimal:
    """Return the number exactly as written, so that 0.2 is four steps of 0.05."""
    return Decimal(str(number))


def remainder(low: float, high: float, step: float) -> Decimal:
    """Return the distance from the last step, counted from ``low``, to ``high``."""
    return (exact(high) - exact(low)) % exact(step)


def to_yaml(value: Plain) -> str:
    """Format a value so that YAML reads it back."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    mantissa, e, exponent = f"{value:.12g}".partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}" if e else mantissa
