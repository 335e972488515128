"""The web application of an ensemble, and the command that serves it."""

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import ray
import schemathesis
import torch
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image, features
from starlette.testclient import TestClient
from torch import Tensor

import tuner
from tests.conftest import Call
from tests.raylets import listening_addresses
from tests.stores import free_port
from tests.test_predicting import mutants
from tuner.config import Tta
from tuner.deploy.gathering import Gatherer
from tuner.deploy.predictor import Ensemble, Vote
from tuner.deploy.uploads import FORMATS, Limits
from tuner.deploy.web import create_app
from tuner.errors import TunerError, UsageError
from tuner.run.probe import read_probe
from tuner.run.run import Run
from tuner.tuning.ray_backend.serve import Replica, ServeRequest, resources_of, run_server

ROOT = Path(__file__).parents[1]
LIMITS = Limits(body_bytes=200_000, images=4, pixels=250_000, seconds=20)


@pytest.fixture(scope="module")
def loaded(run_with_ensemble: Run) -> Ensemble:
    return tuner.load_ensemble(run_with_ensemble.path / "ensembles" / "all", device="cpu")


@pytest.fixture(scope="module")
def client(loaded: Ensemble) -> Iterator[TestClient]:
    app = create_app(loaded, limits=LIMITS, reject=0.6)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def picture(number: int, form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a digit as an image file of some size."""
    from sklearn.datasets import load_digits

    pixels = np.round(load_digits().images[number] * (255 / 16)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert("RGB").save(file, form)
    return file.getvalue()


def as_form(*contents: bytes, field: str = "image") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (f"{number}.png", content)) for number, content in enumerate(contents)]


# What is answered


def test_each_way_to_send_images_gets_the_lines_of_predict(
    client: TestClient,
    loaded: Ensemble,
    tmp_path: Path,
    call: Call,
) -> None:
    contents = [picture(0), picture(1, "JPEG", (300, 200)), picture(2, "TIFF")]
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(content)
    words = ("--format", "jsonl", "--reject", "0.6", "--device", "cpu", "--ensemble")
    code, out, _ = call("predict", *map(str, files), *words, str(loaded.path))
    assert code == 0
    told = [json.loads(line) | {"path": "image"} for line in out.splitlines()]

    def answered(response: httpx2.Response) -> list[dict[str, Any]]:
        assert response.status_code == 200, response.text
        return [
            entry | {"path": "image", "confidence": pytest.approx(entry["confidence"], abs=1e-6)}
            for entry in response.json()["predictions"]
        ]

    def close(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            entry | {"probabilities": pytest.approx(entry["probabilities"], abs=1e-6)}
            for entry in entries
        ]

    assert answered(client.post("/predict", files=as_form(*contents))) == close(told)
    for kind in ("image/jpeg", "application/octet-stream", "IMAGE/X-ODD; a=b"):
        response = client.post("/predict", content=contents[1], headers={"Content-Type": kind})
        assert answered(response) == close(told[1:2])
    without = client.post("/predict", content=contents[1])
    assert answered(without) == close(told[1:2])


def test_an_unreadable_image_among_others_has_an_error_in_its_place(client: TestClient) -> None:
    files = as_form(picture(0), b"no image", picture(1))
    response = client.post("/predict", files=files)
    assert response.status_code == 200
    entries = response.json()["predictions"]
    assert [entry["path"] for entry in entries] == ["0.png", "1.png", "2.png"]
    assert ["error" in entry for entry in entries] == [False, True, False]
    assert entries[1]["error"].startswith("1.png: cannot be read as an image")


def test_the_metadata_tell_what_is_served_and_not_where_it_lies(
    client: TestClient, loaded: Ensemble
) -> None:
    found = client.get("/metadata").json()
    assert tuple(found["classes"]) == loaded.classes
    assert [member["weight"] for member in found["members"]] == loaded.weights.tolist()
    assert found["figures"]["test"] == loaded.metrics["ensemble"]["test"]
    assert found["provenance"]["run"] == "tiny"
    assert str(loaded.path.parent) not in json.dumps(found)
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/metadata", "/docs", "/assets/page.css"])
def test_head_is_answered_like_get_without_the_body(client: TestClient, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"") == (200, b"")
    assert head.headers == got.headers
    assert "head" not in client.get("/openapi.json").json()["paths"].get(path, {})


# What is refused


def bomb() -> bytes:
    """Return a file of few bytes and many pixels."""
    file = io.BytesIO()
    Image.new("1", (4000, 4000)).save(file, "PNG")
    return file.getvalue()


REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "more bytes than it may have": (413, {"content": b"x" * 200_001}),
    "more bytes than it tells of": (
        413,
        {"content": iter([b"x" * 150_000] * 2)},
    ),
    "a form of too many bytes": (413, {"files": as_form(b"x" * 200_001)}),
    "too many images": (413, {"files": as_form(*[picture(0)] * 5)}),
    "too many pixels": (413, {"content": bomb()}),
    "too many pixels among others": (413, {"files": as_form(picture(0), bomb())}),
    "another type": (415, {"json": {"image": "..."}}),
    "what curl sends by default": (415, {"data": {"image": "photo.jpg"}}),
    "nothing": (422, {"content": b""}),
    "no image": (422, {"content": b"no image"}),
    "a length of too many digits": (
        422,
        {"content": b"no image", "headers": {"Content-Length": "9" * 5000}},
    ),
    "no readable one": (422, {"files": as_form(b"", b"x")}),
    "another field": (422, {"files": as_form(picture(0), field="picture")}),
    "a field that is no file": (422, {"files": [("image", (None, "x"))]}),
    "a form without a boundary": (
        422,
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
    ),
    "a broken form": (
        422,
        {"content": b"-+x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_answered_is_refused_in_a_line(client: TestClient, what: str) -> None:
    status, request = REFUSED[what]
    response = client.post("/predict", **request)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.text.count("\n") == 0
    assert 10 < len(response.json()["error"]) < 300


def fits(*cards: str, data: bytes = b"") -> bytes:
    """Return a FITS file of one or several headers, each ended by END, and data."""
    content, block = b"", b""
    for card in cards:
        block += f"{card:80}".encode()
        if card == "END":
            content, block = content + block.ljust(2880), b""
    return content + data


PRIMARY = ("SIMPLE  = T", "BITPIX  = 8")
SLOW = {
    "FITS": fits(
        *(*PRIMARY, "NAXIS   = 0", "END", "XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2"),
        *("NAXIS1  = 8", "NAXIS2  = 1", "ZIMAGE  = T", "ZCMPTYPE= 'GZIP_1  '", "ZBITPIX = 32"),
        *("ZNAXIS  = 2", "ZNAXIS1 = 400", "ZNAXIS2 = 400", "END"),
        data=bytes(8) + gzip.compress(bytes(4 * 400 * 400)),
    ),
    "QOI": b"qoif" + struct.pack(">IIBB", 400, 400, 3, 0) + b"\xfd" * 3000 + bytes(8),
    "PPM": b"P1 400 400\n" + b"0" * 400 * 400,
    "BMP": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54 + 1024, 40, 400, 400, 1, 8, 1, 0, 0, 0, 256, 0)
    + bytes(1024)
    + b"\xff\x00\x91\x00\x00\x00" * 400,
}
"""Files of few bytes that Pillow decodes in Python, by its name of their format."""


@pytest.mark.parametrize("kind", SLOW)
def test_what_pillow_decodes_in_python_is_refused_before_it_is_decoded(
    client: TestClient, kind: str
) -> None:
    with Image.open(io.BytesIO(SLOW[kind])) as image:
        assert image.format == kind
        assert image.size == (400, 400)
    alone = client.post("/predict", content=SLOW[kind])
    assert alone.status_code == 422
    assert f"this kind of {kind} file decodes too slowly" in alone.json()["error"]
    assert "accepted are AVIF, BMP" in alone.json()["error"]
    among = client.post("/predict", files=as_form(SLOW[kind], picture(0)))
    assert among.status_code == 200
    assert ["error" in entry for entry in among.json()["predictions"]] == [True, False]


UNCOMPRESSED = fits(*(*PRIMARY, "NAXIS   = 2", "NAXIS1  = 9", "NAXIS2  = 8", "END"), data=bytes(72))


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_that_is_named_is_read(client: TestClient, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    content = UNCOMPRESSED if kind == "FITS" else picture(0, kind)
    response = client.post("/predict", content=content)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("GET", "/x", 404)]
)
def test_other_addresses_and_methods_are_refused_in_json(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    ("listens", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost:9000", 200),
        ("127.0.0.1", "Localhost", 200),
        ("127.0.0.1", "elsewhere.example:8000", 403),
        ("127.0.0.1", "localhost.elsewhere.example", 403),
        ("0.0.0.0", "elsewhere.example", 200),
        ("0.0.0.0", "localhost", 200),
        ("localhost", "elsewhere.example", 200),
    ],
)
def test_a_page_elsewhere_cannot_use_a_server_that_is_for_this_machine_alone(
    loaded: Ensemble, listens: str, host: str, status: int
) -> None:
    replica = object.__new__(Replica)
    replica._request = ServeRequest(folder=loaded.path, host=listens)
    replica._ensemble = loaded
    with TestClient(replica.__serve_build_asgi_app__()) as client:
        headers = {"Host": host}
        answers = [client.get(path, headers=headers) for path in ("/", "/metadata")]
        answers.append(client.post("/predict", content=picture(0), headers=headers))
    assert [answer.status_code for answer in answers] == [status] * 3
    if status == 403:
        assert "--host localhost behind a proxy" in answers[0].json()["error"]


def test_a_full_queue_and_what_is_late_are_refused_and_the_rest_is_answered(
    loaded: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    vote = loaded.vote

    def vote_later(images: Tensor, *, tta: Tta | None = None) -> Vote:
        gate.wait()
        return vote(images, tta=tta)

    async def slow_body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(10)

    async def answers() -> list[httpx2.Response]:
        app = create_app(loaded, limits=Limits(requests=2, seconds=1))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:

            async def send(content: Any) -> httpx2.Response:
                return await client.post("/predict", content=content)

            late = [asyncio.create_task(send(c)) for c in (picture(0), slow_body())]
            await asyncio.sleep(0.2)
            full = await send(picture(0))
            found = [full, *await asyncio.gather(*late)]
            gate.set()
            return [*found, await send(picture(0))]

    monkeypatch.setattr(loaded, "vote", vote_later)
    full, slow, unsent, after = asyncio.run(answers())
    assert (full.status_code, full.headers["Retry-After"]) == (503, "1")
    assert (slow.status_code, unsent.status_code, after.status_code) == (504, 408, 200)
    for refused in (full, slow, unsent):
        assert list(refused.json()) == ["error"]


def test_images_that_wait_are_computed_together_and_each_gets_its_own_answer(
    loaded: Ensemble,
) -> None:
    images = read_probe(loaded.path / "probe.safetensors").images[:20]
    sizes = []
    gate = threading.Event()

    def vote(batch: Tensor) -> Vote:
        gate.wait()
        sizes.append(len(batch))
        if len(sizes) == 3:
            raise MemoryError
        return loaded.vote(batch)

    async def looks() -> list[Any]:
        gatherer = Gatherer(vote, most=8)
        tasks = [asyncio.create_task(gatherer.look(images[0]))]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(gatherer.look(image)) for image in images[1:]]
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(looks())
    assert sizes == [1, 7, 8, 3]
    assert isinstance(found[1], asyncio.CancelledError)
    assert all(isinstance(answer, MemoryError) for answer in found[9:17])
    expected = loaded.vote(images)
    for number in (0, *range(2, 9), *range(17, 20)):
        probs, members = found[number]
        torch.testing.assert_close(probs, expected.probs[number])
        torch.testing.assert_close(members, expected.members[:, number])


# Everything at once


@pytest.mark.parametrize(
    ("count", "seed"), [(200, 0), pytest.param(2000, 1, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what is damaged.
def test_changed_files_are_answered_or_refused_and_nothing_else_happens(
    client: TestClient, tmp_path: Path, count: int, seed: int
) -> None:
    statuses = []
    for file in mutants(tmp_path, count, seed):
        response = client.post("/predict", content=Path(file).read_bytes())
        assert ("predictions" in response.json()) == (response.status_code == 200)
        statuses.append(response.status_code)
    assert set(statuses) <= {200, 413, 422}
    # Some of both, or the test would show nothing.
    assert min(statuses.count(200), statuses.count(422)) > count / 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_requests_made_of_the_openapi_document_get_answers_that_it_describes(
    loaded: Ensemble, mode: schemathesis.GenerationMode
) -> None:
    images = st.builds(picture, st.integers(0, 9), st.sampled_from(["PNG", "JPEG", "GIF"]))
    for kind in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, images | st.binary(max_size=50))
    app = create_app(loaded, limits=LIMITS)
    refusals = {"expected-statuses": [405, 413, 415, 422]}
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": refusals}})
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    # Which bytes are an image, no document can say.
    excluded = [schemathesis.checks.positive_data_acceptance]
    paths = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(operation.as_strategy(generation_mode=mode))
        @settings(suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case) -> None:
            paths.add(case.path)
            case.call_and_validate(excluded_checks=excluded)

        # To take nothing wrong is not possible where nothing is taken.
        with contextlib.suppress(Unsatisfiable):
            check()
    assert "/predict" in paths


# The pages


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_the_pages_ask_no_other_server_for_anything(client: TestClient, page: str) -> None:
    response = client.get(page)
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    named = re.findall(r'(?:src|href)="([^"#]+)"', response.text)
    assert len(named) >= 4
    for name in named:
        assert not name.startswith(("http", "//", "data:"))
        assert client.get(f"/{name.removeprefix('./')}").status_code == 200


def test_the_interface_is_described_in_full(client: TestClient) -> None:
    page = client.get("/docs").text
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page
            assert all(f"<td>{status}</td>" in page for status in operation["responses"])
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page
        assert all(f"<code>{field}</code>" in page for field in schema["properties"])
    assert "curl -F image=@photo.jpg http://testserver/predict" in page


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application in a thread; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_an_image_that_is_dropped_or_chosen_is_classified(
    loaded: Ensemble, width: int, scheme: str
) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    app = create_app(loaded, limits=LIMITS, reject=0.999)
    problems: list[str] = []
    with served(app) as url, api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        # Asked for now, because the browser is told later than this call returns.
        page.on("filechooser", lambda _: None)
        page.goto(url)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 23, 26)"}[scheme]
        # By the keyboard alone.
        page.keyboard.press("Tab")
        page.locator("#files:focus").wait_for()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(
            {"name": "three.png", "mimeType": "image/png", "buffer": picture(3)}
        )
        first = page.locator("article").first
        first.locator(".bars li").nth(4).wait_for()
        assert first.locator(".file").inner_text() == "three.png"
        label = first.locator(".label").inner_text()
        assert label == first.locator(".bars .name").first.inner_text()
        widths = first.locator(".bar i").evaluate_all("all => all.map(bar => bar.offsetWidth)")
        assert widths == sorted(widths, reverse=True)
        assert "of 3 networks agree" in first.locator(".agree").inner_text()
        assert first.locator(".mark").is_visible()
        assert first.locator("img").evaluate("image => image.naturalWidth") == 40
        # By the mouse: several at once, one of which is no image.
        page.evaluate(
            """(bytes) => {
                const files = new DataTransfer();
                const image = new Blob([new Uint8Array(bytes)]);
                files.items.add(new File([image], "scan.tif", { type: "image/tiff" }));
                files.items.add(new File(["x"], "notes.txt", { type: "text/plain" }));
                document.dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
            }""",
            list(picture(7, "TIFF")),
        )
        page.locator("article.failed").wait_for()
        cards = page.locator("article")
        assert cards.locator(".file").all_inner_texts() == ["notes.txt", "scan.tif", "three.png"]
        assert "text/plain is not taken" in cards.first.locator(".label").inner_text()
        assert cards.nth(1).locator(".bars li").count() == 5
        page.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") == width, "scrolls sideways"
        page.goto(f"{url}/docs")
        assert page.evaluate("document.documentElement.scrollWidth") == width, "scrolls sideways"
        chromium.close()
    # The browser itself tells what was refused.
    assert [text for text in problems if "415" not in text] == []


# The command


def test_an_address_that_cannot_be_used_is_refused_before_anything_starts(
    loaded: Ensemble,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port {port}: in use on 127\.0\.0\.1"):
            run_server(ServeRequest(folder=loaded.path, port=port), print)
    with pytest.raises(UsageError, match=r"--host 192\.0\.2\.1: no address of this machine"):
        run_server(ServeRequest(folder=loaded.path, host="192.0.2.1"), print)
    # What no name of a machine can be raises another error.
    with pytest.raises(UsageError, match=r"--host 127\.\.0\.0\.1: no name of a machine"):
        run_server(ServeRequest(folder=loaded.path, host="127..0.0.1"), print)


def test_a_weight_that_is_above_1_by_rounding_is_served(
    loaded: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = loaded.members
    members = (replace(first, weight=1.0000000000000002), *others)
    monkeypatch.setattr(loaded, "members", members)
    with TestClient(create_app(loaded, limits=LIMITS)) as client:
        assert client.get("/metadata").json()["members"][0]["weight"] == members[0].weight


@pytest.mark.parametrize(
    ("replicas", "given", "gpus", "expected"),
    [
        (1, None, 1, (8, 1)),
        (3, None, 2, (2, 0.5)),
        (6, None, 1, (1, 0.1666)),
        (2, 0.3, 1, (4, 0.3)),
        (2, None, 8, (4, 1)),
        (9, 0.1, 1, (0.8888, 0.1)),
        (4, 0.3, 1, "only 3 have room"),
        (2, None, 0, "only 0 have room"),
        (1, 0.0, 1, "needs some of a GPU"),
    ],
)
def test_replicas_share_the_machine(
    monkeypatch: pytest.MonkeyPatch, replicas: int, given: float | None, gpus: int, expected: Any
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
    request = ServeRequest(folder=ROOT, replicas=replicas, gpus_per_replica=given)
    cuda = torch.device("cuda", 0)
    if isinstance(expected, str):
        with pytest.raises(TunerError, match=expected):
            resources_of(request, cuda)
        return
    found = resources_of(request, cuda)
    assert (found["num_cpus"], found["num_gpus"]) == expected
    assert replicas * found["num_cpus"] <= 8
    with pytest.raises(UsageError, match="it computes on cpu"):
        resources_of(replace(request, gpus_per_replica=0.5), torch.device("cpu"))


def test_where_the_extra_is_missing_the_command_to_install_it_is_told(
    call: Call, monkeypatch: pytest.MonkeyPatch, loaded: Ensemble
) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    code, out, err = call("serve", "--ensemble", str(loaded.path))
    assert (code, out) == (2, "")
    assert "pip install -e '.[serve]', in the clone" in err


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_listens_here_alone_and_answers_what_is_under_way_when_it_ends(
    loaded: Ensemble,
) -> None:
    port = free_port()
    words = ["serve", "--ensemble", str(loaded.path), "--port", str(port), "--device", "cpu"]
    command = [sys.executable, "-m", "tuner", *words, "--replicas", "2"]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "192.0.2.1:6379"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr
    with server, contextlib.ExitStack() as at_last:
        at_last.callback(server.kill)
        # Lines of what is loaded come first.
        lines = list(itertools.takewhile(lambda line: "served" not in line, server.stderr))
        assert lines[-1].startswith("Starting 2 replicas")
        curl, last_line = itertools.islice(server.stderr, 2)
        assert curl.strip() == f"curl -F image=@photo.jpg http://127.0.0.1:{port}/predict"
        assert last_line == "Ctrl-C ends it.\n"
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(True)]
        assert listening_addresses(processes) == {"127.0.0.1"}
        url = f"http://127.0.0.1:{port}"
        digits = [picture(number) for number in range(10)]
        expected = loaded.predict([Image.open(io.BytesIO(content)) for content in digits])
        answer = httpx2.post(f"{url}/predict", files=as_form(*digits), timeout=30)
        found = [list(e["probabilities"].values()) for e in answer.json()["predictions"]]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert second.returncode == 2
        assert f"--port {port}: in use" in second.stderr

        def slowly() -> Iterator[bytes]:
            yield digits[0][:20]
            server.send_signal(signal.SIGTERM)
            time.sleep(2)
            yield digits[0][20:]

        last = httpx2.post(f"{url}/predict", content=slowly(), timeout=30)
        assert last.status_code == 200
        assert last.json()["predictions"][0]["class"] == loaded.classes[expected[0].argmax()]
        _, told = server.communicate(timeout=60)
        assert server.returncode == 0
        assert told == "Answering what is under way; Ctrl-C again ends it at once.\n"
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
