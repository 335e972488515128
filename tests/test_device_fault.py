import pytest
import torch

from tuner.tuning.ray_backend.device_fault import is_device_fault
from tuner.tuning.ray_backend.trainable import is_out_of_memory

HELP = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered{HELP}"),
        torch.AcceleratorError(f"CUDA error: device-side assert triggered{HELP}"),
        torch.AcceleratorError(f"CUDA error: unspecified launch failure{HELP}"),
        torch.AcceleratorError(
            "CUDA error: the remote procedural call between the MPS server and the MPS client "
            f"failed{HELP}"
        ),
        torch.AcceleratorError(
            f"CUDA error: the MPS client has been terminated by the server{HELP}"
        ),
        RuntimeError(
            "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
            "calling NumCudaDevices() that might have already set an error? Error 805: MPS client "
            "failed to connect to the MPS control daemon or the MPS server"
        ),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_a_process_cannot_recover_from_is_a_fault(error: Exception) -> None:
    assert is_device_fault(error)
    with pytest.raises(ValueError, match="while saving") as caught:
        raise ValueError("while saving") from error
    assert is_device_fault(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        torch.AcceleratorError(
            f"CUDA error: operation not permitted when stream is capturing{HELP}"
        ),
        torch.AcceleratorError(f"CUDA error: invalid argument{HELP}"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
        ValueError("misaligned address"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_leaves_the_process_usable_is_none(error: Exception) -> None:
    assert not is_device_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_want_of_memory_is_known_whoever_tells_it(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_fault(error)
