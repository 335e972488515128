"""The processes that probes and trials train in, one after the other."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from tuner.config import ModelConfig, TrialConfig
from tuner.schema import to_json
from tuner.storage.patience import Patience
from tuner.tuning.planning import measure as probe
from tuner.tuning.planning.measure import Measured, measure_all
from tuner.tuning.ray_backend import trainable
from tuner.tuning.ray_backend.trainable import limit_memory
from tuner.tuning.resources import TrialResources


@pytest.fixture(scope="module")
def gpu_session() -> Iterator[None]:
    ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize(("gpus", "processes"), [(0.0, 1), (0.5, 2)])
def test_a_process_that_has_held_a_gpu_measures_once(
    gpu_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    processes: int,
) -> None:
    def tell_process(
        plain: dict[str, Any], resources: TrialResources, *unused: Any, **none: Any
    ) -> Measured:
        config = TrialConfig.from_dict(plain)
        return Measured(config=config, resources=resources, problem=str(os.getpid()))

    monkeypatch.setattr(probe, "measure", tell_process)
    configs = [TrialConfig(model=ModelConfig("cnn"), epochs=1)] * 2
    share = TrialResources(cpus=1, gpus=gpus)
    found = measure_all(configs, lambda config: share, 1, {}, tmp_path, 60, lambda number: None)
    assert len({measured.problem for measured in found if measured}) == processes


def test_a_trial_on_a_whole_gpu_is_rid_of_the_limit_of_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part, device: limits.append(part)
    )
    for gpus in (0.5, 1.0, 2.0):
        limit_memory(TrialResources(cpus=1, gpus=gpus), torch.device("cuda"))
        limit_memory(TrialResources(cpus=1, gpus=gpus), torch.device("cpu"))
    assert limits == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(("ago", "expected"), [(10.0, 5.0), (0.0, 2.0)])
def test_the_wait_for_a_worker_is_timed_by_the_clock_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, ago: float, expected: float
) -> None:
    config, share = TrialConfig(model=ModelConfig("cnn"), epochs=1), TrialResources(cpus=1, gpus=0)
    measured = Measured(config=config, resources=share, start_seconds=2.0, spent_seconds=7.0)
    monkeypatch.setattr(ray, "get", lambda promise: promise)
    found = probe._answer(measured, config, share, time.monotonic() - ago)
    assert found.start_seconds == pytest.approx(expected, abs=0.5)


def test_who_is_given_no_gpu_trains_on_the_cpu_whatever_the_process_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device] = []

    def unpack(data: dict[str, Any], device: torch.device) -> None:
        devices.append(device)
        raise ValueError("that is enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in (probe, trainable):
        monkeypatch.setattr(module, "free_memory", lambda: None)
        monkeypatch.setattr(module, "unpack", unpack)
    config, share = TrialConfig(model=ModelConfig("cnn"), epochs=1), TrialResources(cpus=1, gpus=0)
    probe.measure(config.to_dict(), share, str(tmp_path), data={}, initial_weights={})
    params = {"path": str(tmp_path), "config": to_json(config), "cpus": 1.0, "gpus": 0.0}
    params |= {"number": 0, "attempt": 1, "known": 0, "halved_from": None, "is_measured": True}
    reader: Any = SimpleNamespace(look=lambda: SimpleNamespace(is_ending=False))
    patience = Patience(tmp_path, lambda line: None)
    trainable._train_trial(params, reader, patience, data={}, initial_weights={})
    assert devices == [torch.device("cpu")] * 2


def test_a_gpu_that_pytorch_cannot_use_is_no_reason_to_measure_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, share = TrialConfig(model=ModelConfig("cnn"), epochs=1), TrialResources(cpus=1, gpus=1)
    found = probe.measure(config.to_dict(), share, str(tmp_path), data={}, initial_weights={})
    assert "PyTorch finds no GPU" in found.problem
