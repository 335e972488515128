import shutil
import warnings
from pathlib import Path

import pytest
import torch

from tuner.config import ModelConfig, TrialConfig
from tuner.data.splits import Splits
from tuner.training.compilation import COLD_SECONDS, CompilationCosts
from tuner.training.loop import train

CPU = torch.device("cpu")
CONFIG = TrialConfig(
    model=ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 8}), epochs=2, batch_size=32
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_a_compiled_training_learns_the_same(digits: Splits) -> None:
    plain = [epoch.figures for epoch in train(CONFIG, digits, CPU)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of its parts.
        compiled = list(train(CONFIG, digits, CPU, compile_mode="always"))
    assert compiled[0].execution == "compiled"
    for one, other in zip(plain, compiled, strict=True):
        assert other.figures.train_loss == pytest.approx(one.train_loss, rel=1e-2)
        assert other.figures.val_accuracy == pytest.approx(one.val_accuracy, abs=0.03)


def test_auto_compiles_nothing_on_a_cpu(digits: Splits) -> None:
    with_auto = list(train(CONFIG, digits, CPU, compile_mode="auto"))
    assert with_auto[-1].execution == "eager"


@pytest.fixture
def costs(tmp_path: Path) -> CompilationCosts:
    return CompilationCosts(tmp_path / "cache" / "costs.json", "small")


def test_an_unknown_shape_is_compiled_where_its_cost_is_hardly_noticed(
    costs: CompilationCosts,
) -> None:
    assert not costs.pay_off(0.01, seconds_left=COLD_SECONDS * 49)
    assert costs.pay_off(0.01, seconds_left=COLD_SECONDS * 51)


def test_other_shapes_tell_what_a_compilation_takes_on_this_node(
    costs: CompilationCosts, tmp_path: Path
) -> None:
    other = CompilationCosts(tmp_path / "cache" / "costs.json", "large")
    other.note_compilation(60.0)
    assert not costs.pay_off(0.01, seconds_left=60 * 49)
    assert costs.pay_off(0.01, seconds_left=60 * 51)


def test_a_known_shape_is_compiled_where_it_saves_more_than_it_takes(
    costs: CompilationCosts,
) -> None:
    costs.note_compilation(20.0)
    costs.note_compilation(1.0)
    costs.note_steps(plain=0.010, compiled=0.008)
    # A fifth of what is left after one second from the cache.
    assert not costs.pay_off(0.01, seconds_left=5.5)
    assert costs.pay_off(0.01, seconds_left=6.5)


def test_what_proved_slower_is_not_compiled_again(costs: CompilationCosts) -> None:
    costs.note_compilation(1.0)
    costs.note_steps(plain=0.010, compiled=0.011)
    assert not costs.pay_off(0.01, seconds_left=1e6)


def test_a_damaged_file_of_costs_counts_as_none(costs: CompilationCosts, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "costs.json"
    path.parent.mkdir()
    for text in ("{", "[]", '{"small": 3}', '{"small": {"cold_seconds": "x"}}', "null"):
        path.write_text(text)
        assert costs.pay_off(0.01, seconds_left=COLD_SECONDS * 51)
    costs.note_compilation(2.0)
    assert costs.pay_off(0.01, seconds_left=2 * 51)


def test_costs_that_cannot_be_written_are_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    costs = CompilationCosts(tmp_path / "cache" / "costs.json", "small")
    costs.note_compilation(1.0)
    costs.note_steps(plain=1.0, compiled=0.5)
    assert costs.pay_off(1.0, 50 * COLD_SECONDS)
    assert not costs.pay_off(1.0, 49 * COLD_SECONDS)
