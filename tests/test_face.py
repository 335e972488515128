"""The Python interface: what ``import tuner`` brings, and what its functions do."""

import importlib
import json
import logging
import os
import pkgutil
import shutil
import subprocess
import sys
import threading
import types
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import ray
import torch
from PIL import Image

import tuner
from tests.conftest import record_probs
from tuner.config import DataConfig, Method, RefitConfig
from tuner.data.decoding import resized
from tuner.data.splits import load_splits, load_test
from tuner.deploy.predictor import BATCH, Ensemble
from tuner.ensemble.members import Network, predict_network
from tuner.run.checkpoint import load_checkpoint, save_checkpoint
from tuner.run.digests import read_digests, write_digests
from tuner.run.run import Run
from tuner.run.run_record import now
from tuner.tuning.ray_backend.cluster import LOUD
from tuner.tuning.ray_backend.driver import TUNE_VARIABLES
from tuner.tuning.ray_backend.private import TUNE_ENV_VARS, air_usage, worker_module

SPACE = {
    "dataset": "digits",
    "search": {"trials": 8, "epochs": 2, "grace": 1},
    "space": {
        "batch_size": 64,
        "model": {"cnn": {"stages": 2, "blocks": 1, "width": {"int": [8, 16], "step": 8}}},
        "optimizer": {"adamw": {"lr": {"float": [1e-3, 2e-2], "log": True}}},
    },
}


def python(code: str) -> str:
    """Run a program of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_quick_and_brings_nothing_heavy() -> None:
    seconds, heavy = python(
        "import sys, time; began = time.process_time(); import tuner\n"
        "print(time.process_time() - began)\n"
        "names = 'torch ray optuna pandas numpy yaml click rich tuner.api'.split()\n"
        "print(*[name for name in names if name in sys.modules])"
    ).splitlines()
    assert heavy == ""
    assert float(seconds) < 0.1


def test_every_name_stays_what_it_is_after_all_modules_are_imported() -> None:
    for module in pkgutil.walk_packages(tuner.__path__, "tuner."):
        if module.name != "tuner.__main__":
            importlib.import_module(module.name)
    for name in tuner.__all__:
        value = getattr(tuner, name)
        assert value is getattr(importlib.import_module(value.__module__), name)
        if name[0].isupper():
            assert issubclass(value, tuner.TunerError)
        else:
            assert isinstance(value, types.FunctionType)


def test_all_names_are_listed_and_no_other_is_found() -> None:
    assert set(tuner.__all__) <= set(dir(tuner))
    with pytest.raises(AttributeError, match="module 'tuner' has no attribute 'serch'"):
        tuner.serch  # noqa: B018


def test_every_error_is_among_the_names() -> None:
    from tuner import errors

    own = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert own <= set(tuner.__all__)


def names_of(package: ModuleType) -> list[str]:
    """Return the functions and classes that a package defines itself, not in its modules."""
    return [name for name, value in vars(package).items() if callable(value) and name[0] != "_"]


def test_what_has_moved_is_where_it_is_said_to_be() -> None:
    for old, new in tuner.MOVED.items():
        importlib.import_module(new)
        found = PathFinder.find_spec(old, tuner.__path__)
        # A package may stand where a module stood; it holds nothing itself, so an import fails.
        assert found is None or not names_of(importlib.import_module(old))


def test_a_space_is_read_from_a_name_a_file_a_mapping_and_a_space(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(json.dumps(SPACE))
    of_mapping = tuner.load_space(SPACE)
    assert of_mapping.search.trials == 8
    assert tuner.load_space(file).rows() == of_mapping.rows()
    assert tuner.load_space(str(file)).search == of_mapping.search
    assert tuner.load_space("quick").dataset == "noisy-digits"
    changed = tuner.load_space(of_mapping, ["search.trials=3"])
    assert changed.search.trials == 3
    assert changed.rows() == of_mapping.rows()


def test_a_mistake_in_a_mapping_is_told_without_a_line() -> None:
    with pytest.raises(tuner.SpaceError, match=r"^space: space\.batch_sise: "):
        tuner.load_space({"space": SPACE["space"] | {"batch_sise": 8}})
    with pytest.raises(tuner.SpaceError, match=r"^space: contains more than plain values: "):
        tuner.load_space({"space": {"batch_size": np.int64(8)}})


def test_a_run_is_opened_by_name_and_folder(finished_run: Run) -> None:
    storage = finished_run.path.parent
    for run in (
        tuner.open_run("tiny", storage=storage),
        tuner.open_run(finished_run.path),
        tuner.open_run(storage=str(storage)),
    ):
        assert run.path == finished_run.path
    with pytest.raises(tuner.UsageError, match="no run 'tinny'"):
        tuner.open_run("tinny", storage=storage)


def test_a_run_stays_where_it_is_when_the_program_goes_elsewhere(
    run_with_ensemble: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_with_ensemble.path.parents[1])
    storage = run_with_ensemble.path.parent.name
    run = tuner.open_run("tiny", storage=storage)
    ensemble = tuner.load_ensemble("tiny/all", storage=storage, device="cpu")
    monkeypatch.chdir(tmp_path)
    assert len(run.leaderboard()) == 3
    assert ensemble.path.is_absolute()


def test_numbers_of_numpy_and_words_one_by_one_are_taken(
    trained_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.tuning.session.search", lambda request, console: request)
    request: Any = tuner.search(
        SPACE,
        seed=np.int64(3),
        trials=np.arange(9)[8],
        gpu_hours=np.float32(0.5),
        keep=np.int32(2),
        val_fraction=np.float64(0.25),
        overrides="search.grace=2",
        warm_start=(run for run in [trained_run]),
        storage=trained_run.path.parent,
        progress=False,
    )
    assert (request.search.seed, request.search.trials, request.search.grace) == (3, 8, 2)
    assert (request.gpu_hours, request.keep, request.data.val_fraction) == (0.5, 2, 0.25)
    assert [run.path for run in request.warm_start] == [trained_run.path]
    json.dumps([request.keep, request.gpu_hours, request.data.val_fraction])


def test_a_refit_is_resumed_by_its_name(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.tuning.refit.refit", lambda request, console: request)
    storage = finished_run.path.parent
    configs = (finished_run.trial(0).config,)
    plan = RefitConfig(run="tiny", trials=(0,), configs=configs, seeds=1)
    for name in ("a", "b"):
        shutil.copytree(finished_run.path, storage / name)
        made = Run.open(storage / name)
        made.record = replace(made.record, name=name, refit=plan, started=now())
        made.update()
    for source in (None, "tiny", finished_run):
        request: Any = tuner.refit(source, name="a", resume=True, storage=storage)
        assert request.name == "a"
    with pytest.raises(tuner.UsageError, match="RUN was fixed when"):
        tuner.refit("b", name="a", resume=True, storage=storage)


def test_the_leaderboard_is_a_table_best_trial_first(trained_run: Run) -> None:
    table = trained_run.leaderboard()
    assert isinstance(table, pd.DataFrame)
    assert list(table["trial"]) == [trial.number for trial in trained_run.ranked()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": None}, "^space: is missing"),
        ({"compile_mode": "sometimes"}, "^compile_mode: 'sometimes'"),
        ({"log": ["paper"]}, "^log: 'paper'"),
        ({"time_budget": "soon"}, "'soon' is not a time above 0"),
        ({"time_budget": -1}, "^time_budget: -1"),
        ({"concurrent": 0}, "^concurrent: 0"),
        ({"address": "http://127.0.0.1:8265"}, "^address http://127.0.0.1:8265: jobs are"),
        ({"trials": 0}, "search.trials"),
    ],
)
def test_a_search_refuses_what_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(tuner.UsageError, match=message):
        tuner.search(**{"space": SPACE} | arguments)


def test_a_search_and_a_refit_are_not_taken_for_each_other(finished_run: Run) -> None:
    with pytest.raises(tuner.UsageError, match="is a search"):
        tuner.refit(finished_run, resume=True)


@pytest.fixture(scope="module")
def combined(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    folder = tmp_path_factory.mktemp("combined") / "tiny"
    shutil.copytree(trained_run.path, folder)
    return tuner.combine(folder, top=2, calibrate=True, device="cpu", progress=False)


@pytest.fixture(scope="module")
def digits_test(combined: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    """Return the test images (N, 8, 8, 1) and their labels."""
    test = load_test(DataConfig(source="digits"), combined.path)
    return test.images.images.permute(0, 2, 3, 1).numpy(), test.images.labels.numpy()


@pytest.mark.parametrize("method", ["vote", "greedy", "weighted"])
def test_an_ensemble_predicts_what_was_measured(
    method: Method, finished_run: Run, digits_test: tuple[np.ndarray, np.ndarray]
) -> None:
    combined = tuner.combine(
        finished_run, top=3, method=method, calibrate=True, device="cpu", progress=False
    )
    images, labels = digits_test
    probs = combined.predict(images)
    assert probs.dtype == np.float32
    assert probs.shape == (len(images), 10)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    figures = combined.metrics["ensemble"]["test"]
    assert np.mean(probs.argmax(axis=1) == labels) == pytest.approx(figures["accuracy"], abs=0.01)
    nll = -np.log(probs[np.arange(len(labels)), labels]).mean()
    assert nll == pytest.approx(figures["nll"], rel=0.02)
    assert combined.classes == tuple("0123456789")
    assert sum(member.weight for member in combined.members) == pytest.approx(1)


def test_arrays_pictures_and_files_are_seen_alike(
    combined: Ensemble, digits_test: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images = digits_test[0][:3]
    pictures = [Image.fromarray(image[:, :, 0]) for image in images]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for picture, file in zip(pictures, files, strict=True):
        picture.convert("RGB").save(file)
    expected = combined.predict(images)
    np.testing.assert_array_equal(combined.predict(pictures), expected)
    np.testing.assert_array_equal(combined.predict([str(files[0]), *files[1:]]), expected)
    # Other shapes of a batch may be computed in another order.
    np.testing.assert_allclose(combined.predict(str(files[0])), expected[:1], atol=1e-5)
    np.testing.assert_allclose(combined.predict(pictures[0]), expected[:1], atol=1e-5)


def test_batches_and_sizes_make_no_difference_that_matters(
    combined: Ensemble, digits_test: tuple[np.ndarray, np.ndarray]
) -> None:
    images = digits_test[0]
    many = np.concatenate([images, images])[: BATCH + 1]
    np.testing.assert_allclose(combined.predict(many)[-1:], combined.predict(many[-1:]), atol=1e-5)
    large = images[:50].repeat(4, axis=1).repeat(4, axis=2)
    small = resized(torch.from_numpy(large).permute(0, 3, 1, 2).contiguous(), 8)
    seen = combined.predict(small.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(combined.predict(large), seen, atol=1e-5)
    assert combined.predict(images[:0]).shape == (0, 10)
    assert combined.predict([]).shape == (0, 10)


def test_other_defaults_of_pytorch_make_no_difference(
    combined: Ensemble, digits_test: tuple[np.ndarray, np.ndarray]
) -> None:
    images = digits_test[0][:5]
    expected = combined.predict(images)
    torch.set_default_dtype(torch.float64)
    try:
        # Whatever is made on this device without being asked for cannot be computed with.
        with torch.device("meta"):
            found = tuner.load_ensemble(combined.path, device="cpu").predict(images)
            assert torch.zeros(1).device.type == "meta"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_an_unreadable_file_is_named(combined: Ensemble, tmp_path: Path) -> None:
    with pytest.raises(tuner.DataError, match=r"gone\.png: cannot be read"):
        combined.predict([tmp_path / "gone.png"])


def test_each_member_normalizes_as_it_was_trained(
    finished_run: Run, digits_test: tuple[np.ndarray, np.ndarray]
) -> None:
    trial = finished_run.trial(0)
    model, file = trial.config.model, trial.checkpoint
    network, checkpoint = load_checkpoint(file, model)
    digest = save_checkpoint(file, network, replace(checkpoint, mean=(0.1,), std=(0.7,)))
    write_digests(trial.path, read_digests(trial.path) | {file.name: digest})
    splits = load_splits(finished_run.record.data, finished_run.path)
    alone = Network(file=file, model=model, precision=trial.config.precision)
    seen = predict_network(alone, splits.val.images, "none", torch.device("cpu"))
    record_probs(trial, seen.numpy(), splits.val.labels)
    ensemble = tuner.combine(finished_run, top=3, device="cpu", progress=False)
    images, labels = digits_test
    probs = ensemble.predict(images)
    nll = -np.log(probs[np.arange(len(labels)), labels]).mean()
    assert nll == pytest.approx(ensemble.metrics["ensemble"]["test"]["nll"], rel=0.02)


def test_a_soup_is_one_network(finished_run: Run) -> None:
    ensemble = tuner.combine(
        finished_run, top=2, method="soup", calibrate=True, device="cpu", progress=False
    )
    (member,) = ensemble.members
    assert len(member.soup_of) == 2
    test = load_test(DataConfig(source="digits"), finished_run.path)
    probs = ensemble.predict(test.images.images.permute(0, 2, 3, 1).numpy())
    nll = -np.log(probs[np.arange(len(probs)), test.images.labels.numpy()]).mean()
    assert nll == pytest.approx(ensemble.metrics["ensemble"]["test"]["nll"], rel=0.02)


def test_an_ensemble_needs_neither_ray_nor_optuna(combined: Ensemble) -> None:
    shown = python(
        "import sys; sys.modules['ray'] = sys.modules['optuna'] = None\n"
        "import numpy as np, tuner\n"
        f"ensemble = tuner.load_ensemble({str(combined.path)!r}, device='cpu')\n"
        "print(ensemble.predict(np.zeros((1, 8, 8, 1), dtype=np.uint8)).shape)"
    )
    assert shown == "(1, 10)\n"


def test_a_changed_or_missing_file_is_refused(combined: Ensemble, tmp_path: Path) -> None:
    folder = tmp_path / "ensemble"
    shutil.copytree(combined.path, folder)
    files = [folder / member.file for member in combined.members]
    shutil.copyfile(files[0], files[1])
    with pytest.raises(tuner.TunerError, match="is not the file that the ensemble was made with"):
        tuner.load_ensemble(folder)
    files[1].unlink()
    with pytest.raises(tuner.TunerError, match="damaged or unreadable"):
        tuner.load_ensemble(folder)
    with pytest.raises(tuner.UsageError, match="give its folder, RUN/NAME, or a run"):
        tuner.load_ensemble(tmp_path)


def test_a_later_ensemble_is_refused(combined: Ensemble, tmp_path: Path) -> None:
    folder = tmp_path / "ensemble"
    shutil.copytree(combined.path, folder)
    plain = json.loads((folder / "ensemble.json").read_text())
    (folder / "ensemble.json").write_text(json.dumps(plain | {"schema_version": 2}))
    with pytest.raises(tuner.UsageError, match="written by a later cifar-tune"):
        tuner.load_ensemble(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "best"}, "^method: 'best'"),
        ({"tta": "spin"}, "^tta: 'spin'"),
        ({"diverse": "size"}, "^diverse: 'size'"),
        ({"top": 0}, "^top: 0"),
    ],
)
def test_combine_refuses_what_cannot_be(trained_run: Run, arguments: dict, message: str) -> None:
    with pytest.raises(tuner.UsageError, match=message):
        tuner.combine(trained_run, **arguments)


def test_train_is_the_loop() -> None:
    from tuner.training.loop import train

    assert tuner.train is train


def settings() -> list[object]:
    """Return what a search changes for itself in Ray, Tune and Optuna."""
    variables = {name: os.environ.get(name) for name in TUNE_VARIABLES}
    levels = {name: logging.getLogger(name).level for name in LOUD}
    shown = worker_module._worker_logs_enabled, optuna.logging.get_verbosity()
    return [variables, levels, shown, dict(TUNE_ENV_VARS), air_usage.tag_callbacks]


@pytest.mark.ray
def test_a_notebook_searches_combines_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def cells() -> None:
        run = tuner.search(SPACE, data="digits", trials=3, time_budget="10m", data_dir="data")
        table = run.leaderboard()
        ensemble = tuner.combine(run, top=2, method="greedy", calibrate=True)
        probs = ensemble.predict(np.zeros((4, 8, 8, 1), dtype=np.uint8))
        found.update(run=run, table=table, probs=probs)

    # In a thread, where Python handles no signals.
    before = settings()
    found: dict[str, Any] = {}
    thread = threading.Thread(target=cells)
    thread.start()
    thread.join()
    captured = capfd.readouterr()
    assert found, captured.err
    assert captured.out == ""
    assert "trial 2" in captured.err
    run = found["run"]
    assert run.record.status == "finished"
    assert run.record.command == "tuner.search(space, trials=3, data='digits')"
    assert run.path.parent.resolve() == tmp_path / "runs"
    assert len(found["table"]) == 3
    assert found["probs"].shape == (4, 10)

    assert settings() == before, "of the user's own tasks, studies and experiments"

    # In a session that is open, without a word.
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    before = settings()
    try:
        again = tuner.refit(run, top=1, seeds=1, name="again", progress=False)
        resumed = tuner.search(name=run.record.name, resume=True, trials=4, progress=False)
        assert ray.is_initialized()
        assert settings() == before
    finally:
        ray.shutdown()
    assert again.record.status == "finished"
    assert again.path == run.path.parent / "again"
    assert len(resumed.leaderboard()) == 4
    assert capfd.readouterr().err == ""


def test_an_ensemble_is_named_as_for_the_commands(
    run_with_ensemble: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_ensemble.path
    monkeypatch.chdir(run.parent)
    for place in (run, "tiny", "tiny/all", str(run / "ensembles" / "all"), run_with_ensemble):
        loaded = tuner.load_ensemble(place, storage=run.parent, device="cpu")
        assert loaded.path.samefile(run / "ensembles" / "all")
    for nothing in (None, 3):
        with pytest.raises(tuner.UsageError, match="RUN/NAME, or a run"):
            tuner.load_ensemble(nothing)  # type: ignore[arg-type]


def test_what_cannot_name_an_ensemble_is_told_by_its_argument() -> None:
    with pytest.raises(tuner.UsageError, match=r"^path: int is not an ensemble; give"):
        tuner.load_ensemble(3)  # type: ignore[arg-type]
    with pytest.raises(tuner.UsageError, match=r"^ensemble: int is not an ensemble; give"):
        tuner.distill(3, into="cnn")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (None, "images: NoneType is none; give images of Pillow's or paths"),
        ([None], r"images\[0\]: NoneType is not an image; give"),
        (torch.zeros(1, 8, 8, 1, dtype=torch.uint8), r"images\[0\]: Tensor is not an image; give"),
        (np.array(7, dtype=np.uint8), r"images: uint8 of shape \(\); an array has to be uint8"),
        (np.zeros((8, 8, 1), dtype=np.uint8), r"shape \(8, 8, 1\); .* uint8 of shape \(N, height"),
        (np.zeros((2, 0, 8, 1), dtype=np.uint8), r"shape \(2, 0, 8, 1\); an array has to be"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), r"shape \(2, 8, 8, 3\); an array has to be"),
        (np.zeros((2, 8, 8, 1)), "images: float64 of shape"),
        (Image.new("L", (0, 4)), "image: 0 x 4 pixels are not an image"),
    ],
)
def test_what_is_no_image_is_told(run_with_ensemble: Run, images: Any, told: str) -> None:
    loaded = tuner.load_ensemble(run_with_ensemble.path, device="cpu")
    with pytest.raises(tuner.TunerError, match=told):
        loaded.predict(images)


def test_images_may_come_one_by_one(run_with_ensemble: Run) -> None:
    loaded = tuner.load_ensemble(run_with_ensemble.path, device="cpu")
    images = [Image.new("L", (8, 8), color) for color in range(3)]
    np.testing.assert_array_equal(loaded.predict(iter(images)), loaded.predict(images))
    assert loaded.predict([]).shape == (0, 10)
