"""Measure the throughput and latency of ``serve`` on the loopback interface.

    python -m tests.benchmarks.serve --data FOLDER --seconds 20 [--json]

FOLDER is CIFAR-10 as class folders of JPEGs. Five untrained members are served with one replica to
1, 8 and 64 clients. Each client sends its next request when the last one is answered: one image, or
a form of 32. The clients are one process on the same machine and share its CPUs with the server.
Between two measurements, the bare forward pass of the same members runs alone, on batches of the
size that is best for it. Then altered image files are sent, each of which has to be answered or
refused.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.predict import BARE_BATCHES, CLASSES, MEMBERS, bare, ensemble_of
from tests.test_predicting import mutants
from tuner import __version__
from tuner.config import ModelConfig
from tuner.deploy.predictor import Ensemble
from tuner.deploy.stream import find_images
from tuner.models.build import build_model
from tuner.run.checkpoint import Checkpoint, save_checkpoint
from tuner.run.ensemble_record import EnsembleMember, EnsembleRecord, PreprocessingRecord
from tuner.run.layout import ENSEMBLE, METRICS
from tuner.storage.files import write_json
from tuner.storage.records import write_record

CLIENTS = (1, 8, 64)
FORM = 32
"""Number of images in a request with several."""
BARE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The figures of one number of clients and images per request."""

    clients: int
    images_a_request: int
    requests: int
    refused: int
    """Requests answered with status 503."""
    images_a_second: float
    p50_ms: float
    p99_ms: float
    bare_images_a_second: float
    """Images per second of the forward pass alone, just before and after."""


def write_ensemble(folder: Path, models: Sequence[ModelConfig]) -> None:
    """Write an ensemble of untrained networks, whose speed does not depend on their weights."""
    torch.manual_seed(0)
    members = []
    for number, model in enumerate(models):
        file = folder / f"{number}.safetensors"
        checkpoint = Checkpoint(
            model=model,
            epoch=1,
            classes=CLASSES,
            image_shape=(3, 32, 32),
            mean=(0.47,) * 3,
            std=(0.25,) * 3,
            computed="cpu float32",
        )
        save_checkpoint(file, build_model(model, len(CLASSES)), checkpoint)
        members.append(
            EnsembleMember(
                file=file.name,
                model=model,
                sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                trial=number,
                weight=1 / len(models),
                temperature=1.0,
                precision="auto",
            )
        )
    record = EnsembleRecord(
        run="benchmark",
        made="2026-01-01T00:00:00Z",
        made_by=f"cifar-tune {__version__}",
        method="vote",
        classes=CLASSES,
        temperature=1.1,
        preprocessing=PreprocessingRecord(
            image_shape=(3, 32, 32), mean=(0.47,) * 3, std=(0.25,) * 3, tta="none"
        ),
        members=tuple(members),
    )
    write_record(folder / ENSEMBLE, record)
    write_json(folder / METRICS, {"ensemble": {"test": {"accuracy": 0.1}}})


@contextlib.contextmanager
def server(folder: Path, words: Sequence[str]) -> Iterator[str]:
    """Run the command; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tuner", "serve", "--ensemble", str(folder), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--port", str(port), *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    with process:
        if not any("served on" in line for line in process.stderr):
            raise SystemExit("the server did not start")
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.communicate()
    if process.returncode:
        raise SystemExit(f"the server ended with {process.returncode}")


async def load(
    url: str, contents: Sequence[bytes], clients: int, per_request: int, seconds: float
) -> tuple[list[float], int, float]:
    """Send requests from many clients at once.

    Returns:
        Seconds of each answered request, the number of refused ones, and the seconds of all.
    """
    times: list[float] = []
    refused = 0
    images = itertools.cycle(contents)
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client(end: float) -> None:
            nonlocal refused
            while time.perf_counter() < end:
                body: Any = next(images)
                if per_request > 1:
                    body = aiohttp.FormData()
                    for number, content in enumerate(itertools.islice(images, per_request)):
                        body.add_field("image", content, filename=f"{number}.jpg")
                began = time.perf_counter()
                async with session.post(f"{url}/predict", data=body) as response:
                    await response.read()
                if response.status == 200:
                    times.append(time.perf_counter() - began)
                elif response.status == 503:
                    refused += 1
                    await asyncio.sleep(float(response.headers["Retry-After"]))
                else:
                    raise AssertionError(f"{response.status}: {await response.text()}")

        warm = time.perf_counter() + 2
        await asyncio.gather(*(client(warm) for _ in range(clients)))
        times.clear()
        refused = 0
        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
        return times, refused, time.perf_counter() - began


def bare_rate(ensemble: Ensemble, size: int) -> float:
    """Return images per second of the forward passes alone, at a batch size."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < BARE_SECONDS:
        bare(ensemble, 8 * size, size)
        count += 8 * size
    return count / (time.perf_counter() - began)


def measure(
    url: str, members: Sequence[ModelConfig], contents: Sequence[bytes], seconds: float
) -> Iterator[Load]:
    """Measure one load after another, and yield its figures."""
    ensemble = ensemble_of(members)
    size = max(BARE_BATCHES, key=lambda size: bare_rate(ensemble, size))
    before = bare_rate(ensemble, size)
    for per_request, clients in itertools.product((1, FORM), CLIENTS):
        times, refused, took = asyncio.run(load(url, contents, clients, per_request, seconds))
        after = bare_rate(ensemble, size)
        p50, p99 = np.quantile(times, (0.5, 0.99)) * 1000
        yield Load(
            clients=clients,
            images_a_request=per_request,
            requests=len(times),
            refused=refused,
            images_a_second=len(times) * per_request / took,
            p50_ms=p50,
            p99_ms=p99,
            bare_images_a_second=statistics.mean((before, after)),
        )
        before = after


async def send_changed(url: str, files: Sequence[str]) -> Counter[int]:
    """Send altered image files; count the response statuses."""
    found: Counter[int] = Counter()
    left = iter(files)
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            for file in left:
                async with session.post(f"{url}/predict", data=Path(file).read_bytes()) as response:
                    answer = await response.json()
                assert ("predictions" in answer) == (response.status == 200), answer
                found[response.status] += 1

        await asyncio.gather(*(client() for _ in range(8)))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as class folders")
    parser.add_argument("--members", choices=MEMBERS, default="five small cnn")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--changed", type=int, default=2000, help="files that were images")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    files = list(find_images([given.data]))
    random.Random(given.seed).shuffle(files)
    contents = [Path(file).read_bytes() for file in files[:2048]]
    members = MEMBERS[given.members]
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        folder = Path(name) / "ensemble"
        folder.mkdir()
        write_ensemble(folder, members)
        with server(folder, ["--replicas", str(given.replicas)]) as url:
            loads = list(measure(url, members, contents, given.seconds))
            changed = asyncio.run(send_changed(url, mutants(Path(name), given.changed, given.seed)))
    if not set(changed) <= {200, 413, 422}:
        raise SystemExit(f"changed files were answered with {dict(changed)}")
    if given.as_json:
        print(json.dumps({"loads": [asdict(one) for one in loads], "changed": changed}, indent=2))
        return
    table = Table(
        "clients", "images each", "images/s", "p50, ms", "p99, ms", "503", "bare, images/s"
    )
    for one in loads:
        cells = [str(one.clients), str(one.images_a_request), f"{one.images_a_second:,.0f}"]
        cells += [f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", str(one.refused)]
        table.add_row(*cells, f"{one.bare_images_a_second:,.0f}")
    console = Console(highlight=False, width=100)
    console.print(table)
    console.print(f"Changed files, by status: {dict(sorted(changed.items()))}")


if __name__ == "__main__":
    main()
