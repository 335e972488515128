import io
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import spearmanr

from tuner.config import ModelConfig, SearchConfig, TrialConfig
from tuner.monitor.live_table import Clocks, draw
from tuner.run.events import EpochEnded, TrialEnded, TrialStarted
from tuner.run.rung_worth import MIN_TRIALS, MOST_TRIALS, rung_worths
from tuner.run.state import SearchState
from tuner.run.trial import EpochMetrics

SEARCH = SearchConfig(epochs=9, grace=3, reduction=3)


def history(*accuracies: float) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=1.0,
            val_loss=1.0,
            val_accuracy=accuracy,
            lr=0.1,
            seconds=1.0,
            time=float(epoch),
        )
        for epoch, accuracy in enumerate(accuracies, 1)
    ]


def trials(pairs: Sequence[tuple[float, float]]) -> list[list[EpochMetrics]]:
    """Return trials with these accuracies at epoch 3 and at the end, 9."""
    return [history(0.0, 0.0, early, 0.0, 0.0, 0.0, 0.0, 0.0, end) for early, end in pairs]


values = st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8])


@given(st.lists(st.tuples(values, values), min_size=MIN_TRIALS, max_size=40))
def test_a_rung_is_worth_its_rank_correlation_with_the_next(
    pairs: list[tuple[float, float]],
) -> None:
    found = rung_worths(SEARCH, trials(pairs))
    if min(len(set(column)) for column in zip(*pairs, strict=True)) == 1:
        assert not found, "where all are equal there is no order"
        return
    (worth,) = found
    assert worth.correlation == pytest.approx(spearmanr(pairs).statistic)
    assert worth.low <= worth.high
    assert (worth.epoch, worth.next_epoch, worth.trials) == (3, 9, len(pairs))


def test_the_interval_narrows_with_the_trials_and_holds_what_is_known() -> None:
    generator = random.Random(0)
    pairs = [
        (x, 0.8 * x + 0.2 * generator.random()) for x in (generator.random() for _ in range(300))
    ]
    few, many = (rung_worths(SEARCH, trials(pairs[:count]))[0] for count in (20, 300))
    assert many.high - many.low < few.high - few.low
    assert few.low < many.correlation
    assert str(many).startswith("epoch 3 predicts the end: 0.9")
    # The live table knows trials as they began, the pages by their rank.
    assert rung_worths(SEARCH, trials(sorted(pairs[:20]))) == [few]


def test_a_rung_to_which_few_came_tells_nothing() -> None:
    pairs = [(index / 10, index / 10) for index in range(MIN_TRIALS)]
    short = [history(0.1, 0.2, 0.3)] * 50
    assert rung_worths(SEARCH, [*trials(pairs[1:]), *short]) == []
    assert rung_worths(SEARCH, [*trials(pairs), *short])[0].trials == MIN_TRIALS
    none = SearchConfig(epochs=9, grace=3, reduction=3, scheduler="none")
    assert rung_worths(none, trials(pairs)) == []


def test_the_live_table_tells_it_in_a_line_of_its_own() -> None:
    state = SearchState(SEARCH)
    config = TrialConfig(model=ModelConfig("cnn", {}), epochs=9)
    for number, rows in enumerate(trials([(index / 20, index / 20) for index in range(12)])):
        state.apply(TrialStarted(number=number, config=config))
        for row in rows:
            state.apply(EpochEnded(number=number, metrics=row))
        state.apply(TrialEnded(number=number, state="completed"))
    console = Console(file=io.StringIO(), width=80)
    console.print(draw(state, 2, Clocks(elapsed=1.0, left=None), "", 80, 24))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "epoch 3 predicts the end: 1.00 (1.00 to 1.00), 12 trials" in [
        line.strip() for line in lines
    ]


def test_of_many_trials_the_newest_tell_in_whatever_order_they_are_given() -> None:
    generator = random.Random(0)
    ends = [generator.random() for _ in range(2 * MOST_TRIALS)]
    pairs = [(end if n >= MOST_TRIALS else 1 - end, end) for n, end in enumerate(ends)]
    told = [
        [replace(row, time=row.time + 9 * n) for row in rows]
        for n, rows in enumerate(trials(pairs))
    ]
    ranked = sorted(told, key=lambda rows: -rows[-1].val_accuracy)
    assert rung_worths(SEARCH, ranked) == rung_worths(SEARCH, told)
    assert rung_worths(SEARCH, ranked)[0].correlation == pytest.approx(1)
