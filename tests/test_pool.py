"""Promotions for the ensemble: which waiting trial the vote gains most from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.test_promotion import promoting, waiting
from tests.test_tuner import World, start
from tuner.ensemble.gain import best_addition, truth_of
from tuner.run.trial import write_val_probs
from tuner.tuning.pool import WaitingPool
from tuner.tuning.schedulers import Asha
from tuner.tuning.tuner import Tuner

NUM_IMAGES = 300
LABELS = torch.arange(NUM_IMAGES) % 3


def probs_of(*strengths: float, seed: int) -> Tensor:
    """Return probabilities of a network that knows each class so well, shape (N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(NUM_IMAGES, 3, generator=generator)
    logits[torch.arange(NUM_IMAGES), LABELS] += torch.tensor(strengths)[LABELS]
    return logits.softmax(dim=1)


def usual(seed: int) -> Tensor:
    """Return those of a network like most: it does not know the last class."""
    return probs_of(4, 4, 0, seed=seed)


def unlike(seed: int) -> Tensor:
    """Return those of one that knows the last class and is worse alone."""
    return probs_of(1, 1, 3, seed=seed)


def truths(*probs: Tensor) -> Tensor:
    return torch.stack([truth_of(one, LABELS) for one in probs])


# What a candidate adds


def test_who_knows_what_the_others_do_not_is_before_who_is_better_alone() -> None:
    members = truths(usual(1))
    better, complement = usual(2), unlike(3)
    assert truths(better).log().mean() > truths(complement).log().mean()
    assert best_addition(members, truths(better, complement)) == 1
    assert best_addition(members, truths(complement, better)) == 0


def test_what_lowers_nothing_is_not_chosen() -> None:
    members = truths(probs_of(4, 4, 4, seed=1))
    assert best_addition(members, truths(torch.full((NUM_IMAGES, 3), 1 / 3))) is None


# Whose turn it is


def at_rung(*values: float) -> Asha:
    asha = Asha(grace=1, reduction=2, epochs=4)
    for number, value in enumerate(values):
        asha.enter(number, 1, value)
    return asha


def test_every_second_promotion_goes_to_whom_it_is_preferred() -> None:
    asha = at_rung(*(number / 10 for number in range(8)))
    coming = {0: 8}
    taken = []
    while (due := asha.next_promotion(coming, lambda numbers: numbers[-1])) is not None:
        taken.append(due)
        asha.promote(due)
    assert taken == [7, 0, 6, 1], "as many as there are places"


def test_no_one_is_preferred_where_no_one_is_due_or_there_is_no_place() -> None:
    def fail(numbers: object) -> int | None:
        raise AssertionError("it was asked")

    assert at_rung(0.1).next_promotion({0: 1}, fail) is None
    asha = at_rung(0.1, 0.2, 0.3)
    asha.promote(2)
    assert asha.next_promotion({0: 1}, fail) is None
    asha.enter(3, 1, 0.25)
    assert asha.next_promotion({0: 1}, lambda numbers: None) == 3, "the one that is due"
    assert asha.next_promotion({0: 1}, lambda numbers: numbers[1]) == 1


def test_the_last_place_of_a_rung_is_for_its_best_while_that_waits() -> None:
    asha = Asha(grace=1, reduction=3, epochs=9)
    for number in range(9):
        asha.enter(number, 1, number / 10)

    def promote() -> int:
        due = asha.next_promotion({}, lambda numbers: numbers[-1])
        assert due is not None
        asha.promote(due)
        return due

    taken = [promote() for _ in range(3)]
    assert taken == [8, 0, 7]
    for number in taken:
        asha.enter(number, 3, number / 10)
    assert promote() == 8
    assert asha.next_promotion({}) is None


# In a run folder


def leave(world: World, number: int, probs: Tensor) -> None:
    """Leave in the folder of a trial what its worker would."""
    path = world.run.trial_path(number)
    write_val_probs(path, probs.numpy())
    (path / "checkpoint.safetensors").write_bytes(b"weights")


def with_pool(world: World, tuner: Tuner) -> WaitingPool:
    pool = WaitingPool(world.run, tuner.state, LABELS)
    tuner.observers.append(pool.on)
    tuner.prefer = pool.prefer
    return pool


def promoted(tuner: Tuner) -> int:
    given = start(tuner)
    assert given is not None
    return given.number


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A search in its last third: of its trials 0 to 2 wait, 3 is stopped, and 2 is unlike it."""
    world = promoting(tmp_path, trials=6)
    waiting(world, world.tuner(), 0.9, 0.8, 0.7, 0.6)
    for number in (0, 1, 3):
        leave(world, number, usual(number))
    leave(world, 2, unlike(2))
    return world


def test_the_second_promotion_is_for_the_ensemble_and_the_same_after_a_kill(
    world: World, tmp_path: Path
) -> None:
    tuner = world.tuner()
    assert tuner.state.trials[3].status.state == "stopped"
    with_pool(world, tuner)
    assert promoted(tuner) == 0, "the first is the best"
    shutil.copytree(world.folder / "run", tmp_path / "killed" / "run")
    assert promoted(tuner) == 2, "1 is better, and knows what 3 does"
    again = promoting(tmp_path / "killed", trials=6)
    resumed = again.tuner()
    with_pool(again, resumed)
    assert promoted(resumed) == 0, "it goes on first"
    assert promoted(resumed) == 2


def test_without_a_pool_or_before_the_last_third_the_best_is_promoted(world: World) -> None:
    plain = world.tuner()
    assert [promoted(plain) for _ in range(2)] == [0, 1]


def test_before_the_last_third_the_pool_is_not_asked(world: World) -> None:
    tuner = world.tuner(trials=7)
    with_pool(world, tuner)
    assert [promoted(tuner) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    "damaged",
    [None, np.float32(1), np.full((NUM_IMAGES, 3), "x"), np.zeros((NUM_IMAGES, 2), np.float32)],
    ids=["gone", "no table", "text", "too few classes"],
)
def test_a_trial_whose_probabilities_cannot_be_used_is_not_preferred(
    damaged: np.ndarray | None, world: World
) -> None:
    file = world.run.trial_path(2) / "val_probs.npy"
    file.unlink() if damaged is None else np.save(file, damaged)
    tuner = world.tuner()
    with_pool(world, tuner)
    assert [promoted(tuner) for _ in range(2)] == [0, 1]


def test_one_that_is_damaged_does_not_keep_others_from_being_preferred(world: World) -> None:
    broken = usual(1).numpy()
    broken[0] = np.nan
    np.save(world.run.trial_path(1) / "val_probs.npy", broken)
    tuner = world.tuner()
    with_pool(world, tuner)
    assert [promoted(tuner) for _ in range(2)] == [0, 2]
