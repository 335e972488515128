"""A device is found, or refused with the reason; the number type follows the config's word."""

import pytest
import torch

from tuner.config import Precision
from tuner.errors import UsageError
from tuner.training.device import compute_dtype, device_for, find_device, find_devices


def test_auto_is_the_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device().type == find_device("auto").type == expected


def test_the_cpu_is_found_by_its_name() -> None:
    assert find_device("cpu") == torch.device("cpu")


def test_a_process_without_gpus_computes_on_the_cpu_whatever_it_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_for(0.0) == torch.device("cpu")
    assert device_for(0.25) == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "hpu", "meta", "cpu:x", "Auto", ""])
def test_a_device_that_cannot_compute_here_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(name)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.startswith(f"--device {name}: ")
    assert "\n" not in message


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_precision_by_name_holds_on_every_device(
    precision: Precision, dtype: torch.dtype, device: str
) -> None:
    assert compute_dtype(precision, torch.device(device)) == dtype


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("vectors", [False, True])
def test_auto_is_bfloat16_on_a_cpu_that_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, vectors: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    expected = torch.bfloat16 if tiles or vectors else torch.float32
    assert compute_dtype("auto", torch.device("cpu")) == expected


def test_auto_is_float32_on_a_device_of_unknown_speed() -> None:
    assert compute_dtype("auto", torch.device("mps")) == torch.float32


def test_auto_is_every_gpu_or_the_cpu() -> None:
    count = torch.cuda.device_count()
    expected = [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    assert find_devices() == expected
    assert find_devices("cpu") == [torch.device("cpu")]
    with pytest.raises(UsageError, match="--device"):
        find_devices("abacus")
