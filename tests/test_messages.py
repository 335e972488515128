"""What workers report comes through the engine as it was."""

import math

import pytest
from ray.tune.utils import flatten_dict

from tuner.config import ModelConfig, TrialConfig
from tuner.run.events import EpochEnded, Event, TrialEnded, TrialPlaced, TrialStarted
from tuner.run.trial import EpochMetrics
from tuner.tuning.ray_backend.messages import event_in, to_report

ROW = EpochMetrics(
    epoch=1, train_loss=1.0, val_loss=0.5, val_accuracy=0.75, lr=0.1, seconds=2.0, time=3.5
)


@pytest.mark.parametrize(
    "event",
    [
        TrialStarted(
            number=3,
            config=TrialConfig(model=ModelConfig("cnn", {"width": 16}), epochs=4),
            history=(ROW,),
            attempt=2,
            cpus=1.0,
            gpus=0.5,
        ),
        TrialPlaced(number=3, node="n"),
        EpochEnded(number=3, metrics=ROW, num_parameters=7, execution="eager", halved_from=1),
        TrialEnded(number=3, state="failed", reason="ValueError: no", traceback="Traceback"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_comes_through_the_engine_as_it_was(event: Event) -> None:
    report = flatten_dict(to_report(event, tell="a line"))
    assert event_in(report) == event
    assert report["tell"] == "a line"
    # Tune keeps statistics of every number that it sees.
    assert not [value for value in report.values() if isinstance(value, int | float)]


def test_an_epoch_that_diverged_comes_through_the_engine() -> None:
    row = EpochMetrics(
        epoch=1, train_loss=math.nan, val_loss=math.inf, val_accuracy=0.1, lr=0, seconds=1, time=2
    )
    event = event_in(to_report(EpochEnded(number=0, metrics=row)))
    assert isinstance(event, EpochEnded)
    assert math.isnan(event.metrics.train_loss)
    assert math.isinf(event.metrics.val_loss)


def test_what_is_no_event_is_told_apart() -> None:
    assert event_in({"saved": 3}) is None
