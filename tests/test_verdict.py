"""Whether a vote is advised: by cross-fitted figures alone, and only where they tell."""

import torch
from torch import Tensor

from tuner.ensemble.choosing import Choice
from tuner.ensemble.request import Method
from tuner.ensemble.verdict import Verdict, judge

LABELS = torch.zeros(1000, dtype=torch.long)


def choice(method: Method | None, num_right: int, confidence: float = 0.9) -> Choice:
    """Return a choice that gets the first images right, all of them as sure of themselves."""
    probs = torch.full((len(LABELS), 2), 1 - confidence, dtype=torch.float64)
    probs[:num_right, 0] = confidence
    probs[num_right:, 1] = confidence
    members = (0,) if method is None else (0, 1, 2)
    return Choice(
        method=method,
        is_calibrated=False,
        members=members,
        weights=torch.full((len(members),), 1 / len(members)),
        temperatures=(1.0,) * len(members),
        temperature=1.0,
        # What the choice was made on flatters it, and may not tell.
        val=torch.tensor([[1.0, 0.0]]).expand(len(LABELS), 2),
        crossfit=probs,
        left_out=(),
    )


def verdict(single: Choice, asked: Choice, *others: Choice, labels: Tensor = LABELS) -> Verdict:
    return judge(single, asked, [asked, *others], labels, top=3, trial=7)


def test_a_vote_that_is_clearly_more_accurate_is_taken() -> None:
    found = verdict(choice(None, 800), choice("vote", 830))
    assert found.advised == found.asked
    assert found.text.startswith("The vote of 3 is more accurate than the best single, trial 7: ")
    assert found.text.endswith("Take it.")


def test_a_vote_below_the_best_single_is_not_taken() -> None:
    found = verdict(choice(None, 800), choice("vote", 783))
    assert found.advised == found.single
    assert "78.30% against 80.00%" in found.text
    assert found.text.endswith("Take trial 7 alone: --top 1.")


def test_of_equal_accuracies_the_single_is_taken_unless_probabilities_are_better() -> None:
    single = choice(None, 800, confidence=0.99)
    found = verdict(single, choice("vote", 801, confidence=0.99))
    assert found.advised == found.single
    assert "is not told apart from" in found.text
    found = verdict(single, choice("vote", 801, confidence=0.8))
    assert found.advised == found.asked
    assert "its probabilities are better" in found.text


def test_a_better_method_is_named() -> None:
    found = verdict(choice(None, 800), choice("vote", 790), choice("greedy", 850))
    assert found.advised.method == "greedy"
    assert "Take --method greedy: 85.00%" in found.text


def test_the_single_itself_is_not_compared_with_itself() -> None:
    single = choice(None, 800)
    alone = choice(None, 800)
    found = judge(single, alone, [], LABELS, top=1, trial=7)
    assert found.text.startswith("The best single, trial 7, stands alone")
    assert found.asked.gain.low == found.asked.gain.high == 0
