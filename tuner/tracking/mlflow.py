"""MLflow: one run per trial, one experiment per search."""

import os
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from tuner.config import TrialConfig
from tuner.run.run import Run
from tuner.run.trial import EpochMetrics, TrialStatus, best_row, flatten
from tuner.tracking.figures import best_figures, figures, hyperparameters

ENDED = {
    "completed": "FINISHED",
    "stopped": "FINISHED",
    "paused": "SCHEDULED",
    "interrupted": "KILLED",
}
"""State of a trial -> state of its MLflow run; other states are FAILED."""
LONGEST = 500
"""Maximum characters of a parameter value that every store accepts."""


class MLflow:
    """Logs each trial as a run, to the usual ``MLFLOW_TRACKING_URI``."""

    def __init__(self, run: Run) -> None:
        # MLflow prints the address of each run on stdout, which is reserved for --json.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._name = run.record.name
        self._started = run.record.started
        self._metric = run.record.search.metric
        self._client = MlflowClient()
        self._experiment = ""
        self._runs: dict[int, str] = {}

    def trial_started(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """Open the trial's run, or reopen it."""
        known = self._known(number)
        if known is not None:
            self._runs[number] = known
            self._client.update_run(known, status="RUNNING")
            told = self._client.get_metric_history(known, "seconds")
            last = max((metric.step for metric in told), default=0)
            for row in history[last:]:
                self.epoch_ended(number, row)
            return
        run = self._client.create_run(
            self._experiment,
            run_name=f"{number:04d}",
            tags={"trial": str(number), "search": self._started},
        )
        self._runs[number] = run.info.run_id
        params = [
            Param(key, str(value)[:LONGEST])
            for key, value in flatten(hyperparameters(config)).items()
        ]
        self._client.log_batch(run.info.run_id, params=params)
        for row in history:
            self.epoch_ended(number, row)

    def _known(self, number: int) -> str | None:
        """Find the run of a trial that an interrupted search has logged."""
        if not self._experiment:
            found = self._client.get_experiment_by_name(self._name)
            self._experiment = (
                found.experiment_id if found else self._client.create_experiment(self._name)
            )
        same = f"tags.trial = '{number}' and tags.search = '{self._started}'"
        runs = self._client.search_runs([self._experiment], same, max_results=1)
        return runs[0].info.run_id if runs else None

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """Log the figures of an epoch."""
        metrics = [
            Metric(key, value, int(1000 * row.time), row.epoch)
            for key, value in figures(row).items()
        ]
        self._client.log_batch(self._runs[number], metrics=metrics)

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """Log how the trial ended, and close its run."""
        run = self._runs.pop(number)
        best = best_row(history, self._metric)
        tags = [RunTag("state", status.state), RunTag("reason", status.reason)]
        metrics = []
        if best:
            metrics = [
                Metric(key, value, int(1000 * best.time), 0)
                for key, value in best_figures(best, self._metric).items()
                if value is not None
            ]
        self._client.log_batch(run, tags=tags, metrics=metrics)
        self._client.set_terminated(run, ENDED.get(status.state, "FAILED"))

    def close(self) -> None:
        """Mark the runs of unfinished trials."""
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")
        self._runs.clear()
