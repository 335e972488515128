"""Read and decode the images of a request: its body or the files of a form, within limits."""

import io
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from tuner.data.decoding import open_image
from tuner.deploy.preprocessing import Preprocessing
from tuner.errors import DataError
from tuner.schema import whole_number

FIELD = "image"
"""Field name of the files in a form."""
FORM = "multipart/form-data"
BINARY = "application/octet-stream"
FORMATS = (
    *("AVIF", "BMP", "FITS", "GIF", "JPEG", "JPEG2000"),
    *("MPO", "PNG", "PPM", "TIFF", "WEBP"),
)
"""Pillow's names of the formats that clients may send. Pillow decodes some others in Python: a FITS
file of 200 kB, compressed with gzip, can take minutes and gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on one request, and on concurrent requests."""

    body_bytes: int = 16 * 2**20
    """Maximum total size of the image files in a request, in bytes."""
    images: int = 64
    pixels: int = 50_000_000
    """Maximum pixels per image: a file of a few kB may decode to more memory than there is."""
    seconds: float = 30.0
    """Maximum time from the first byte of a request to its response."""
    requests: int = 128
    """Requests that each replica reads, queues or computes at the same time."""


class Refusal(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One image file, as sent."""

    name: str
    """File name in the form, or ``image``."""
    content: bytes


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the images of a request.

    Raises:
        Refusal: If they are too large, too many or no images, by what the request says of them.
    """
    kind = request.headers.get("content-type", BINARY).partition(";")[0].strip().lower()
    if kind == FORM:
        uploads = await _read_form(request, limits)
    elif kind == BINARY or kind.startswith("image/"):
        content = b"".join([chunk async for chunk in _bounded(request, limits)])
        uploads = [Upload(name=FIELD, content=content)] if content else []
    else:
        raise Refusal(
            415,
            f"{kind[:100]} is not taken; send an image (image/jpeg, image/png, ..., {BINARY}), or "
            f"several as files of a form ({FORM})",
        )
    if not uploads:
        raise Refusal(422, f"no image in the request; send one: curl -F {FIELD}=@photo.jpg")
    return uploads


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the body until it exceeds the size limit."""
    told = request.headers.get("content-length", "")
    size = whole_number(told) or 0
    if size <= limits.body_bytes:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                break
            yield chunk
    if size > limits.body_bytes:
        megabytes = limits.body_bytes / 2**20
        raise Refusal(413, f"a request may have {megabytes:g} MiB; send fewer or smaller images")


async def _read_form(request: Request, limits: Limits) -> list[Upload]:
    parser = MultiPartParser(
        request.headers, _bounded(request, limits), max_files=limits.images, max_fields=0
    )
    # Keep all files in memory.
    parser.spool_max_size = limits.body_bytes
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refusal(
                413, f"a request may have {limits.images} images; send several requests"
            ) from error
        if error.message.startswith("Too many fields"):
            error.message = "it has a field that is not a file"
        raise Refusal(
            422,
            f"the form cannot be read: {error.message.rstrip('.')}. Send files named {FIELD}: "
            f"curl -F {FIELD}=@photo.jpg",
        ) from error
    try:
        files = form.multi_items()
        if others := sorted({field for field, _ in files} - {FIELD}):
            raise Refusal(422, f"a file of the form is called {others[0][:100]!r}, not {FIELD}")
        return [
            Upload(name=file.filename or FIELD, content=await file.read())
            for _, file in files
            if isinstance(file, UploadFile)
        ]
    finally:
        await form.close()


def decode_uploads(
    uploads: Sequence[Upload], prepare: Preprocessing, limits: Limits, deadline: float
) -> tuple[tuple[str | None, ...], Tensor]:
    """Decode images as ``predict`` does.

    Args:
        uploads: The files.
        prepare: How to prepare the images.
        limits: Limits on each image.
        deadline: Time by ``time.monotonic`` after which the client no longer waits.

    Returns:
        For each file, why it could not be read, or ``None``; and the pixels of the readable ones,
        uint8, shape (N, C, H, W).

    Raises:
        Refusal: If an image has too many pixels.
        TimeoutError: If the deadline has passed before the last image.
    """

    def pixels_of(upload: Upload) -> np.ndarray:
        if time.monotonic() > deadline:
            raise TimeoutError
        _check_image(upload, limits)
        return prepare.file_pixels(io.BytesIO(upload.content), upload.name)

    return prepare.decode_each([partial(pixels_of, upload) for upload in uploads])


def _check_image(upload: Upload, limits: Limits) -> None:
    """Check that an image decodes within limits of memory and time, by its header alone.

    Raises:
        Refusal: If it has too many pixels.
        DataError: If it is of a format, or compressed in a way, that Pillow decodes in Python.
    """
    try:
        with open_image(io.BytesIO(upload.content)) as image:
            count = image.width * image.height
            tiles = getattr(image, "tile", ())
            # ``Image.DECODERS`` holds the decoders in Python, such as that of run lengths in BMP.
            is_quick = image.format in FORMATS and not any(t[0] in Image.DECODERS for t in tiles)
            kind = image.format
    except Image.DecompressionBombError:
        count, is_quick, kind = limits.pixels + 1, True, ""
    # Decoding reports any other problem.
    except Exception:
        return
    if count > limits.pixels:
        raise Refusal(
            413,
            f"{upload.name}: has more than {limits.pixels / 1e6:g} megapixels; send it smaller",
        )
    if not is_quick:
        raise DataError(
            f"{upload.name}: this kind of {kind} file decodes too slowly. Convert it to PNG; "
            f"accepted are {', '.join(FORMATS)}."
        )
