"""PyTorch's defaults for new tensors, which the user's program may have changed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Make new tensors float32 and on the CPU in the block, as this package expects.

    ``torch.set_default_dtype`` and ``torch.set_default_device`` are restored afterwards.
    """
    dtype = torch.get_default_dtype()
    if dtype == torch.float32 and torch.get_default_device().type == "cpu":
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
