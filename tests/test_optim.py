"""The optimizer spares norms and biases, schedules keep their shape, the average follows."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from tuner.config import AdamW, Cosine, ModelConfig, OneCycle, Sgd
from tuner.models import build_model
from tuner.optim import WeightAverage, lr_factor, make_optimizer

MODELS = [
    ModelConfig("cnn", {"stages": 1, "norm": "batch", "head": "hidden"}),
    ModelConfig("cnn", {"stages": 1, "norm": "layer", "residual": True}),
    ModelConfig("cnn", {"stages": 1, "norm": "none"}),
    ModelConfig("resnet", {"depth": 20, "norm": "group"}),
]
OPTIMIZERS = [Sgd(lr=0.1, weight_decay=0.5), AdamW(lr=0.1, weight_decay=0.5)]
WARMUPS = st.floats(0, 0.99)
SCHEDULES = st.one_of(
    st.builds(Cosine, warmup=WARMUPS), st.builds(OneCycle, warmup=WARMUPS, div=st.floats(1, 1e6))
)
SHARES = st.floats(0, 1)


def some_model() -> nn.Module:
    """Give a model with every kind of state: kernels, biases, running statistics, a counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def scramble(model: nn.Module) -> None:
    """Give every float of the model's state a new value, and count a batch."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.normal_()
            else:
                value.add_(1)


# The optimizer


@pytest.mark.parametrize("config", OPTIMIZERS)
@pytest.mark.parametrize("model_config", MODELS)
def test_without_a_gradient_a_step_shrinks_kernels_alone(
    model_config: ModelConfig, config: Sgd | AdamW
) -> None:
    model = build_model(model_config, 4, (3, 8, 8))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, config).step()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_kernel = isinstance(module, nn.Conv2d | nn.Linear) and name == "weight"
            assert (parameter < 1).all() if is_kernel else (parameter == 1).all()


@pytest.mark.parametrize("config", OPTIMIZERS)
@pytest.mark.parametrize("model_config", MODELS)
def test_every_parameter_is_optimized_once(model_config: ModelConfig, config: Sgd | AdamW) -> None:
    model = build_model(model_config, 4, (3, 8, 8))
    groups = make_optimizer(model, config).param_groups
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(map(id, model.parameters()))


def test_a_frozen_parameter_is_left_out() -> None:
    model = some_model()
    model.get_submodule("0").requires_grad_(False)
    groups = make_optimizer(model, Sgd()).param_groups
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_the_settings_reach_the_optimizer() -> None:
    sgd = make_optimizer(some_model(), Sgd(lr=0.3, momentum=0.8, nesterov=False))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.3, 0.8)
    assert not sgd.defaults["nesterov"]
    adamw = make_optimizer(some_model(), AdamW(lr=0.02, beta1=0.7, beta2=0.95))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["betas"]) == (0.02, (0.7, 0.95))


# The schedule


@given(SCHEDULES, SHARES)
def test_a_learning_rate_is_a_share_of_its_peak(
    schedule: Cosine | OneCycle, progress: float
) -> None:
    assert 0 <= lr_factor(schedule, progress) <= 1


@given(SCHEDULES)
def test_the_peak_is_at_the_end_of_the_warm_up(schedule: Cosine | OneCycle) -> None:
    assert lr_factor(schedule, schedule.warmup) == 1


@given(SCHEDULES)
def test_the_end_is_zero(schedule: Cosine | OneCycle) -> None:
    assert lr_factor(schedule, 1.0) == pytest.approx(0, abs=1e-12)


@given(SCHEDULES, SHARES, SHARES)
def test_it_rises_to_the_peak_and_falls_from_there(
    schedule: Cosine | OneCycle, one: float, other: float
) -> None:
    early, late = sorted((one, other))
    first, second = lr_factor(schedule, early), lr_factor(schedule, late)
    if late <= schedule.warmup:
        assert first <= second + 1e-12
    elif early >= schedule.warmup:
        assert first >= second - 1e-12


@given(st.floats(0.01, 0.9), st.floats(1, 1e6))
def test_a_cycle_begins_at_the_peak_divided_and_a_cosine_at_zero(warmup: float, div: float) -> None:
    assert lr_factor(OneCycle(warmup=warmup, div=div), 0) == pytest.approx(1 / div)
    assert lr_factor(Cosine(warmup=warmup), 0) == 0


@pytest.mark.parametrize("schedule", [Cosine(warmup=0), OneCycle(warmup=0)])
def test_without_a_warm_up_the_first_step_has_the_peak(schedule: Cosine | OneCycle) -> None:
    assert lr_factor(schedule, 0) == 1


def rates(make: Callable[[torch.optim.Optimizer], LRScheduler], num_steps: int) -> list[float]:
    """Follow one of torch's schedulers for ``num_steps`` steps from a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    followed = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps):
        optimizer.step()
        scheduler.step()
        followed.append(optimizer.param_groups[0]["lr"])
    return followed


@pytest.mark.parametrize(("warmup", "div"), [(0.3, 25.0), (0.1, 4.0), (0.75, 1.0)])
def test_one_cycle_agrees_with_that_of_torch(warmup: float, div: float) -> None:
    steps = 200
    theirs = rates(
        lambda optimizer: OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=steps + 1,
            # Torch's peak is at the step pct_start * total_steps - 1.
            pct_start=(warmup * steps + 1) / (steps + 1),
            div_factor=div,
            final_div_factor=1e12,
            cycle_momentum=False,
        ),
        steps,
    )
    ours = [lr_factor(OneCycle(warmup=warmup, div=div), i / steps) for i in range(steps + 1)]
    assert ours == pytest.approx(theirs, abs=1e-10)


def test_cosine_agrees_with_the_linear_warm_up_and_the_cosine_of_torch() -> None:
    rising, falling = 40, 160
    up = rates(lambda o: LinearLR(o, start_factor=1e-15, total_iters=rising), rising)
    down = rates(lambda o: CosineAnnealingLR(o, T_max=falling), falling)
    schedule = Cosine(warmup=0.2)
    ours = [lr_factor(schedule, i / (rising + falling)) for i in range(rising + falling + 1)]
    assert ours == pytest.approx([*up, *down[1:]], abs=1e-10)


# The weight average


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_average_of_a_constant_model_is_that_model(decay: float) -> None:
    model = some_model()
    average = WeightAverage(model, decay)
    for _ in range(30):
        average.update()
    torch.testing.assert_close(average.model.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_decay_of_zero_copies_the_model() -> None:
    model = some_model()
    average = WeightAverage(model, 0.0)
    for _ in range(3):
        scramble(model)
        average.update()
        torch.testing.assert_close(average.model.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_running_statistics_are_averaged_like_weights_and_counters_are_copied() -> None:
    model = some_model()
    average = WeightAverage(model, 0.05)
    before = {name: value.clone() for name, value in average.model.state_dict().items()}
    scramble(model)
    average.update()
    after = average.model.state_dict()
    assert {"1.running_mean", "1.running_var", "1.weight", "0.bias"} <= set(after)
    for name, now in model.state_dict().items():
        expected = 0.05 * before[name] + 0.95 * now if now.is_floating_point() else now
        torch.testing.assert_close(after[name], expected, msg=name)
    assert after["1.num_batches_tracked"] == 1


def test_after_long_enough_the_average_is_the_model_that_stays() -> None:
    model = some_model()
    average = WeightAverage(model, 0.99)
    scramble(model)
    for _ in range(2500):
        average.update()
    torch.testing.assert_close(average.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.99999])
def test_a_short_training_is_not_dragged_by_its_first_weights(decay: float) -> None:
    """The share of the first weights is what is left of ones when zeros are averaged in."""
    model = nn.Linear(1, 1).double()
    nn.init.ones_(model.weight)
    average = WeightAverage(model, decay)
    nn.init.zeros_(model.weight)
    shares = []
    for _ in range(30):
        average.update()
        shares.append(average.model.state_dict()["weight"].item())
    assert all(late < early for early, late in itertools.pairwise(shares))
    assert 0 < shares[-1] < 1e-3


def test_the_decay_is_reached_in_the_end() -> None:
    model = nn.Linear(1, 1).double()
    average = WeightAverage(model, 0.9)
    for _ in range(200):
        average.update()
    before = average.model.state_dict()["weight"].item()
    with torch.no_grad():
        model.weight.add_(1)
    average.update()
    assert average.model.state_dict()["weight"].item() - before == pytest.approx(0.1)


def test_the_average_stands_apart_from_the_training() -> None:
    model = some_model().train()
    average = WeightAverage(model, 0.9)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    mine, theirs = (
        {value.data_ptr() for value in part.state_dict().values()}
        for part in (average.model, model)
    )
    assert not mine & theirs


def test_an_update_leaves_the_model_and_its_gradients_alone() -> None:
    model = some_model()
    average = WeightAverage(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(2, 3, 4, 4).contiguous()).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before |= {name: value.clone() for name, value in model.named_buffers()}
    average.update()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    after = {name: p.grad for name, p in model.named_parameters()}
    torch.testing.assert_close(after, gradients, rtol=0, atol=0)


def test_the_average_keeps_channels_last() -> None:
    model = some_model().to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    scramble(model)
    average.update()
    kernel = average.model.state_dict()["0.weight"]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
