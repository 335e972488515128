"""Pixels become the same 8 bits whatever file they come in: deep, transparent, turned, not square.

Every picture is made here, and its right values are worked out by hand.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tuner.config import DataConfig
from tuner.data.decoding import decode_file, image_suffixes, range_of, resized
from tuner.data.splits import Splits, load_splits, load_test
from tuner.errors import DataError

SIZE = 8


def put(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def load(folder: Path, **settings: object) -> Splits:
    config = DataConfig(source=str(folder), **{"image_size": SIZE, **settings})  # type: ignore[arg-type]
    return load_splits(config, folder.parent / "data")


def greys(splits: Splits) -> list[int]:
    """Return the distinct values of all images, which are of one grey each."""
    images = torch.cat([splits.train.images, splits.val.images])
    assert (images == images[:, :1, :1, :1]).all()
    return sorted(set(images[:, 0, 0, 0].tolist()))


def put_greys(folder: Path, values: list[float], dtype: str, suffix: str) -> None:
    """Write training images of one value each, into two classes by turns."""
    for number, value in enumerate(values):
        image = Image.fromarray(np.full((SIZE, SIZE), value, dtype=dtype))
        put(folder / "train" / "ab"[number % 2] / f"{number}{suffix}", image)


@pytest.mark.parametrize(
    ("values", "dtype", "suffix", "expected", "value_range"),
    [
        ([0, 100, 200, 255], "uint16", ".png", [0, 100, 200, 255], (0, 255)),
        ([0, 256, 512, 1023], "uint16", ".png", [0, 64, 128, 255], (0, 1023)),
        ([0, 1024, 2048, 4000], "uint16", ".png", [0, 64, 128, 249], (0, 4095)),
        ([0, 16384, 32768, 60000], "uint16", ".tif", [0, 64, 128, 233], (0, 65535)),
        ([-1000, 0, 1000, 3000], "int32", ".tif", [0, 64, 128, 255], (-1000, 3000)),
        ([0.5, 1.0, 1.5, 2.5], "float32", ".tiff", [0, 64, 128, 255], (0.5, 2.5)),
    ],
)
def test_deep_greys_are_scaled_by_one_rule_for_all(
    tmp_path: Path,
    values: list[float],
    dtype: str,
    suffix: str,
    expected: list[int],
    value_range: tuple[float, float],
) -> None:
    put_greys(tmp_path / "images", values, dtype, suffix)
    splits = load(tmp_path / "images")
    assert greys(splits) == expected
    assert splits.config is not None
    assert (splits.config.black, splits.config.white) == value_range


def test_test_images_are_scaled_as_training_images_and_brighter_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    put_greys(folder, [0, 100, 600, 1000], "uint16", ".png")
    for name, value in (("a", 512), ("b", 2000)):
        image = Image.fromarray(np.full((SIZE, SIZE), value, dtype=np.uint16))
        put(folder / "test" / name / "0.png", image)
    config = load(folder).config
    assert config is not None
    for asked in (config, DataConfig(source=str(folder), image_size=SIZE)):
        test = load_test(asked, tmp_path / "data")
        assert test.images.images[:, 0, 0, 0].tolist() == [128, 255]
        (note,) = test.notes
        assert "1 image beyond the values of the training images, 0 to 1023" in note
        assert "test/b/0.png" in note
        assert "test/a/0.png" not in note


def test_values_beyond_those_of_the_training_images_are_told_by_the_name_given() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), 2000, dtype=np.uint16)).save(file, format="PNG")
    with pytest.warns(UserWarning, match=r"^a\.zip/b\.png: has values beyond .*, 0 to 1023, which"):
        decode_file(file, SIZE, value_range=(0, 1023), name="a.zip/b.png")
    with pytest.warns(UserWarning, match=r"^image: has values beyond"):
        decode_file(file, SIZE, value_range=(0, 1023))


def test_deep_images_where_training_images_are_not_are_no_guess(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", Image.new("L", (9, 9), number))
    for name in "ab":
        deep = Image.fromarray(np.full((9, 9), 3000, dtype=np.uint16))
        put(tmp_path / "test" / name / "0.png", deep)
    with pytest.raises(DataError, match=r"deeper than 8 bits \(mode I;16, up to 3000\).* convert"):
        load_test(DataConfig(source=str(tmp_path)), tmp_path / "data")


def test_whole_numbers_and_floats_have_no_common_rule(tmp_path: Path) -> None:
    put_greys(tmp_path / "images", [0, 300, 600, 900], "uint16", ".png")
    put_greys(tmp_path / "images", [0.0, 0.1], "float32", ".tif")
    with pytest.raises(DataError, match="whole numbers in some files and floats in others"):
        load(tmp_path / "images")


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    put_greys(tmp_path / "images", [0.0, 0.1, float("nan"), 0.3, 0.5, 0.7], "float32", ".tif")
    with pytest.raises(DataError, match=r"a/2\.tif: .*not finite numbers"):
        load(tmp_path / "images")


@pytest.mark.parametrize(
    ("low", "high", "is_whole", "expected"),
    [
        (0, 255, True, (0, 255)),
        (3, 256, True, (0, 1023)),
        (0, 4096, True, (0, 65535)),
        (0, 65536, True, (0, 65536)),
        (-1, 255, True, (-1, 255)),
        (0.0, 1.0, False, (0, 1)),
        (7.0, 7.0, False, (7, 8)),
    ],
)
def test_the_range_is_the_smallest_depth_that_holds_all(
    low: float, high: float, is_whole: bool, expected: tuple[float, float]
) -> None:
    assert range_of(low, high, is_whole=is_whole) == expected


def silhouette(mode: str) -> Image.Image:
    """Return black that is opaque on the left half alone."""
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, SIZE // 2, SIZE))
    if mode == "P":
        return image.quantize(4)
    return image.convert(mode)


def keyed() -> Image.Image:
    """Return grey whose value 9 is said to be transparent."""
    image = Image.new("L", (SIZE, SIZE), 9)
    image.paste(0, (0, 0, SIZE // 2, SIZE))
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "options"),
    [
        (silhouette("RGBA"), ".png", {}),
        (silhouette("LA"), ".png", {}),
        (silhouette("P"), ".png", {}),
        (silhouette("RGBA"), ".gif", {}),
        (silhouette("RGBA"), ".webp", {"lossless": True}),
        (silhouette("RGBA"), ".tif", {}),
        (keyed(), ".png", {"transparency": 9}),
        (keyed().convert("RGB"), ".png", {"transparency": (9, 9, 9)}),
    ],
)
def test_transparency_is_laid_on_white(
    tmp_path: Path, image: Image.Image, suffix: str, options: dict[str, object]
) -> None:
    put(tmp_path / f"0{suffix}", image, **options)
    pixels = decode_file(tmp_path / f"0{suffix}", SIZE)
    assert (pixels[:, : SIZE // 2] == 0).all()
    assert (pixels[:, SIZE // 2 :] == 255).all()


def test_a_transparent_value_of_a_deep_grey_is_white(tmp_path: Path) -> None:
    values = np.zeros((SIZE, SIZE), dtype=np.uint16)
    values[:, 4:] = 500
    put(tmp_path / "0.png", Image.fromarray(values), transparency=500)
    pixels = decode_file(tmp_path / "0.png", SIZE, value_range=(0, 1023))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    seen = np.zeros((64, 64), dtype=np.uint8)
    seen[:32, :32], seen[:32, 32:], seen[32:, :32] = 250, 170, 80
    turns = [None, None, 0, 3, 1, 5, 4, 6, 2]
    upright = Image.fromarray(seen).convert("RGB")
    # What a camera writes that is held so: undone by the turn that the orientation tells.
    turn = turns[orientation]
    undo = {4: 2, 2: 4}.get(turn, turn) if turn is not None else None
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    put(tmp_path / f"0{suffix}", stored, exif=exif)
    pixels = decode_file(tmp_path / f"0{suffix}", 64, "L")
    difference = np.abs(pixels.astype(int) - seen)
    assert difference[8:24, 8:24].max() < 12
    assert difference[8:24, 40:56].max() < 12
    assert difference[40:56, 8:24].max() < 12
    assert difference[40:56, 40:56].max() < 12


def test_damaged_exif_makes_no_image_unreadable(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"eXIf", b"no exif at all")
    put(tmp_path / "0.png", Image.new("L", (8, 8), 77), pnginfo=chunks)
    assert (decode_file(tmp_path / "0.png", 8) == 77).all()


def bars() -> Image.Image:
    """Return a wide image: a quarter of 0, a half of 100 and a quarter of 200."""
    values = np.full((16, 32), 100, dtype=np.uint8)
    values[:, :8], values[:, 24:] = 0, 200
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("resize", "row"),
    [
        ("squash", [0, 0, 0, 0, 100, 100, 100, 100, 100, 100, 100, 100, 200, 200, 200, 200]),
        ("crop", [100] * 16),
        ("pad", [0, 0, 0, 0, 100, 100, 100, 100, 100, 100, 100, 100, 200, 200, 200, 200]),
    ],
)
def test_an_image_becomes_square_as_asked(tmp_path: Path, resize: str, row: list[int]) -> None:
    put(tmp_path / "0.png", bars())
    pixels = decode_file(tmp_path / "0.png", 16, "L", resize=resize)  # type: ignore[arg-type]
    # Where one bar ends, two are mixed.
    away = np.array([i for i in range(16) if i not in (3, 4, 11, 12)])
    assert pixels[8][away].tolist() == np.array(row)[away].tolist()
    if resize == "pad":
        assert (pixels[:4] == 0).all()
        assert (pixels[12:] == 0).all()
    array = torch.from_numpy(np.array(bars()))[None, None]
    alike = resized(array, 16, resize)[0, 0].numpy()  # type: ignore[arg-type]
    assert np.abs(alike.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_a_line_of_pixels_is_an_image(tmp_path: Path, resize: str) -> None:
    put(tmp_path / "0.png", Image.new("L", (500, 1), 9))
    assert decode_file(tmp_path / "0.png", 8, resize=resize).shape == (8, 8, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "resize"), [(19, "squash"), (20, "crop")])
def test_far_from_square_is_cropped_by_default(tmp_path: Path, width: int, resize: str) -> None:
    for number in range(4):
        image = Image.new("L", (width, 16), 50 * number)
        put(tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png", image)
    splits = load(tmp_path / "images", resize="auto")
    assert splits.config is not None
    assert splits.config.resize == resize
    assert any("cropped" in note for note in splits.notes) == (resize == "crop")
    again = load(tmp_path / "images", resize="auto")
    assert (
        again.fingerprint
        == splits.fingerprint
        == load(tmp_path / "images", resize=resize).fingerprint
    )
    assert again.notes == splits.notes
    kept = [path.name for path in (tmp_path / "images" / ".cifar-tune").iterdir()]
    assert kept == ["train-8.safetensors" if resize == "squash" else "train-8-crop.safetensors"]


def test_photographs_that_lose_much_are_pointed_out(tmp_path: Path) -> None:
    for number in range(4):
        image = Image.new("L", (130, 100), 50 * number)
        put(tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png", image)
    (note,) = load(tmp_path / "images").notes
    assert note.startswith("images are 130 x 100 at the median and are shrunk to 8 x 8")
    assert "--image-size 96" in note
    assert not load(tmp_path / "images", image_size=64).notes


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_every_still_image_that_pillow_reads_by_itself_is_read(tmp_path: Path) -> None:
    suffixes = image_suffixes()
    assert {".jfif", ".jpe", ".avif", ".pgm", ".pnm", ".jp2", ".tga", ".ico", ".mpo"} <= suffixes
    assert suffixes.isdisjoint({".eps", ".ps", ".wmf", ".emf", ".pdf", ".mpeg", ".h5", ".fli"})
    written = []
    for suffix in sorted(suffixes):
        try:
            put(tmp_path / f"0{suffix}", Image.new("L", (64, 64), 100))
        except (OSError, ValueError, KeyError):
            (tmp_path / f"0{suffix}").unlink(missing_ok=True)
            continue
        written.append(suffix)
        assert np.abs(decode_file(tmp_path / f"0{suffix}", 8).astype(int) - 100).max() <= 2, suffix
    assert len(written) > 20


def test_a_postscript_file_is_not_run_whatever_its_name(tmp_path: Path) -> None:
    put(tmp_path / "0.eps", Image.new("L", (8, 8)))
    (tmp_path / "0.eps").rename(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: .*no image of a known format"):
        decode_file(tmp_path / "0.png", 8)


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (40, 200)]
    for suffix in (".tif", ".png", ".webp"):
        put(tmp_path / f"0{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert np.abs(decode_file(tmp_path / f"0{suffix}", 8).astype(int) - 40).max() <= 2


def test_an_image_of_too_many_pixels_is_told_with_the_way(tmp_path: Path) -> None:
    put(tmp_path / "0.png", Image.new("1", (20_000, 10_000)))
    with pytest.raises(DataError, match="more than 178 megapixels; cut it into tiles or shrink it"):
        decode_file(tmp_path / "0.png", 8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2)])
def test_bits_that_pillow_cuts_are_told(tmp_path: Path, colour: int, channels: int) -> None:
    for number in range(8):
        row = b"\0" + struct.pack(">H", 500 * number) * channels * SIZE
        head = struct.pack(">IIBBBBB", SIZE, SIZE, 16, colour, 0, 0, 0)
        parts = ((b"IHDR", head), (b"IDAT", zlib.compress(row * SIZE)), (b"IEND", b""))
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    (note,) = (note for note in load(tmp_path / "photos").notes if "16 bits" in note)
    assert note.startswith("6 images with 16 bits a colour, or a grey with transparency")


@pytest.mark.parametrize(("sides", "is_same"), [((12, 20), True), ((12, 21), False)])
def test_an_array_is_cropped_like_a_file_unless_its_sides_differ_by_an_odd_number(
    sides: tuple[int, int], is_same: bool, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    of_file = decode_file(tmp_path / "0.png", 12, resize="crop")
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    of_array = resized(planes, 12, "crop")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(of_file, of_array) is is_same
