"""Figures of an ensemble, its members and its rivals from one reading of the test images."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from tuner.config import Method, Metric, Tta
from tuner.ensemble.choosing import Choice
from tuner.ensemble.duplicates import Duplicates, DuplicatesNote
from tuner.ensemble.latency import FrontierPoint, find_frontier
from tuner.ensemble.plan import Plan
from tuner.ensemble.request import SOUPS
from tuner.ensemble.students import TeacherComparison
from tuner.ensemble.verdict import Verdict
from tuner.metrics.bootstrap import bootstrap
from tuner.metrics.calibration import Bin, accuracy_at_coverage, reliability
from tuner.metrics.figures import Coverage, Gain, Interval, Intervals, Latency
from tuner.metrics.intervals import LEVEL
from tuner.metrics.predict import Scores, confusion_matrix, score
from tuner.metrics.significance import (
    NO_GAIN,
    SizeResult,
    by_size,
    contributions,
    disagreement,
    error_correlation,
    mcnemar,
    oracle_accuracy,
    paired_gain,
)
from tuner.run.ensemble_record import Excluded, Skipped, images_called
from tuner.schema import to_plain
from tuner.storage.paths import AnyPath
from tuner.voting.temperature import mix, soften, soften_each


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberResult:
    """One member of an ensemble, alone and as it was trained."""

    trial: int
    family: str
    weight: float
    temperature: float
    """Temperature at which it is mixed; its own figures are without."""
    val: Scores
    test: Scores
    contribution: float | None
    """Test accuracy with it minus that without it; ``None`` in a soup, for a single member, and
    without test images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """The scores of one choice."""

    val: Scores
    """On the images that the choice was made on."""
    crossfit: Scores | None
    """On the same images, each by a choice made without it."""
    test: Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """Accuracy on the test images of one class."""

    label: str = field(metadata={"key": "class"})
    accuracy: float | None
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedMethod:
    """A row of the comparison."""

    method: str
    calibrated: bool
    members: tuple[int, ...]
    """Trial numbers."""
    temperature: float
    figures: Figures
    gain: Interval
    """Gain over the best single candidate."""
    mcnemar_p: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleResult:
    """An ensemble on the test set, along with its members."""

    path: AnyPath
    run: str
    name: str
    method: Method
    metric: Metric
    """The metric that members were chosen by."""
    tta: Tta
    has_test: bool
    """Whether "test" means test images; otherwise it means the validation images, each voted on by
    a choice made without it, while the members' own figures are those that they were chosen by."""
    test_images: int
    val_images: int
    is_val_seen: bool
    """Whether the validation images were trained on; if so, figures on them mean nothing."""
    classes: tuple[str, ...]
    temperature: float
    ensemble: Figures
    members: tuple[MemberResult, ...]
    """Best first, by the metric on the validation images."""
    left_out: tuple[Excluded, ...]
    best_single: int
    """Trial of the best candidate by the same metric, whether it is a member or not."""
    best_single_figures: Figures
    intervals: Intervals
    """Intervals of the ensemble's figures on the test images."""
    mean_member: dict[str, Scores]
    """``val`` and ``test``: means over the members."""
    gain: Gain
    by_size: tuple[SizeResult, ...]
    """Empty for a soup, and without test images."""
    per_class: tuple[ClassResult, ...]
    reliability: tuple[Bin, ...]
    coverage: tuple[Coverage, ...]
    oracle: float
    disagreement: list[list[float]]
    error_correlation: list[list[float | None]]
    frontier: tuple[FrontierPoint, ...] | None
    comparison: tuple[ComparedMethod, ...]
    skipped: tuple[Skipped, ...]
    duplicates: DuplicatesNote | None
    teacher: TeacherComparison | None
    """Comparison with the teacher of the members; ``None`` if they had none, or its recorded
    probabilities cannot be read."""
    verdict: Verdict | None
    """``None`` if the validation images were trained on."""
    conditions: tuple[str, ...]
    """See ``EnsembleRequest``."""
    front: bool
    """Whether its members are the trials on the front of the run's objectives."""
    confusion: Tensor
    """Counts on the test set, shape (K, K), rows true."""

    @property
    def tested_on(self) -> str:
        """Name of the images that the ensemble was tested on; see ``images_called``."""
        return images_called(has_test=self.has_test, is_val_seen=self.is_val_seen)

    def to_plain(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        # In a bucket, the path is itself a dataclass.
        names = [entry.name for entry in fields(self) if entry.name not in ("confusion", "path")]
        plain = {name: to_plain(getattr(self, name)) for name in names}
        return {"path": str(self.path)} | plain


def vote_on_test(choice: Choice, probs: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    """Return a choice's probabilities of the test images, float64, shape (N, K).

    Args:
        choice: A choice made on validation images.
        probs: Probabilities of each network, shape (N, K), by the positions of its candidates.
    """
    if choice.method in SOUPS:
        return soften(probs[choice.members], choice.temperature)
    alone = torch.stack([probs[i,] for i in choice.members])
    return mix(alone, choice.weights, choice.temperatures, choice.temperature)


def assess(
    plan: Plan,
    probs: Mapping[tuple[int, ...], Tensor],
    labels: Tensor,
    *,
    vote_of: Callable[[Choice], Tensor],
    path: AnyPath,
    latencies: tuple[Latency, ...] | None = None,
    listed: Duplicates | None = None,
    teacher: TeacherComparison | None = None,
) -> EnsembleResult:
    """Score an ensemble and its rivals.

    Args:
        plan: The decisions made on validation images.
        probs: Each network's probabilities of the test images, by its candidates' positions.
        labels: Labels of the test images, int64, shape (N,).
        vote_of: Returns a choice's probabilities of these images.
        path: Where the ensemble will be stored.
        latencies: Latencies of the members, if a frontier was requested.
        listed: Test images that have near-duplicates in the training data.
        teacher: How the ensemble compares with the teacher of its members.
    """
    choice, pool = plan.choice, plan.pool
    is_soup = choice.method in SOUPS
    vote = vote_of(choice)
    correct = vote.argmax(dim=1) == labels
    # Cross-fitted, too, if there are no test images, as in the verdict.
    single = vote_of(plan.single)
    single_correct = single.argmax(dim=1) == labels
    alone = torch.stack([probs[i,] for i in choice.members])
    softened = soften_each(alone, choice.temperatures)
    changes: list[float | None] = [None] * len(alone)
    sizes: Sequence[SizeResult] = ()
    # On images that members and weights were fitted to, parts of the vote would look too good.
    if not is_soup and plan.splits.has_test:
        changes = contributions(softened, choice.weights, labels)
        is_first = choice.members[0] == 0
        sizes = by_size(
            softened, choice.weights, labels, single_correct, is_baseline_first=is_first
        )
    members = tuple(
        MemberResult(
            trial=pool.trials[i].number,
            family=pool.trials[i].config.model.family,
            weight=weight,
            temperature=temperature,
            val=score(pool.probs[i], pool.labels),
            test=score(probs[i,], labels),
            contribution=change,
        )
        for i, weight, temperature, change in zip(
            choice.members, choice.weights.tolist(), choice.temperatures, changes, strict=True
        )
    )
    confusion = confusion_matrix(vote, labels, len(plan.splits.classes))
    assert choice.method is not None
    return EnsembleResult(
        path=path,
        run=plan.run.record.name,
        name=path.name,
        method=choice.method,
        metric=pool.metric,
        tta=plan.request.tta,
        has_test=plan.splits.has_test,
        test_images=len(labels),
        val_images=len(pool.labels),
        is_val_seen=plan.splits.is_val_seen,
        classes=plan.splits.classes,
        temperature=choice.temperature,
        ensemble=_figures(choice, vote, pool.labels, labels),
        members=members,
        left_out=plan.left_out,
        best_single=pool.trials[0].number,
        best_single_figures=_figures(plan.single, single, pool.labels, labels),
        intervals=bootstrap(vote, labels),
        mean_member={
            "val": _mean(member.val for member in members),
            "test": _mean(member.test for member in members),
        },
        gain=Gain(
            over_best_single=_gain(correct, single_correct, is_same=choice.members == (0,)),
            over_mean_member=_gain(
                correct, _share_correct(alone, labels), is_same=len(choice.members) == 1
            ),
            level=LEVEL,
            mcnemar_p=mcnemar(correct, single_correct),
        ),
        by_size=tuple(sizes),
        per_class=_per_class(plan.splits.classes, confusion),
        reliability=tuple(reliability(vote, labels)),
        coverage=tuple(accuracy_at_coverage(vote, labels)),
        oracle=oracle_accuracy(alone, labels),
        disagreement=disagreement(alone).tolist(),
        error_correlation=error_correlation(alone, labels),
        frontier=None if latencies is None else _frontier(plan, softened, labels, latencies),
        comparison=_comparison(plan, probs, labels, single_correct, vote_of)
        if plan.request.compare
        else (),
        skipped=plan.skipped,
        duplicates=listed.note(correct, single_correct) if listed else None,
        teacher=teacher,
        verdict=plan.verdict,
        conditions=plan.request.conditions,
        front=plan.request.front,
        confusion=confusion,
    )


def _comparison(
    plan: Plan,
    probs: Mapping[tuple[int, ...], Tensor],
    labels: Tensor,
    single_correct: Tensor,
    vote_of: Callable[[Choice], Tensor],
) -> tuple[ComparedMethod, ...]:
    pool = plan.pool

    def rival(choice: Choice) -> ComparedMethod:
        vote = vote_of(choice)
        correct = vote.argmax(dim=1) == labels
        return ComparedMethod(
            method=choice.label,
            calibrated=choice.is_calibrated,
            members=tuple(pool.trials[i].number for i in choice.members),
            temperature=choice.temperature,
            figures=_figures(choice, vote, pool.labels, labels),
            gain=_gain(correct, single_correct, is_same=choice.members == (0,)),
            mcnemar_p=mcnemar(correct, single_correct),
        )

    (uniform,) = (c for c in plan.others if c.method == "vote" and not c.is_calibrated)
    alone = torch.stack([probs[i,] for i in uniform.members])
    mean_member = ComparedMethod(
        method="mean member",
        calibrated=False,
        members=tuple(pool.trials[i].number for i in uniform.members),
        temperature=1.0,
        figures=Figures(
            val=_mean(score(pool.probs[i], pool.labels) for i in uniform.members),
            crossfit=None,
            test=_mean(score(member, labels) for member in alone),
        ),
        gain=_gain(_share_correct(alone, labels), single_correct, is_same=uniform.members == (0,)),
        mcnemar_p=None,
    )
    calibrated_single, *others = plan.others
    rows = [rival(plan.single), rival(calibrated_single), mean_member]
    return (*rows, *(rival(choice) for choice in others))


def _frontier(
    plan: Plan, softened: Tensor, labels: Tensor, latencies: tuple[Latency, ...]
) -> tuple[FrontierPoint, ...]:
    choice, pool = plan.choice, plan.pool
    val = soften_each(pool.probs[list(choice.members)], choice.temperatures)
    points = find_frontier(
        tuple(pool.trials[i].number for i in choice.members),
        latencies,
        choice.weights,
        val=(val, pool.labels),
        test=(softened, labels),
        metric=pool.metric,
    )
    return tuple(points)


def _figures(choice: Choice, vote: Tensor, val_labels: Tensor, labels: Tensor) -> Figures:
    return Figures(
        val=score(choice.val, val_labels),
        crossfit=score(choice.crossfit, val_labels),
        test=score(vote, labels),
    )


def _mean(scores: Iterable[Scores]) -> Scores:
    rows = torch.tensor([dataclasses.astuple(entry) for entry in scores], dtype=torch.float64)
    means = rows.mean(dim=0).tolist()
    return Scores(**dict(zip((entry.name for entry in fields(Scores)), means, strict=True)))


def _gain(correct: Tensor, baseline: Tensor, *, is_same: bool) -> Interval:
    """Return the gain over a baseline, exactly 0 if it is the same network.

    A network of a choice that is cross-fitted may be another one for some images.
    """
    has_same_answers = is_same and torch.equal(correct.double(), baseline.double())
    return NO_GAIN if has_same_answers else paired_gain(correct, baseline)


def _share_correct(alone: Tensor, labels: Tensor) -> Tensor:
    """Return the share of members that get each image right, shape (N,)."""
    return (alone.argmax(dim=2) == labels).double().mean(dim=0)


def _per_class(classes: tuple[str, ...], confusion: Tensor) -> tuple[ClassResult, ...]:
    counts, right = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
    return tuple(
        ClassResult(label=label, accuracy=hits / count if count else None, count=count)
        for label, hits, count in zip(classes, right, counts, strict=True)
    )
