"""The candidates: the best trials of a run, with what they said of the validation images."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tuner.ensemble.latency import Latency
from tuner.ensemble.members import Network
from tuner.ensemble.request import EnsembleRequest
from tuner.errors import TunerError, UsageError
from tuner.run.layout import VAL_PROBS
from tuner.run.run import Run
from tuner.run.trial import USABLE, TrialRecord
from tuner.voting import floored, rank

HALF_FLOOR = 2.0**-25
"""Half of the least float16; earlier versions kept probabilities in it, where all below are 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """A trial that is no member, and why."""

    trial: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Candidates, best validation accuracy first, or as ``Run.ranked`` has them without one."""

    trials: tuple[TrialRecord, ...]
    probs: Tensor
    """Class probabilities of the validation images, float32, shape (M, N, K)."""
    floors: tuple[float, ...]
    """Least probability that the files could hold, one a candidate, as in ``Network``."""
    labels: Tensor
    """int64, shape (N,)."""
    left_out: tuple[Excluded, ...]
    """Trials as good as these that are no candidates."""
    latencies: tuple[Latency, ...] | None = None
    is_val_seen: bool = False
    """Whether the validation images were trained on: then nothing changes the order."""

    def __len__(self) -> int:
        return len(self.trials)

    def network(self, position: int) -> Network:
        """Return a candidate's network."""
        trial = self.trials[position]
        return Network(
            file=trial.checkpoint,
            model=trial.config.model,
            precision=trial.config.precision,
            floor=self.floors[position],
        )

    def order(self, probs: Tensor, labels: Tensor) -> Tensor:
        """Return the candidates' positions, the most accurate by ``probs`` first.

        Args:
            probs: Of validation images, shape (M, N, K).
            labels: Of the same, shape (N,).
        """
        return torch.arange(len(self)) if self.is_val_seen else rank(probs, labels)

    def seen_anew(self, probs: Tensor) -> "Pool":
        """Return the same candidates with other probabilities, ordered by these."""
        order = self.order(probs, self.labels)
        return replace(
            self,
            trials=tuple(self.trials[i] for i in order.tolist()),
            probs=probs[order],
            floors=tuple(self.floors[i] for i in order.tolist()),
        )

    def only(self, positions: list[int], left_out: list[Excluded]) -> "Pool":
        """Return some of the candidates, and why the others are none any more."""
        return replace(
            self,
            trials=tuple(self.trials[i] for i in positions),
            probs=self.probs[positions],
            floors=tuple(self.floors[i] for i in positions),
            left_out=(*self.left_out, *left_out),
            latencies=self.latencies and tuple(self.latencies[i] for i in positions),
        )


def read_pool(run: Run, labels: Tensor, num_classes: int, request: EnsembleRequest) -> Pool:
    """Take the best usable trials from the run folder; no model is loaded.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        UsageError: If it has fewer than a vote needs, or none within the parameters allowed.
        TunerError: If a candidate's probabilities are missing or damaged.
    """
    ranked = run.ranked()
    usable = [trial for trial in ranked if trial.is_usable]
    run.require(usable, request.top if request.method == "vote" else 1)
    refuse = _Refusals(request)
    chosen: list[TrialRecord] = []
    left_out: list[Excluded] = []
    for trial in ranked:
        if len(chosen) == request.pool_size or trial.best is None:
            break
        if reason := refuse(trial):
            left_out.append(Excluded(trial=trial.number, reason=reason))
        else:
            chosen.append(trial)
    if not chosen:
        smallest = min(t.status.num_parameters for t in ranked if t.is_usable)
        raise UsageError(
            f"--max-parameters {request.max_parameters}: the smallest candidate has {smallest}"
        )
    needed = request.top if request.method == "vote" and not request.max_parameters else 1
    if len(chosen) < needed:
        raise UsageError(
            f"--top {request.top} --diverse {request.diverse}: {run.path} has usable trials of "
            f"only {len(chosen)}. Give --top {len(chosen)} or less."
        )
    read = [_read_probs(trial, (len(labels), num_classes)) for trial in chosen]
    probs, floors = zip(*read, strict=True)
    return Pool(
        trials=tuple(chosen),
        probs=torch.stack(probs),
        floors=floors,
        labels=labels,
        left_out=tuple(left_out),
        is_val_seen=run.record.data.all_data,
    )


class _Refusals:
    """Says why a trial is no candidate, knowing those that came before."""

    def __init__(self, request: EnsembleRequest) -> None:
        self.request = request
        self.taken: dict[object, int] = {}
        self.key_of: Callable[[TrialRecord], object] = {
            "family": lambda trial: trial.config.model.family,
            "config": _config_but_for_seed,
            "seed": lambda trial: trial.config.seed,
            None: lambda trial: trial.number,
        }[request.diverse]

    def __call__(self, trial: TrialRecord) -> str:
        """Return the reason, or nothing."""
        if trial.status.state not in USABLE:
            return trial.status.state.replace("_", " ")
        if not trial.checkpoint.exists():
            return "its checkpoint was not kept (search --keep)"
        limit, size = self.request.max_parameters, trial.status.num_parameters
        if limit is not None and size > limit:
            return f"{size} parameters, above --max-parameters {limit}"
        if (key := self.key_of(trial)) in self.taken:
            asked = self.request.diverse
            which = "same config" if asked == "config" else f"{asked} {key}"
            return f"{which}, as trial {self.taken[key]}"
        self.taken[key] = trial.number
        return ""


def _config_but_for_seed(trial: TrialRecord) -> str:
    return json.dumps(trial.config.to_dict() | {"seed": None}, sort_keys=True)


def _read_probs(trial: TrialRecord, shape: tuple[int, int]) -> tuple[Tensor, float]:
    """Return a trial's probabilities, float32, and the least one that their file could hold."""
    stored = trial.val_probs()
    if stored.shape != shape:
        raise TunerError(
            f"{trial.path / VAL_PROBS}: not usable validation probabilities: has shape "
            f"{stored.shape}, not {shape}"
        )
    floor = HALF_FLOOR if stored.dtype == np.float16 else 0.0
    return floored(torch.from_numpy(stored.astype(np.float32)), floor), floor
