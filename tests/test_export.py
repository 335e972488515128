"""A whole ensemble as one file: the same probabilities, in every runtime, without this program."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tuner
from tests.conftest import Call
from tests.test_custom import NETS
from tests.test_models import SMALL
from tuner.cli.export import _print
from tuner.config import ModelConfig, Tta
from tuner.data.decoding import ValueRange, decode_file, resized
from tuner.deploy import export
from tuner.deploy.export import (
    Comparison,
    Export,
    Format,
    check_fits_onnx,
    export_graph,
    metadata_of,
    open_exported,
)
from tuner.deploy.graph import EnsembleGraph, FixedResize, MemberGraph, resize
from tuner.deploy.predictor import Ensemble, LoadedNetwork
from tuner.deploy.samples import read_pixels, samples_in
from tuner.errors import DataError, TunerError, UsageError
from tuner.models.build import build_model
from tuner.run.ensemble_record import EnsembleMember, EnsembleRecord, PreprocessingRecord
from tuner.run.run import Run

CPU = torch.device("cpu")
TINY = {
    **SMALL,
    "resnet": {"depth": 10, "width_factor": 0.125},
    "pretrained": {"name": "squeezenet1_1", "image_size": 32},
}
"""Parameters of a quick network of each family with parameters of its own."""
SIZE, CLASSES = 16, ("ant", "bee", "cat")
every_format = pytest.mark.parametrize("to", get_args(Format))


def some_images(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def settled(model: ModelConfig) -> nn.Module:
    """Return a network whose answers depend on the image, as those of a trained one do."""
    torch.manual_seed(0)
    network = build_model(model, len(CLASSES), (3, SIZE, SIZE))
    network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        network.train()(torch.randn(32, 3, SIZE, SIZE))
    return network.eval()


def ensemble_of(
    *models: ModelConfig, tta: Tta = "flip+shift", resize: FixedResize = "squash", path: Path
) -> Ensemble:
    """Return an ensemble of networks that nobody has trained, each mixed in another way."""
    count = len(models)
    shares = [2 * (number + 1) / (count * (count + 1)) for number in range(count)]
    members = [
        EnsembleMember(
            file=f"members/{number:04d}.safetensors",
            trial=number,
            soup_of=(),
            weight=share,
            temperature=1.0 + 0.5 * number,
            precision="float32",
            floor=0.01 * (number % 2),
        )
        for number, share in enumerate(shares)
    ]
    networks = [
        LoadedNetwork(
            network=settled(model),
            mean=torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1),
            std=torch.tensor([0.2, 0.3, 0.2 + 0.1 * number]).view(1, 3, 1, 1),
        )
        for number, model in enumerate(models)
    ]
    return Ensemble(
        path=path,
        record=EnsembleRecord(
            run="first",
            made="2026-01-01T00:00:00+00:00",
            method="weighted",
            classes=CLASSES,
            temperature=0.7,
            preprocessing=PreprocessingRecord(
                image_shape=(3, SIZE, SIZE),
                resize=resize,
                mean=(0.5, 0.4, 0.3),
                std=(0.2, 0.3, 0.2),
                tta=tta,
            ),
            members=tuple(members),
        ),
        metrics={},
        networks=networks,
        device=CPU,
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of several sizes and kinds, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    coarse = some_images(3, 5, 7, 3).numpy()
    for pixels, name, size in (
        (coarse[0], "wide.jpg", (190, 120)),
        (coarse[1], "small.png", (7, 11)),
        (coarse[2], "more/exact.png", (SIZE, SIZE)),
    ):
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@dataclass(frozen=True)
class Exported:
    ensemble: Ensemble
    files: dict[Format, Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Exported:
    """Return an ensemble of two networks in both formats."""
    folder = tmp_path_factory.mktemp("exported")
    models = (ModelConfig("cnn", TINY["cnn"]), ModelConfig("vit", TINY["vit"]))
    ensemble = ensemble_of(*models, path=folder / "top2")
    files: dict[Format, Path] = {to: folder / f"ensemble.{to}" for to in get_args(Format)}
    for file in files.values():
        ensemble.export(file, check=photos)
    return Exported(ensemble=ensemble, files=files)


SIDES = [(64, 64), (375, 500), (33, 31), (32, 40), (8, 9), (1, 1), (5, 700), (32, 32)]


@pytest.mark.parametrize("how", get_args(FixedResize))
@pytest.mark.parametrize("sides", SIDES)
def test_images_are_resized_as_for_training_to_the_last_bit(
    sides: tuple[int, int], how: FixedResize
) -> None:
    for channels, size in ((3, 32), (1, 7)):
        images = some_images(2, channels, *sides)
        expected = resized(images, size, how)
        torch.testing.assert_close(resize(images, size, how), expected, rtol=0, atol=0)


def test_images_of_the_right_size_are_left_as_they_are() -> None:
    images = some_images(4, 3, 32, 32)
    for how in get_args(FixedResize):
        torch.testing.assert_close(resize(images, 32, how), images, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_squares_that_are_cropped_or_padded_are_exported(
    how: FixedResize, photos: Path, tmp_path: Path
) -> None:
    ensemble = ensemble_of(own("make_linear"), resize=how, path=tmp_path)
    made = ensemble.export(tmp_path / "ensemble.onnx", check=photos)
    assert made.compared.max_difference < 1e-6
    squashed = ensemble_of(own("make_linear"), path=tmp_path).predict(photos / "wide.jpg")
    assert np.abs(ensemble.predict(photos / "wide.jpg") - squashed).max() > 1e-3


@pytest.mark.parametrize("kind", ["turned", "transparent", "deep", "palette"])
def test_files_are_compared_on_the_pixels_that_predict_reads(kind: str, tmp_path: Path) -> None:
    file, value_range = tmp_path / "image.png", None
    pixels = some_images(SIZE, SIZE, 4).numpy()
    image = Image.fromarray(pixels[:, :, :3])
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(file, exif=exif)
    elif kind == "transparent":
        Image.fromarray(pixels).save(file)
    elif kind == "deep":
        Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 16).save(file)
        value_range = (0.0, 4095.0)
    else:
        image.quantize(16).save(file)
    expected = decode_file(file, SIZE, value_range=value_range)
    np.testing.assert_array_equal(read_pixels(file, "RGB", value_range), expected)


@every_format
@pytest.mark.parametrize("family", TINY)
def test_every_family_gives_the_same_probabilities_once_exported(
    family: str, to: Format, photos: Path, tmp_path: Path
) -> None:
    ensemble = ensemble_of(ModelConfig(family, TINY[family]), path=tmp_path)
    made = ensemble.export(tmp_path / "ensemble", format=to, check=photos)
    assert made.compared.max_difference < 1e-5
    # The network tells images apart, or any graph would pass.
    probs = ensemble.predict(sorted(photos.rglob("*g")))
    assert np.ptp(probs, axis=0).max() > 1e-3


@every_format
def test_a_batch_may_hold_any_number_of_images_of_any_size(exported: Exported, to: Format) -> None:
    run = open_exported(exported.files[to], to)
    for seed, shape in enumerate([(1, SIZE, SIZE), (5, SIZE, SIZE), (1, 3, 40), (3, 50, 20)]):
        images = some_images(*shape, 3, seed=seed).numpy()
        expected = exported.ensemble.predict(images)
        probs = run(images)
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-6)


def python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples() -> Iterator[str]:
    """Yield the programs in the docstring of the module."""
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", f"{export.__doc__}\n")
    yield from (textwrap.dedent(block) for block in blocks)


def test_the_examples_run_without_this_program(exported: Exported) -> None:
    folder = exported.files["onnx"].parent
    images = some_images(6, 20, 30, 3).numpy()
    np.save(folder / "images.npy", images)
    of_onnx, of_program = examples()
    keep = "\nnp.save('probs.npy', probs)\n"
    expected = exported.ensemble.predict(images)
    labels = [CLASSES[best] for best in expected.argmax(axis=1)]

    shown = python(f"import sys; sys.modules['torch'] = None\n{of_onnx}{keep}", folder)
    assert shown == f"{labels}\n"
    np.testing.assert_allclose(np.load(folder / "probs.npy"), expected, rtol=0, atol=1e-5)

    start = "import sys; sys.modules['tuner'] = None; import numpy as np, torch\n"
    images_again = "images = np.load('images.npy')\n"
    end = f"{keep}print(metadata['classes'])"
    shown = python(start + images_again + of_program + end, folder)
    assert json.loads(shown) == list(CLASSES)
    np.testing.assert_allclose(np.load(folder / "probs.npy"), expected, rtol=0, atol=1e-5)


def test_a_file_says_what_it_is(exported: Exported) -> None:
    model = onnx.load(exported.files["onnx"])
    onnx.checker.check_model(model, full_check=True)
    found = {prop.key: prop.value for prop in model.metadata_props}
    extra = dict.fromkeys(found, "")
    torch.export.load(exported.files["pt2"], extra_files=extra)
    assert extra == found
    assert json.loads(found["classes"]) == list(CLASSES)
    provenance = json.loads(found["provenance"])
    assert provenance["ensemble"] == "top2"
    assert provenance["cifar_tune"] == tuner.__version__
    assert [member["file"] for member in provenance["members"]] == [
        member.file for member in exported.ensemble.members
    ]
    session = onnxruntime.InferenceSession(exported.files["onnx"])
    (images,), (probs,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", [*"NHW", 3])
    assert (probs.name, probs.shape) == ("probabilities", ["N", 3])


def test_a_file_and_the_command_say_how_deep_images_are_scaled(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble = exported.ensemble
    prepared = replace(ensemble.record.preprocessing, black=0.0, white=4095.0)
    record = replace(ensemble.record, preprocessing=prepared)
    found = metadata_of(ensemble.graph(), "top", record)
    assert found["images"] == (
        "uint8 (N, H, W, 3), RGB, of any one size, values 0 to 4095 scaled to 0 to 255"
    )
    told = {"resize": "squash", "black": 0, "white": 4095}
    assert json.loads(found["preprocessing"]) == told
    _print(made_export(value_range=(0.0, 4095.0)))
    assert "values 0 to 4095 become 0 to 255" in capsys.readouterr().out


def test_the_command_says_where_squares_differ_from_those_of_predict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _print(made_export(resize="crop"))
    assert "it crops half a pixel away from where predict crops files" in capsys.readouterr().out
    _print(made_export())
    assert "half a pixel" not in capsys.readouterr().out


def made_export(*, resize: FixedResize = "squash", value_range: ValueRange | None = None) -> Export:
    """Return what the command would have written."""
    return Export(
        file="ensemble.onnx",
        format="onnx",
        runtime="onnxruntime",
        num_bytes=1000,
        num_members=2,
        compared=Comparison(
            num_images=1,
            max_difference=0.0,
            equal_labels=1,
            num_files=0,
            equal_labels_of_files=0,
        ),
        resize=resize,
        value_range=value_range,
        latency=(),
    )


def test_a_file_says_nothing_of_the_code_and_the_paths_of_its_maker(exported: Exported) -> None:
    ensemble = exported.ensemble
    models = [
        ModelConfig(
            family="custom",
            params={"path": "net.py", "name": "Net", "params": {"width": 8}, "source": NETS},
        ),
        ModelConfig(
            family="pretrained",
            params={"run": "/home/me/runs/first", "trial": 3, "source": NETS, "sha256": "0a"},
        ),
        None,
    ]
    members = tuple(
        replace(ensemble.members[0], sha256="1b", model=model, weight=1 / 3) for model in models
    )
    record = replace(ensemble.record, members=members)
    found = metadata_of(ensemble.graph(), "top", record)
    assert "import torch" not in found["provenance"]
    assert "/home/me" not in found["provenance"]
    told = json.loads(found["provenance"])["members"]
    assert [member["model"] for member in told] == [
        {"custom": {"name": "Net", "params": {"width": 8}}},
        {"pretrained": {"trial": 3, "sha256": "0a"}},
        None,
    ]
    assert [member["sha256"] for member in told] == ["1b"] * 3


@every_format
def test_the_same_ensemble_gives_the_same_file_without_paths_of_this_machine(
    exported: Exported, to: Format, photos: Path, tmp_path: Path
) -> None:
    again = tmp_path / f"another_name.{to}"
    exported.ensemble.export(again, check=photos)
    content = again.read_bytes()
    assert content == exported.files[to].read_bytes()
    assert str(Path(tuner.__file__).parent).encode() not in content


DIFFICULT = """
class Branching(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.head = nn.Linear(image_shape[0], num_classes)

    def forward(self, images):
        means = images.mean(dim=(2, 3))
        return self.head(means) if means.sum() > 0 else self.head(-means)


class Spectral(nn.Module):
    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.head = nn.Linear(image_shape[1], num_classes)

    def forward(self, images):
        return self.head(torch.linalg.eigvals(images[:, 0]).real)
"""


def own(name: str) -> ModelConfig:
    return ModelConfig(
        "custom", {"path": "net.py", "name": name, "params": {}, "source": NETS + DIFFICULT}
    )


@every_format
def test_networks_of_ones_own_are_exported(to: Format, photos: Path, tmp_path: Path) -> None:
    made = ensemble_of(own("Net"), path=tmp_path).export(tmp_path / f"own.{to}", check=photos)
    assert made.compared.max_difference < 1e-5


@pytest.mark.parametrize(
    ("name", "to", "reason"),
    [
        ("Branching", "pt2", r"net\.py:\d+: \w+: Could not guard on data-dependent expression"),
        ("Spectral", "onnx", r"DispatchError: No ONNX function found for .*linalg_eig"),
    ],
)
def test_a_network_that_cannot_be_exported_is_named_in_a_line(
    name: str,
    to: Format,
    reason: str,
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    ensemble = ensemble_of(own(name), own("make_linear"), tta="none", path=tmp_path)
    with pytest.raises(UsageError) as raised:
        ensemble.export(tmp_path / f"ensemble.{to}", check=photos)
    start = rf"members/0000\.safetensors: its network cannot be exported to {to} \("
    assert re.match(start + reason, str(raised.value))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["rounding", "nan", "labels"])
def test_a_file_that_gives_other_probabilities_is_not_kept(
    wrong: str, photos: Path, tmp_path: Path
) -> None:
    ensemble = ensemble_of(own("make_linear"), path=tmp_path)

    def predict(images: Any) -> np.ndarray:
        probs = ensemble.predict(images)
        # Of the first image that is compared alone.
        if isinstance(images, Path) or images.shape[1:3] != (SIZE, SIZE):
            return probs
        if wrong == "labels":
            return np.roll(probs, 1, axis=1)
        return probs + (2e-4 if wrong == "rounding" else np.nan)

    file = tmp_path / "ensemble.pt2"
    file.write_text("the one before")
    with pytest.raises(TunerError, match=r"not written, for torch\.export gives other"):
        export_graph(
            ensemble.graph(),
            file,
            "pt2",
            name="top2",
            record=ensemble.record,
            predict=predict,
            samples=samples_in(photos, "RGB"),
        )
    assert file.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [file]


def test_where_nothing_can_be_written_is_told(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ensemble = ensemble_of(own("make_linear"), path=tmp_path)
    with pytest.raises(UsageError, match=r"ensemble\.pt2: cannot be written \(File exists"):
        ensemble.export(tmp_path / "file" / "ensemble.pt2", check=photos)


def test_more_than_an_onnx_file_holds_is_refused() -> None:
    with torch.device("meta"):
        large = nn.Linear(2**15, 2**14)
    one = torch.ones(1, 3, 1, 1)
    member = MemberGraph(
        large,
        file="members/0000.safetensors",
        mean=one,
        std=one,
        weight=1.0,
        temperature=1.0,
        floor=0.0,
        tta="none",
    )
    graph = EnsembleGraph([member], image_shape=(3, SIZE, SIZE), resize="squash", temperature=1.0)
    with pytest.raises(UsageError, match=r"less than 2 GiB, .* take 2\.00 GiB; take --format pt2"):
        check_fits_onnx(graph)


def test_what_is_not_installed_is_named(
    exported: Exported, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"\(onnxruntime\): pip install -e '\.\[export\]'"):
        exported.ensemble.export(tmp_path / "ensemble.onnx", check=photos)


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("ensemble.bin", None, "name it .onnx or .pt2"),
        ("ensemble.onnx", "tflite", "format: 'tflite' is none of onnx, pt2"),
    ],
)
def test_a_format_has_to_be_known(
    name: str, format: str | None, message: str, exported: Exported, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        exported.ensemble.export(tmp_path / name, format=format, check=photos)


def test_a_comparison_needs_images(exported: Exported, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps no images"):
        exported.ensemble.export(tmp_path / "ensemble.pt2")
    with pytest.raises(DataError, match="no images there"):
        exported.ensemble.export(tmp_path / "ensemble.pt2", check=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    shutil.copy(photos / "wide.jpg", tmp_path)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    # All of them, each in a line.
    with pytest.raises(DataError, match=r"(?s)broken\.png: cannot be read.*\n.*cut\.png: cannot"):
        exported.ensemble.export(tmp_path / "ensemble.pt2", check=tmp_path)
    assert not (tmp_path / "ensemble.pt2").exists()


def test_the_command_writes_the_newest_ensemble_and_tells_how_it_compares(
    finished_run: Run, photos: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_run.path.parents[1]
    tuner.combine(finished_run, top=2, calibrate=True, device="cpu", progress=False)
    monkeypatch.chdir(folder)

    code, out, err = call("export", "--output", "digits.onnx", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["file"], told["format"], told["num_members"]) == ("digits.onnx", "onnx", 2)
    assert told["num_bytes"] == Path("digits.onnx").stat().st_size
    # Those kept with the ensemble, as they are and enlarged.
    assert told["compared"]["num_images"] == told["compared"]["equal_labels"] == 64
    assert told["compared"]["num_files"] == 0
    assert [latency["num_images"] for latency in told["latency"]] == [1, 32]

    words = ("--output", "digits.pt2", "--ensemble", "tiny", "--check", str(photos))
    code, shown, err = call("export", *words)
    assert code == 0, err
    assert "digits.pt2: 0." in shown
    assert "gives 3 files the same label in 3 cases" in shown
    assert "torch.export, ms" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "efficientnet_b0", "convnext_tiny", "vit_b_32", "swin_t", "densenet121"],
)
def test_networks_of_torchvision_are_exported(name: str, photos: Path, tmp_path: Path) -> None:
    model = ModelConfig("pretrained", {"name": name, "image_size": 64})
    ensemble = ensemble_of(model, tta="none", path=tmp_path)
    made = ensemble.export(tmp_path / "ensemble.onnx", check=photos)
    assert made.compared.max_difference < 1e-5


def test_a_pipe_stays_a_pipe(exported: Exported, photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "e.pt2")
    with pytest.raises(UsageError, match=r"e\.pt2: is a pipe, a device or a folder"):
        exported.ensemble.export(tmp_path / "e.pt2", check=photos)
    assert (tmp_path / "e.pt2").is_fifo()


def test_hidden_files_are_no_images_to_compare_on(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / "._wide.jpg").write_bytes(b"resources of a Mac")
    assert len(list(samples_in(tmp_path / "copy", "RGB"))) == len(list(samples_in(photos, "RGB")))
