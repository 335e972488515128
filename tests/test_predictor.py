"""A loaded ensemble: what it checks, what it explains, where it works."""

import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tuner
from tuner.deploy.predictor import Ensemble
from tuner.deploy.preprocessing import Preprocessing
from tuner.errors import DataError, UsageError
from tuner.run.run import Run
from tuner.storage.files import write_json

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def loaded(run_with_ensemble: Run) -> Ensemble:
    return tuner.load_ensemble(run_with_ensemble.path / "ensembles" / "all", device="cpu")


@pytest.fixture
def folder(run_with_ensemble: Run, tmp_path: Path) -> Path:
    """Return an ensemble's folder that the test may damage."""
    copy = tmp_path / "all"
    shutil.copytree(run_with_ensemble.path / "ensembles" / "all", copy)
    return copy


def digits_of(loaded: Ensemble) -> np.ndarray:
    """Return the probe's real digits, (32, 8, 8, 1)."""
    images = load_file(str(loaded.path / "probe.safetensors"))["images"]
    return images.permute(0, 2, 3, 1).numpy()


# The probe


def test_the_probe_holds_what_the_members_say(loaded: Ensemble) -> None:
    probe = load_file(str(loaded.path / "probe.safetensors"))
    assert probe["images"].shape == (32, 1, 8, 8)
    vote = loaded.vote(probe["images"])
    torch.testing.assert_close(vote.members, probe["probs"], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        loaded.mix(probe["probs"]).float(),
        torch.from_numpy(loaded.predict(digits_of(loaded))),
        atol=1e-6,
        rtol=0,
    )


def described(folder: Path) -> dict:
    plain: dict = json.loads((folder / "ensemble.json").read_text())
    return plain


def write_probe(
    folder: Path, probs: torch.Tensor, device: str = "cpu", images: torch.Tensor | None = None
) -> None:
    """Write other probabilities or images into the probe, and record its hash."""
    file = folder / "probe.safetensors"
    tensors = {"images": load_file(str(file))["images"] if images is None else images}
    tensors["probs"] = probs
    dtypes = json.dumps(["torch.float32"] * len(probs))
    save_file(tensors, str(file), {"device": device, "dtypes": dtypes})
    plain = described(folder)
    plain["probe"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    write_json(folder / "ensemble.json", plain)


def move_first_member(folder: Path, distance: float, device: str) -> None:
    """Move the first member's probabilities in the probe by a mean total variation."""
    probs = load_file(str(folder / "probe.safetensors"))["probs"]
    first = probs[0]
    other = torch.full_like(first, 0.1)
    whole = ((other - first).abs().sum(dim=1) / 2).mean()
    probs[0] = first + (other - first) * distance / whole
    write_probe(folder, probs, device)


@pytest.mark.parametrize(
    ("device", "distance", "is_refused"),
    [("cpu", 0.0008, False), ("cpu", 0.0012, True), ("cuda", 0.015, False), ("cuda", 0.025, True)],
)
def test_members_that_say_something_else_are_refused(
    device: str, distance: float, is_refused: bool, folder: Path
) -> None:
    move_first_member(folder, distance, device)
    if not is_refused:
        tuner.load_ensemble(folder, device="cpu")
        return
    with pytest.raises(tuner.TunerError, match=r"probe.safetensors: .*trial \d differs by 0\.0"):
        tuner.load_ensemble(folder, device="cpu")


def forget_probe(folder: Path) -> None:
    plain = described(folder)
    del plain["probe"]
    write_json(folder / "ensemble.json", plain)
    (folder / "probe.safetensors").unlink()


def drop_new_entries(folder: Path) -> None:
    """Leave what earlier versions wrote."""
    forget_probe(folder)
    plain = described(folder)
    for key in ("data", "made_by"):
        del plain[key]
    del plain["preprocessing"]["resize"]
    for member in plain["members"]:
        del member["model"]
    write_json(folder / "ensemble.json", plain)


@pytest.mark.parametrize("change", [forget_probe, drop_new_entries])
def test_ensembles_of_earlier_versions_load(
    change: Callable[[Path], None], folder: Path, loaded: Ensemble
) -> None:
    change(folder)
    images = digits_of(loaded)
    np.testing.assert_array_equal(
        tuner.load_ensemble(folder, device="cpu").predict(images), loaded.predict(images)
    )


def cut_probe(folder: Path) -> None:
    file = folder / "probe.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def probe_more_classes(folder: Path) -> None:
    probs = load_file(folder / "probe.safetensors")["probs"]
    write_probe(folder, torch.cat([probs, probs[:, :, :1]], dim=2))


def probe_with_images_of(*shape: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        probs = load_file(folder / "probe.safetensors")["probs"][:, : shape[0]].contiguous()
        write_probe(folder, probs, images=torch.zeros(shape, dtype=torch.uint8))

    return change


def lose_probe(folder: Path) -> None:
    (folder / "probe.safetensors").unlink()


def ask_for_another_resize(folder: Path) -> None:
    plain = described(folder)
    plain["preprocessing"]["resize"] = "seam carving"
    write_json(folder / "ensemble.json", plain)


def lead_out_of_the_folder(folder: Path) -> None:
    plain = described(folder)
    plain["probe"]["file"] = "../probe.safetensors"
    write_json(folder / "ensemble.json", plain)


def take_larger_images(folder: Path) -> None:
    """Prepare images in another size than that of the networks, which accept any size."""
    plain = described(folder)
    plain["preprocessing"]["image_shape"] = [1, 16, 16]
    write_json(folder / "ensemble.json", plain)
    forget_probe(folder)


def take_huge_images(folder: Path) -> None:
    plain = described(folder)
    plain["preprocessing"]["image_shape"] = [1, 60_000, 60_000]
    write_json(folder / "ensemble.json", plain)


def turn_black_and_white(folder: Path) -> None:
    plain = described(folder)
    plain["preprocessing"] |= {"black": 255, "white": 0}
    write_json(folder / "ensemble.json", plain)


def tell_of_folds(folder: Path) -> None:
    plain = described(folder)
    plain["members"][0]["folds"] = 2
    write_json(folder / "ensemble.json", plain)


def normalize_two_channels(folder: Path) -> None:
    plain = described(folder)
    file = folder / plain["members"][0]["file"]
    with safe_open(file, framework="pt") as opened:
        checkpoint = json.loads(opened.metadata()["checkpoint"])
    save_file(load_file(file), file, {"checkpoint": json.dumps(checkpoint | {"mean": [0.5, 0.5]})})
    plain["members"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    write_json(folder / "ensemble.json", plain)


def lose_test_accuracy(folder: Path) -> None:
    plain = json.loads((folder / "metrics.json").read_text())
    del plain["ensemble"]["test"]
    write_json(folder / "metrics.json", plain)


@pytest.mark.parametrize(
    "change",
    [
        *(cut_probe, lose_probe, ask_for_another_resize, lead_out_of_the_folder),
        *(take_larger_images, take_huge_images, turn_black_and_white, tell_of_folds),
        *(normalize_two_channels, lose_test_accuracy, probe_more_classes),
        *(probe_with_images_of(*shape) for shape in ((32, 1, 0, 8), (0, 1, 8, 8), (32, 1, 9, 8))),
    ],
)
def test_damage_is_told_in_one_line(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    with pytest.raises(tuner.TunerError) as caught:
        tuner.load_ensemble(folder, device="cpu")
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message


# The explanation


def test_an_explanation_tells_each_members_vote_and_who_decided(loaded: Ensemble) -> None:
    images = digits_of(loaded)
    probs = loaded.predict(images)
    vote = loaded.vote(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    explanations = loaded.explain(images)
    assert len(explanations) == len(images)
    decisive = 0
    for number, found in enumerate(explanations):
        order = probs[number].argsort()[::-1]
        assert found.label == loaded.classes[order[0]]
        assert found.runner_up == loaded.classes[order[1]]
        assert found.confidence == pytest.approx(probs[number].max(), abs=1e-6)
        labels = [loaded.classes[int(own[number].argmax())] for own in vote.members]
        assert [entry.label for entry in found.votes] == labels
        assert found.agreement == labels.count(found.label) / 3
        assert found.agreement == pytest.approx(1 - vote.disagreement[number].item())
        for index, entry in enumerate(found.votes):
            left = [own[number] for at, own in enumerate(vote.members) if at != index]
            changed = loaded.classes[int(sum(left).argmax())] != found.label
            assert entry.is_decisive == changed
            decisive += changed
        text = str(found)
        assert f"{found.label}, {found.confidence:.1%}" in text
        assert "grey, squash to 8 x 8 pixels" in text
    assert decisive


def test_views_asked_for_replace_those_of_the_ensemble(loaded: Ensemble) -> None:
    images = digits_of(loaded)
    flipped = loaded.predict(images, tta="flip")
    # Both views of the one are those of the other.
    np.testing.assert_allclose(loaded.predict(images[:, :, ::-1], tta="flip"), flipped, atol=1e-5)
    assert np.abs(flipped - loaded.predict(images)).max() > 0.01
    with pytest.raises(UsageError, match="did you mean 'flip'"):
        loaded.predict(images, tta="flipp")  # type: ignore[arg-type]


def test_a_damaged_image_of_pillows_is_told_like_its_file(tmp_path: Path) -> None:
    path = tmp_path / "torn.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    prepare = Preprocessing(image_shape=(1, 8, 8))
    told = r"torn\.jpg: cannot be read as an image \(image file is truncated"
    with pytest.raises(DataError, match=told):
        prepare.file_pixels(path)
    with Image.open(path) as image, pytest.raises(DataError, match=told):
        prepare.image_pixels(image)


def test_the_example_of_the_documentation_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = folder.parent
    shutil.copytree(folder, home / "runs" / "first" / "ensembles" / "top5")
    image = next((folder / "mistakes").glob("*.png"))
    monkeypatch.chdir(home)
    with Image.open(image) as picture:
        picture.convert("RGB").resize((640, 480)).save("photo.jpg")
    text = inspect.cleandoc(tuner.load_ensemble.__doc__ or "")
    example = text.split("::\n\n")[1].split("\n\n")[0]
    exec(textwrap.dedent(example), {"tuner": tuner})
    label, confidence, *_ = capsys.readouterr().out.split()
    assert label in "0123456789"
    assert 0.1 < float(confidence) < 1


# Where it works


def closure(names: tuple[str, ...]) -> Iterator[str]:
    """Yield the distributions of these names and all that they need."""
    left, seen = list(names), set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left.append(needed.name)


def program(code: str, python: Path | str = sys.executable, **environment: str) -> str:
    done = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={"PATH": "", "OMP_NUM_THREADS": "1", **environment},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADING = """
import sys, time, torch
began = time.process_time()
import tuner
ensemble = tuner.load_ensemble({folder!r}, device="cpu")
print(time.process_time() - began)
import numpy as np
print(ensemble.predict(np.zeros((2, 8, 8, 1), dtype=np.uint8)).shape, len(ensemble.members))
names = "ray optuna torchvision pandas scipy sklearn matplotlib".split()
print(*[name for name in names if name in sys.modules])
"""


def test_five_members_load_within_a_second_and_bring_nothing_heavy(folder: Path) -> None:
    plain = described(folder)
    members = [*plain["members"], *plain["members"][:2]]
    plain["members"] = [member | {"weight": 0.2} for member in members]
    write_json(folder / "ensemble.json", plain)
    probs = load_file(str(folder / "probe.safetensors"))["probs"]
    write_probe(folder, torch.cat([probs, probs[:2]]))
    seconds, shape, heavy = program(LOADING.format(folder=str(folder)), PYTHONPATH=str(ROOT)).split(
        "\n"
    )[:3]
    assert shape == "(2, 10) 5"
    assert heavy == ""
    # Of the processor, so that other work on the machine does not count.
    assert float(seconds) < 1


PREDICTING = ("torch", "numpy", "pillow", "safetensors", "pyyaml", "click", "rich")
"""All that predictions need; the README names them, too."""


@pytest.mark.slow
def test_a_new_environment_without_ray_and_optuna_predicts(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tuner", "search_spaces", "pyproject.toml", "README.md", "LICENSE.md"):
        kept = ROOT / name
        copy = shutil.copytree if kept.is_dir() else shutil.copyfile
        copy(kept, source / name)
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    install = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", *install, "--target", site, source], check=True)
    for name in closure(PREDICTING):
        for file in distribution(name).files or ():
            top = Path(file.parts[0])
            target = site / top
            if file.parts[0] not in ("..", "__pycache__") and not target.exists():
                target.symlink_to(Path(str(distribution(name).locate_file(top))))
    python = home / "bin" / "python"
    missing = program(
        "from importlib.util import find_spec\n"
        "print(*[n for n in ('ray', 'optuna', 'torchvision', 'scipy', 'pandas') if find_spec(n)])",
        python,
    )
    assert missing == "\n"
    shown = program(LOADING.format(folder=str(folder)), python, HOME=str(tmp_path))
    assert shown.splitlines()[1:] == ["(2, 10) 3", ""]
    image = tmp_path / "image.png"
    shutil.copyfile(next((folder / "mistakes").glob("*.png")), image)
    line = ["-m", "tuner", "predict", str(image), "--ensemble", str(folder), "--format", "csv"]
    done = subprocess.run([python, *line], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(f"{image},")


def test_weights_that_no_vote_takes_are_refused_when_they_are_read(folder: Path) -> None:
    plain = described(folder)
    plain["members"][0]["weight"] += 5e-4
    write_json(folder / "ensemble.json", plain)
    with pytest.raises(tuner.TunerError, match="their weights sum to"):
        tuner.load_ensemble(folder, device="cpu")
