"""Where the configurations of trials come from."""

from collections.abc import Sequence
from typing import Protocol

from tuner.config import TrialConfig
from tuner.run.trial import EpochMetrics, TrialState


class Proposer(Protocol):
    """Proposes configurations for trials: ``Sampler`` or ``FixedProposer``."""

    def ask(self, number: int) -> TrialConfig | None:
        """Propose the configuration of trial ``number``; ``None`` if there are no more."""

    def tell(self, number: int, state: TrialState, history: Sequence[EpochMetrics]) -> None:
        """Record how trial ``number`` ended."""

    def note_rung(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Learn from trial ``number``, which has reached a rung and has not ended.

        Args:
            number: Of the trial.
            history: Its epochs up to the rung.
        """

    def add(
        self, config: TrialConfig, state: TrialState, history: Sequence[EpochMetrics], number: int
    ) -> bool:
        """Record an ended trial of an earlier session; return whether the space holds it."""

    def restore(self, number: int, config: TrialConfig) -> bool:
        """Record an unfinished trial that is resumed; return the same as ``add``."""


class FixedProposer:
    """Proposes a fixed list of configurations."""

    def __init__(self, configs: Sequence[TrialConfig]) -> None:
        self.configs = configs

    def ask(self, number: int) -> TrialConfig | None:
        """See ``Proposer``."""
        return self.configs[number] if number < len(self.configs) else None

    def tell(self, number: int, state: TrialState, history: Sequence[EpochMetrics]) -> None:
        """Do nothing."""

    def note_rung(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Do nothing."""

    def add(
        self, config: TrialConfig, state: TrialState, history: Sequence[EpochMetrics], number: int
    ) -> bool:
        """Do nothing."""
        return True

    def restore(self, number: int, config: TrialConfig) -> bool:
        """Do nothing."""
        return True
