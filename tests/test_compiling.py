import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from tuner import compiling
from tuner.compiling import Forward
from tuner.config import Augment, ModelConfig, TrialConfig
from tuner.data import Splits
from tuner.models import build_model
from tuner.train import train

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
        compiled = [e.figures for e in train(CONFIG, digits, CPU, compile_mode="always")]
    for one, other in zip(plain, compiled, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-2)
        assert other.val_accuracy == pytest.approx(one.val_accuracy, abs=0.03)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the modes of what is compiled, without compiling it."""
    modes: list[str] = []

    def note(network: torch.nn.Module, *, mode: str, dynamic: bool) -> torch.nn.Sequential:
        assert not dynamic
        modes.append(mode)
        return torch.nn.Sequential(network)

    monkeypatch.setattr(torch, "compile", note)
    monkeypatch.setattr(compiling, "_known", set())
    return modes


def forward_on(kind: str, num_parts: int = 1, mode: compiling.CompileMode = "auto") -> Forward:
    network = build_model(CONFIG.model, 10, (1, 8, 8))
    return Forward(network, CONFIG, torch.device(kind), mode, num_parts)


def test_a_network_is_compiled_once_and_when_it_pays(compilations: list[str]) -> None:
    forward = forward_on("cuda")
    forward.consider(seconds_left=100)
    assert compilations == []
    forward.consider(seconds_left=1000)
    forward.consider(seconds_left=1000)
    assert compilations == ["reduce-overhead"]


def test_what_was_compiled_before_pays_sooner(compilations: list[str]) -> None:
    forward_on("cuda").consider(seconds_left=1000)
    forward_on("cuda").consider(seconds_left=100)
    assert len(compilations) == 2


def test_parts_of_a_batch_go_without_graphs(compilations: list[str]) -> None:
    forward_on("cuda", num_parts=2).consider(seconds_left=1000)
    assert compilations == ["default"]


def test_a_cpu_compiles_only_when_told(compilations: list[str]) -> None:
    forward_on("cpu").consider(seconds_left=1e6)
    assert compilations == []
    forward_on("cpu", mode="always")
    assert compilations == ["default"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_steps_never_wait_for_the_host(digits: Splits) -> None:
    config = replace(CONFIG, augment=Augment(crop=1, flip=True, cutout=2, mixup=0.2))

    def num_waits(batch_size: int) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                list(train(replace(config, batch_size=batch_size), digits, torch.device("cuda")))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    # Four times as many steps wait as often: between epochs alone.
    assert num_waits(32) == num_waits(128)
