"""Turn any image into the pixels that an ensemble's networks take, as in training."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from tuner.data.decoding import (
    ImageMode,
    Source,
    ValueRange,
    channels_first,
    decode_file,
    resized,
    resized_pixels,
    why_unread,
)
from tuner.data.names import shown
from tuner.deploy.graph import FixedResize
from tuner.errors import DataError, UsageError
from tuner.run.ensemble_record import PreprocessingRecord
from tuner.storage.local_storage import MOST_TENSORS
from tuner.storage.paths import LOCAL

ImageLike = Image.Image | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How images are prepared, as recorded in ``preprocessing`` of ``ensemble.json``."""

    image_shape: tuple[int, int, int]
    """(C, H, W) of the networks' images; height and width are equal."""
    resize: FixedResize = "squash"
    """How images of other shapes become square."""
    value_range: ValueRange | None = None
    """Values that become black and white, if training images are deeper than 8 bits."""

    @classmethod
    def of(cls, record: PreprocessingRecord) -> Self:
        """Return the preprocessing that an ensemble recorded.

        Raises:
            ValueError: If it is not something that this version knows.
        """
        channels, height, width = record.image_shape
        resize, black, white = record.resize, record.black, record.white
        if channels not in (1, 3) or height != width or resize not in get_args(FixedResize):
            raise ValueError(
                f"preprocessing: images of shape {[channels, height, width]}, resized by "
                f"{resize!r}, are not known to this version"
            )
        return cls(
            image_shape=(channels, height, width),
            resize=resize,  # type: ignore[arg-type]
            value_range=None if black is None or white is None else (black, white),
        )

    @property
    def mode(self) -> ImageMode:
        """Pillow mode of the images."""
        return "L" if self.image_shape[0] == 1 else "RGB"

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.image_shape[1]

    def file_pixels(self, source: Source, name: str | None = None) -> np.ndarray:
        """Return the pixels of an image file, uint8, shape (H, W, C).

        Args:
            source: A path, or the file's bytes.
            name: Name of the bytes in messages.

        Raises:
            DataError: If it is missing or unreadable, or no plain file.
        """
        if not isinstance(source, io.BytesIO):
            name = shown(os.fspath(source))
            try:
                LOCAL.check_file(Path(source), most=MOST_TENSORS, is_own=True)
            except (OSError, ValueError) as error:
                # The reason may quote the name.
                reason = shown(str(getattr(error, "strerror", None) or error))
                raise DataError(f"{name}: cannot be read as an image ({reason})") from error
        pixels = decode_file(
            source,
            self.size,
            self.mode,
            resize=self.resize,
            value_range=self.value_range,
            name=name,
        )
        return self._shaped(pixels)

    def decode_each(
        self, decoders: Sequence[Callable[[], np.ndarray]]
    ) -> tuple[tuple[str | None, ...], Tensor]:
        """Decode several files, and skip those that cannot be read.

        Args:
            decoders: One per file; each returns what ``file_pixels`` does, or raises ``DataError``.

        Returns:
            For each file, why it could not be read, or ``None``; and the pixels of the readable
            ones, uint8, shape (N, C, H, W).
        """
        channels, height, width = self.image_shape
        pixels = np.empty((len(decoders), height, width, channels), dtype=np.uint8)
        errors: list[str | None] = []
        count = 0
        for decode in decoders:
            try:
                pixels[count] = decode()
            except DataError as error:
                errors.append(str(error))
            else:
                errors.append(None)
                count += 1
        return tuple(errors), channels_first(pixels[:count])

    def image_pixels(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of a Pillow image, uint8, shape (H, W, C).

        Raises:
            DataError: If it has no pixels, is damaged, or is deeper than the training images.
        """
        if 0 in image.size:
            raise DataError(f"image: {image.width} x {image.height} pixels are not an image")
        try:
            pixels = resized_pixels(
                image, self.size, self.mode, resize=self.resize, value_range=self.value_range
            )
        # As in decode_file, damaged files raise whatever Pillow's parsers run into.
        except Exception as error:
            name = shown(os.fsdecode(getattr(image, "filename", None) or "image"))
            raise DataError(
                f"{name}: cannot be read as an image ({why_unread(error)}). Repair or remove it."
            ) from error
        return self._shaped(pixels)

    def array_pixels(self, images: np.ndarray) -> Tensor:
        """Return the pixels of images uint8 (N, H, W, C), at least one, as uint8 (N, C, H, W).

        Args:
            images: As ``check_array`` requires.
        """
        return resized(channels_first(images), self.size, self.resize)

    def check_array(self, images: np.ndarray) -> None:
        """Check that an array holds images: uint8, shape (N, H, W, C); N may be 0.

        Raises:
            UsageError: On an array of another type or shape.
        """
        channels = self.image_shape[0]
        is_shaped = images.ndim == 4 and images.shape[3] == channels and 0 not in images.shape[1:]
        if images.dtype != np.uint8 or not is_shaped:
            raise UsageError(
                f"images: {images.dtype} of shape {images.shape}; an array has to be uint8 of "
                f"shape (N, height, width, {channels})"
            )

    def _shaped(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels with a channel axis, which grey images lack."""
        return pixels.reshape(self.size, self.size, -1)
