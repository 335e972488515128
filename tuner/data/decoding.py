"""Decode image files to pixels: upright, opaque, 8 bits per channel, square.

Values deeper than 8 bits are scaled by one rule for the whole data set, never clipped at 255;
transparency is laid on white; EXIF orientation is applied; the first of several frames is read.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tuner.config import Resize
from tuner.errors import DataError

ImageMode = Literal["L", "RGB"]
"""Pillow's modes: grey or coloured."""
Source = str | os.PathLike[str] | io.BytesIO
ValueRange = tuple[float, float]
"""The values deeper than 8 bits that become black and white."""

SKIPPED_FORMATS = frozenset(
    {
        *("EPS", "WMF"),  # drawn by other programs
        *("BUFR", "GRIB", "HDF5", "MPEG"),  # stubs, which need a custom plugin
        *("FLI", "IPTC", "MCIDAS", "SPIDER", "IMT", "XVTHUMB"),  # videos, or without a suffix
    }
)
"""Pillow formats that are not tried: useless by themselves, or not still images."""
UNREAD_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".svg", ".svgz", ".eps", ".ps", ".wmf", ".emf"),
        *(".jxl", ".exr", ".hdr", ".dcm", ".npy", ".npz", ".nii"),
        *(".mat", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2"),
        *(".raf", ".pdf", ".ai", ".jxr", ".xcf"),
    }
)
"""Suffixes of images that are not read; such files are reported, never skipped silently."""
FORMATS_FIRST = ("JPEG", "PNG")
BITS = (8, 10, 12, 16)
"""Depths of integers; the smallest one that holds the training maximum is used."""
CROP_ABOVE = 1.2
"""Median ratio of an image's sides above which images are cropped by default."""
MOST_PIXELS = 2 * int(Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pillow's own limit, against small files that decode to more memory than available."""
EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
"""Keys of Pillow's ``info`` that can hold an orientation; Pillow applies TIFF's and AVIF's."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that makes an image upright."""
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Met:
    """Statistics of the decoded files."""

    modes: dict[str, int] = field(default_factory=dict)
    """Number of images by Pillow's mode, such as ``RGB`` or ``I;16``; see ``CUT``."""
    smallest: tuple[int, int] = (0, 0)
    """Width and height of the image with the fewest pixels."""
    median: tuple[int, int] = (0, 0)
    """Median width and median height, each by itself."""
    largest: tuple[int, int] = (0, 0)
    aspect: float = 1.0
    """Median ratio of the longer side to the shorter one."""
    resize: Resize = "squash"
    """How images were made square."""
    value_range: ValueRange | None = None
    """Range by which images deeper than 8 bits were scaled; ``None`` if there are none."""
    clipped: tuple[int, ...] = ()
    """Positions of images with values outside of ``value_range``."""
    broken: dict[int, str] = field(default_factory=dict)
    """Positions of files that could not be decoded, with the reason."""


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of still images that Pillow reads here without other programs."""
    Image.init()
    known = Image.registered_extensions().items()
    # An MPO is a JPEG followed by others.
    read = {*_formats(), "MPO"}
    return frozenset(suffix for suffix, name in known if name in read)


def suffix_for(image: Image.Image) -> str:
    """Return a file suffix for an image's format: the format's name if it is one."""
    found = [end for end, name in Image.registered_extensions().items() if name == image.format]
    named = f".{image.format}".lower()
    return named if named in found else found[0]


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    others = (name for name in Image.OPEN if name not in (*SKIPPED_FORMATS, *FORMATS_FIRST))
    return (*FORMATS_FIRST, *others)


def decode_file(
    source: Source,
    size: int,
    mode: ImageMode = "RGB",
    *,
    resize: Resize = "squash",
    value_range: ValueRange | None = None,
    name: str | None = None,
) -> np.ndarray:
    """Return the pixels of an image file, uint8, shape (size, size) or (size, size, 3).

    Warn about a file with values outside of ``value_range``.

    Args:
        source: A path, or the file's bytes.
        size: Side in pixels.
        mode: Grey or coloured.
        resize: How a non-square image becomes square; not ``auto``.
        value_range: Range of the training images, for values deeper than 8 bits.
        name: Name for messages; by default the path.

    Raises:
        DataError: If it is missing or unreadable.
    """
    where = name or ("image" if isinstance(source, io.BytesIO) else os.fspath(source))
    try:
        with open_image(source) as image:
            is_beyond = exceeds(image, value_range)
            pixels = _decoded(image, size, mode, resize, value_range)
    # Damaged files raise whatever Pillow's parsers run into: OSError, SyntaxError, struct.error...
    except Exception as error:
        raise DataError(
            f"{where}: cannot be read as an image ({why_unread(error)}). Repair or remove it."
        ) from error
    if is_beyond and value_range is not None:
        warnings.warn(
            f"{where}: has values beyond those of the training images, {value_range[0]:g} to "
            f"{value_range[1]:g}, which are cut off",
            stacklevel=2,
        )
    return pixels


def open_image(source: Source) -> Image.Image:
    """Open an image of any format that is read here, without decoding its pixels yet."""
    return Image.open(source, formats=_formats())


def why_unread(error: Exception) -> str:
    """Return in a few words why an image could not be decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has more than {MOST_PIXELS // 10**6} megapixels; cut it into tiles or shrink it, "
            "say with 'vips thumbnail'"
        )
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    return str(error) or type(error).__name__


def resized_pixels(
    image: Image.Image,
    size: int,
    mode: ImageMode = "RGB",
    *,
    resize: Resize = "squash",
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Return the pixels of an image, uint8, shape (size, size) or (size, size, 3).

    Args:
        image: Of any mode.
        size: Side in pixels.
        mode: Grey or coloured.
        resize: As in ``decode_file``.
        value_range: As in ``decode_file``.

    Raises:
        ValueError: If it is deeper than 8 bits and there is no ``value_range``, or it holds values
            that are no numbers.
    """
    converted = plain_image(image, mode, value_range)
    if converted.size != (size, size):
        converted = _square(converted, size, resize)
    return np.asarray(converted)


def plain_image(
    image: Image.Image, mode: ImageMode = "RGB", value_range: ValueRange | None = None
) -> Image.Image:
    """Return an upright, opaque image with 8 bits per channel, at its original size.

    Args:
        image: Of any mode.
        mode: Grey or coloured.
        value_range: As in ``decode_file``.

    Raises:
        ValueError: As ``resized_pixels``.
    """
    image = _upright(image)
    if is_deep(image.mode):
        image = _scaled(image, value_range)
    if _has_transparency(image):
        colours = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(colours)
    return image.convert(mode)


CUT = "/16"
"""Suffix of the mode of 16-bit images of which Pillow reads only the upper 8 bits."""


def is_deep(mode: str) -> bool:
    """Whether values of a Pillow mode are deeper than 8 bits: integers or floats."""
    return mode[0] in "IF"


def is_cut(image: Image.Image) -> bool:
    """Whether Pillow reads only the upper 8 of 16 bits, because it has no deeper mode for them.

    Call this before the pixels are decoded.
    """
    return not is_deep(image.mode) and any(
        ";16" in str(tile) for tile in getattr(image, "tile", ())
    )


def default_resize(aspect: float) -> Literal["crop", "squash"]:
    """Return how images become square by default, by the median ratio of their sides."""
    return "crop" if aspect > CROP_ABOVE else "squash"


def exceeds(image: Image.Image, value_range: ValueRange | None) -> bool:
    """Whether a deep image has values outside of the range of the training images."""
    if value_range is None or not is_deep(image.mode):
        return False
    low, high = image_extremes(image)
    return low < value_range[0] or high > value_range[1]


def image_extremes(image: Image.Image) -> ValueRange:
    """Return the smallest and the largest value of an image with one channel.

    Raises:
        ValueError: If there are values that are no finite numbers.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    return float(values.min()), float(values.max())


def range_of(low: float, high: float, *, is_whole: bool) -> ValueRange:
    """Return the range by which a data set's deep values are scaled to 8 bits.

    Args:
        low: The smallest value of the training images.
        high: The largest one.
        is_whole: Whether they are integers.
    """
    if is_whole and low >= 0:
        for bits in BITS:
            if high < 2**bits:
                return 0.0, float(2**bits - 1)
    return low, high if high > low else low + 1


def resized(images: Tensor, size: int, resize: Resize = "squash") -> Tensor:
    """Resize images, uint8 (N, C, H, W), to sides of ``size`` pixels.

    Only whole pixels are cropped: if the sides differ by an odd number, half a pixel away from
    ``decode_file``, which crops exactly in the middle.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, :, top : top + side, left : left + side]
    inner = _inner((height, width), size) if resize == "pad" else (size, size)
    images = F.interpolate(images, size=inner, mode="bilinear", antialias=True)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    return F.pad(images, (left, size - inner[1] - left, top, size - inner[0] - top))


def _inner(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the sides of an image scaled to fit into a square."""
    scale = size / max(sides)
    return max(1, round(sides[0] * scale)), max(1, round(sides[1] * scale))


def decode_all(
    files: Iterator[tuple[int, Callable[[], Source]]],
    again: Callable[[Sequence[int]], Iterator[tuple[int, Callable[[], Source]]]],
    count: int,
    size: int,
    resize: Resize,
    value_range: ValueRange | None,
    *,
    measures: bool,
) -> tuple[np.ndarray, Met]:
    """Decode many images, and return statistics of them.

    Args:
        files: Position and opener of each file, in any order.
        again: Opens files at some positions a second time: deep images wait for the range of all,
            and non-square ones for the ratio of the sides.
        count: Number of files.
        size: Side in pixels.
        resize: ``auto`` to choose by ``default_resize``.
        value_range: Range of the training images; ``None`` if they have no deep ones.
        measures: Whether these are the training images, whose range is measured.

    Returns:
        Pixels, uint8, shape (count, size, size, 3); those of broken files are undefined.

    Raises:
        DataError: If deep images are both whole numbers and floats.
    """
    # One thread: 100 us per image of 32x32, nearly all of it in Python; two threads take 150.
    pixels = np.empty((count, size, size, 3), dtype=np.uint8)
    sizes = np.zeros((count, 2), dtype=np.int64)
    modes: Counter[str] = Counter()
    broken: dict[int, str] = {}
    clipped: list[int] = []
    waiting: list[int] = []
    extremes: dict[bool, list[ValueRange]] = {True: [], False: []}
    with warnings.catch_warnings():
        # Warnings about large images and invalid metadata.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for index, opened in files:
            try:
                with open_image(opened()) as image:
                    sizes[index] = image.size
                    deep = is_deep(image.mode)
                    if measures and deep:
                        extremes[image.mode[0] == "I"].append(image_extremes(image))
                    modes[image.mode + CUT if is_cut(image) else image.mode] += 1
                    if (measures and deep) or (resize == "auto" and image.width != image.height):
                        waiting.append(index)
                        continue
                    if exceeds(image, value_range):
                        clipped.append(index)
                    # For a square image, all choices are the same.
                    direct = "squash" if resize == "auto" else resize
                    pixels[index] = _decoded(image, size, "RGB", direct, value_range)
            except Exception as error:  # As in decode_file.
                broken[index] = why_unread(error)
        if extremes[True] and extremes[False]:
            raise DataError(
                "images deeper than 8 bits are whole numbers in some files and floats in others; "
                "convert them to one of the two"
            )
        for is_whole, found in extremes.items():
            if found:
                lows, highs = zip(*found, strict=True)
                value_range = range_of(min(lows), max(highs), is_whole=is_whole)
        seen = sizes[sizes[:, 0] > 0]
        ratios = seen.max(axis=1) / seen.min(axis=1)
        aspect = float(np.median(ratios)) if len(seen) else 1.0
        if resize == "auto":
            resize = default_resize(aspect)
        for index, opened in again(waiting):
            try:
                with open_image(opened()) as image:
                    pixels[index] = _decoded(image, size, "RGB", resize, value_range)
            except Exception as error:  # As in decode_file.
                broken[index] = why_unread(error)
    areas = seen.prod(axis=1)
    return pixels, Met(
        modes=dict(modes.most_common()),
        smallest=_pair(seen[areas.argmin()]) if len(seen) else (0, 0),
        median=(round(median(seen[:, 0])), round(median(seen[:, 1]))) if len(seen) else (0, 0),
        largest=_pair(seen[areas.argmax()]) if len(seen) else (0, 0),
        aspect=aspect,
        resize=resize,
        value_range=value_range,
        clipped=tuple(sorted(clipped)),
        broken=dict(sorted(broken.items())),
    )


def channels_first(pixels: np.ndarray) -> Tensor:
    """Return pixels (N, H, W, C) as images (N, C, H, W), contiguous."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def image_of(pixels: np.ndarray) -> Image.Image:
    """Return pixels uint8, shape (H, W, 1) or (H, W, 3), as an image."""
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def _pair(row: np.ndarray) -> tuple[int, int]:
    return int(row[0]), int(row[1])


def _decoded(
    image: Image.Image, size: int, mode: ImageMode, resize: Resize, value_range: ValueRange | None
) -> np.ndarray:
    # JPEG decodes at a smaller scale, but twice the size: a third of the time for photographs of
    # 500x375.
    image.draft(mode, (2 * size, 2 * size))
    return resized_pixels(image, size, mode, resize=resize, value_range=value_range)


def _upright(image: Image.Image) -> Image.Image:
    # A file's orientation may be stored after its pixels.
    image.load()
    if image.info.keys().isdisjoint(EXIF_KEYS):
        return image
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Damaged EXIF data are common in files with intact pixels.
        orientation = 1
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _has_transparency(image: Image.Image) -> bool:
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return True
    palette = image.palette
    return image.mode == "P" and palette is not None and palette.mode.endswith("A")


def _scaled(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    low, high = image_extremes(image)
    if value_range is None and image.mode[0] == "I" and low >= 0 and high <= 255:
        value_range = (0.0, 255.0)
    if value_range is None:
        raise ValueError(
            f"its values are deeper than 8 bits (mode {image.mode}, up to {high:g}), and those of "
            "the training images are not; convert it to 8 bits"
        )
    black, white = value_range
    values = np.asarray(image).astype(np.float64)
    grey = np.round((values - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)
    # A PNG may declare one value transparent.
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _square(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    whole = (size, size)
    if resize == "crop":
        return ImageOps.fit(image, whole, Image.Resampling.BILINEAR)
    if resize == "squash":
        return image.resize(whole, Image.Resampling.BILINEAR)
    assert resize == "pad", resize
    width, height = _inner(image.size, size)
    padded = Image.new(image.mode, whole)
    inner = image.resize((width, height), Image.Resampling.BILINEAR)
    padded.paste(inner, ((size - width) // 2, (size - height) // 2))
    return padded
