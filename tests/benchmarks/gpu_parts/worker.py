"""Trains in a process of its own, on commands from stdin; also works with older checkouts.

    python -P worker.py ARRAYS DEVICE

Each line on stdin is a command in JSON, and is answered by a line on stdout. ``prepare`` begins the
requested number of trainings and takes each through a warm-up epoch. ``epoch`` takes the first
training through another epoch. ``run`` takes some of them, each in a thread and on a stream of its
own, through epochs until a moment of the monotonic clock.

PYTHONPATH decides whose ``tuner`` is imported, so nothing else of this repository is imported.
"""

import contextlib
import dataclasses
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tuner.config import TrialConfig
from tuner.data.cache import Images
from tuner.data.splits import Splits

try:
    from tuner.train import Epoch, train  # Where it was up to commit a475a52.
except ModuleNotFoundError:
    from tuner.training.loop import Epoch, train


def load(path: str, device: torch.device) -> Splits:
    """Load the images onto the device."""
    arrays = np.load(path, allow_pickle=False)
    train_images, val_images = (
        Images(
            images=torch.from_numpy(arrays[f"{part}_images"]).to(device),
            labels=torch.from_numpy(arrays[f"{part}_labels"]).to(device),
        )
        for part in ("train", "val")
    )
    return Splits(
        train=train_images,
        val=val_images,
        classes=tuple(map(str, arrays["classes"])),
        mean=tuple(map(float, arrays["mean"])),
        std=tuple(map(float, arrays["std"])),
        fingerprint="",
        split_fingerprint="",
    )


def first(splits: Splits, num_train: int | None, num_val: int | None) -> Splits:
    """Return some images of each part, spread over the classes; all if the number is None.

    The images of a folder are sorted by class.
    """

    def part(images: Images, number: int | None) -> Images:
        if number is None or number >= len(images):
            return images
        index = torch.linspace(0, len(images) - 1, number).long().to(images.labels.device)
        return Images(images=images.images[index], labels=images.labels[index])

    return dataclasses.replace(
        splits, train=part(splits.train, num_train), val=part(splits.val, num_val)
    )


class Training:
    """One training on a stream of its own.

    Args:
        config: The training.
        splits: Its images, on the device.
        device: The device to train on.
        options: Further arguments of ``train``.
        follow: Called with each epoch; its time is included in the epoch's seconds.
    """

    def __init__(
        self,
        config: TrialConfig,
        splits: Splits,
        device: torch.device,
        options: dict[str, Any],
        follow: Callable[[Epoch], None] = lambda epoch: None,
    ) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            # The images were copied to the device on another stream.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._epochs = train(config, splits, device, **options)
        self._follow = follow
        self.images = len(splits.train)
        self.execution = ""

    def epoch(self) -> float:
        """Train one epoch; return its seconds."""
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            began = time.perf_counter()
            epoch = next(self._epochs)
            self._follow(epoch)
            if self._stream is not None:
                self._stream.synchronize()
            seconds = time.perf_counter() - began
        self.execution = getattr(epoch, "execution", "")
        return seconds

    def run(self, until: float, marks: list[tuple[float, int]]) -> None:
        """Train epochs until a moment has passed; append times and image counts to ``marks``."""
        done = 0
        marks.append((time.monotonic(), done))
        while marks[-1][0] < until:
            self.epoch()
            done += self.images
            marks.append((time.monotonic(), done))

    def close(self) -> None:
        """End the training."""
        self._epochs.close()


class Worker:
    """Answers commands."""

    def __init__(self, arrays: str, device: str) -> None:
        self._device = torch.device(device)
        self._splits = load(arrays, self._device)
        self._trainings: list[Training] = []

    def prepare(
        self,
        *,
        config: dict[str, Any],
        options: dict[str, Any],
        count: int = 1,
        num_train: int | None = None,
        num_val: int | None = None,
    ) -> dict[str, Any]:
        """Replace the trainings by ``count`` new ones, and warm up one after the other."""
        for training in self._trainings:
            training.close()
        self._trainings.clear()
        gc.collect()
        splits = first(self._splits, num_train, num_val)
        parsed = TrialConfig.from_dict(config)
        seconds = []
        for _ in range(count):
            training = Training(parsed, splits, self._device, options)
            seconds.append(training.epoch())
            self._trainings.append(training)
        return {"seconds": seconds, "execution": self._trainings[0].execution}

    def epoch(self) -> dict[str, Any]:
        """Train an epoch of the first training."""
        training = self._trainings[0]
        return {"seconds": training.epoch(), "images": training.images}

    def run(self, *, until: float, active: int = 1) -> dict[str, Any]:
        """Train the first ``active`` trainings side by side."""
        marks: list[list[tuple[float, int]]] = [[] for _ in range(active)]
        errors: list[str] = []

        def train_one(index: int) -> None:
            try:
                self._trainings[index].run(until, marks[index])
            except Exception:
                errors.append(traceback.format_exc())

        threads = [threading.Thread(target=train_one, args=(index,)) for index in range(active)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise RuntimeError(errors[0])
        return {"marks": marks}


def main() -> None:
    """Answer until stdin ends."""
    arrays, device = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # All other output goes to stderr.
    torch.set_num_threads(1)
    worker = Worker(arrays, device)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
