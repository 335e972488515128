"""Images per second of ``predict``, from JPEGs on disk to lines of CSV, against its limits.

    python -m tests.benchmarks.predict --data FOLDER --rounds 5 [--json]

FOLDER is CIFAR-10 as class folders of JPEGs. Five members classify images of 32 pixels, against the
bare forward pass of the same five on one resident batch; and photographs (the same images, enlarged
to 640 x 480), against their decoding alone. The two of each pair take turns in one process; ratios
are computed within a round. ``--threads`` is the number of threads that each of them may use.
"""

import argparse
import io
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tuner.augment import normalize
from tuner.config import ModelConfig
from tuner.deploy.predictor import Ensemble, LoadedNetwork
from tuner.deploy.preprocessing import Preprocessing
from tuner.deploy.rows import Rows
from tuner.deploy.stream import decode_files, find_images, predict_paths
from tuner.models.build import build_model
from tuner.run.ensemble_record import EnsembleMember, EnsembleRecord, PreprocessingRecord

CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = torch.full((1, 3, 1, 1), 0.47), torch.full((1, 3, 1, 1), 0.25)
PHOTO = (640, 480)
MEMBERS: dict[str, list[ModelConfig]] = {
    "five small cnn": [ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 16})] * 5,
    "five cnn": [ModelConfig("cnn")] * 5,
    "five families": [
        ModelConfig("cnn"),
        ModelConfig("resnet", {"depth": 20}),
        ModelConfig("speednet"),
        ModelConfig("convnext"),
        ModelConfig("vit"),
    ],
}
BARE_BATCHES = (16, 32, 64, 128, 256)
"""Batch sizes of which the bare pass takes the fastest."""


def ensemble_of(models: Sequence[ModelConfig]) -> Ensemble:
    """Return untrained networks that vote; their speed does not depend on their weights."""
    torch.manual_seed(0)
    networks = [build_model(model, len(CLASSES)).eval() for model in models]
    return Ensemble(
        path=Path("none"),
        record=EnsembleRecord(
            run="none",
            made="2026-01-01T00:00:00+00:00",
            method="vote",
            classes=CLASSES,
            temperature=1.1,
            preprocessing=PreprocessingRecord(
                image_shape=(3, 32, 32), mean=(0.47,) * 3, std=(0.25,) * 3, tta="none"
            ),
            members=tuple(
                EnsembleMember(
                    file="none",
                    trial=number,
                    soup_of=(),
                    weight=1 / len(models),
                    temperature=1.0,
                    precision="auto",
                    floor=0.0,
                )
                for number in range(len(models))
            ),
        ),
        metrics={},
        networks=[
            LoadedNetwork(network=network.to(memory_format=torch.channels_last), mean=MEAN, std=STD)
            for network in networks
        ],
        device=torch.device("cpu"),
    )


def predict(ensemble: Ensemble, files: Sequence[str]) -> None:
    """Do what the command does after loading the ensemble."""
    rows = Rows(classes=ensemble.classes, form="csv")
    out = io.StringIO()
    for batch in predict_paths(ensemble, files):
        out.writelines(rows.lines(batch))


def bare(ensemble: Ensemble, count: int, batch_size: int) -> None:
    """Repeat the members' forward passes on one batch, ``count`` images in all."""
    images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8)
    inputs = normalize(images, MEAN, STD).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(count // batch_size):
            for loaded in ensemble._networks:
                loaded.network(inputs)


def decode(files: Sequence[str]) -> None:
    """Decode files as ``predict`` does, without anything else."""
    for _ in decode_files(
        Preprocessing(image_shape=(3, 32, 32)), zip(files, files, strict=True), 256
    ):
        pass


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the wall time and the CPU time of some work, in seconds."""
    began, began_working = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - began_working


def alternate(ways: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, Any]:
    """Return images per second of both ways, and their ratios of wall time and of CPU time.

    The ratio of CPU time is the one when all CPUs are busy, whatever else the machine does. It
    includes threads that spin while they wait, so measure it with one thread.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            times = timed(ways[name])
            if number:  # The first one warms up.
                found[name].append(times)
    pairs = list(zip(*found.values(), strict=True))
    ratios = [other[0] / ours[0] for ours, other in pairs]
    return {
        "rates": {name: count / statistics.median(t[0] for t in found[name]) for name in ways},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "processor_ratio": statistics.median(other[1] / ours[1] for ours, other in pairs),
    }


def measure(name: str, files: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure ``predict`` against the bare pass of the same members."""
    ensemble = ensemble_of(MEMBERS[name])
    bare(ensemble, 512, 256)
    times = {size: timed(partial(bare, ensemble, 512, size))[0] for size in BARE_BATCHES}
    best = min(times, key=lambda size: times[size])
    count = len(files) - len(files) % 256
    ways = {
        "predict": lambda: predict(ensemble, files[:count]),
        "bare": lambda: bare(ensemble, count, best),
    }
    return {"members": name, "batch": best, **alternate(ways, count, rounds)}


def measure_photos(files: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure ``predict`` on photographs against decoding them."""
    name = "five small cnn"
    ensemble = ensemble_of(MEMBERS[name])
    with tempfile.TemporaryDirectory() as folder:
        photos = []
        for number, file in enumerate(files):
            with Image.open(file) as image:
                photo = image.convert("RGB").resize(PHOTO, Image.Resampling.BICUBIC)
            photos.append(f"{folder}/{number}.jpg")
            photo.save(photos[-1], quality=90)
        ways = {"predict": lambda: predict(ensemble, photos), "decode": lambda: decode(photos)}
        return {"members": name, "photo": PHOTO, **alternate(ways, len(photos), rounds)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", default=[*MEMBERS, "photos"])
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    files = list(itertools.islice(find_images([given.data]), 10**6))
    random.Random(0).shuffle(files)
    found = [measure(n, files[: given.images], given.rounds) for n in MEMBERS if n in given.only]
    if "photos" in given.only:
        found.append(measure_photos(files[: given.photos], given.rounds))
    if given.as_json:
        print(json.dumps({"threads": given.threads, "results": found}, indent=2))
        return
    headings = ("", "predict, images/s", "against", "images/s", "ratio", "its range", "processor")
    table = Table(*headings)
    for result in found:
        (_, ours), (against, other) = result["rates"].items()
        low, high = min(result["ratios"]), max(result["ratios"])
        name = f"{result['members']}{', photos' if 'photo' in result else ''}"
        cells = (f"{ours:,.0f}", against, f"{other:,.0f}", f"{result['ratio']:.2f}")
        busy = f"{result['processor_ratio']:.2f}"
        table.add_row(name, *cells, f"{low:.2f} to {high:.2f}", busy)
    Console().print(table)


if __name__ == "__main__":
    main()
