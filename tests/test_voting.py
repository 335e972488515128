import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from torch import Tensor, nn

from tuner.ensemble.candidates import HALF_FLOOR
from tuner.errors import TunerError
from tuner.metrics.predict import rank
from tuner.run.trial import write_val_probs
from tuner.voting import floored, probs_of_truth, shares_by_class, soft_vote, uniform
from tuner.voting.crossfit import cross_fit
from tuner.voting.greedy import greedy_weights
from tuner.voting.temperature import RANGE, fit_temperature, soften, soften_each
from tuner.voting.weighted import NEGLIGIBLE, fitted_weights

FEW = settings(max_examples=settings.default.max_examples * 4 // 5)
"""For tests that fit weights: each example takes a while."""
FITS = (greedy_weights, fitted_weights)


def members_and_labels(
    seed: int, members: int, images: int, classes: int = 4, skill: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Return probabilities (M, N, K) of members that know something, each in its own way."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    hint = skill * torch.nn.functional.one_hot(labels, classes)
    noise = 2 * torch.randn(members, images, classes, generator=generator)
    return (hint + noise).softmax(dim=2), labels


def nll(probs: Tensor, labels: Tensor) -> float:
    return -probs.double().gather(1, labels[:, None]).clamp(min=1e-12).log().mean().item()


libraries = st.builds(
    members_and_labels,
    seed=st.integers(0, 2**32),
    members=st.integers(1, 8),
    images=st.integers(2, 60),
    skill=st.sampled_from([0.0, 2.0, 20.0]),
)


@st.composite
def votes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities (M, N, K) and weights (M,)."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(2, 10)))
    sharpness = draw(st.sampled_from([0.0, 1.0, 30.0]))
    probs = (sharpness * torch.randn(shape, generator=generator)).softmax(dim=-1)
    weights = torch.rand(shape[0], generator=generator)
    return probs, weights / weights.sum()


# The vote


@given(votes())
def test_blended_rows_are_probabilities(vote: tuple[Tensor, Tensor]) -> None:
    blend = soft_vote(*vote)
    assert blend.shape == vote[0].shape[1:]
    assert (blend >= 0).all()
    torch.testing.assert_close(blend.sum(dim=-1), torch.ones(len(blend)))


@given(votes(), st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter(vote: tuple[Tensor, Tensor], random) -> None:
    probs, weights = vote
    order = random.sample(range(len(probs)), len(probs))
    torch.testing.assert_close(soft_vote(probs[order], weights[order]), soft_vote(probs, weights))


@given(votes())
def test_equal_weights_give_the_mean(vote: tuple[Tensor, Tensor]) -> None:
    probs, _ = vote
    equal = uniform(torch.arange(len(probs)), len(probs))
    torch.testing.assert_close(soft_vote(probs, equal), probs.mean(dim=0))


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
    alone = uniform(torch.tensor([member]), 3)
    torch.testing.assert_close(soft_vote(probs, alone), probs[member])


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


def test_the_rank_is_by_accuracy_then_by_nll() -> None:
    labels = torch.tensor([0, 0])
    good, unsure, bad = ([[0.9, 0.1]] * 2, [[0.6, 0.4]] * 2, [[0.99, 0.01], [0.4, 0.6]])
    probs = torch.tensor([bad, unsure, good, unsure])
    assert rank(probs, labels, "accuracy") == [2, 1, 3, 0]


# Fitted weights


@pytest.mark.parametrize("fit", FITS)
@given(library=libraries)
@FEW
def test_fitted_weights_are_shares(fit, library: tuple[Tensor, Tensor]) -> None:
    weights = fit(*library)
    assert weights.shape == library[0].shape[:1]
    assert weights.dtype == torch.float64
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("fit", FITS)
@given(library=libraries, random=st.randoms(use_true_random=False))
@FEW
def test_fitted_weights_follow_their_members(fit, library, random) -> None:
    probs, labels = library
    order = random.sample(range(len(probs)), len(probs))
    here, there = fit(probs, labels)[order], fit(probs[order], labels)
    # Where members are as good as each other, weights may move and the vote's NLL may not.
    assert nll(soft_vote(probs[order], there), labels) == pytest.approx(
        nll(soft_vote(probs[order], here), labels), abs=1e-3
    )


@pytest.mark.parametrize("fit", FITS)
def test_shares_by_class_count_as_copies_of_the_rarer_images_do(fit) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 12 + [1] * 4 + [2] * 2)
    probs = (2 * torch.randn(6, len(labels), 3, generator=generator)).softmax(dim=-1)
    copies = torch.tensor([*range(12), *3 * (12, 13, 14, 15), *6 * (16, 17)])
    shares = shares_by_class(labels)
    assert shares.sum().item() == pytest.approx(1)
    weighted = fit(probs, labels, shares)
    torch.testing.assert_close(weighted, fit(probs[:, copies], labels[copies]), atol=1e-3, rtol=0)
    assert not torch.allclose(weighted, fit(probs, labels), atol=0.05)


@given(library=libraries)
@FEW
def test_greedy_is_never_worse_than_the_best_single_member(library: tuple[Tensor, Tensor]) -> None:
    probs, labels = library
    best = min(nll(member, labels) for member in probs)
    vote = soft_vote(probs.double(), greedy_weights(probs, labels))
    assert nll(vote, labels) <= best + 1e-6


def test_weights_that_cannot_be_fitted_are_told() -> None:
    of_truth = torch.tensor([[0, 1, 0, 0, 0], [1, 0, 1, 0, 1], [1, 0, 0, 1, 0]]).float()
    probs = torch.stack([of_truth, 1 - of_truth], dim=2)
    shares = 10.0 ** -torch.tensor([9, 3, 1, 5, 11]).double()
    with pytest.raises(TunerError, match=r"no weights can be fitted .*; take --method greedy"):
        fitted_weights(probs, torch.zeros(5, dtype=torch.long), shares / shares.sum())


@given(library=libraries)
@FEW
def test_no_other_weights_beat_the_fitted_ones(library: tuple[Tensor, Tensor]) -> None:
    """The loss is convex, so that it is enough to look a little way towards each corner."""
    probs, labels = library
    weights = fitted_weights(probs, labels)
    reached = nll(soft_vote(probs.double(), weights), labels)
    for corner in torch.eye(len(probs), dtype=torch.float64):
        for step in (0.03, 0.5, 1.0):
            moved = soft_vote(probs.double(), (1 - step) * weights + step * corner)
            assert reached <= nll(moved, labels) + 10 * NEGLIGIBLE


@pytest.mark.parametrize("fit", FITS)
def test_a_member_that_knows_nothing_gets_no_weight(fit) -> None:
    probs, labels = members_and_labels(0, 3, 400, skill=4.0)
    probs[1] = torch.full_like(probs[1], 0.01).index_fill_(1, torch.tensor([0]), 0.97)
    assert fit(probs, labels)[1] < 0.01


@pytest.mark.parametrize("fit", FITS)
def test_members_that_know_different_things_share_the_weight(fit) -> None:
    labels = torch.arange(40) % 2
    sure = torch.nn.functional.one_hot(labels, 2) * 0.98 + 0.01
    half = torch.full((40, 2), 0.5)
    left = torch.cat([sure[:20], half[20:]])
    right = torch.cat([half[:20], sure[20:]])
    weights = fit(torch.stack([left, right]), labels)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5]).double(), atol=0.03, rtol=0)


def test_greedy_keeps_to_its_cap_and_its_seed() -> None:
    probs, labels = members_and_labels(1, 30, 200)
    few = greedy_weights(probs, labels, rounds=3, bags=1)
    assert 1 <= (few > 0).sum() <= 3
    torch.testing.assert_close(few * 6, (few * 6).round())  # Shares of 1, 2 or 3 picks.
    assert torch.equal(greedy_weights(probs, labels), greedy_weights(probs, labels))
    assert not torch.equal(greedy_weights(probs, labels), greedy_weights(probs, labels, seed=1))


def test_a_certain_mistake_does_not_make_the_loss_infinite() -> None:
    probs = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert probs_of_truth(probs, torch.tensor([0])).log().isfinite().all()
    for fit in FITS:
        assert fit(probs, torch.tensor([0]))[0] == pytest.approx(1, abs=0.01)


# Temperature


@given(votes(), st.floats(*RANGE))
def test_a_temperature_leaves_every_decision(
    vote: tuple[Tensor, Tensor], temperature: float
) -> None:
    probs = soft_vote(*vote)
    softened = soften(probs, temperature)
    picked = probs.argmax(dim=1, keepdim=True)
    torch.testing.assert_close(softened.gather(1, picked), softened.amax(dim=1, keepdim=True))
    torch.testing.assert_close(softened.sum(dim=1), torch.ones(len(probs)).double())


@given(votes())
def test_a_temperature_of_one_changes_nothing(vote: tuple[Tensor, Tensor]) -> None:
    probs = soft_vote(*vote)
    assert torch.equal(soften(probs, 1.0), probs.double())


@given(library=libraries, chosen=st.floats(*RANGE))
def test_each_member_has_a_temperature_of_its_own(
    library: tuple[Tensor, Tensor], chosen: float
) -> None:
    probs, _ = library
    softened = soften_each(probs, [chosen, *[1.0] * (len(probs) - 1)])
    assert softened.dtype == probs.dtype
    torch.testing.assert_close(softened[0], soften(probs[0], chosen).float())
    assert torch.equal(softened[1:], probs[1:])


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5])
def test_the_temperature_that_was_used_is_found(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator).double()
    labels = logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    assert fit_temperature((logits / true).softmax(dim=1), labels) == pytest.approx(
        1 / true, rel=0.05
    )


def sure_member(sureness: float, images: int = 5000) -> tuple[Tensor, Tensor]:
    """Return logits, float64, of a member that is too sure by a factor, and the labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 10, generator=generator).double()
    logits[torch.arange(images), torch.randint(10, (images,), generator=generator)] += 4
    labels = logits.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
    return sureness * logits, labels


@pytest.mark.parametrize("sureness", [0.5, 2, 4, 8, 15])
def test_overconfident_members_are_calibrated_as_by_their_logits(
    tmp_path: Path, sureness: float
) -> None:
    """From the file of a trial and from the test images alike, against float64 throughout."""
    logits, labels = sure_member(sureness, images=10_000)
    val, test = labels[:5000], labels[5000:]
    probs = logits.float().softmax(dim=1)
    write_val_probs(tmp_path, probs[:5000].numpy())
    stored = torch.from_numpy(np.load(tmp_path / "val_probs.npy"))
    found = fit_temperature(stored, val)
    smoothing = 10 / (9 * 5002)  # 1 / 5002 for the nine other classes together.

    def loss(log_temperature: float) -> float:
        return nn.functional.cross_entropy(
            logits[:5000] / math.exp(log_temperature), val, label_smoothing=smoothing
        ).item()

    exact = math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    assert found == pytest.approx(exact, rel=5e-3)
    expected = nn.functional.cross_entropy(logits[5000:] / exact, test).item()
    assert nll(soften(probs[5000:], found), test) == pytest.approx(expected, abs=1e-3)


def test_one_floor_on_validation_and_test_calibrates_what_half_precision_has_cut() -> None:
    """As in the runs of earlier versions: the temperature fits what it is applied to."""
    logits, labels = sure_member(4, images=10_000)
    probs = logits.float().softmax(dim=1)
    cut = floored(probs.half().float(), HALF_FLOOR)
    temperature = fit_temperature(cut[:5000], labels[:5000])
    test = floored(probs, HALF_FLOOR)[5000:]
    found = nll(soften(test, temperature), labels[5000:])
    best = min(nll(soften(test, factor * temperature), labels[5000:]) for factor in (0.9, 1.1))
    assert found < best


@given(library=libraries)
@FEW
def test_a_floor_leaves_probabilities_that_are_above_it(library: tuple[Tensor, Tensor]) -> None:
    probs, _ = library
    assert floored(probs, 0.0) is probs
    raised = floored(probs, 1e-2)
    torch.testing.assert_close(raised.sum(dim=2), torch.ones(raised.shape[:2]))
    assert (raised >= 1e-2 / (1 + probs.shape[2] * 1e-2)).all()
    is_free = (probs >= 1e-2).all(dim=2)
    torch.testing.assert_close(raised[is_free], probs[is_free])


@given(library=libraries)
@FEW
def test_the_fitted_temperature_never_raises_the_loss(library: tuple[Tensor, Tensor]) -> None:
    probs, labels = library
    softened = soften(probs[0], fit_temperature(probs[0], labels))
    doubt = 1 / (len(labels) + 2)
    is_true = nn.functional.one_hot(labels, 4).bool()
    targets = torch.where(is_true, 1 - doubt, doubt / 3)

    def loss(probs: Tensor) -> float:
        return nn.functional.cross_entropy(probs.double().log(), targets.double()).item()

    assert loss(softened) <= loss(probs[0].double().clamp(min=1e-12)) + 1e-9
    if len(labels.unique()) == 4:
        expected = log_loss(labels, softened.numpy())
        assert nll(softened, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_images", [20, 144, 5000])
@pytest.mark.parametrize("sureness", [0.2, 1.0, 5.0])
def test_a_vote_that_is_always_right_stays_a_little_unsure(
    num_images: int, sureness: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (num_images,), generator=generator)
    logits = 6 * nn.functional.one_hot(labels, 10)
    logits = logits + torch.rand(num_images, 10, generator=generator).double()
    probs = (sureness * logits).softmax(dim=1)
    confidence, predicted = soften(probs, fit_temperature(probs, labels)).max(dim=1)
    assert torch.equal(predicted, labels)
    assert 1 - confidence.mean().item() == pytest.approx(1 / (num_images + 2), rel=0.15)


def test_many_images_leave_the_smoothing_no_say() -> None:
    probs, labels = members_and_labels(4, 1, 20_000)
    temperature = fit_temperature(probs[0], labels)
    lower, fitted, higher = (
        nll(soften(probs[0], factor * temperature), labels) for factor in (0.98, 1, 1.02)
    )
    assert fitted < min(lower, higher)


# Cross-fitting


@given(num_images=st.integers(2, 40), folds=st.integers(2, 7))
def test_no_image_is_scored_by_a_choice_that_saw_it(num_images: int, folds: int) -> None:
    seen: list[set[int]] = []

    def choose(index: Tensor) -> Tensor:
        """Return probability 1 to class 0 of the images that the choice saw."""
        seen.append(set(index.tolist()))
        was_seen = torch.zeros(num_images).index_fill_(0, index, 1.0)
        return torch.stack([was_seen, 1 - was_seen], dim=1)

    held_out = cross_fit(choose, num_images, folds=folds)
    assert torch.equal(held_out[:, 1], torch.ones(num_images).double())
    assert len(seen) == min(folds, num_images)
    assert sum(num_images - len(index) for index in seen) == num_images


def test_the_luck_of_the_best_of_many_is_not_in_the_cross_fitted_figure() -> None:
    probs, labels = members_and_labels(3, 100, 200, classes=2, skill=0.0)

    def choose(index: Tensor) -> Tensor:
        return probs[rank(probs[:, index], labels[index], "accuracy")[0]]

    def accuracy(chosen: Tensor) -> float:
        return (chosen.argmax(dim=1) == labels).double().mean().item()

    assert accuracy(choose(torch.arange(200))) > 0.56, "the best of 100 guessers looks skilled"
    assert accuracy(cross_fit(choose, 200)) == pytest.approx(0.5, abs=0.06)


def test_a_single_image_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="2 images"):
        cross_fit(lambda index: torch.ones(1, 2), 1)


def test_a_single_candidate_has_all_the_weight() -> None:
    probs = torch.rand(1, 20, 3).softmax(dim=-1)
    assert greedy_weights(probs, torch.randint(3, (20,))).tolist() == [1.0]


@pytest.mark.parametrize("count", [10, 11, 14, 20])
def test_a_sure_vote_is_not_above_1(count: int) -> None:
    probs = torch.tensor([1.0, 0.0]).expand(count, 50, 2)
    assert soft_vote(probs, uniform(torch.arange(count), count)).max() <= 1
