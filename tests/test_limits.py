"""The limits of a space and the fit hook, where the search and the training meet the models."""

from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState as OptunaState
from torch import Tensor

from tuner.config import ModelConfig, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import UsageError
from tuner.models.cost import limit_violation
from tuner.models.speednet import SpeedNet
from tuner.space import load_space
from tuner.training.loop import predict_epoch_seconds, train
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.session import limit_violation_of

CPU = torch.device("cpu")
IMAGE = (3, 32, 32)
SPACE = """\
search: {trials: 8, epochs: 2, grace: 1}
constraints: {parameters: 5.0e4, flops: 1.0e8}
space:
  model:
    cnn: {stages: {int: [1, 3]}, blocks: {choice: [1, 2]}, width: {choice: [8, 16, 32]}}
"""


def sampler_of(folder: Path, *overrides: str) -> Sampler:
    (folder / "s.yaml").write_text(SPACE)
    space = load_space(folder / "s.yaml", overrides)
    return Sampler(
        space,
        space.search,
        limit_violation=lambda config: limit_violation(config.model, space.constraints, 10, IMAGE),
    )


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_what_exceeds_a_limit_is_drawn_again_and_counted(kind: str, tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path, f"search.sampler={kind}")
    for number in range(12):
        config = sampler.ask(number)
        assert config is not None
        assert not limit_violation(config.model, sampler.space.constraints, 10, IMAGE)
        sampler.tell(number, "failed", [])
    assert sampler.num_accepted == 12
    assert 0 < sampler.num_refused <= 6
    if kind == "grid":
        while sampler.ask(sampler.num_accepted):
            pass
        assert sampler.num_accepted + sampler.num_refused == sampler.space.cardinality()


def choosy(folder: Path, kind: str, num_values: int, num_kept: int, seed: int = 0) -> Sampler:
    """Return a sampler whose limits are kept by the smallest batch sizes alone."""
    text = f"space: {{model: cnn, batch_size: {{int: [1, {num_values}]}}}}\n"
    (folder / "s.yaml").write_text(text)
    space = load_space(folder / "s.yaml", [f"search.sampler={kind}", f"search.seed={seed}"])
    return Sampler(
        space,
        space.search,
        limit_violation=lambda config: "large batches" if config.batch_size > num_kept else "",
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_limits_that_few_configurations_keep_end_no_search(
    kind: str, seed: int, tmp_path: Path
) -> None:
    sampler = choosy(tmp_path, kind, num_values=120, num_kept=3, seed=seed)
    configs = [sampler.ask(number) for number in range(16)]
    assert {config.batch_size for config in configs if config} <= {1, 2, 3}
    assert len({config.seed for config in configs if config}) == 16


def test_a_grid_ends_after_what_keeps_its_limits_however_little_that_is(tmp_path: Path) -> None:
    sampler = choosy(tmp_path, "grid", num_values=1200, num_kept=1)
    config = sampler.ask(0)
    assert config is not None
    assert config.batch_size == 1
    assert sampler.ask(1) is None
    assert sampler.num_refused == 1199


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_a_baseline_is_drawn_until_it_keeps_the_limits(kind: str, tmp_path: Path) -> None:
    fitting = "{model: {cnn: {width: 16}}}"
    large = "{model: {cnn: {stages: 3, blocks: 2, width: 32}}}"
    # Whatever else is drawn, three stages of that width exceed the limit.
    never = "{model: {cnn: {stages: 3, width: 32}}}"
    for seed in range(8):
        sampler = sampler_of(
            tmp_path,
            f"search.sampler={kind}",
            f"search.seed={seed}",
            f"baseline=[{large}, {fitting}, {never}]",
        )
        configs = [sampler.ask(number) for number in range(6)]
        assert configs[0] is not None
        assert configs[0].model.params["width"] == 16
        assert sampler.untried.keys() == {0, 2}
        for reason in sampler.untried.values():
            assert reason.startswith("it has ")
            assert "above the limit" in reason
        assert sampler.num_accepted == 6


def test_a_crop_beyond_the_images_is_drawn_again_or_refused(tmp_path: Path, digits: Splits) -> None:
    (tmp_path / "s.yaml").write_text(SPACE + "  augment: {crop: {choice: [2, 8]}}\n")

    def crops(*overrides: str) -> set[int]:
        space = load_space(tmp_path / "s.yaml", overrides)
        violation = limit_violation_of(space, digits)
        sampler = Sampler(space, space.search, limit_violation=violation)
        return {sampler.ask(number).augment.crop for number in range(6)}

    assert crops() == {2}
    with pytest.raises(UsageError, match=r"^space.augment.crop: a crop with 8 .* 8x8; lower crop$"):
        crops("space.augment.crop=8")


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_limits_that_nothing_keeps_are_told(kind: str, tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path, "constraints.parameters=5", f"search.sampler={kind}")
    with pytest.raises(UsageError, match=r"hardly any .* above the limit of 5. Raise the limit"):
        sampler.ask(0)


def test_a_trial_stopped_before_its_first_epoch_is_the_worst_there_is(tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path)
    sampler.ask(0)
    sampler.tell(0, "stopped", [])
    (trial,) = sampler.study.get_trials(states=[OptunaState.PRUNED])
    assert not trial.intermediate_values


def test_a_network_is_fitted_once_and_not_when_a_training_goes_on(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    fit_to = SpeedNet.fit_to

    def watched(network: SpeedNet, images: Tensor) -> None:
        seen.append(images)
        fit_to(network, images)

    monkeypatch.setattr(SpeedNet, "fit_to", watched)
    model = ModelConfig("speednet", {"width": 8, "widening": 2.0})
    config = TrialConfig(model=model, epochs=3, batch_size=128)
    losses, state = [], {}
    for epoch in train(config, digits, CPU):
        losses.append(epoch.figures.val_loss)
        if epoch.figures.epoch == 2:
            state = {name: tensor.clone() for name, tensor in epoch.learner.state().items()}
    (images,) = seen
    assert images.shape == (len(digits.train), 1, 8, 8)
    assert abs(images.mean()) < 0.05
    last = next(train(config, digits, CPU, state=state, epochs_done=2))
    assert last.figures.val_loss == losses[2]
    assert len(seen) == 1


def test_the_length_of_an_epoch_is_foreseen_and_changes_no_numbers(digits: Splits) -> None:
    config = TrialConfig(model=ModelConfig("cnn", {"width": 8}), epochs=1, batch_size=64)
    plain = next(train(config, digits, CPU))
    seconds = predict_epoch_seconds(config, digits, CPU)
    assert 0.1 < seconds / plain.figures.seconds < 10
    assert next(train(config, digits, CPU)).figures.val_loss == plain.figures.val_loss
