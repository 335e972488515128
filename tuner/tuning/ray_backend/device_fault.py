"""Errors after which a process can no longer use its GPU."""

from collections.abc import Iterator

FAULTS = (
    # CUDA runtime errors, as worded by cudaGetErrorString, for which the documentation says
    # that the process must be ended. By number: 214, 220, 226, 700, 702, 709, 710, 714 to 719, 721.
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected",
    "Invalid access of peer GPU memory over nvlink or a hardware error",
    "an illegal memory access was encountered",
    "the launch timed out and was terminated",
    "context is destroyed",
    "device-side assert triggered",
    "hardware stack error",
    "an illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "unspecified launch failure",
    "tensor memory not completely freed",
    # Multi-Process Service, 805 to 810: its server has ended or refuses this process.
    "MPS client failed to connect to the MPS control daemon or the MPS server",
    "the remote procedural call between the MPS server and the MPS client failed",
    "MPS server is not ready to accept new MPS client requests",
    "the hardware resources required to create MPS client have been exhausted",
    "the hardware resources required to support device connections have been exhausted",
    "the MPS client has been terminated by the server",
)


class DeviceFaultError(Exception):
    """This process can no longer use its GPU, through its own fault or a neighbour's."""


def is_device_fault(error: BaseException) -> bool:
    """Whether this process can no longer use its GPU.

    It is unknown which process caused the fault: under MPS, a fault of one client reaches all that
    use the same GPU.

    Args:
        error: Raised by code that used the GPU.
    """
    return any(map(_names_fault, _chain(error))) or _is_gpu_lost()


def _names_fault(error: BaseException) -> bool:
    # PyTorch raises AcceleratorError; Triton and the compiler a RuntimeError with the same text.
    return isinstance(error, RuntimeError) and any(fault in str(error) for fault in FAULTS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_gpu_lost() -> bool:
    """Ask CUDA, which repeats a fault at each call; cuBLAS and cuDNN only report that they fail."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return _names_fault(error)
    return False
