"""The share of slot time that trials spend in epochs, with saving as in the product.

Searches one trial at a time on one GPU, with trials of about 5 s and, if the time allows, 30 s. The
time of a slot is from the first epoch of its first trial to the last epoch of its last trial.
"""

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings
from tests.benchmarks.gpu_parts.cases import CASES, EPOCHS, TINY
from tests.benchmarks.gpu_parts.images import load
from tests.benchmarks.gpu_parts.searching import search
from tests.benchmarks.gpu_parts.steps import bare_rates, on_device
from tests.benchmarks.gpu_parts.worker import Training
from tuner.config import TrialConfig
from tuner.training.device import find_device

TARGETS = {"5": 0.90, "30": 0.97}
"""Seconds of a trial -> minimum share of slot time in epochs."""
OF_BARE = 0.9
NUM_TRIALS = {"5": 4, "30": 2}
START_SECONDS = 20.0
"""Seconds of a search in addition to its trials."""
SPACE = """
description: Trials of one length
search: {{trials: {trials}, epochs: {epochs}, sampler: random, scheduler: none}}
space:
  batch_size: {batch_size}
  model: {model}
  optimizer: {{sgd: {{lr: {{float: [0.01, 0.02], log: true}}}}}}
  augment: {{crop: {crop}, flip: true}}
"""


def run(settings: Settings, report: Report) -> None:
    """Measure an epoch alone and the bare step, then run the searches."""
    case = (TINY if settings.is_tiny else CASES)["cnn"]
    device = find_device(settings.device)
    splits = on_device(load(settings), device)
    training = Training(TrialConfig.from_dict(case.config(EPOCHS)), splits, device, {})
    with contextlib.closing(training):
        training.epoch()
        epoch_seconds = statistics.median(training.epoch() for _ in range(3))
    report.figures = {"epoch_seconds": epoch_seconds, "images": len(splits.train), "searches": {}}
    if device.type == "cuda":
        rates = bare_rates(TrialConfig.from_dict(case.config(EPOCHS)), splits, device)
        next(rates)
        report.figures["bare"] = statistics.median(next(rates) for _ in range(3))
        rates.close()
        torch.cuda.empty_cache()
    report.write()
    for seconds, trials in NUM_TRIALS.items():
        needed = START_SECONDS + trials * float(seconds)
        if not settings.is_tiny and settings.seconds_left < needed:
            report.figures.setdefault("left_out", {})[seconds] = (
                f"needs {needed:.0f} s, {settings.seconds_left:.0f} s are left"
            )
            report.write()
            continue
        epochs = 2 if settings.is_tiny else max(1, round(float(seconds) / epoch_seconds))
        space = Path(settings.scratch) / f"trials-{seconds}.yaml"
        space.write_text(
            SPACE.format(
                trials=trials,
                epochs=epochs,
                batch_size=case.batch_size,
                model=case.model,
                crop=4 if splits.image_shape[1] >= 16 else 1,
            )
        )
        gpus = "0" if device.type == "cpu" else "1"
        found = search(
            settings,
            *(str(space), f"trials-{seconds}", "--gpus-per-trial", gpus),
            *("--concurrent", "1"),
        )
        report.figures["searches"][seconds] = found | {"epochs_a_trial": epochs}
        report.write()


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of one row per length of trials."""
    rows = []
    for seconds, found in figures["searches"].items():
        gaps = found["turnovers"]
        rows.append(
            (
                f"about {seconds} s",
                str(found["trials"]),
                str(found["epochs_a_trial"]),
                f"{statistics.median(found['trial_seconds']):.1f}",
                f"{statistics.median(gaps):.2f}" if gaps else "-",
                f"{found['share']:.1%}",
                f"{_rate(figures, found):,.0f}",
                f"{_rate(figures, found) / figures['bare']:.3f}" if "bare" in figures else "-",
            )
        )
    notes = [f"{seconds} s: {why}" for seconds, why in figures.get("left_out", {}).items()]
    title = "\n".join(["Slot time spent in epochs, saving as trials do, cnn 128", *notes])
    headings = (
        *("trials", "number", "epochs", "seconds", "between trials, s", "in epochs"),
        *("images/s in a trial", "of the bare step"),
    )
    return [Rows(title=title, headings=headings, rows=rows)]


def _rate(figures: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Return images per second from a trial's first epoch to its last, saving included."""
    images = found["epochs_a_trial"] * figures["images"]
    return statistics.median(images / seconds for seconds in found["slot_seconds"])


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Compare the shares with their targets."""
    judged = []
    for seconds, found in figures["searches"].items():
        what = f"slot time in epochs, trials of {seconds} s"
        judged.append(Judged(what=what, value=found["share"], target=TARGETS[seconds]))
        if "bare" in figures:
            judged.append(
                Judged(
                    what=f"cnn in trials of {seconds} s, validated and saved, over the bare step",
                    value=_rate(figures, found) / figures["bare"],
                    target=OF_BARE,
                )
            )
    return judged
