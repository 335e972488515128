"""Intervals and tests against published figures; what members add to each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from torch import Tensor

from tuner.metrics.intervals import wilson
from tuner.metrics.significance import (
    by_size,
    contributions,
    disagreement,
    error_correlation,
    mcnemar,
    oracle_accuracy,
    paired_gain,
)
from tuner.voting import soft_vote

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300).map(
    lambda pairs: torch.tensor(pairs).unbind(dim=1)
)


@given(outcomes)
def test_an_interval_holds_the_gain(pair: tuple[Tensor, Tensor]) -> None:
    correct, baseline = pair
    interval = paired_gain(correct, baseline)
    difference = correct.double().mean() - baseline.double().mean()
    assert interval.gain == pytest.approx(difference.item())
    assert -1 <= interval.low <= interval.gain <= interval.high <= 1


@given(outcomes)
def test_swapping_the_two_mirrors_the_interval(pair: tuple[Tensor, Tensor]) -> None:
    there, back = paired_gain(*pair), paired_gain(*reversed(pair))
    assert (there.gain, there.low, there.high) == (-back.gain, -back.high, -back.low)


@given(outcomes)
def test_two_that_never_differ_may_differ_on_other_images(pair: tuple[Tensor, Tensor]) -> None:
    interval = paired_gain(pair[0], pair[0])
    assert interval.gain == 0
    assert interval.low == -interval.high < 0
    # The rule of three: what happens to none of n images happens to 3 / n of others at most.
    assert interval.high <= 3 / len(pair[0])


def test_the_interval_is_that_of_its_definition() -> None:
    """With 54 and 10 images that only the one gets right, of 200, counted by hand."""
    correct = torch.tensor([True] * 54 + [False] * 10 + [True] * 100 + [False] * 36)
    baseline = torch.tensor([False] * 54 + [True] * 10 + [True] * 100 + [False] * 36)
    interval = paired_gain(correct, baseline)
    p12, p21 = 55 / 202, 11 / 202
    margin = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 202)
    assert interval.gain == pytest.approx(0.22)
    assert interval.low == pytest.approx(p12 - p21 - margin, abs=1e-6)
    assert interval.high == pytest.approx(p12 - p21 + margin, abs=1e-6)


CASES = [(0.01, 0.01), (0.02, 0.01), (0.03, 0.005), (0.1, 0.05), (0.2, 0.15), (0.002, 0.001)]
"""Shares of images that only the one gets right, and only the other."""


def coverage(count: int, won: float, lost: float, draws: int) -> tuple[float, float]:
    """Return how often the interval holds the true gain, and its width over the bootstrap's.

    Each division of the images is judged once, however often it is drawn.
    """
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(count, [won, lost, 1 - won - lost], size=draws)
    divisions, times = np.unique(drawn, axis=0, return_counts=True)
    held, width, plain = [], [], []
    for only_one, only_other, both in divisions.tolist():
        repeats = torch.tensor([only_one, only_other, both])
        one = torch.tensor([True, False, True]).repeat_interleave(repeats)
        other = torch.tensor([False, True, True]).repeat_interleave(repeats)
        interval = paired_gain(one, other)
        held.append(interval.low <= won - lost <= interval.high)
        width.append(interval.high - interval.low)
        # Of many resamples, the bootstrap's interval has the normal one's width.
        variance = (only_one + only_other) / count - ((only_one - only_other) / count) ** 2
        plain.append(2 * 1.96 * math.sqrt(variance / count))
    return float(times @ held / draws), float((times @ width) / (times @ plain))


@pytest.mark.parametrize("count", [100, 200, 1000, 10_000])
@pytest.mark.parametrize(("won", "lost"), [(0.02, 0.01), (0.1, 0.05)])
def test_the_interval_covers_the_true_gain(count: int, won: float, lost: float) -> None:
    draws = 2000
    held, width = coverage(count, won, lost, draws)
    # Four standard errors of the simulation.
    assert held >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / draws)
    # Two more images that differ weigh more where few do.
    assert width <= 1 + 2 / (count * (won + lost))


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 200, 300, 500, 1000, 2000, 5000, 10_000])
@pytest.mark.parametrize(("won", "lost"), CASES)
def test_the_interval_covers_the_true_gain_in_every_case(
    count: int, won: float, lost: float
) -> None:
    held, width = coverage(count, won, lost, draws=20_000)
    assert held >= 0.945
    if count * (won + lost) >= 10:
        assert width <= 1.2


def test_the_interval_over_a_mean_covers_the_true_gain() -> None:
    """Five members and a vote that is a little better, on images of different difficulty."""
    generator = np.random.default_rng(0)
    for count in (100, 1000):
        held = 0
        for _ in range(1000):
            ease = generator.beta(3, 0.3, size=count)
            members = generator.random((5, count)) < ease
            vote = generator.random(count) < ease**0.5
            interval = paired_gain(torch.from_numpy(vote), torch.from_numpy(members.mean(axis=0)))
            # The means of Beta(3, 0.3) and of its square root.
            truth = (
                math.exp(math.lgamma(3.5) + math.lgamma(3.3) - math.lgamma(3) - math.lgamma(3.8))
                - 3 / 3.3
            )
            held += interval.low <= truth <= interval.high
        assert held / 1000 >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 1000)


@pytest.mark.parametrize("count", [2000, 10_000])
def test_on_many_images_the_interval_agrees_with_scipys_bootstrap(count: int) -> None:
    generator = np.random.default_rng(0)
    correct, baseline = generator.random(count) < 0.93, generator.random(count) < 0.91
    difference = correct.astype(float) - baseline.astype(float)
    expected = bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=2000, rng=1
    ).confidence_interval
    interval = paired_gain(torch.from_numpy(correct), torch.from_numpy(baseline))
    assert interval.low == pytest.approx(expected.low, abs=1e-3)
    assert interval.high == pytest.approx(expected.high, abs=1e-3)


def test_a_wider_level_gives_a_wider_interval() -> None:
    narrow, wide = (wilson(0.8, 400, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(("first", "second"), [(3, 2), (0, 0)])
def test_a_paired_gain_needs_the_same_images(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_gain(torch.ones(first, dtype=torch.bool), torch.ones(second, dtype=torch.bool))


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=100))
def test_a_gain_over_the_mean_of_several_is_the_mean_of_the_gains(rows: list[list[bool]]) -> None:
    results = torch.tensor(rows)
    vote, members = results[:, 0], results[:, 1:]
    interval = paired_gain(vote, members.double().mean(dim=1))
    gains = [paired_gain(vote, member).gain for member in members.unbind(dim=1)]
    assert interval.gain == pytest.approx(sum(gains) / 3, abs=1e-12)
    assert interval.low - 1e-12 <= interval.gain <= interval.high + 1e-12


def test_the_interval_over_a_mean_agrees_with_scipys_bootstrap() -> None:
    generator = np.random.default_rng(0)
    correct = generator.random(2000) < 0.93
    share = (generator.random((5, 2000)) < 0.9).mean(axis=0)
    expected = bootstrap(
        (correct - share,), np.mean, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    interval = paired_gain(torch.from_numpy(correct), torch.from_numpy(share))
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-3)


# McNemar's test


def results(won: int, lost: int, same: int = 5) -> tuple[Tensor, Tensor]:
    correct = torch.tensor([True] * won + [False] * lost + [True] * same)
    baseline = torch.tensor([False] * won + [True] * lost + [True] * same)
    return correct, baseline


@pytest.mark.parametrize(
    ("won", "lost", "published"),
    [
        (150, 86, 3.716e-05),  # Agresti (1990), p. 350; R's mcnemar.exact.
        (4, 12, 0.07681),  # Twice the chance of at most 4 heads in 16 throws.
        (0, 6, 0.03125),
        (5, 5, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_agrees_with_published_examples(won: int, lost: int, published: float) -> None:
    assert mcnemar(*results(won, lost)) == pytest.approx(published, rel=1e-3)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test_of_scipy(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(*results(won, lost)) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(*results(won, lost)) == mcnemar(*results(lost, won))


# Members


def members(seed: int = 0, count: int = 4, images: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (images,), generator=generator)
    hint = 2 * torch.nn.functional.one_hot(labels, 5)
    noise = 2 * torch.randn(count, images, 5, generator=generator)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    return (hint + noise).softmax(dim=2), weights / weights.sum(), labels


def accuracy(probs: Tensor, labels: Tensor) -> float:
    return (probs.argmax(dim=1) == labels).double().mean().item()


def test_sizes_run_from_the_first_member_to_all() -> None:
    probs, weights, labels = members()
    first = probs[0].argmax(dim=1) == labels
    rows = by_size(probs, weights, labels, first, is_baseline_first=True)
    assert [row.k for row in rows] == [1, 2, 3, 4]
    assert rows[0].accuracy == accuracy(probs[0], labels)
    assert (rows[0].gain, rows[0].gain_low, rows[0].gain_high, rows[0].mcnemar_p) == (0, 0, 0, 1)
    assert rows[-1].accuracy == accuracy(soft_vote(probs, weights), labels)
    for row in rows:
        assert row.low <= row.accuracy <= row.high
        assert row.gain == pytest.approx(row.accuracy - rows[0].accuracy)


@given(st.integers(1, 500), st.data())
def test_the_interval_of_an_accuracy_is_wilsons(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    exact = binomtest(right, count).proportion_ci(method="wilson")
    interval = wilson(right / count, count)
    assert interval == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert interval[0] <= right / count <= interval[1]


def test_a_contribution_is_the_accuracy_with_less_that_without() -> None:
    probs, weights, labels = members()
    whole = accuracy(soft_vote(probs, weights), labels)
    for left_out, change in enumerate(contributions(probs, weights, labels)):
        rest = [member for member in range(4) if member != left_out]
        without = soft_vote(probs[rest], weights[rest] / weights[rest].sum())
        assert change == pytest.approx(whole - accuracy(without, labels))


def test_a_member_alone_cannot_be_left_out() -> None:
    probs, _, labels = members(count=1)
    assert contributions(probs, torch.ones(1), labels) == [None]


def test_disagreement_is_a_share_of_images() -> None:
    probs, _, _ = members()
    twins = torch.stack([probs[0], probs[1], probs[0]])
    matrix = disagreement(twins)
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().tolist() == [0, 0, 0]
    assert matrix[0, 2] == 0
    expected = (probs[0].argmax(dim=1) != probs[1].argmax(dim=1)).double().mean()
    assert matrix[0, 1] == expected > 0


def test_the_correlation_of_errors_is_pearsons() -> None:
    probs, _, labels = members()
    wrong = (probs.argmax(dim=2) != labels).double().numpy()
    np.testing.assert_allclose(error_correlation(probs, labels), np.corrcoef(wrong), atol=1e-12)


def test_a_member_without_mistakes_has_no_correlation() -> None:
    probs, _, labels = members(count=2)
    probs[0] = torch.nn.functional.one_hot(labels, 5)
    matrix = error_correlation(probs, labels)
    assert matrix[0] == [None, None]
    assert matrix[1] == [None, pytest.approx(1)]


def test_the_oracle_takes_whoever_is_right() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    probs = torch.eye(2)[torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]])]
    assert oracle_accuracy(probs, labels) == 0.5
    alone, _, truth = members()
    best = max(accuracy(member, truth) for member in alone)
    assert oracle_accuracy(alone, truth) >= best
