"""The optimizer spares norms and biases, schedules keep their shape, the average follows."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode

from tuner.config import AdamW, Cosine, Lion, ModelConfig, Muon, OneCycle, Sgd, Trapezoid
from tuner.models.build import build_model
from tuner.optim import WeightAverage, lr_factor, make_optimizer
from tuner.optim.muon import hidden_matrices, orthogonalize
from tuner.schema import build

MODELS = [
    ModelConfig("cnn", {"stages": 1, "norm": "batch", "head": "hidden"}),
    ModelConfig("cnn", {"stages": 1, "norm": "layer", "residual": True}),
    ModelConfig("cnn", {"stages": 1, "norm": "none"}),
    ModelConfig("resnet", {"depth": 20, "norm": "group"}),
]
AnyOptimizer = Sgd | AdamW | Lion | Muon
OPTIMIZERS: list[AnyOptimizer] = [
    Sgd(lr=0.1, weight_decay=0.5),
    AdamW(lr=0.1, weight_decay=0.5),
    Lion(lr=0.1, weight_decay=0.5),
    Muon(lr=0.1, weight_decay=0.5, adamw_lr=0.05),
    Muon(lr=0.1, weight_decay=0.5, partner="sgd", sgd_lr=0.05, bias_factor=4.0),
]
NORMALIZED = Muon(lr=0.1, normalized=True, iterations=3, partner="sgd", sgd_lr=0.05)
Schedule = Cosine | OneCycle | Trapezoid
WARMUPS = st.floats(0, 0.99)
SCHEDULES = st.one_of(
    st.builds(Cosine, warmup=WARMUPS),
    st.builds(OneCycle, warmup=WARMUPS, div=st.floats(1, 1e6)),
    st.builds(Trapezoid, warmup=WARMUPS, cooldown=st.floats(1e-3, 1)),
)
SHARES = st.floats(0, 1)


def some_model() -> nn.Module:
    """Return a model with every kind of state: kernels, biases, running statistics, a counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def scramble(model: nn.Module) -> None:
    """Return every float of the model's state a new value, and count a batch."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.normal_()
            else:
                value.add_(1)


# The optimizer


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_tokens_and_positions_are_not_decayed(config: AnyOptimizer) -> None:
    model = build_model(
        ModelConfig("vit", {"layers": 1, "width": 32, "positions": "learned", "pooling": "class"}),
        4,
        (3, 8, 8),
    )
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, config).step()
    after = dict(model.named_parameters())
    assert (after["positions"] == 1).all()
    assert (after["class_token"] == 1).all()
    assert (after["classifier.weight"] < 1).all()


@pytest.mark.parametrize("config", OPTIMIZERS)
@pytest.mark.parametrize("model_config", MODELS)
def test_without_a_gradient_a_step_shrinks_kernels_alone(
    model_config: ModelConfig, config: AnyOptimizer
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
def test_every_parameter_is_optimized_once(model_config: ModelConfig, config: AnyOptimizer) -> None:
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

    lion = make_optimizer(some_model(), Lion(lr=0.02, beta1=0.7, beta2=0.95))
    assert (lion.defaults["lr"], lion.defaults["betas"]) == (0.02, (0.7, 0.95))
    muon = make_optimizer(some_model(), Muon(lr=0.02, adamw_lr=0.003, momentum=0.8))
    assert (muon.defaults["lr"], muon.defaults["momentum"]) == (0.02, 0.8)
    assert [group["lr"] for group in muon.param_groups] == [0.02, 0.003, 0.003]


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_every_group_remembers_its_peak(config: AnyOptimizer) -> None:
    for group in make_optimizer(some_model(), config).param_groups:
        assert group["initial_lr"] == group["lr"] > 0


class NothingRead(TorchDispatchMode):
    """Fail where a value of a tensor is read on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [*OPTIMIZERS, NORMALIZED])
def test_a_learning_rate_may_be_a_tensor_that_is_never_read(config: AnyOptimizer) -> None:
    """On a GPU the rates of a captured step lie in the device's memory."""
    model_config = ModelConfig("speednet", {"width": 16, "widening": 2.0, "stages": 2})
    models = [build_model(model_config, 4, (3, 8, 8)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, config) for model in models]
    for step in range(3):
        for optimizer, is_tensor in zip(optimizers, (False, True), strict=True):
            for group in optimizer.param_groups:
                rate = group["initial_lr"] * (1 - step / 4)
                group["lr"] = torch.tensor(rate) if is_tensor else rate
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            gradient = torch.randn_like(parameters[0])
            for parameter in parameters:
                parameter.grad = gradient.clone()
        optimizers[0].step()
        with NothingRead():
            optimizers[1].step()
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict())


# Lion


def test_lion_takes_the_steps_of_its_paper() -> None:
    """Algorithm 2 of Chen et al. (2023), weight by weight."""
    weight = nn.Parameter(torch.randn(3, 4))
    gradients = torch.randn(5, 3, 4)
    expected, momentum = weight.detach().clone(), torch.zeros(3, 4)
    model = nn.Module()
    model.weight = weight
    optimizer = make_optimizer(model, Lion(lr=0.01, beta1=0.8, beta2=0.95, weight_decay=0.1))
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        direction = (0.8 * momentum + 0.2 * gradient).sign()
        momentum = 0.95 * momentum + 0.05 * gradient
        expected -= 0.01 * (direction + 0.1 * expected)
        torch.testing.assert_close(weight.detach(), expected)


# Muon


def chain(*layers: nn.Module) -> nn.Module:
    """Put layers between a first and a last one that Muon leaves to AdamW."""
    return nn.Sequential(nn.Linear(2, 2), *layers, nn.Linear(2, 2))


def follow(model: nn.Module, config: Muon, num_steps: int = 3) -> list[nn.Parameter]:
    """Take steps along the same random gradients for each shape of matrix."""
    matrices = hidden_matrices(model)
    optimizer = make_optimizer(model, config)
    for step in range(num_steps):
        for parameter in matrices:
            noise = torch.Generator().manual_seed(step)
            flat = torch.randn(len(parameter), parameter[0].numel(), generator=noise)
            parameter.grad = flat.view(parameter.shape)
        optimizer.step()
    return matrices


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_orthogonalizing_keeps_singular_vectors_and_evens_out_their_values(
    rows: int, columns: int, seed: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=noise, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    result = left.mT @ orthogonalize(matrix[None])[0] @ right.mT
    torch.testing.assert_close(result, result.diagonal().diag(), rtol=0, atol=1e-6)
    clear = result.diagonal()[values > 0.02 * values.norm()]
    assert ((clear > 0.5) & (clear < 1.5)).all()


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
def test_muon_takes_the_steps_of_torch(shape: tuple[int, int]) -> None:
    """Torch's computes in bfloat16, so that its steps are right to two or three digits."""
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    before = layer.weight.detach().clone()
    theirs = nn.Parameter(before.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.05, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        theirs.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    (ours,) = follow(chain(layer), Muon(lr=0.05, momentum=0.9, weight_decay=0.1))
    moved, expected = (weight.detach() - before for weight in (ours, theirs))
    assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_counts_as_the_matrix_of_its_output_channels(
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(4, 6, 3), nn.Linear(36, 6)
    linear.weight.data = conv.weight.detach().flatten(1).clone()
    conv = conv.to(memory_format=memory_format)
    (kernel,), (matrix,) = (follow(chain(layer), Muon(lr=0.1)) for layer in (conv, linear))
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_matrices_of_one_shape_do_not_touch_one_another() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 3) for _ in range(3)]
    alone = [follow(chain(copy.deepcopy(layer)), Muon(lr=0.1))[0] for layer in layers]
    together = follow(chain(*layers), Muon(lr=0.1))
    torch.testing.assert_close(together, alone)


def test_muon_leaves_the_ends_and_what_is_no_matrix_to_adamw() -> None:
    model = nn.ModuleDict(
        {
            "first": nn.Conv2d(3, 8, 3),
            "norm": nn.BatchNorm2d(8),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "middle": nn.Conv2d(8, 8, 3),
            "frozen": nn.Linear(8, 8).requires_grad_(False),
            "places": nn.Embedding(4, 8),
            "attention": nn.MultiheadAttention(8, 2),
            "last": nn.Linear(8, 2),
        }
    )
    model.register_parameter("token", nn.Parameter(torch.zeros(1, 8)))
    chosen = {id(parameter) for parameter in hidden_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    assert names == {"middle.weight", "attention.in_proj_weight", "attention.out_proj.weight"}


def test_a_frozen_first_layer_leaves_the_second_to_muon() -> None:
    """A whitening stem, as in airbench, is not trained at all."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 2))
    model.get_submodule("0").requires_grad_(False)
    assert [id(p) for p in hidden_matrices(model)] == [id(model.get_parameter("1.weight"))]


def test_a_first_layer_that_is_a_buffer_leaves_all_kernels_to_muon() -> None:
    model = build_model(ModelConfig("speednet", {"width": 16, "stages": 2}), 4, (3, 8, 8))
    chosen = {id(parameter) for parameter in hidden_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    assert names == {f"stages.{stage}.conv{conv}.weight" for stage in (0, 1) for conv in (1, 2)}


def test_a_normalized_matrix_moves_by_the_rule_of_airbench() -> None:
    """Jordan's airbench94_muon sums gradients up where ours takes their moving average."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    layer.weight.data *= 7
    expected, momentum = layer.weight.detach().clone(), torch.zeros(3, 5)
    model = chain(layer)
    config = Muon(lr=0.1, momentum=0.6, normalized=True, iterations=3, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    for _ in range(3):
        layer.weight.grad = torch.randn(3, 5)
        optimizer.step()
        momentum = 0.6 * momentum + layer.weight.grad
        direction = layer.weight.grad + 0.6 * momentum
        expected *= 3**0.5 / expected.norm()
        expected -= 0.1 * orthogonalize(direction[None], iterations=3)[0]
        torch.testing.assert_close(layer.weight.detach(), expected)


def test_a_matrix_of_zeros_can_be_normalized() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    (weight,) = follow(chain(layer), NORMALIZED)
    assert weight.isfinite().all()
    assert weight.any()


@pytest.mark.parametrize(
    ("config", "alone"),
    [
        (Muon(adamw_lr=0.01, weight_decay=0.1), AdamW(lr=0.01, beta2=0.95, weight_decay=0.1)),
        (
            Muon(partner="sgd", sgd_lr=0.2, sgd_momentum=0.8, weight_decay=0.1),
            Sgd(lr=0.2, momentum=0.8, weight_decay=0.1),
        ),
        (
            Muon(partner="sgd", sgd_lr=0.2, sgd_momentum=0.0, weight_decay=0.1),
            Sgd(lr=0.2, momentum=0.0, nesterov=False, weight_decay=0.1),
        ),
    ],
)
def test_beside_muon_its_partner_takes_its_own_steps(config: Muon, alone: AnyOptimizer) -> None:
    ours, theirs = some_model(), some_model()
    optimizer = make_optimizer(ours, config)
    reference = make_optimizer(theirs, alone)
    assert not hidden_matrices(ours)
    for _ in range(3):
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            their.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("partner", ["adamw", "sgd"])
def test_biases_and_shifts_learn_at_their_factor_of_the_partners_rate(partner: str) -> None:
    plain = {"partner": partner, "sgd_lr": 0.2, "adamw_lr": 0.2, "bias_factor": 8.0}
    model = some_model()
    optimizer = make_optimizer(model, build(Muon, plain))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in model.named_parameters()} == {
        name: 1.6 if name.endswith("bias") else 0.2 for name, _ in model.named_parameters()
    }


# The schedule


@given(SCHEDULES, SHARES)
def test_a_learning_rate_is_a_share_of_its_peak(schedule: Schedule, progress: float) -> None:
    assert 0 <= lr_factor(schedule, progress) <= 1


@given(SCHEDULES)
def test_the_peak_is_at_the_end_of_the_warm_up(schedule: Schedule) -> None:
    assert lr_factor(schedule, schedule.warmup) == 1


@given(SCHEDULES)
def test_the_end_is_zero(schedule: Schedule) -> None:
    assert lr_factor(schedule, 1.0) == pytest.approx(0, abs=1e-12)


@given(SCHEDULES, SHARES, SHARES)
def test_it_rises_to_the_peak_and_falls_from_there(
    schedule: Schedule, one: float, other: float
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


@given(SCHEDULES, SHARES, SHARES)
def test_it_never_jumps(schedule: Schedule, one: float, other: float) -> None:
    ramps = [1 - schedule.warmup, schedule.warmup or 1.0]
    if isinstance(schedule, Trapezoid):
        ramps.append(schedule.cooldown * (1 - schedule.warmup))
    assume(min(ramps) > 1e-6)
    # Half a cosine is steepest in its middle, at pi / 2 times the slope of a straight line.
    steepest = math.pi / 2 / min(ramps)
    change = abs(lr_factor(schedule, one) - lr_factor(schedule, other))
    assert change <= steepest * abs(one - other) + 1e-9


@given(SHARES)
def test_without_warm_up_and_cool_down_a_trapezoid_is_constant(progress: float) -> None:
    assert lr_factor(Trapezoid(warmup=0, cooldown=0), progress) == 1


def test_a_trapezoid_agrees_with_the_straight_lines_of_torch() -> None:
    rising, level, falling = 40, 96, 64
    up = rates(lambda o: LinearLR(o, start_factor=1e-15, total_iters=rising), rising)
    down = rates(lambda o: LinearLR(o, start_factor=1, end_factor=0, total_iters=falling), falling)
    schedule = Trapezoid(warmup=0.2, cooldown=0.4)
    ours = [lr_factor(schedule, i / 200) for i in range(201)]
    assert ours == pytest.approx([*up, *[1.0] * level, *down[1:]], abs=1e-10)


@pytest.mark.parametrize("schedule", [Cosine(warmup=0), OneCycle(warmup=0), Trapezoid(warmup=0)])
def test_without_a_warm_up_the_first_step_has_the_peak(schedule: Schedule) -> None:
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


@pytest.mark.parametrize("on_device", [False, True])
def test_a_buffer_that_a_forward_replaces_is_followed(on_device: bool) -> None:
    model = some_model()
    average = WeightAverage(model, 0.0)
    model.get_submodule("1").running_mean = torch.full((4,), 3.0)
    if on_device:
        average.move(torch.tensor(1.0))
    else:
        for _ in range(400):
            average.update()
    torch.testing.assert_close(
        average.model.state_dict()["1.running_mean"], torch.full((4,), 3.0), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("is_averaged", [False, True], ids=["trained", "averaged"])
def test_a_weight_whose_data_a_forward_replaces_is_followed(
    is_averaged: bool, on_device: bool
) -> None:
    model = some_model()
    average = WeightAverage(model, 0.0)
    forwarded = average.model if is_averaged else model
    forwarded.get_parameter("3.weight").data = torch.full((2, 16), 3.0)
    if on_device:
        average.move(torch.tensor(1.0))
    else:
        average.update()
    torch.testing.assert_close(average.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (model.get_parameter("3.weight") == 3).all() == (not is_averaged)


@pytest.mark.parametrize("config", OPTIMIZERS)
def test_a_weight_may_begin_to_learn_after_others(config: AnyOptimizer) -> None:
    model = some_model()
    optimizer, late = make_optimizer(model, config), model.get_submodule("0")
    before = late.weight.detach().clone()
    for step in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if step == 0:
            late.weight.grad = late.bias.grad = None
        optimizer.step()
    assert not torch.equal(late.weight, before)


def test_a_momentum_of_zeros_leads_to_the_same_step() -> None:
    ours, theirs = some_model(), some_model()
    config = Sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    for optimizer, model in ((make_optimizer(ours, config), ours), (other, theirs)):
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for one, same in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, same)
