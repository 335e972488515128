"""What became of all that was tried of one kind."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tuner.console import MOST_LINE, shortened
from tuner.errors import TunerError


@dataclass(kw_only=True)
class Tried:
    """What became of all that was tried of one kind."""

    what: str
    kept: int = 0
    """How often all was as promised, such as read, or gone on with."""
    refused: int = 0
    """How often it was refused by an error that a user can mend, where that is as promised."""
    slowest: float = 0.0
    """Seconds."""
    lost: Counter[str] = field(default_factory=Counter)
    """What else happened -> how often: none of it may."""
    notes: list[str] = field(default_factory=list)
    """Figures of it."""

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(replace(self, lost=Counter())) | {"lost": dict(self.lost)}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count what becomes of the input that the block reads."""
        began = time.perf_counter()
        try:
            yield
            self.kept += 1
        except TunerError as error:
            self.refused += 1
            longest = max(map(len, shortened(str(error)).splitlines()), default=0)
            if not 0 < longest <= MOST_LINE:
                self.lost[f"a message with a line of {longest} characters"] += 1
        except Exception as error:
            self.lost[f"{type(error).__name__}: {error}"[:200]] += 1
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def enter(self, broken: list[str], seconds: float) -> None:
        """Count one more, with the promises that it has broken and the time that it took."""
        self.kept += not broken
        for text in broken:
            self.lost[text[:300]] += 1
        self.slowest = max(self.slowest, seconds)
