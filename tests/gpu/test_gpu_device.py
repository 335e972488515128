"""Devices, limits of memory, waits for the host, and what a training leaves behind."""

import gc
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.gpu.trainings import clear, config_of, first
from tuner.augment import augment_batch
from tuner.config import Augment, ModelConfig, Sgd
from tuner.data.splits import Splits
from tuner.metrics.predict import predict_probs
from tuner.models.build import build_model
from tuner.training.device import compute_dtype, find_device, find_devices
from tuner.training.loop import train
from tuner.tuning.ray_backend import trainable
from tuner.tuning.ray_backend.trainable import limit_memory
from tuner.tuning.resources import TrialResources

EVERYTHING = Augment(
    crop=2,
    flip=True,
    policy="randaugment",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    cutout=4,
    erasing=0.5,
    mixup=0.4,
    cutmix=1.0,
)
MIB = 2**20


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_gpu_is_found_with_its_number(name: str) -> None:
    assert find_device(name) == torch.device("cuda", 0)


def test_every_gpu_is_found_with_its_number() -> None:
    found = find_devices()
    assert [device.index for device in found] == list(range(torch.cuda.device_count()))


def test_auto_is_a_type_that_it_multiplies_in(device: torch.device) -> None:
    dtype = compute_dtype("auto", device)
    square = torch.eye(16, device=device, dtype=dtype)
    assert torch.equal(square @ square, square)


@pytest.fixture
def unlimited() -> Any:
    """Take a limit back after the test."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, torch.device("cuda", 0))


def test_a_trial_gets_no_more_memory_than_its_share(unlimited: None) -> None:
    device = find_device()
    limit_memory(TrialResources(cpus=1, gpus=0.25), device)
    total = torch.cuda.get_device_properties(device).total_memory
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(0.3 * total), dtype=torch.uint8, device=device)
    limit_memory(TrialResources(cpus=1, gpus=1), device)
    torch.empty(int(0.3 * total), dtype=torch.uint8, device=device)


@pytest.mark.parametrize("settings", [EVERYTHING, replace(EVERYTHING, policy="trivialaugment")])
def test_a_batch_is_augmented_without_a_wait_for_the_host(
    device: torch.device, settings: Augment
) -> None:
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.arange(16, device=device)
    mean = torch.full((1, 3, 1, 1), 0.5, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for mode in ("default", "error"):
        # The first batch brings the tables of magnitudes to the device.
        torch.cuda.set_sync_debug_mode(mode)
        try:
            result, targets = augment_batch(
                images,
                labels,
                settings=settings,
                num_classes=16,
                mean=mean,
                std=mean,
                generator=generator,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert result.device == targets.device == device


@pytest.mark.parametrize("capture_mode", ["auto", "never"])
@pytest.mark.parametrize(
    "changes", [{"augment": EVERYTHING}, {"clip_norm": 1.0, "augment": Augment(alternate=True)}]
)
def test_more_steps_wait_no_more_often_for_the_host(
    digits: Splits, device: torch.device, capture_mode: str, changes: dict[str, Any]
) -> None:
    splits = first(digits, 1280, device)

    def num_waits(batch_size: int) -> int:
        config = config_of(batch_size=batch_size, **changes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                list(train(config, splits, device, capture_mode=capture_mode))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        # The mode itself says once that it may miss some "synchronizing operations".
        return sum("called a synchronizing" in str(warning.message) for warning in caught)

    num_waits(128)
    # 10, 20 and 80 steps an epoch.
    counts = [num_waits(size) for size in (128, 64, 16)]
    assert max(counts) - min(counts) <= 2, counts


def test_validation_on_a_gpu_gives_the_probabilities_of_a_cpu(
    digits: Splits, device: torch.device
) -> None:
    cpu = torch.device("cpu")
    network = build_model(config_of().model, 10, digits.image_shape)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (digits.mean, digits.std))
    images = digits.val.images
    here = predict_probs(network, images, mean, std, device=cpu, tta="flip+shift")
    there = predict_probs(network.to(device), images, mean, std, device=device, tta="flip+shift")
    assert there.device == cpu
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-2)


def test_it_learns_the_digits(digits: Splits, device: torch.device) -> None:
    params = {"stages": 2, "blocks": 1, "width": 16, "dropout": 0.1}
    config = config_of(ModelConfig("cnn", params), epochs=4, batch_size=32, optimizer=Sgd(lr=0.2))
    *_, last = train(config, digits, device)
    assert last.figures.val_accuracy > 0.9
    assert last.val_probs.device.type == "cpu"
    assert {parameter.device for parameter in last.network.parameters()} == {device}


def test_trainings_leave_no_memory_behind(digits: Splits, device: torch.device) -> None:
    """But for cuBLAS's workspaces, which ``free_memory`` gives back before the next trial."""
    splits = first(digits, 640, device)

    def held() -> int:
        gc.collect()
        clear()
        return torch.cuda.memory_allocated(device)

    list(train(config_of(), splits, device))
    before = held()
    for _ in range(3):
        list(train(config_of(), splits, device))
    begun = train(config_of(), splits, device)
    next(begun)
    begun.close()
    del begun
    assert held() <= before + MIB


def test_a_batch_that_does_not_fit_is_trained_on_in_two_parts(
    digits: Splits, device: torch.device, unlimited: None
) -> None:
    """The limit lies between what a step takes in one part and in two."""
    model = ModelConfig("cnn", {"stages": 1, "blocks": 8, "width": 512})
    config = config_of(model, batch_size=1024, epochs=1)
    splits = first(digits, 1024, device)

    def measure(micro_batches: int) -> tuple[int, int]:
        trainable.free_memory()
        torch.cuda.reset_peak_memory_stats(device)
        list(train(config, splits, device, micro_batches=micro_batches))
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)

    # The first time, cuDNN takes as much memory as it gets to try its algorithms.
    for micro_batches in (1, 2):
        measure(micro_batches)
    (needed, _), (_, enough) = measure(1), measure(2)
    assert enough < needed
    total = torch.cuda.get_device_properties(device).total_memory
    trainable.free_memory()
    limit_memory(TrialResources(cpus=1, gpus=(enough + needed) / 2 / total), device)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        list(train(config, splits, device))
    assert trainable.is_out_of_memory(caught.value)
    del caught
    trainable.free_memory()
    (epoch,) = train(config, splits, device, micro_batches=2)
    assert epoch.is_finite
