"""Whose code runs: the user's own, which was searched with here, and no other one unasked."""

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

import tuner
from tests.conftest import Call, train_trial
from tests.stores import free_port
from tuner.config import ModelConfig, Sgd, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import TunerError, UntrustedCodeError
from tuner.models import trust
from tuner.models.families import Source
from tuner.models.trust import check_code_trusted, code_of, remember
from tuner.models.user_code import load_module
from tuner.run.checkpoint import load_checkpoint, read_description, save_checkpoint
from tuner.run.digests import read_digests, write_digests
from tuner.run.run import Run
from tuner.schema import to_json

NET = """\
from pathlib import Path
from torch import nn

Path({canary!r}).touch()


class Net(nn.Sequential):
    def __init__(self, num_classes, image_shape):
        super().__init__(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1] ** 2, num_classes))
"""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return the file that the code makes when it runs."""
    return tmp_path / "canary"


@pytest.fixture
def model(canary: Path) -> ModelConfig:
    text = NET.format(canary=str(canary))
    return ModelConfig("custom", {"path": "net.py", "name": "Net", "params": {}, "source": text})


@pytest.fixture(autouse=True)
def _nobody_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_searched", set())
    trust._tell.cache_clear()


@pytest.fixture
def foreign(finished_run: Run, model: ModelConfig, canary: Path, digits: Splits) -> Run:
    """Return a run whose best trials are of somebody's own code, as that somebody left it."""
    for number in (1, 2):
        config = TrialConfig(
            model=model, epochs=1, seed=number, batch_size=32, optimizer=Sgd(lr=0.05)
        )
        train_trial(finished_run.trial_path(number), config, digits)
    space = {"space": {"model": {"custom": dict(model.params)}}, "search": {"epochs": 2}}
    (finished_run.path / "space.yaml").write_text(yaml.safe_dump(space))
    finished_run.update(hardware={"threads_per_trial": 1})
    forget(canary)
    return Run.open(finished_run.path)


@pytest.fixture
def foreign_ensemble(foreign: Run, canary: Path) -> Run:
    """Return the run with an ensemble of its best trials, as that somebody left it."""
    tuner.combine(foreign, top=2, device="cpu", trust_code=True, progress=False)
    forget(canary)
    return foreign


@pytest.fixture
def call(call: Call, finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs a command on the storage."""
    storage = finished_run.path.parent
    monkeypatch.chdir(storage)
    return lambda *words: call(*words, "--storage", str(storage))


def forget(canary: Path) -> None:
    """Have the code run anew, should it be run."""
    load_module.cache_clear()
    canary.unlink(missing_ok=True)


def craft(file: Path, model: ModelConfig) -> None:
    """Put another model into a checkpoint's description, and leave its weights, digests and all."""
    described = read_description(file)
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    digest = save_checkpoint(file, tensors, replace(described, model=model))
    if (file.parent / "digests.json").exists():
        write_digests(file.parent, read_digests(file.parent) | {file.name: digest})


LOOKS: list[tuple[str, ...]] = [
    ("leaderboard", "tiny"),
    ("show", "tiny"),
    ("show", "tiny", "1"),
    ("report", "tiny"),
    ("ensemble", "--run", "tiny", "--top", "2", "--dry-run"),
    ("ensemble", "--run", "tiny", "--top", "2", "--dry-run", "--method", "greedy"),
]


@pytest.mark.parametrize("words", LOOKS, ids=" ".join)
def test_to_look_runs_no_code(
    words: tuple[str, ...], call: Call, foreign: Run, canary: Path
) -> None:
    code, _, err = call(*words)
    assert code == 0, err
    assert not canary.exists()


BUILDS: list[tuple[str, ...]] = [
    ("ensemble", "--run", "tiny", "--top", "1"),
    ("ensemble", "--run", "tiny", "--top", "2", "--dry-run", "--tta", "flip"),
    ("ensemble", "--run", "tiny", "--top", "2", "--dry-run", "--method", "soup"),
    ("ensemble", "--run", "tiny", "--top", "2", "--dry-run", "--max-latency-ms", "1000"),
    ("ensemble", "--run", "tiny", "--top", "1", "--compare"),
    ("rerun", "tiny", "1"),
    ("refit", "tiny", "--top", "1"),
    ("search", "--resume", "--name", "tiny"),
    ("search", "--space", "tiny/space.yaml"),
    ("plan", "--space", "tiny/space.yaml"),
]


@pytest.mark.parametrize("words", BUILDS, ids=" ".join)
def test_to_build_a_foreign_network_needs_trust(
    words: tuple[str, ...], call: Call, foreign: Run, canary: Path
) -> None:
    before = (foreign.path / "run.json").read_bytes()
    code, _, err = call(*words)
    assert code == 2, err
    assert "--trust-code" in err
    assert "'net.py'" in err
    assert not canary.exists()
    assert (foreign.path / "run.json").read_bytes() == before
    assert not (foreign.path / "test_readings.jsonl").exists()


@pytest.mark.parametrize(
    "words", [("ensemble", "--run", "tiny", "--top", "2"), ("rerun", "tiny", "1")], ids=" ".join
)
def test_what_is_trusted_is_run_and_told(
    words: tuple[str, ...], call: Call, foreign: Run, canary: Path
) -> None:
    code, _, err = call(*words, "--trust-code")
    assert code == 0, err
    told = [line for line in err.splitlines() if line.startswith("Running code that came with")]
    assert len(told) == 1
    assert str(foreign.path) in told[0]
    assert canary.exists()


def test_what_was_searched_here_is_run(
    call: Call, foreign: Run, model: ModelConfig, canary: Path, tmp_path: Path
) -> None:
    remember(code_of([model]))
    folder = tmp_path / "state" / "cifar-tune" / "known_code"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code, _, err = call("ensemble", "--run", "tiny", "--top", "2")
    assert code == 0, err
    assert "Running code" not in err
    assert canary.exists()


def test_an_ensemble_is_asked_about_too(foreign: Run, canary: Path) -> None:
    made = tuner.combine(foreign, top=2, device="cpu", trust_code=True, progress=False)
    forget(canary)
    with pytest.raises(UntrustedCodeError, match="trust_code=True"):
        tuner.load_ensemble(made.path)
    with pytest.raises(UntrustedCodeError, match="trust_code=True"):
        tuner.combine(foreign, top=2, device="cpu", progress=False)
    assert not canary.exists()
    tuner.load_ensemble(made.path, trust_code=True)
    assert canary.exists()


def test_to_use_a_foreign_ensemble_needs_trust(
    call: Call, foreign_ensemble: Run, canary: Path
) -> None:
    for words in (
        ("predict", "photo.png"),
        ("evaluate", "digits"),
        ("export", "--output", "ensemble.pt2"),
        ("serve", "--port", str(free_port())),
        ("distill", "--into", "cnn"),
    ):
        code, _, err = call(*words, "--ensemble", "tiny")
        assert code == 2, err
        assert "--trust-code" in err
        assert "'net.py'" in err
        assert not canary.exists()


def test_a_check_runs_no_foreign_code_and_says_so(
    call: Call, foreign_ensemble: Run, canary: Path
) -> None:
    code, _, err = call("check", "tiny")
    assert code == 0, err
    for what in ("networks", "ensembles"):
        assert f"Not checked: {what} whose code is not trusted: " in err
    assert not canary.exists()


def test_code_that_only_a_checkpoint_holds_never_runs(
    call: Call, finished_run: Run, model: ModelConfig, canary: Path
) -> None:
    file = finished_run.trial_path(1) / "checkpoint.safetensors"
    craft(file, model)
    for words in (
        ("ensemble", "--run", "tiny", "--top", "1"),
        ("ensemble", "--run", "tiny", "--top", "3", "--tta", "flip"),
        ("ensemble", "--run", "tiny", "--top", "2", "--method", "soup"),
    ):
        code, _, err = call(*words, "--trust-code")
        assert code == 1
        assert f"{file}: not a usable checkpoint: the model in it ('custom') is not the one" in err
    assert not canary.exists()
    assert not (finished_run.path / "test_readings.jsonl").exists()


def test_a_member_is_what_the_ensemble_says(
    finished_run: Run, model: ModelConfig, canary: Path
) -> None:
    made = tuner.combine(finished_run, top=1, device="cpu", progress=False)
    assert isinstance(made.path, Path)
    file = made.path / made.members[0].file
    craft(file, model)
    described = json.loads((made.path / "ensemble.json").read_text())
    del described["members"][0]["sha256"]
    (made.path / "ensemble.json").write_text(json.dumps(described))
    with pytest.raises(TunerError, match=r"0001\.safetensors: not a usable checkpoint: the model"):
        tuner.load_ensemble(made.path, trust_code=True)
    # As earlier versions left it.
    del described["members"][0]["model"]
    (made.path / "ensemble.json").write_text(json.dumps(described))
    with pytest.raises(UntrustedCodeError):
        tuner.load_ensemble(made.path)
    assert not canary.exists()


def test_what_a_model_starts_from_is_looked_at(
    foreign: Run, model: ModelConfig, canary: Path
) -> None:
    source = to_json(Source(model=model, image_shape=(1, 8, 8)))
    start = ModelConfig("pretrained", {"run": "tiny", "source": source})
    again = to_json(Source(model=start, image_shape=(1, 8, 8)))
    nested = ModelConfig("pretrained", {"run": "other", "source": again})
    assert code_of([start]) == code_of([nested]) == code_of([model])
    with pytest.raises(TunerError, match="damaged"):
        code_of([ModelConfig("pretrained", {"run": "tiny", "source": "[1]"})])

    space = {"space": {"model": {"pretrained": {"run": "tiny"}}}}
    loaded = tuner.load_space(space, storage=foreign.path.parent)
    assert code_of(loaded.models_with_code()) == code_of([model])
    with pytest.raises(UntrustedCodeError, match="trust_code"):
        tuner.search(space, data="digits", storage=foreign.path.parent, progress=False)
    assert not canary.exists()


def test_a_run_whose_checkpoint_is_of_another_model_starts_nothing(
    finished_run: Run, model: ModelConfig, canary: Path
) -> None:
    craft(finished_run.trial_path(1) / "checkpoint.safetensors", model)
    space = {"space": {"model": {"pretrained": {"run": "tiny"}}}}
    with pytest.raises(TunerError, match=r"safetensors: not a usable .*the model in it"):
        tuner.load_space(space, storage=finished_run.path.parent)
    assert not canary.exists()


def test_code_that_may_be_drawn_is_looked_at(model: ModelConfig) -> None:
    other = "class Net: ..."
    custom: dict[str, Any] = dict(model.params)
    custom["source"] = {"choice": [custom["source"], other]}
    text = {"space": {"model": {"choice": {"cnn": {}, "custom": custom}}}}
    found = code_of(tuner.load_space(text).models_with_code())
    assert set(found) == {model.params["source"], other}


def test_where_nothing_can_be_recorded_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember({})
    assert capsys.readouterr().err == ""
    code = {"text": "net.py"}
    remember(code)
    assert "The code of 'net.py' could not be recorded" in capsys.readouterr().err
    check_code_trusted(code, "tiny", trust=False)
    monkeypatch.setattr(trust, "_searched", set())
    with pytest.raises(UntrustedCodeError):
        check_code_trusted(code, "tiny", trust=False)


def test_a_checkpoint_is_rebuilt_as_it_was_saved(finished_run: Run) -> None:
    trial = finished_run.trial(1)
    network, _ = load_checkpoint(trial.checkpoint, trial.config.model)
    assert not network.training
    with pytest.raises(TunerError, match="the model in it"):
        load_checkpoint(trial.checkpoint, finished_run.trial(0).config.model)


@pytest.mark.ray
def test_a_search_records_the_users_own_code(
    session: None, model: ModelConfig, canary: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(str(model.params["source"]))
    (tmp_path / "s.yaml").write_text("space: {model: {custom: {path: net.py, name: Net}}}\n")
    run = tuner.search(
        tmp_path / "s.yaml",
        data="digits",
        trials=1,
        epochs=1,
        name="own",
        storage=tmp_path / "runs",
        data_dir=tmp_path / "data",
        progress=False,
    )
    assert run.trial(0).status.state == "completed"
    words = ["ensemble", "--run", "own", "--top", "1", "--storage", str(tmp_path / "runs")]
    line = [sys.executable, "-m", "tuner", *words]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    # Another user's.
    for file in (tmp_path / "state" / "cifar-tune" / "known_code").iterdir():
        file.unlink()
    canary.unlink()
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "--trust-code" in ended.stderr
    assert not canary.exists()
