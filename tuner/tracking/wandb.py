"""Weights & Biases: one run per trial, one group per search."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from tuner.config import TrialConfig
from tuner.run.run import Run
from tuner.run.trial import ENDED_BADLY, EpochMetrics, TrialStatus, best_row
from tuner.tracking.figures import best_figures, figures, hyperparameters

PROJECT = "cifar-tune"
"""Default project; ``WANDB_PROJECT`` and ``WANDB_MODE=offline`` work as usual."""


class WeightsAndBiases:
    """Logs each trial as its own run; all trials of a search form one group."""

    def __init__(self, run: Run) -> None:
        self._run = run
        # Without an account it would ask for one on the terminal, below the live table.
        os.environ.setdefault("WANDB_SILENT", "true")
        # Run names may be the same on two machines; ids must differ.
        self._key = hashlib.sha256(f"{run.record.name} {run.record.started}".encode()).hexdigest()
        self._runs: dict[int, Any] = {}

    def trial_started(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """Open the trial's run, or reopen it."""
        if (old := self._runs.pop(number, None)) is not None:
            old.finish()
        self._runs[number] = wandb.init(
            # Arguments override the environment.
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=self._run.record.name,
            name=f"{self._run.record.name} {number:04d}",
            id=f"{self._key[:8]}-{number:04d}",
            dir=str(self._run.path) if isinstance(self._run.path, Path) else None,
            config=hyperparameters(config),
            # Several trials run concurrently in this process.
            reinit="create_new",
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        for row in history:
            self.epoch_ended(number, row)

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """Log the figures of an epoch."""
        # Commit at once: with a step, wandb otherwise waits for the next one, or for the end.
        self._runs[number].log(figures(row), step=row.epoch, commit=True)

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """Log how the trial ended, and close its run."""
        run = self._runs.pop(number)
        metric = self._run.record.search.metric
        run.summary.update(
            {
                "state": status.state,
                "reason": status.reason,
                **best_figures(best_row(history, metric), metric),
                "parameters": status.num_parameters,
            }
        )
        run.finish(exit_code=1 if status.state in ENDED_BADLY else 0)

    def close(self) -> None:
        """Close the runs of interrupted trials."""
        for run in self._runs.values():
            run.finish()
        self._runs.clear()
