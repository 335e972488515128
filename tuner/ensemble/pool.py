"""The candidates: the best trials of a run, with their predictions of the validation images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuner.config import Metric
from tuner.ensemble.candidates import Candidate, Recorded, damage_of_copy, read_candidate
from tuner.ensemble.members import Network
from tuner.ensemble.request import EnsembleRequest
from tuner.errors import NoUsableTrials, TunerError, UsageError
from tuner.metrics.figures import Latency
from tuner.metrics.predict import rank
from tuner.run.digests import Damage, DamagedError, damage_of_files
from tuner.run.ensemble_record import Excluded
from tuner.run.layout import HISTORY
from tuner.run.run import Run, on_front
from tuner.run.trial import USABLE, TrialRecord

MEND = (
    "Put the file back, or leave the trial out with --skip-damaged (in Python, skip_damaged=True)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Candidates, best by ``metric`` first, or by number where ``is_val_seen``."""

    candidates: tuple[Recorded, ...]
    """The trials, and the values that their networks are checked against."""
    probs: Tensor
    """Class probabilities of the validation images, float32, shape (M, N, K)."""
    labels: Tensor
    """int64, shape (N,)."""
    left_out: tuple[Excluded, ...]
    """Trials that rank as high but are not candidates."""
    latencies: tuple[Latency, ...] | None = None
    is_val_seen: bool = False
    """Whether the validation images were trained on; if so, nothing changes the order."""
    metric: Metric = "accuracy"
    """The metric to choose by, on the validation images."""
    has_folds: bool = False
    """Whether each candidate has a network for each fold."""

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """The trials of the candidates."""
        return tuple(candidate.trial for candidate in self.candidates)

    def network(self, position: int) -> Network:
        """Return a candidate's network."""
        candidate = self.candidates[position]
        trial = candidate.trial
        return Network(
            file=trial.checkpoint,
            model=trial.config.model,
            precision=trial.config.precision,
            floor=candidate.floor,
        )

    def order(self, probs: Tensor, labels: Tensor) -> Tensor:
        """Return the candidates' positions, best by ``probs`` first.

        Args:
            probs: Probabilities of validation images, shape (M, N, K).
            labels: Labels of the same images, shape (N,).
        """
        if self.is_val_seen:
            return torch.arange(len(self))
        return torch.tensor(rank(probs, labels, self.metric))

    def seen_anew(self, probs: Tensor) -> "Pool":
        """Return the same candidates with new probabilities, ordered by these."""
        order = self.order(probs, self.labels)
        return replace(
            self,
            candidates=tuple(self.candidates[i] for i in order.tolist()),
            probs=probs[order],
        )

    def only(self, positions: list[int], left_out: list[Excluded]) -> "Pool":
        """Return some of the candidates, and record why the others are left out."""
        return replace(
            self,
            candidates=tuple(self.candidates[i] for i in positions),
            probs=self.probs[positions],
            left_out=(*self.left_out, *left_out),
            latencies=self.latencies and tuple(self.latencies[i] for i in positions),
        )


def read_pool(run: Run, labels: Tensor, num_classes: int, request: EnsembleRequest) -> Pool:
    """Take the best usable trials from the run folder; no model is loaded.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        UsageError: If it has fewer than a vote needs, or none within the parameters allowed.
        DamagedError: If files are missing or damaged, or not those that were recorded, and the
            request does not leave their trials out.
    """
    damage: list[Damage] = []
    ranked = run.ranked(damage)
    for trial in ranked:
        if trial.best is None and trial.status.state in USABLE:
            # Damage may hide its epochs.
            damage += damage_of_files(trial.path, HISTORY)
    if request.front:
        ranked = on_front(ranked)
    usable = [trial for trial in ranked if trial.is_usable]
    if not damage or request.skip_damaged:
        run.require(usable, request.least)
    refuse = _Refusals(request)
    chosen: list[Candidate] = []
    left_out: list[Excluded] = []
    for trial in ranked:
        if len(chosen) == request.pool_size or trial.best is None:
            break
        reason, read, wrong = _look(trial, refuse, labels, num_classes)
        if wrong:
            # A running search may have written its files between two reads.
            reason, read, wrong = _look(run.reread(trial), refuse, labels, num_classes)
        wrong = wrong or damage_of_copy(read, chosen)
        damage += wrong
        if reason:
            left_out.append(Excluded(trial=trial.number, reason=reason))
        elif read and not wrong:
            refuse.take(read.recorded.trial)
            chosen.append(read)
    if damage and not request.skip_damaged:
        raise DamagedError(damage, MEND)
    left_out += excluded(damage)
    if not chosen:
        if damage:
            raise none_left(damage)
        if request.max_parameters is None:
            run.require([], 1)
        smallest = min(t.status.num_parameters for t in ranked if t.is_usable)
        raise UsageError(
            f"--max-parameters {request.max_parameters}: the smallest candidate has {smallest}"
        )
    require_enough(run, len(chosen), damage, request)
    return Pool(
        candidates=tuple(read.recorded for read in chosen),
        probs=torch.stack([read.probs for read in chosen]),
        labels=labels,
        left_out=tuple(left_out),
        is_val_seen=run.record.data.all_data,
        metric=run.metric,
        has_folds=run.record.data.folds is not None,
    )


def of_front(run: Run, request: EnsembleRequest) -> EnsembleRequest:
    """Return the request with ``top`` set to the number of usable trials on the front.

    Raises:
        UsageError: If the run has no objectives beside its metric.
    """
    if not run.record.search.costs:
        raise UsageError(
            f"--front: {run.path} was searched by {run.record.search.metric} alone; search a space "
            "with objectives: [accuracy, {latency_ms: 1}], or see --frontier for the members that "
            "are best for their time"
        )
    front = on_front(run.ranked([]))
    return replace(request, top=max(1, sum(trial.is_usable for trial in front)))


def excluded(damage: Sequence[Damage]) -> list[Excluded]:
    """Return each damaged trial once, with the reason to exclude it."""
    reasons: dict[int, str] = {}
    for entry in damage:
        if entry.trial is not None:
            reasons.setdefault(entry.trial, f"damaged: {entry}")
    return [Excluded(trial=trial, reason=reason) for trial, reason in reasons.items()]


def none_left(damage: Sequence[Damage]) -> NoUsableTrials:
    """Return the error for a run whose candidates are all damaged."""
    lines = "\n".join(map(str, damage))
    return NoUsableTrials(f"{lines}\nNo candidate is left; put the files back.")


def without_damaged(pool: Pool, damage: Sequence[Damage], request: EnsembleRequest) -> Pool:
    """Return the candidates that are not damaged.

    Raises:
        DamagedError: If the request does not leave the others out, or none is left.
    """
    if not damage:
        return pool
    if not request.skip_damaged:
        raise DamagedError(damage, MEND)
    trials = {entry.trial for entry in damage}
    left = [i for i, trial in enumerate(pool.trials) if trial.number not in trials]
    if not left:
        raise none_left(damage)
    return pool.only(left, excluded(damage))


def require_enough(
    run: Run, num_candidates: int, damage: Sequence[Damage], request: EnsembleRequest
) -> None:
    """Make sure that a vote has as many members as requested."""
    is_limited = request.max_parameters is not None or request.max_latency_ms is not None
    if num_candidates >= (1 if is_limited else request.least):
        return
    diverse = f" --diverse {request.diverse}" if request.diverse else ""
    skipped = " --skip-damaged" if damage else ""
    raise UsageError(
        f"--top {request.top}{diverse}{skipped}: {run.path} has usable trials of only "
        f"{num_candidates}. Give --top {num_candidates} or less."
    )


class _Refusals:
    """Decides why a trial is not a candidate, given those that came before."""

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
        """Return the reason, or an empty string."""
        if trial.status.state not in USABLE:
            return trial.status.state.replace("_", " ")
        if not trial.checkpoint.exists():
            return "checkpoint not kept (search --keep)"
        limit, size = self.request.max_parameters, trial.status.num_parameters
        if limit is not None and size > limit:
            return f"{size} parameters, above --max-parameters {limit}"
        if (key := self.key_of(trial)) in self.taken:
            asked = self.request.diverse
            which = "same config" if asked == "config" else f"{asked} {key}"
            return f"{which}, as trial {self.taken[key]}"
        return ""

    def take(self, trial: TrialRecord) -> None:
        """Add a trial to those that came before."""
        self.taken[self.key_of(trial)] = trial.number


def _config_but_for_seed(trial: TrialRecord) -> str:
    return json.dumps(trial.config.to_dict() | {"seed": None}, sort_keys=True)


def _look(
    trial: TrialRecord, refuse: "_Refusals", labels: Tensor, num_classes: int
) -> tuple[str, Candidate | None, list[Damage]]:
    """Return why a trial is not a candidate, or else its data, and what is wrong with it."""
    try:
        reason = refuse(trial)
    except TunerError as error:
        return "", None, [Damage.of(error, trial.path, trial.number)]
    return (reason, None, []) if reason else ("", *read_candidate(trial, labels, num_classes))
