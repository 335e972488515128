"""Whether a vote is advised: by cross-fitted figures alone, and only where they tell."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tuner.config import Method, Metric
from tuner.ensemble.choosing import Choice
from tuner.ensemble.verdict import Verdict, judge
from tuner.metrics.significance import NO_GAIN
from tuner.report.best import best_trial
from tuner.run.run import Run

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


def verdict(
    single: Choice,
    asked: Choice,
    *others: Choice,
    labels: Tensor = LABELS,
    metric: Metric = "accuracy",
) -> Verdict:
    return judge(single, asked, [asked, *others], labels, top=3, trial=7, metric=metric)


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
    assert "cannot be told apart from" in found.text
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


def test_a_fitted_vote_of_the_single_alone_is_judged_by_its_own_probabilities() -> None:
    single = choice(None, 800, confidence=0.99)
    fitted = replace(
        choice("weighted", 800, confidence=0.8),
        members=(0,),
        weights=torch.ones(1),
        temperatures=(2.0,),
    )
    found = verdict(single, fitted, metric="nll")
    assert found.asked.gain == NO_GAIN, "a temperature changes no answer"
    assert found.asked.nll < found.single.nll
    assert found.advised == found.asked
    assert found.text.startswith(
        "The weighted vote of 1 is better by NLL than the best single, trial 7: 0.5004 against"
    )
    # Other members may have been chosen without some images.
    other = verdict(single, replace(fitted, crossfit=choice("weighted", 790).crossfit))
    assert other.asked.gain.gain == pytest.approx(-0.01)


def test_by_nll_the_lower_one_is_taken_though_fewer_images_are_right() -> None:
    single = choice(None, 800, confidence=0.999)
    found = verdict(single, choice("vote", 790, confidence=0.8), metric="nll")
    assert found.advised == found.asked
    assert found.text.startswith(
        "The vote of 3 is better by NLL than the best single, trial 7: 0.5143 against 1.3824 on"
    )
    assert "-0.8681 [-1." in found.text
    found = verdict(choice(None, 790, confidence=0.8), choice("vote", 800, 0.999), metric="nll")
    assert found.advised == found.single
    assert "is worse by NLL than the best single" in found.text


def test_by_nll_the_method_with_the_lowest_is_named() -> None:
    single, vote = choice(None, 800, 0.999), choice("vote", 800, 0.99)
    found = verdict(single, vote, choice("greedy", 799, 0.8), metric="nll")
    assert found.advised.method == "greedy"
    assert "Take --method greedy: 0.5018, -0.8806 [" in found.text


def test_by_class_a_gain_in_a_rare_class_counts_more_than_one_in_a_common_one() -> None:
    labels = (torch.arange(1000) >= 900).long()

    def right(method: Method | None, of_common: int, of_rare: int) -> Choice:
        made = choice(method, 0)
        is_right = torch.zeros(1000, dtype=torch.bool)
        is_right[:of_common] = True
        is_right[900 : 900 + of_rare] = True
        truth = torch.nn.functional.one_hot(labels, 2).double()
        wanted = torch.where(is_right[:, None], truth, 1 - truth)
        return replace(made, crossfit=0.8 * wanted + 0.1)

    single, vote = right(None, 890, 20), right("vote", 870, 70)
    found = verdict(single, vote, labels=labels, metric="balanced_accuracy")
    assert found.advised == found.asked
    assert "is better by balanced accuracy than the best single, trial 7: 83.33%" in found.text
    assert "+23.89 points [" in found.text
    found = verdict(vote, replace(single, method="vote"), labels=labels, metric="worst_class")
    assert "is worse by accuracy of the worst class than" in found.text
    # Of all images as many are right, but by class they are not.
    swapped = verdict(
        right(None, 850, 70), right("vote", 890, 30), labels=labels, metric="macro_f1"
    )
    assert swapped.advised == swapped.single


def test_a_trial_above_the_interval_of_the_best_does_not_lie_in_it(
    trained_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.report.best.searched_yaml", lambda space, config: "")
    # By another metric than accuracy, the best may be less accurate than others.
    ranked = [
        replace(trial, history=tuple(replace(row, val_accuracy=accuracy) for row in trial.history))
        for trial, accuracy in zip(trained_run.ranked(), (0.5, 0.51, 0.95), strict=True)
    ]
    space: Any = None
    found = best_trial(trained_run, ranked, space)
    assert found is not None
    assert found.others_within == 1


def test_a_soup_that_is_better_is_taken() -> None:
    soup, vote = choice("soup", 850), choice("vote", 801)
    found = judge(choice(None, 800), soup, [vote], LABELS, top=3, trial=7)
    assert found.advised == found.asked
    assert found.text.endswith("Take it.")
