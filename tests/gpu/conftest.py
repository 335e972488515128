"""What the tests on a GPU share. Without a GPU they are skipped."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.trainings import clear

# Read by cuBLAS when its first handle is made; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder.

    Warnings are no errors here: PyTorch warns of algorithms that are not deterministic, and of
    optimizers that could be captured and take a step that is not.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Compute with deterministic algorithms where there are any.

    The kernels of pooling that warn are those for windows that overlap, which none here does.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    """Leave the GPU's memory to the next test."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        clear()
