"""Files of a run that are none: links out of it, pipes, devices, names that lead elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tuner
from tests.conftest import Call
from tuner.deploy.predictor import read_ensemble as load
from tuner.errors import SpaceError, TunerError
from tuner.monitor.follow import RunWatcher
from tuner.report.ensembles import read_ensemble, read_figures
from tuner.report.live import version_of
from tuner.run.run import Run
from tuner.space import load_resources, load_run_space, load_space
from tuner.storage.files import append_line
from tuner.storage.object_path import MOST_TEXT
from tuner.storage.paths import inside, read_bytes, read_text
from tuner.training.device import find_device

PNG = b"\x89PNG\r\n\x1a\n and more"
SECRET = "the secret of another file"


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link(path: Path) -> None:
    original = path.with_name("original")
    path.rename(original)
    path.symlink_to(original)


def _long(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(MOST_TEXT + 1)


@pytest.mark.parametrize("spoil", [_pipe, _link, _long])
@pytest.mark.parametrize("name", ["run.json", "trials/0001/status.json", "trials/0001/history.csv"])
def test_what_is_no_file_of_a_run_is_told_and_not_read(
    name: str, spoil: Callable[[Path], None], finished_run: Run
) -> None:
    spoil(finished_run.path / name)
    with pytest.raises(
        TunerError, match=r"damaged or unreadable: .* is (a link|a pipe)|has \d+ by"
    ):
        Run.open(finished_run.path).trials()


def test_a_trial_elsewhere_is_not_read(finished_run: Run, tmp_path: Path) -> None:
    folder = finished_run.trial_path(1)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TunerError, match="0001 is a link"):
        finished_run.trials()


@pytest.mark.parametrize("spoil", [_pipe, _link])
def test_numbers_are_read_from_files_alone(
    spoil: Callable[[Path], None], finished_run: Run
) -> None:
    trial = finished_run.trial(1)
    spoil(trial.path / "val_probs.npy")
    with pytest.raises(TunerError, match=r"val_probs\.npy"):
        trial.val_probs()


def test_a_device_and_a_pipe_are_no_space(tmp_path: Path) -> None:
    for place in (Path("/dev/zero"), tmp_path / "pipe.yaml"):
        if not place.exists():
            os.mkfifo(place)
        with pytest.raises(SpaceError, match="is a pipe or a device, not a file"):
            load_space(place)


def test_a_space_may_be_a_link_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("space: {model: {cnn: {stages: {choice: [2, 3]}}}}\n")
    (tmp_path / "link.yaml").symlink_to("s.yaml")
    assert len(load_space(tmp_path / "link.yaml").rows()) == 1


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../run.json", "", ".", "a//b", "a/../b", "a\0b", "members/..", "x" * 300],
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the name of a file in"):
        inside(tmp_path, name)


def _mistakes(folder: Path, file: str) -> None:
    (folder / "mistakes").mkdir(parents=True)
    scores = {"accuracy": 0.9, "nll": 0.3, "brier": 0.1, "ece": 0.1}
    plain = {"ensemble": {"val": scores, "test": scores}, "members": [], "best_single": 1}
    (folder / "metrics.json").write_text(json.dumps(plain))
    row = f"file,index,true,predicted,confidence\n{file},1,a,b,0.5\n"
    (folder / "mistakes" / "mistakes.csv").write_text(row)
    (folder / "mistakes" / "00.png").write_bytes(PNG)


def test_the_pictures_of_mistakes_are_those_of_their_folder(tmp_path: Path) -> None:
    _mistakes(tmp_path / "e", "00.png")
    (mistake,) = read_ensemble(tmp_path / "e", read_figures(tmp_path / "e"))["mistakes"]
    assert mistake["image"].startswith("data:image/png;base64,iVBORw0KGgo")


@pytest.mark.parametrize("file", ["/etc/passwd", "../secret.txt", "secret.txt", "link.png", "pipe"])
def test_no_other_file_comes_into_a_report(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    _mistakes(folder, file)
    (folder / "secret.txt").write_text(SECRET)
    (folder / "mistakes" / "secret.txt").write_text(SECRET)
    (tmp_path / "other.png").write_bytes(PNG)
    (folder / "mistakes" / "link.png").symlink_to(tmp_path / "other.png")
    os.mkfifo(folder / "mistakes" / "pipe")
    with pytest.raises(TunerError, match=f"^{re.escape(str(folder / 'mistakes'))}: damaged"):
        read_ensemble(folder, read_figures(folder))


def test_the_mistakes_are_not_a_link(tmp_path: Path) -> None:
    _mistakes(tmp_path / "e", "00.png")
    (tmp_path / "e" / "mistakes").rename(tmp_path / "pictures")
    (tmp_path / "e" / "mistakes").symlink_to(tmp_path / "pictures")
    with pytest.raises(TunerError, match="mistakes is a link"):
        read_ensemble(tmp_path / "e", read_figures(tmp_path / "e"))


@pytest.mark.parametrize("file", ["../0001/checkpoint.safetensors", "/tmp/x.safetensors"])
def test_the_members_of_an_ensemble_lie_in_it(file: str, tmp_path: Path) -> None:
    member = {"file": file, "trial": 1, "weight": 1.0, "temperature": 1.0, "precision": "auto"}
    preprocessing = {"image_shape": [1, 8, 8], "mean": [0.5], "std": [0.5], "tta": "none"}
    plain = {
        "schema_version": 1,
        "run": "tiny",
        "made": "",
        "method": "vote",
        "classes": ["0", "1"],
        "temperature": 1.0,
        "preprocessing": preprocessing,
        "members": [member],
    }
    (tmp_path / "ensemble.json").write_text(json.dumps(plain))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(TunerError, match=r"ensemble\.json: .* is not the name of a file in"):
        load(tmp_path, find_device("cpu"))


def test_no_ensemble_is_written_elsewhere(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (finished_run.path / "ensembles").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TunerError, match="ensembles is a link"):
        tuner.combine(finished_run, top=1, device="cpu", progress=False)
    assert not (finished_run.path / "test_readings.jsonl").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_nothing_is_written_through_a_link(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(SECRET)
    for name in (".lock", "test_readings.jsonl"):
        (finished_run.path / name).unlink(missing_ok=True)
        (finished_run.path / name).symlink_to(tmp_path / "mine")
    with pytest.raises(TunerError, match="is a link"), finished_run.locked():
        pass
    with pytest.raises(OSError, match="is a link"):
        append_line(finished_run.path / "test_readings.jsonl", "{}")
    assert (tmp_path / "mine").read_text() == SECRET


@pytest.mark.parametrize(
    "text",
    [
        "extends: other.yaml\n",
        "space: {model: {custom: {path: nets.py, name: Net}}}\n",
        "space: {model: {choice: {cnn: {}, custom: {path: nets.py, name: Net}}}}\n",
        "space: {model: {pretrained: {run: 'http://169.254.169.254/x'}}}\n",
        "space: {model: {choice: {cnn: {}, pretrained: {run: /home/me/other, trial: 1}}}}\n",
    ],
)
def test_the_space_of_a_run_names_no_other_file(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.run.run.find_run", None)
    canary = tmp_path / "canary"
    (tmp_path / "nets.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (tmp_path / "other.yaml").write_text("space: {model: {cnn: {}}}\n")
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(TunerError, match=r"space\.yaml: damaged"):
        load_run_space(file)
    with pytest.raises(SpaceError, match="it is damaged"):
        load_resources(file)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SpaceError, match="it is damaged"):
        load_space(file)
    assert not canary.exists()


def test_a_pipe_hangs_no_command(finished_run: Run) -> None:
    _pipe(finished_run.path / "trials" / "0000" / "history.csv")
    words = ["leaderboard", "tiny", "--storage", str(finished_run.path.parent)]
    ended = subprocess.run(
        [sys.executable, "-m", "tuner", *words], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "history.csv is a pipe or a device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_text_is_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffä\r\nb\r".encode())
    assert read_text(tmp_path / "a", encoding="utf-8-sig") == "ä\nb\n"
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_no_code_beside_the_space_of_a_run_is_run_by_what_extends_it(tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "own.yaml"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "nets.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    (run / "space.yaml").write_text("space: {model: {custom: {path: nets.py, name: Net}}}\n")
    own.write_text("extends: run/space.yaml\nspace: {batch_size: 32}\n")
    with pytest.raises(SpaceError, match="it is damaged"):
        load_space(own)
    assert not (tmp_path / "canary").exists()


def test_no_link_of_a_run_is_followed_by_what_tidies_up(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (finished_run.path / "ensembles").symlink_to(tmp_path / "home")
    with pytest.raises(TunerError, match="ensembles"):
        finished_run.remove_abandoned()
    (tmp_path / "elsewhere").mkdir()
    (finished_run.path / "trials").rename(tmp_path / "elsewhere" / "trials")
    (finished_run.path / "trials").symlink_to(tmp_path / "elsewhere" / "trials")
    with pytest.raises(TunerError, match="trials"):
        finished_run.trial(0)


@pytest.mark.parametrize("command", ["leaderboard", "show", "report", "check"])
def test_a_file_in_place_of_the_trials_is_told(command: str, finished_run: Run, call: Call) -> None:
    trials = finished_run.path / "trials"
    shutil.rmtree(trials)
    trials.touch()
    code, out, err = call(command, str(finished_run.path))
    assert code == 1
    assert f"{trials}: damaged or unreadable: " in out + err


def test_a_file_in_place_of_a_trial_is_passed_by_and_found(finished_run: Run, call: Call) -> None:
    files = [finished_run.path / name for name in ("trials/0003", "ensembles")]
    for file in files:
        file.touch()
    watcher = RunWatcher(finished_run.path)
    watcher.look()
    assert len(watcher.state.trials) == 3
    assert version_of(finished_run) == version_of(finished_run)
    code, out, _ = call("check", str(finished_run.path), "--device", "cpu", "--json")
    assert code == 1
    damage = json.loads(out)["damage"]
    assert {(entry["file"], entry["trial"]) for entry in damage} == {
        (str(files[0]), 3),
        (str(files[1]), None),
    }
