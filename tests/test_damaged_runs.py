"""Run folders with any of their files damaged: each command ends in a line, none in a traceback."""

import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tuner
from tests.damage import DEEP, damaged
from tuner.cli import cli
from tuner.errors import TunerError
from tuner.monitor.follow import RunWatcher
from tuner.monitor.live_table import draw, summary
from tuner.run.checkpoint import read_description
from tuner.run.forecast import FamilyForecast, Forecast, Infeasible, RungForecast, Spread
from tuner.run.layout import PLAN, SPACE
from tuner.storage.records import write_record

ARCHIVE = Path(__file__).parent / "assets" / "runs-a475a52.tar.xz"
RUN = "finished"
SPREAD = Spread(low=1.0, median=2.0, high=3.0)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the runs of an earlier version, with a plan and an ensemble of this one, to damage."""
    with undamaged_runs(tmp_path_factory.mktemp("damaged")) as place:
        yield place


@contextmanager
def undamaged_runs(place: Path) -> Iterator[Path]:
    """Fill an empty folder with runs, and work in it for as long as the block lasts."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    plan = Forecast(
        space="space.yaml",
        trials=4,
        epochs=3,
        slots={"cpus": 1.0, "gpus": 0.0, "count": 2},
        refused=0.0,
        measured_seconds=1.0,
        simulations=10,
        seconds=SPREAD,
        training_seconds=SPREAD,
        gpu_hours=SPREAD,
        started=SPREAD,
        rungs=(RungForecast(epoch=1, trials=SPREAD),),
        families=(
            FamilyForecast(
                family="cnn",
                configs=1,
                cpus=1.0,
                gpus=0.0,
                epoch_seconds=SPREAD,
                parameters=SPREAD,
                memory=SPREAD,
            ),
        ),
        disk_most=SPREAD,
        disk_kept=SPREAD,
        misfits=(Infeasible(family="cnn", parameters=1, reason="", config={"seed": 0}),),
    )
    write_record(place / RUN / PLAN, plan)
    with pytest.MonkeyPatch.context() as patch:
        # Where the run of the archive looks for its images.
        patch.chdir(place)
        made = tuner.combine(place / RUN, top=2, compare=True, device="cpu", progress=False)
        assert made.path == place / RUN / "ensembles" / "top2"
        yield place


def invoke(*words: str) -> Callable[[Path], object]:
    """Return a command to type, which raises what it ends with."""

    def run(storage: Path) -> None:
        result = CliRunner().invoke(cli, [*words, "--storage", str(storage)])
        if result.exception is not None:
            raise result.exception

    return run


def watch(storage: Path) -> None:
    watcher = RunWatcher(storage / RUN)
    watcher.look()
    summary(watcher.state, watcher.slots, watcher.clocks())
    draw(watcher.state, watcher.slots, watcher.clocks(), watcher.note(2e9), 100, 30)


READERS = {
    "board": invoke("leaderboard", RUN),
    "board-json": invoke("leaderboard", RUN, "--json"),
    "board-csv": invoke("leaderboard", RUN, "--format", "csv"),
    "board-parquet": invoke("leaderboard", RUN, "--format", "parquet"),
    "newest": invoke("leaderboard"),
    "show": invoke("show", RUN),
    "show-json": invoke("show", RUN, "--json"),
    "trial": invoke("show", RUN, "0"),
    "trial-json": invoke("show", RUN, "3", "--json"),
    "ensemble": invoke("show", f"{RUN}/top2"),
    "report": invoke("report", RUN),
    "compare": invoke("compare", RUN, "interrupted"),
    "compare-json": invoke("compare", "interrupted", RUN, "--json"),
    "runs": invoke("runs"),
    "runs-json": invoke("runs", "--json"),
    "dry-run": invoke("ensemble", "--run", RUN, "--dry-run", "--top", "3", "--device", "cpu"),
    "dry-run-json": invoke("ensemble", "--run", RUN, "--dry-run", "--top", "2", "--json"),
    "watch": watch,
    "load": lambda storage: tuner.load_ensemble(storage / RUN / "ensembles" / "top2", device="cpu"),
    "load-old": lambda storage: tuner.load_ensemble(
        storage / RUN / "ensembles" / "top3", device="cpu"
    ),
}
TRIAL = ("config.json", "status.json", "history.csv")
ENSEMBLE = ("ensemble.json", "metrics.json", "confusion.csv", "mistakes/mistakes.csv")
FILES = (
    *("run.json", "plan.json", "space.yaml"),
    *(f"trials/{number:04d}/{name}" for number in (0, 1, 3) for name in TRIAL),
    *(f"ensembles/{name}/{file}" for name in ("top2", "top3") for file in ENSEMBLE),
)


def damage_and_read(storage: Path, seed: int) -> None:
    """Damage one file of the run, read it in one way, and put the file back.

    Raises:
        TunerError: What is told of the damage.
    """
    random = Random(seed)
    name = random.choice([*FILES])
    file = storage / RUN / name
    read = READERS[random.choice([*READERS])]
    original = file.read_bytes()
    try:
        file.write_bytes(damaged(name, original, random))
        read(storage)
    finally:
        file.write_bytes(original)


@given(seed=st.integers(0, 2**32 - 1))
def test_damage_is_told_in_a_line(storage: Path, seed: int) -> None:
    told = ""
    try:
        damage_and_read(storage, seed)
    except TunerError as error:
        told = str(error)
    # A space tells of every mistake, one a line.
    assert "\n" not in told or f"{SPACE}:" in told
    assert len(told) < 1000


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_told_of_an_undamaged_run(storage: Path, reader: str) -> None:
    READERS[reader](storage)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b", "\ud800", "", "a/b\n"])
@pytest.mark.parametrize("words", [["show"], ["report"], ["ensemble", "--run"], ["rerun"]])
def test_a_name_that_no_run_can_have_is_refused(words: list[str], name: str, storage: Path) -> None:
    trial = ["0"] if words == ["rerun"] else []
    result = CliRunner().invoke(cli, [*words, name, *trial, "--storage", str(storage)])
    # click itself refuses an empty value of an option.
    is_empty_option = words == ["ensemble", "--run"] and not name
    assert isinstance(result.exception, SystemExit if is_empty_option else TunerError)
    assert len(str(result.exception)) < 1000


@pytest.mark.parametrize("text", ["", "{}", DEEP, '{"model": 3}', '{"model": {"cnn": {}}}'])
def test_what_stands_beside_weights_is_read_as_a_record(storage: Path, text: str) -> None:
    original = storage / RUN / "trials" / "0000" / "checkpoint.safetensors"
    damaged_file = storage / "damaged.safetensors"
    save_file(load_file(original), damaged_file, {"checkpoint": text})
    with pytest.raises(TunerError, match="not a usable checkpoint: ") as caught:
        read_description(damaged_file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("issues.json", "issues.json"),
        ("plan.json", "plan.json"),
        ("ensembles/top2/mistakes/mistakes.csv", "ensembles/top2/mistakes"),
    ],
)
def test_all_that_a_report_reads_is_checked(name: str, told: str, storage: Path) -> None:
    file = storage / RUN / name
    original = file.read_bytes() if file.exists() else None
    file.write_text("{\n{\n")  # As a table, a heading and a row without the columns.
    try:
        with pytest.raises(TunerError, match="damaged or unreadable"):
            READERS["report"](storage)
        done = CliRunner().invoke(cli, ["check", RUN, "--storage", str(storage), "--device", "cpu"])
        assert done.exit_code == 1
        assert f"{RUN}/{told}: damaged" in done.output.replace(f"{storage}/", "")
    finally:
        file.unlink() if original is None else file.write_bytes(original)


def no_validation_images(record: Any) -> None:
    record["num_val"] = 0


def no_value_of_its_metric(metrics: Any) -> None:
    metrics["metric"] = "macro_f1"
    metrics["ensemble"]["test"]["macro_f1"] = None


def no_accuracy_of_a_class(metrics: Any) -> None:
    metrics["per_class"][0] |= {"accuracy": None, "count": 3}


def no_gain_of_a_size(metrics: Any) -> None:
    del metrics["by_size"][0]["gain_low"]


def fewer_sizes_than_members(metrics: Any) -> None:
    del metrics["by_size"][0]


@pytest.mark.parametrize(
    ("reader", "name", "damage", "told"),
    [
        *((reader, "run.json", no_validation_images, "num_val") for reader in ("report", "show")),
        *(
            (reader, "ensembles/top2/metrics.json", damage, told)
            for reader in ("report", "show", "ensemble")
            for damage, told in (
                (no_value_of_its_metric, "macro_f1"),
                (no_accuracy_of_a_class, "no accuracy"),
                (no_gain_of_a_size, "gain_low: is missing"),
                (fewer_sizes_than_members, "not one row for each of 2"),
            )
        ),
    ],
)
def test_figures_that_cannot_be_are_told(
    reader: str, name: str, damage: Callable[[Any], None], told: str, storage: Path
) -> None:
    file = storage / RUN / name
    original = file.read_text()
    plain = json.loads(original)
    damage(plain)
    try:
        file.write_text(json.dumps(plain))
        with pytest.raises(TunerError, match=f"^{file}: damaged or unreadable: .*{told}"):
            READERS[reader](storage)
    finally:
        file.write_text(original)
