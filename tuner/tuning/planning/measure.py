"""Measures the cost of configurations, on as many slots at once as a search uses."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError as KilledError
from ray.exceptions import WorkerCrashedError

from tuner.config import TrialConfig
from tuner.data.splits import Splits
from tuner.errors import first_line
from tuner.run.layout import CHECKPOINT, STATE
from tuner.storage.paths import AnyPath, scratch, to_path
from tuner.training.device import device_for
from tuner.training.epoch import Epoch
from tuner.training.initial_weights import InitialWeights
from tuner.training.loop import PROBE_STEPS, probe_epochs
from tuner.training.saving import Saver
from tuner.tuning.ray_backend.payload import unpack, unpack_initial_weights
from tuner.tuning.ray_backend.trainable import free_memory, is_out_of_memory, limit_memory
from tuner.tuning.ray_backend.worker import NO_GPU
from tuner.tuning.resources import TrialResources

WINDOW_SECONDS = 1.0
"""Seconds of training steps followed by validation that are timed together in a longer epoch."""
WINDOWS = 4
"""Number of timed windows, after one for warm-up; their mean counts."""
WRITINGS = 3
"""Number of times that a trial's files are written; the mean time counts."""
PROC_STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The measured cost of one configuration."""

    config: TrialConfig
    resources: TrialResources
    start_seconds: float = 0.0
    """Seconds until a worker was ready, plus the extra time of a fresh worker's first steps."""
    spent_seconds: float = 0.0
    """Seconds that the worker spent on the measurement."""
    setup_seconds: float = 0.0
    """Seconds before the first epoch; for a configuration with a problem, all seconds spent."""
    epoch_seconds: float = 0.0
    """Seconds of an epoch of all images, including validation."""
    write_seconds: float = 0.0
    """Seconds of writing a trial's files while the training waits for them."""
    parameters: int = 0
    memory: int | None = None
    """Peak bytes of the GPU, or else of the process; ``None`` if the system does not report it."""
    checkpoint_bytes: int = 0
    state_bytes: int = 0
    """Size in bytes of the state that a trial resumes from, which exists while it runs."""
    problem: str = ""
    """Why it could not be trained; empty if it could."""


def measure_all(
    configs: Sequence[TrialConfig],
    resources_of: Callable[[TrialConfig], TrialResources],
    at_once: int,
    payload: dict[str, Any],
    folder: AnyPath,
    seconds: float,
    tell: Callable[[int], None],
    *,
    windows: int = WINDOWS,
) -> list[Measured | None]:
    """Measure configurations, each family in turn, until the time is up.

    As many run at once as trials would, because neighbours on a machine slow each other down. One
    of each family is measured, however long it takes.

    Args:
        configs: The configurations to measure.
        resources_of: Returns the resources of each.
        at_once: Number of trials at once.
        payload: ``data`` and ``initial_weights``, as ``train_trial`` takes them.
        folder: Where to write files as trials write theirs.
        seconds: Seconds after the first result in which more measurements may start.
        tell: Called with the number measured so far.
        windows: See ``measure``.

    Returns:
        The cost of each configuration; ``None`` for those that were not measured.
    """
    question: Callable[..., Any] = measure
    # Ray does this by itself for tasks declared with GPUs, but not for GPUs set by options(): the
    # process ends after each result and frees the memory that it holds.
    tasks = [ray.remote(max_retries=0, max_calls=calls)(question) for calls in (0, 1)]
    packed = {name: ray.put(value) for name, value in payload.items()}
    order = _by_turns(configs)
    needed = len({config.model.family for config in configs})
    found: list[Measured | None] = [None] * len(configs)
    pending: dict[Any, tuple[int, float]] = {}
    """Result to come -> index of its configuration, and when it was requested."""
    deadline = math.inf

    def collect() -> None:
        nonlocal deadline
        (promise,), _ = ray.wait(list(pending), num_returns=1)
        index, asked = pending.pop(promise)
        found[index] = _answer(promise, configs[index], resources_of(configs[index]), asked)
        tell(sum(measured is not None for measured in found))
        # Up to then workers were starting, which takes its own time.
        deadline = min(deadline, time.monotonic() + seconds)

    for place, index in enumerate(order):
        if time.monotonic() >= deadline and place >= needed:
            break
        given = resources_of(configs[index])
        promise = (
            tasks[given.gpus > 0]
            .options(num_cpus=given.cpus, num_gpus=given.gpus)
            .remote(configs[index].to_dict(), given, str(folder), windows=windows, **packed)
        )
        pending[promise] = index, time.monotonic()
        while len(pending) >= at_once:
            collect()
    while pending:
        collect()
    return found


def _answer(promise: Any, config: TrialConfig, resources: TrialResources, asked: float) -> Measured:
    try:
        measured: Measured = ray.get(promise)
    except (KilledError, WorkerCrashedError):
        # When a machine runs low on memory, Ray kills a worker and reports it at length.
        problem = "its worker was killed, most likely for lack of memory"
        return Measured(config=config, resources=resources, problem=problem)
    # By this clock alone: that of the worker's machine may differ by hours.
    waited = max(0.0, time.monotonic() - asked - measured.spent_seconds)
    return replace(measured, start_seconds=waited + measured.start_seconds)


def _by_turns(configs: Sequence[TrialConfig]) -> list[int]:
    """Order places so that each family has its first turn before any has its second."""
    turns: dict[str, int] = {}
    keys = []
    for index, config in enumerate(configs):
        turn = turns[config.model.family] = turns.get(config.model.family, -1) + 1
        keys.append((turn, index))
    return [index for _, index in sorted(keys)]


def measure(
    plain: dict[str, Any],
    resources: TrialResources,
    folder: str,
    *,
    data: dict[str, Any],
    initial_weights: dict[str, Any],
    windows: int = WINDOWS,
) -> Measured:
    """Measure one configuration in this process, as ``train_trial`` would train it.

    Args:
        plain: The configuration.
        resources: Its resources.
        folder: Where to write files.
        data: Result of ``pack``.
        initial_weights: Result of ``pack_initial_weights``.
        windows: Maximum number of timed windows, of about a second each.

    Returns:
        The cost; the wait for the worker is not in its ``start_seconds`` yet.
    """
    began = time.perf_counter()
    torch.set_num_threads(resources.threads)
    config = TrialConfig.from_dict(plain)
    problem = ""
    for micro_batches in (1, 2):
        free_memory()
        try:
            device = device_for(resources.gpus)
            if resources.gpus and device.type == "cpu":
                problem = f"on {platform.node()}, {NO_GPU}"
                break
            limit_memory(resources, device)
            splits = unpack(data, device)
            start = unpack_initial_weights(initial_weights, config.model)
            probe = _Probe(config, splits, device, start, micro_batches, windows)
            measured = probe.run(resources, began, to_path(folder))
            return replace(measured, spent_seconds=time.perf_counter() - began)
        except Exception as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
            if not is_out_of_memory(error):
                break
            problem = f"out of memory: {first_line(error)}"
    spent = time.perf_counter() - began
    return Measured(
        config=config,
        resources=resources,
        spent_seconds=spent,
        setup_seconds=spent,
        problem=problem,
    )


@dataclass(frozen=True, slots=True)
class _Probe:
    config: TrialConfig
    splits: Splits
    device: torch.device
    start: InitialWeights | None
    micro_batches: int
    windows: int

    def run(self, resources: TrialResources, began: float, folder: AnyPath) -> Measured:
        _reset_peak(self.device)
        num_trained = self.splits.num_trained
        whole = num_trained // min(self.config.batch_size, num_trained)
        with closing(self._epochs(PROBE_STEPS)) as epochs:
            next(epochs)
            first_setup = time.perf_counter() - began
            seconds = next(epochs).figures.seconds
        first_setup -= seconds * min(1.0, PROBE_STEPS / whole)
        steps = max(PROBE_STEPS, int(whole * min(1.0, WINDOW_SECONDS / seconds)))
        windows = max(1, round(self.windows * min(1.0, WINDOW_SECONDS * whole / (seconds * steps))))
        again = time.perf_counter()
        with closing(self._epochs(steps)) as epochs:
            warm = next(epochs)
            setup = time.perf_counter() - again - warm.figures.seconds * min(1.0, steps / whole)
            timed = []
            for epoch in islice(epochs, windows):
                timed.append(epoch.figures.seconds)
            # Not the median: what slows some steps here also slows some steps of the search.
            seconds = statistics.fmean(timed)
            sizes, writing = self._write(epoch, folder)
            return Measured(
                config=self.config,
                resources=resources,
                start_seconds=max(0.0, first_setup - setup),
                setup_seconds=max(0.0, setup),
                epoch_seconds=seconds,
                write_seconds=writing,
                parameters=epoch.num_parameters,
                memory=_peak(self.device),
                checkpoint_bytes=sizes[CHECKPOINT],
                state_bytes=sizes[STATE],
            )

    def _epochs(self, steps: int) -> Generator[Epoch]:
        return probe_epochs(
            self.config,
            self.splits,
            self.device,
            start=self.start,
            micro_batches=self.micro_batches,
            steps=steps,
        )

    def _write(self, epoch: Epoch, folder: AnyPath) -> tuple[dict[str, int], float]:
        """Write an epoch's files as a trial does; return their sizes in bytes and the seconds."""
        with scratch(folder, "epoch-") as path:
            times = []
            for _ in range(WRITINGS):
                began = time.perf_counter()
                with Saver(path, self.config.model, self.splits, []) as saver:
                    saver.save(epoch)
                times.append(time.perf_counter() - began)
            sizes = {file.name: len(file.read_bytes()) for file in path.iterdir()}
        return sizes, statistics.fmean(times)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")


def _peak(device: torch.device) -> int | None:
    """Return the peak memory since ``_reset_peak``, without shared memory such as the images."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not CLEAR.exists():
        return None
    sizes = dict(line.split(":", 1) for line in PROC_STATUS.read_text().splitlines())
    kilobytes = {key: int(sizes[key].split()[0]) for key in ("VmHWM", "RssShmem")}
    return 1024 * (kilobytes["VmHWM"] - kilobytes["RssShmem"])
