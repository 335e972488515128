"""The steps as a GPU takes them, less graph and stream, held against those of a CPU."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tuner.config import AdamW, Augment, Lion, ModelConfig, Muon, OneCycle, Sgd, TrialConfig
from tuner.data.splits import Splits
from tuner.models.build import build_model
from tuner.optim import WeightAverage, make_optimizer
from tuner.training.device_step import Timetable
from tuner.training.learner import Learner
from tuner.training.loop import train
from tuner.training.step import HostSteps, Task

CPU = torch.device("cpu")
CONFIG = TrialConfig(
    model=ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 8}),
    epochs=3,
    batch_size=64,
    schedule=OneCycle(),
    augment=Augment(crop=1, flip=True, alternate=True),
)


class TimetableSteps(HostSteps):
    """Takes the steps of a CPU by the timetable of a GPU."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.timetable = Timetable(self)

    def run(self, epoch: int, should_stop: object = None) -> bool:
        self.total_loss.zero_()
        self.timetable.start_epoch(epoch)
        for _ in range(self.per_epoch):
            index, is_mirrored, share = self.timetable.read()
            self._train_on(index, is_mirrored)
            self.task.learner.average.move(share)
            self.task.learner.average.num_updates += 1
            self.timetable.advance()
        return True


def task_of(config: TrialConfig, splits: Splits) -> Task:
    torch.manual_seed(0)
    network = build_model(config.model, splits.num_classes, splits.image_shape)
    learner = Learner(
        network=network,
        average=WeightAverage(network, config.ema_decay),
        optimizer=make_optimizer(network, config.optimizer),
        generator=torch.Generator().manual_seed(0),
    )
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (splits.mean, splits.std))
    return Task(
        config=config,
        learner=learner,
        images=splits.train.images,
        labels=splits.train.labels,
        num_classes=splits.num_classes,
        mean=mean,
        std=std,
        num_parts=config.micro_batches,
        dtype=torch.float32,
    )


def weights_after(steps: HostSteps, epochs: int) -> Iterator[torch.Tensor]:
    for epoch in range(1, epochs + 1):
        assert steps.run(epoch)
    average = steps.task.learner.average
    yield steps.total_loss
    yield from average.model.state_dict().values()


@pytest.mark.parametrize(
    "optimizer", [Sgd(), AdamW(), Lion(), Muon()], ids=lambda o: type(o).__name__
)
def test_a_timetable_on_the_device_gives_the_steps_of_the_host(
    optimizer: Sgd | AdamW | Lion | Muon, digits: Splits
) -> None:
    config = replace(CONFIG, optimizer=optimizer, micro_batches=2, clip_norm=1.0)
    on_host = weights_after(HostSteps(task_of(config, digits)), 2)
    on_device = weights_after(TimetableSteps(task_of(config, digits)), 2)
    for one, other in zip(on_host, on_device, strict=True):
        # Learning rates are rounded to float32 on the device.
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)


def test_without_an_average_its_weights_are_the_networks(digits: Splits) -> None:
    steps = TimetableSteps(task_of(replace(CONFIG, ema_decay=0.0), digits))
    steps.run(1)
    learner = steps.task.learner
    for name, tensor in learner.network.state_dict().items():
        torch.testing.assert_close(learner.average.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_training_that_is_stopped_ends_between_two_steps_without_its_epoch(
    digits: Splits,
) -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > steps_an_epoch + 3

    steps_an_epoch = len(digits.train) // CONFIG.batch_size
    epochs = list(train(CONFIG, digits, CPU, should_stop=should_stop))
    assert [epoch.figures.epoch for epoch in epochs] == [1]
    assert asked == steps_an_epoch + 4
