"""Images per second of each family: captured, eager, an earlier checkout's and the bare step.

All ways of a network take turns, an epoch each. The captured ways train epochs of all images, the
eager ones of the images of the first ``EAGER_STEPS`` steps. Each epoch ends with a validation on a
few images; in the way "saved" it is on all of them, and the trial is saved as in the product. The
bare step is the captured graph replayed without anything around it. Ratios are computed within a
round.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings, ratios, spread
from tests.benchmarks.gpu_parts.cases import CASES, EPOCHS, TINY, Case
from tests.benchmarks.gpu_parts.images import load
from tests.benchmarks.gpu_parts.worker import Training, first
from tests.benchmarks.gpu_parts.workers import WorkerError, WorkerProcess
from tuner.augment import normalize
from tuner.config import TrialConfig
from tuner.data.splits import Splits
from tuner.models.build import FitsImages, build_model
from tuner.optim import WeightAverage, make_optimizer
from tuner.training.device import compute_dtype, find_device
from tuner.training.device_step import DeviceSteps
from tuner.training.learner import Learner
from tuner.training.loop import FIT_IMAGES, Epoch
from tuner.training.saving import Saver
from tuner.training.step import Task

FEW_VAL = 64
EAGER_STEPS = 128
BARE_STEPS = 128
MOST_ROUNDS = 5
RESERVE_SECONDS = 4.0
"""Seconds reserved for the end of the last network's round."""
READY_SECONDS = 120.0
SHARE_OF_BARE = 0.95
SHARE_SAVED = 0.9


def run(settings: Settings, report: Report) -> None:
    """Measure each network for its share of the time, at least one round."""
    torch.set_num_threads(1)  # As in a trial, unless it is given more CPUs.
    device = find_device(settings.device)
    cases = TINY if settings.is_tiny else CASES
    report.figures = {"cases": {}, "problems": {}, "device": describe(device)}
    with contextlib.ExitStack() as stack:
        before = None
        if settings.before:
            worker = WorkerProcess(settings, "before", Path(settings.before).resolve())
            before = stack.enter_context(worker)
        splits = on_device(load(settings), device)
        if before is not None:
            try:
                before.wait_until_ready(READY_SECONDS)
            except WorkerError as error:
                report.figures["problems"]["before"] = str(error)
                before = None
        for index, (name, case) in enumerate(cases.items()):
            share = (settings.seconds_left - RESERVE_SECONDS) / (len(cases) - index)
            folder = Path(settings.scratch) / f"trial-{index}"
            folder.mkdir()
            model = TrialConfig.from_dict(case.config(EPOCHS)).model
            try:
                with Saver(folder, model, splits, []) as saver:

                    def save(epoch: Epoch, saver: Saver = saver) -> None:
                        saver.keep(epoch)
                        saver.save_if_due()

                    end = time.monotonic() + share
                    _measure(name, case, splits, device, before, save, end, report)
            except Exception as error:
                report.figures["problems"][name] = f"{type(error).__name__}: {error}"[-1500:]
                report.write()


def describe(device: torch.device) -> str:
    """Return the device's name and the version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"


def on_device(splits: Splits, device: torch.device) -> Splits:
    """Copy the images to the device."""
    from tuner.tuning.ray_backend.payload import pack, unpack

    return unpack(pack(splits), device)


def _measure(
    name: str,
    case: Case,
    splits: Splits,
    device: torch.device,
    before: WorkerProcess | None,
    follow: Callable[[Epoch], None],
    end: float,
    report: Report,
) -> None:
    num_train = len(splits.train)
    num_eager = min(num_train, EAGER_STEPS * case.batch_size)
    config = TrialConfig.from_dict(case.config(EPOCHS))
    few = first(splits, None, FEW_VAL)
    ways = {
        "captured": Training(config, few, device, {}),
        "saved": Training(config, splits, device, {}, follow),
        "eager": Training(config, first(splits, num_eager, FEW_VAL), device, _never_captured()),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    entry = {"batch_size": case.batch_size, "target": case.target, "rates": rates}
    report.figures["cases"][name] = entry
    bare = None
    try:
        for training in ways.values():
            training.epoch()
        entry["execution"] = ways["captured"].execution
        if device.type == "cuda":
            bare = bare_rates(config, few, device)
            next(bare)
            rates["bare"] = []
        if before is not None:
            before.ask(
                "prepare",
                READY_SECONDS,
                config=case.config(EPOCHS),
                options={},
                num_train=num_eager,
                num_val=FEW_VAL,
            )
            rates["before"] = []
        took = 0.0
        for _ in range(MOST_ROUNDS):
            began = time.monotonic()
            if took and began + took > end:
                break
            for way, training in ways.items():
                rates[way].append(training.images / training.epoch())
            if bare is not None:
                rates["bare"].append(next(bare))
            if before is not None:
                answer = before.ask("epoch", READY_SECONDS)
                rates["before"].append(answer["images"] / answer["seconds"])
            report.write()
            took = time.monotonic() - began
    finally:
        for training in ways.values():
            training.close()
        if bare is not None:
            bare.close()


def _never_captured() -> dict[str, str]:
    return {"capture_mode": "never"}


def bare_rates(config: TrialConfig, splits: Splits, device: torch.device) -> Iterator[float]:
    """Yield images per second of the captured step, replayed with nothing around it.

    The first value only warms up.

    Raises:
        RuntimeError: If the step cannot be captured.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1)
        for values in (splits.mean, splits.std)
    )
    network = build_model(config.model, splits.num_classes, splits.image_shape)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    images = splits.train.images
    if isinstance(network, FitsImages):
        network.fit_to(normalize(images[:: -(-len(images) // FIT_IMAGES)], mean, std))
    learner = Learner(
        network=network,
        average=WeightAverage(network, config.ema_decay),
        optimizer=make_optimizer(network, config.optimizer),
        generator=generator,
    )
    task = Task(
        config=config,
        learner=learner,
        images=images,
        labels=splits.train.labels,
        num_classes=splits.num_classes,
        mean=mean,
        std=std,
        num_parts=config.micro_batches,
        dtype=compute_dtype(config.precision, device),
    )
    steps = DeviceSteps(task)
    steps.run(1)
    if steps._graph is None:
        raise RuntimeError(f"the step was not captured: {steps.execution}")
    count = min(BARE_STEPS, steps.per_epoch)
    yield 0.0
    while True:
        with steps.on_stream():
            # Back to the first batch: no step may go past the last one.
            steps._start_epoch(1)
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            for _ in range(count):
                steps._graph.replay()
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
        yield count * steps.batch_size / seconds


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of one row per network."""
    rows = []
    for name, entry in figures["cases"].items():
        rates = entry["rates"]
        rows.append(
            (
                f"{name} {entry['batch_size']}",
                *(spread(rates.get(way, [])) for way in ("before", "eager", "captured", "bare")),
                spread(ratios(rates["captured"], _today(rates)), 2),
                spread(ratios(rates["captured"], rates.get("bare", [])), 3),
                spread(ratios(rates["saved"], rates.get("bare", [])), 3),
                entry.get("execution", ""),
            )
        )
    notes = [f"{name}: {why.splitlines()[-1]}" for name, why in figures["problems"].items()]
    title = "\n".join([f"Images a second of training, {figures['device']}", *notes])
    headings = (
        *("network, batch", "earlier checkout", "eager", "captured", "bare step"),
        *("captured / earlier", "captured / bare", "saved / bare", "how"),
    )
    return [Rows(title=title, headings=headings, rows=rows)]


def _today(rates: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Return the rates of the earlier checkout, or else our own eager ones."""
    return rates.get("before") or rates["eager"]


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Compare each network with its targets."""
    judged = []
    for name, entry in figures["cases"].items():
        rates = entry["rates"]
        earlier = "the earlier checkout" if rates.get("before") else "eager"
        bare = rates.get("bare", [])
        for what, found, target in (
            (f"captured over {earlier}", ratios(rates["captured"], _today(rates)), entry["target"]),
            ("train() over the bare step", ratios(rates["captured"], bare), SHARE_OF_BARE),
            ("the same, validated and saved", ratios(rates["saved"], bare), SHARE_SAVED),
        ):
            if found:
                value = statistics.median(found)
                judged.append(Judged(what=f"{name}: {what}", value=value, target=target))
    return judged
