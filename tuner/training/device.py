"""Chooses the device to compute on, and the number type."""

import torch

from tuner.config import Precision
from tuner.errors import UsageError, first_line


def find_device(name: str = "auto") -> torch.device:
    """Return a device by name; ``auto`` is the first GPU that this process sees, or the CPU.

    A GPU includes its index: memory limits and streams of a device without one are refused.

    Raises:
        UsageError: If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # Refuses `meta`, whose tensors hold no numbers.
        return probe.device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"--device {name}: not usable here: {first_line(error)}") from None


def device_for(gpus: float) -> torch.device:
    """Return the device of a process that was given GPUs, or a share of one, or none.

    With Ray, a process without GPUs sees all those of its node, which others use.

    Args:
        gpus: Number of GPUs.
    """
    return find_device("auto" if gpus else "cpu")


def find_devices(name: str = "auto") -> list[torch.device]:
    """Return the devices with a name; ``auto`` is every GPU that this process sees, or the CPU.

    Raises:
        UsageError: If there is no such device here.
    """
    if name == "auto" and torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [find_device(name)]


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """Return the kind of device and the number type of a computation, as in ``cpu float32``."""
    is_on_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if is_on_gpu else device.type
    return f"{kind} {str(dtype).removeprefix('torch.')}"


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number type in which ``device`` multiplies under ``precision``.

    ``auto`` is bfloat16 on a GPU that supports it, and on a CPU that multiplies in it: with matrix
    tiles (AMX) the 290k-parameter CNN trains 2.7 times as fast, with AVX-512's vectors 1.9 times,
    the other families 1.3 to 2.1 times. A CPU without either emulates it at 0.09 times the speed.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = device.type == "cpu" and (
            torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        )
    return torch.bfloat16 if is_fast else torch.float32


def prediction_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number type in which ``device`` computes a finished network.

    A GPU uses that of the training, a CPU float32, the same on every machine.
    """
    return compute_dtype(precision, device) if device.type == "cuda" else torch.float32
