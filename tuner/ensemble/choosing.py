"""Which candidates vote, with what weights: chosen on validation images, and scored honestly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuner.config import Method, Metric
from tuner.ensemble.pool import Pool
from tuner.ensemble.request import EnsembleRequest
from tuner.ensemble.soup import SoupMaker, find_group
from tuner.errors import UsageError
from tuner.metrics.figures import Latency
from tuner.metrics.goal import name_of
from tuner.run.ensemble_record import Excluded
from tuner.voting import mean_over_images, probs_of_truth, shares_by_class, soft_vote, uniform
from tuner.voting.crossfit import cross_fit
from tuner.voting.greedy import greedy_weights
from tuner.voting.temperature import fit_temperature, soften, soften_each
from tuner.voting.weighted import fitted_weights

Fit = Callable[[Tensor, Tensor, Tensor | None], Tensor]
FITS: dict[Method, Fit] = {"greedy": greedy_weights, "weighted": fitted_weights}
BY_CLASS: frozenset[Metric] = frozenset({"balanced_accuracy", "macro_f1", "worst_class"})
"""Metrics for which weights are fitted to an NLL in which all classes count the same: the metrics
themselves change in steps, which are mostly chance with few images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolVote:
    """Weights of all candidates, and the resulting vote."""

    weights: Tensor
    """Float64, shape (M,)."""
    temperatures: tuple[float, ...]
    """Temperature of each candidate when it is mixed; 1 leaves it unchanged."""
    probs: Tensor
    """Class probabilities of the validation images, shape (N, K)."""
    reasons: dict[int, str]
    """Why candidates that would otherwise have a weight have none, by position."""


Chooser = Callable[[Tensor | None], PoolVote]
"""Maps the validation images to choose on, ``None`` for all, to a vote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Members with their weights, chosen on validation images."""

    method: Method | None
    """``None`` for the best single candidate."""
    is_calibrated: bool
    members: tuple[int, ...]
    """Positions in the pool, best first."""
    weights: Tensor
    """Weights of the members, float64, shape (len(members),), positive, summing to 1."""
    temperatures: tuple[float, ...]
    """Temperatures of the members, each applied before mixing; 1 leaves it unchanged."""
    temperature: float
    """Temperature of the resulting vote."""
    val: Tensor
    """Probabilities of the images that the choice was made on, shape (N, K)."""
    crossfit: Tensor
    """The same, each image by a choice made without it. Some luck remains: the pool, each trial's
    epoch and, with ``auto``, the method were chosen on all images."""
    left_out: tuple[Excluded, ...]

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.method or "best single"


def choose(pool: Pool, chooser: Chooser, method: Method | None, *, calibrate: bool) -> Choice:
    """Choose on all validation images, and again without each fold of them."""

    def temperature_of(vote: PoolVote, index: Tensor) -> float:
        return fit_temperature(vote.probs[index], pool.labels[index]) if calibrate else 1.0

    def without_fold(index: Tensor) -> Tensor:
        vote = chooser(index)
        return soften(vote.probs, temperature_of(vote, index))

    vote = chooser(None)
    num_images = len(pool.labels)
    temperature = temperature_of(vote, torch.arange(num_images))
    members = vote.weights.nonzero().squeeze(1)
    return Choice(
        method=method,
        is_calibrated=calibrate,
        members=tuple(members.tolist()),
        weights=vote.weights[members],
        temperatures=tuple(vote.temperatures[i] for i in members.tolist()),
        temperature=temperature,
        val=soften(vote.probs, temperature),
        crossfit=cross_fit(without_fold, num_images),
        left_out=tuple(
            Excluded(
                trial=trial.number,
                reason=vote.reasons.get(position) or _why_no_weight(method, pool.metric),
            )
            for position, trial in enumerate(pool.trials)
            if not vote.weights[position]
        ),
    )


def best_single(pool: Pool) -> Chooser:
    """Choose the best candidate by the metric."""

    def chooser(index: Tensor | None) -> PoolVote:
        weights = uniform(_ranked(pool, index)[:1], len(pool))
        return _mixed(pool, weights, _as_they_are(pool), {})

    return chooser


def voters(pool: Pool, request: EnsembleRequest, method: Method) -> Chooser:
    """Choose members whose probabilities are averaged."""

    def chooser(index: Tensor | None) -> PoolVote:
        if method == "vote":
            taken, reasons = _take(
                _ranked(pool, index).tolist(),
                pool,
                request,
                f"validation {name_of(pool.metric)}",
            )
            weights = uniform(torch.tensor(taken), len(pool))
            return _mixed(pool, weights, _as_they_are(pool), reasons)
        return _fitted(pool, request, FITS[method], index)

    return chooser


def soups(pool: Pool, request: EnsembleRequest, method: Method, soup_maker: SoupMaker) -> Chooser:
    """Choose networks of one architecture whose weights are averaged.

    Raises:
        UsageError: If no two candidates share an architecture, or candidates are of folds.
    """
    if pool.has_folds:
        raise UsageError(
            "with --folds a candidate is several networks, trained on different images, whose "
            "weights have no useful mean; choose another --method"
        )
    find_group(pool, range(len(pool)))  # Fails now, not at the first choice.

    def chooser(index: Tensor | None) -> PoolVote:
        everything = torch.arange(len(pool.labels)) if index is None else index
        order = find_group(pool, _ranked(pool, index).tolist())
        members = order[: request.top]
        if method == "greedy-soup":
            members = soup_maker.greedy(members, everything)
        others = {i: "another architecture" for i in range(len(pool)) if i not in order}
        lower = {i: f"not among the {request.top} best of its architecture" for i in order}
        refused = {i: _why_no_weight(method, pool.metric) for i in order[: request.top]}
        return PoolVote(
            weights=uniform(torch.tensor(members), len(pool)),
            temperatures=_as_they_are(pool),
            probs=soup_maker.probs(members),
            reasons=others | lower | refused,
        )

    return chooser


def _why_no_weight(method: Method | None, metric: Metric) -> str:
    """Return why a candidate has no weight if nothing else excluded it."""
    nll = "class-balanced NLL" if metric in BY_CLASS else "NLL"
    match method:
        case "greedy":
            return f"never picked: the {nll} of calibrated members is no lower with it"
        case "weighted":
            return f"weight 0: the {nll} of calibrated members is no lower with it"
        case "greedy-soup" if metric == "accuracy":
            return "with it the soup is less accurate"
        case "greedy-soup":
            return f"with it the soup is worse by {name_of(metric)}"
        case _:
            return f"not the best by validation {name_of(metric)}"


def within_latency(pool: Pool, limit: float, latencies: tuple[Latency, ...]) -> Pool:
    """Return the candidates that are fast enough on their own, with their latencies.

    Args:
        pool: The candidates.
        limit: Maximum milliseconds for one image, from ``--max-latency-ms``.
        latencies: One per candidate.

    Raises:
        UsageError: If none is.
    """
    quick = [i for i, latency in enumerate(latencies) if latency.one_ms <= limit]
    if not quick:
        raise UsageError(
            f"--max-latency-ms {limit:g}: the fastest candidate takes "
            f"{min(latency.one_ms for latency in latencies):.3g} ms here"
        )
    slow = [
        Excluded(
            trial=trial.number,
            reason=f"{latency.one_ms:.3g} ms, above --max-latency-ms {limit:g}",
        )
        for trial, latency in zip(pool.trials, latencies, strict=True)
        if latency.one_ms > limit
    ]
    return replace(pool, latencies=latencies).only(quick, slow)


def _ranked(pool: Pool, index: Tensor | None) -> Tensor:
    """Return the candidates' positions, best on ``index`` first."""
    # For all images, the pool is already in order, by figures that were not rounded for storage.
    if index is None:
        return torch.arange(len(pool))
    return pool.order(pool.probs[:, index], pool.labels[index])


def _as_they_are(pool: Pool) -> tuple[float, ...]:
    return (1.0,) * len(pool)


def _mixed(
    pool: Pool, weights: Tensor, temperatures: tuple[float, ...], reasons: dict[int, str]
) -> PoolVote:
    members = weights.nonzero().squeeze(1)
    softened = soften_each(pool.probs[members], [temperatures[i] for i in members.tolist()])
    return PoolVote(
        weights=weights,
        temperatures=temperatures,
        probs=soft_vote(softened, weights[members]),
        reasons=reasons,
    )


def _fitted(
    pool: Pool,
    request: EnsembleRequest,
    fit: Fit,
    index: Tensor | None,
) -> PoolVote:
    """Fit weights to all candidates, each calibrated, then again to those that may stay."""
    metric = pool.metric
    everything = index is None
    probs = pool.probs if everything else pool.probs[:, index]
    labels = pool.labels if everything else pool.labels[index]
    # Uncalibrated, members trained with label smoothing would get hardly any weight, being unsure:
    # a greedy vote of 16 small CNNs was then right on 77.0 % instead of 77.6 % (cross-fitted).
    temperatures = tuple(fit_temperature(p, labels) for p in probs)
    probs = soften_each(probs, temperatures)
    shares = shares_by_class(labels) if metric in BY_CLASS else None
    weights = fit(probs, labels, shares)
    # By weight, but first the best single one by NLL: with it, no fit is worse than it is alone.
    best = int(mean_over_images(probs_of_truth(probs, labels).double().log(), shares).argmax())
    by_weight = weights.argsort(descending=True, stable=True).tolist()
    order = [best, *(i for i in by_weight if weights[i] > 0 and i != best)]
    taken, reasons = _take(order, pool, request, "weight")
    if len(taken) < len(order):
        weights = torch.zeros_like(weights)
        weights[taken] = fit(probs[taken], labels, shares)
    return _mixed(pool, weights, temperatures, reasons)


def _take(
    order: Sequence[int], pool: Pool, request: EnsembleRequest, by: str
) -> tuple[list[int], dict[int, str]]:
    """Take candidates in order while there is room, and return why the others are left out."""
    taken: list[int] = []
    reasons = {}
    parameters, milliseconds = 0, 0.0
    for position in order:
        more_parameters = parameters + pool.trials[position].status.num_parameters
        more_ms = milliseconds + (pool.latencies[position].one_ms if pool.latencies else 0)
        if len(taken) == request.top:
            reasons[position] = f"below the top {request.top} by {by}"
        elif request.max_parameters is not None and more_parameters > request.max_parameters:
            reasons[position] = f"with it and those above it, {more_parameters} parameters"
        elif request.max_latency_ms is not None and more_ms > request.max_latency_ms:
            reasons[position] = f"with it and those above it, {more_ms:.3g} ms"
        else:
            taken.append(position)
            parameters, milliseconds = more_parameters, more_ms
    return taken, reasons
