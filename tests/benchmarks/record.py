"""Run the speed record's public code next to ours, on the same images.

``airbench94_muon.py`` of https://github.com/KellerJordan/cifar10-airbench is not a part of this
project: the user supplies a copy. It runs unchanged and uncompiled in a process of its own, because
it sets global flags of PyTorch and looks for its images below the working directory.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import torch

from tuner.data.cache import Images

SCRIPT = "airbench94_muon.py"
ROOT = Path(__file__).parents[2]


class Record:
    """The process of the record's code, which trains once per ``run``.

    Args:
        folder: The user's copy, with ``airbench94_muon.py`` in it.
        train: Training images.
        test: Images for the accuracies.
        classes: Names of the classes.
        device: ``cuda``, because the script supports no other device.
    """

    def __init__(
        self,
        folder: Path,
        train: Images,
        test: Images,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> None:
        self._script = (folder / SCRIPT).resolve(strict=True)
        self._device = device
        self._folder = tempfile.TemporaryDirectory()
        place = Path(self._folder.name) / "cifar10"
        place.mkdir()
        for name, images in (("train", train), ("test", test)):
            _write(place / f"{name}.pt", images, classes)

    def __enter__(self) -> Self:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.record", self._script, str(self._device)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._folder.name,
            env=os.environ | {"PYTHONPATH": path, "TORCHDYNAMO_DISABLE": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._process:
            if error is not None:
                self._process.kill()
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._folder.cleanup()

    def run(self, seed: int) -> dict[str, Any]:
        """Train once; return ``epochs``, ``seconds``, ``test_accuracy`` and ``test_accuracy_tta``.

        ``seconds`` are the script's own, of training without its evaluations; ``wall_seconds`` are
        those of the whole run.

        Raises:
            RuntimeError: If the process has ended; its error is on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A process that has ended closes its pipe; its missing answer is reported below.
        with contextlib.suppress(BrokenPipeError):
            print(seed, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._script} failed; its error stands above")
        found: dict[str, Any] = json.loads(line)
        return found


def _write(path: Path, images: Images, classes: tuple[str, ...]) -> None:
    # In random order: the script whitens by its first images, and ours are sorted by class.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    torch.save(
        {
            "images": images.images[order].permute(0, 2, 3, 1).contiguous(),
            "labels": images.labels[order],
            "classes": list(classes),
        },
        path,
    )


def serve(script: Path, device: torch.device) -> None:
    """Load the script, warm it up, and train once for each seed on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    # The script's own output goes to standard error.
    os.dup2(2, 1)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # The script says "cuda" throughout.
    module = _load(script)
    model = module.CifarNet().to(device).to(memory_format=torch.channels_last)
    rows: list[dict[str, Any]] = []

    def collect(figures: Mapping[str, Any], is_final_entry: bool) -> None:
        rows.append({key: figures[key] for key in ("epoch", "val_acc", "time_seconds")})

    # The script passes all its figures to this function, which rounds and prints them.
    module.print_training_details = collect  # type: ignore[attr-defined]
    module.main("warmup", model)
    for line in sys.stdin:
        rows.clear()
        torch.manual_seed(int(line))
        began = time.perf_counter()
        with_tta = module.main(int(line), model)
        wall = time.perf_counter() - began
        trained = [row for row in rows if row["epoch"] != "eval"]
        found = {
            "epochs": len(trained),
            "seconds": trained[-1]["time_seconds"],
            "wall_seconds": wall,
            "test_accuracy": trained[-1]["val_acc"],
            "test_accuracy_tta": with_tta,
        }
        print(json.dumps(found), file=answers, flush=True)


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(Path(sys.argv[1]), torch.device(sys.argv[2]))
