"""An ensemble as a web application: images in a request, the lines of ``predict`` in the response.

It does not depend on Ray: ``tuner.tuning.ray_backend.serve`` runs it in the requested number of
replicas.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from tuner import __version__
from tuner.config import Tta
from tuner.deploy.gathering import Gatherer
from tuner.deploy.pages import ASSETS, PAGE_HEADERS, render_docs, render_drop_page
from tuner.deploy.predictor import Ensemble, Vote
from tuner.deploy.rows import Rows
from tuner.deploy.stream import MOST_THREADS, Batch
from tuner.deploy.uploads import (
    BINARY,
    FIELD,
    FORM,
    FORMATS,
    Limits,
    Refusal,
    Upload,
    decode_uploads,
    read_uploads,
)
from tuner.loopback import HOST, names_this_machine
from tuner.schema import to_plain

RETRY_SECONDS = 1
"""Seconds after which a client that met a full queue may retry."""
Probability = Annotated[float, Field(ge=0, le=1)]


class Prediction(BaseModel):
    """The ensemble's prediction for an image."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file's name as it was sent, or image.")
    label: str = Field(alias="class", description="The most probable class.")
    confidence: Probability = Field(description="Its probability.")
    probabilities: dict[str, Probability] = Field(description="Of every class, summing to 1.")
    disagreement: Probability = Field(
        description="Share of the members whose class is another than the ensemble's."
    )
    rejected: bool | None = Field(
        None, description="Whether the confidence is too low; only where the server marks it."
    )


class Unreadable(BaseModel):
    """An image that could not be read."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file's name as it was sent, or image.")
    error: str = Field(description="Why, and how to fix it.")


class Predictions(BaseModel):
    """The response to a request: one entry per image, in the order of the images."""

    predictions: list[Prediction | Unreadable]


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="What is wrong, in a line, and how to fix it.")


class Health(BaseModel):
    """The server responds."""

    status: str = Field(examples=["ok"])


class Member(BaseModel):
    """A network of the ensemble."""

    name: str
    family: str | None = Field(description="Null in ensembles of early versions.")
    # Not a ``Probability``: the weight of a single member may exceed 1 by rounding.
    weight: float = Field(ge=0, description="Its share in the vote.")
    temperature: float


class Metadata(BaseModel):
    """The served ensemble."""

    name: str
    classes: list[str]
    members: list[Member]
    image_shape: list[int] = Field(
        description="Channels, height and width of what the networks see; others are resized."
    )
    resize: str = Field(description="How other shapes become square: squash, crop or pad.")
    tta: str = Field(description="Views of an image that each member averages.")
    reject: float | None = Field(description="Confidence below which images are marked.")
    temperature: float = Field(description="Of the vote: probabilities are calibrated by it.")
    figures: dict[str, Any] = Field(description="Of the ensemble, as it was made.")
    provenance: dict[str, Any] = Field(description="What it was made of, when and by what.")
    limits: dict[str, int | float] = Field(description="Of one request, and of those at a time.")


_MEANINGS = {
    403: "It names another host, and the server is for its own machine alone.",
    408: "The request did not arrive in time.",
    413: "It is too large: in bytes, in pixels, or in images.",
    415: "It is of another content type.",
    422: "No image could be read.",
    503: "Too many requests wait; come back after Retry-After.",
    504: "The answer took too long.",
}
_BINARY_SCHEMA = {"type": "string", "format": "binary"}


def create_app(
    ensemble: Ensemble,
    *,
    tta: Tta | None = None,
    reject: float | None = None,
    limits: Limits | None = None,
    is_local: bool = False,
) -> FastAPI:
    """Return the application.

    Args:
        ensemble: The ensemble to serve.
        tta: As for ``Ensemble.predict``.
        reject: Confidence below which an image is marked as rejected.
        limits: Limits on requests; ``None`` for the defaults.
        is_local: Answer only requests whose Host header names this machine.
    """
    limits = limits or Limits()
    app = FastAPI(
        title=f"{ensemble.path.name}, an ensemble of cifar-tune",
        version=__version__,
        description="Class probabilities of images. Nothing that is sent is kept.",
        docs_url=None,
        redoc_url=None,
    )
    predicting = _Predicting(ensemble, tta, reject, limits)
    metadata = _metadata(ensemble, tta=tta, reject=reject, limits=limits)

    @app.post(
        "/predict",
        summary="Classify images",
        description="One image as the body, or one or several as the files of a form. Images may "
        "be of any size; they are prepared as those that the networks were trained on. "
        f"Formats: {', '.join(FORMATS)}. Of several, those that cannot be read have an error in "
        "their entry.",
        response_model=Predictions,
        responses={
            status: {"model": Problem, "description": text} for status, text in _MEANINGS.items()
        },
        openapi_extra={"requestBody": _request_body(limits)},
    )
    async def predict(request: Request) -> Response:
        return Response(await predicting.answer(request), media_type="application/json")

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Tell whether the server answers")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.head("/metadata", include_in_schema=False)
    @app.get("/metadata", summary="Describe the ensemble")
    async def describe() -> Metadata:
        return metadata

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def drop_page() -> HTMLResponse:
        return HTMLResponse(render_drop_page(ensemble, reject, limits), headers=PAGE_HEADERS)

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        page = render_docs(app.openapi(), str(request.base_url).rstrip("/"))
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.api_route("/assets/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404, "Not Found")
        kind, content = ASSETS[name]
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    if is_local:
        app.add_middleware(_LocalOnly)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, error: Refusal) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 503 else None
        return _problem(error.status, error.reason, headers)

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, error.detail, error.headers)

    @app.exception_handler(Exception)
    async def confess(request: Request, error: Exception) -> JSONResponse:
        return _problem(500, f"internal error ({type(error).__name__})")

    return app


def _problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


class _LocalOnly:
    """Refuses requests whose Host header does not name this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        app = self._app
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if not names_this_machine(host):
                app = _problem(
                    403,
                    f"the server answers requests to {HOST} and localhost alone, not to "
                    f"{host[:100]!r}. Start it with --host localhost behind a proxy on its "
                    "machine, with --host 0.0.0.0 for other machines.",
                )
        await app(scope, receive, send)


class _Predicting:
    """Answers requests, up to the limits at a time."""

    def __init__(
        self, ensemble: Ensemble, tta: Tta | None, reject: float | None, limits: Limits
    ) -> None:
        self._preprocessing = ensemble.preprocessing
        self._rows = Rows(classes=ensemble.classes, form="jsonl", reject=reject)
        self._limits = limits
        self._gatherer = Gatherer(partial(ensemble.vote, tta=tta), ensemble.batch_size)
        self._threads = ThreadPoolExecutor(
            min(MOST_THREADS, torch.get_num_threads()), thread_name_prefix="decode"
        )
        self._num_requests = 0

    async def answer(self, request: Request) -> str:
        """Return the JSON document for a request.

        Raises:
            Refusal: If it asks for too much, or for what cannot be done.
        """
        if self._num_requests >= self._limits.requests:
            raise Refusal(503, "too many requests wait; come back in a second")
        self._num_requests += 1
        try:
            return await self._answer_in_time(request)
        finally:
            self._num_requests -= 1

    async def _answer_in_time(self, request: Request) -> str:
        seconds = self._limits.seconds
        deadline = time.monotonic() + seconds
        uploads: list[Upload] = []
        try:
            async with asyncio.timeout(seconds):
                uploads = await read_uploads(request, self._limits)
                return await self._classify(uploads, deadline)
        except TimeoutError as error:
            if uploads:
                raise Refusal(504, f"no answer within {seconds:g} s; send fewer images") from error
            raise Refusal(408, f"the request did not arrive within {seconds:g} s") from error
        except ClientDisconnect as error:
            raise Refusal(400, "the request broke off") from error

    async def _classify(self, uploads: Sequence[Upload], deadline: float) -> str:
        errors, pixels = await asyncio.get_running_loop().run_in_executor(
            self._threads, decode_uploads, uploads, self._preprocessing, self._limits, deadline
        )
        if not len(pixels):
            raise Refusal(422, str(errors[0]))
        probs, members = zip(*await asyncio.gather(*map(self._gatherer.look, pixels)), strict=True)
        batch = Batch(
            paths=tuple(upload.name for upload in uploads),
            errors=errors,
            pixels=pixels,
            vote=Vote(probs=torch.stack(probs), members=torch.stack(members, dim=1)),
        )
        lines = ",".join(line.rstrip("\n") for line in self._rows.lines(batch))
        return f'{{"predictions": [{lines}]}}\n'


def _request_body(limits: Limits) -> dict[str, Any]:
    """Describe the body of ``/predict``, which reads it itself."""
    files = {"type": "array", "items": _BINARY_SCHEMA, "minItems": 1, "maxItems": limits.images}
    form = {
        "type": "object",
        "properties": {FIELD: files},
        "required": [FIELD],
        "additionalProperties": False,
    }
    bodies = {kind: {"schema": _BINARY_SCHEMA} for kind in ("image/*", BINARY)}
    return {"required": True, "content": {**bodies, FORM: {"schema": form}}}


def _metadata(
    ensemble: Ensemble, *, tta: Tta | None, reject: float | None, limits: Limits
) -> Metadata:
    record = ensemble.record
    told = {key: getattr(record, key) for key in ("run", "made", "made_by", "method")}
    provenance = {key: value for key, value in told.items() if value}
    if record.data is not None:
        # Clients need not know where the images are on this machine.
        source = PurePath(record.data.source).name
        provenance["data"] = to_plain(replace(record.data, source=source))
    return Metadata(
        name=ensemble.path.name,
        classes=list(ensemble.classes),
        members=[
            Member(
                name=member.name,
                family=member.model.family if member.model else None,
                weight=member.weight,
                temperature=member.temperature,
            )
            for member in ensemble.members
        ],
        image_shape=list(ensemble.image_shape),
        resize=ensemble.preprocessing.resize,
        tta=ensemble.tta if tta is None else tta,
        reject=reject,
        temperature=ensemble.temperature,
        figures=dict(ensemble.metrics["ensemble"])
        | {"has_test": ensemble.metrics.get("has_test", True)},
        provenance=provenance | {"served_by": f"cifar-tune {__version__}"},
        limits=asdict(limits),
    )
