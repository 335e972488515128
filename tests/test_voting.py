import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tuner.voting import soft_vote


@st.composite
def votes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities (M, N, K) and weights (M,)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(2, 10)))
    sharpness = draw(st.sampled_from([0.0, 1.0, 30.0]))
    probs = (sharpness * torch.randn(shape, generator=generator)).softmax(dim=-1)
    weights = torch.rand(shape[0], generator=generator)
    return probs, weights / weights.sum()


@settings(deadline=None)
@given(votes())
def test_blended_rows_are_probabilities(vote: tuple[Tensor, Tensor]) -> None:
    blend = soft_vote(*vote)
    assert blend.shape == vote[0].shape[1:]
    assert (blend >= 0).all()
    torch.testing.assert_close(blend.sum(dim=-1), torch.ones(len(blend)))


@settings(deadline=None)
@given(votes(), st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter(vote: tuple[Tensor, Tensor], random) -> None:
    probs, weights = vote
    order = random.sample(range(len(probs)), len(probs))
    torch.testing.assert_close(soft_vote(probs[order], weights[order]), soft_vote(probs, weights))


@settings(deadline=None)
@given(votes())
def test_equal_weights_give_the_mean(vote: tuple[Tensor, Tensor]) -> None:
    probs, _ = vote
    equal = torch.full((len(probs),), 1 / len(probs))
    torch.testing.assert_close(soft_vote(probs, equal), probs.mean(dim=0))


@settings(deadline=None)
@given(votes())
def test_a_blend_lies_between_its_members(vote: tuple[Tensor, Tensor]) -> None:
    probs, weights = vote
    blend = soft_vote(probs, weights)
    assert (blend >= probs.amin(dim=0) - 1e-6).all()
    assert (blend <= probs.amax(dim=0) + 1e-6).all()


@pytest.mark.parametrize("member", [0, 1, 2])
def test_all_weight_on_one_member_returns_that_member(member: int) -> None:
    probs = torch.rand(3, 5, 10).softmax(dim=-1)
    torch.testing.assert_close(soft_vote(probs, torch.eye(3)[member]), probs[member])


def test_float64_weights_may_blend_float32_probabilities() -> None:
    probs = torch.rand(3, 5, 10).softmax(dim=-1)
    assert soft_vote(probs, torch.full((3,), 1 / 3, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "weights", "message"),
    [
        ((3, 5), [0.5, 0.3, 0.2], "shape"),
        ((3, 5, 10), [0.5, 0.5], "3 members"),
        ((3, 5, 10), [[0.5], [0.3], [0.2]], "3 members"),
        ((3, 5, 10), [0.6, 0.6, -0.2], "negative"),
        ((3, 5, 10), [0.5, 0.5, 0.5], "sum to 1"),
        ((2, 5, 10), [0.5, math.nan], "negative"),
        ((0, 5, 10), [], "sum to 1"),
    ],
)
def test_weights_that_are_no_shares_are_refused(
    shape: tuple[int, ...], weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        soft_vote(torch.rand(shape), torch.tensor(weights))
