import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.benchmarks.processes import Search
from tests.benchmarks.promises import FIGURES, flaws
from tests.conftest import Call, copy_of_trial, record_probs, wait_until
from tuner.config import (
    DATA_DIR,
    DataConfig,
    LargeShareConfig,
    ModelConfig,
    RefitConfig,
    Resources,
    ShareConfig,
    TrialConfig,
)
from tuner.data.splits import Splits, load_splits
from tuner.errors import ClusterError, DataError, NoUsableTrials, UsageError
from tuner.run.events import TrialEnded
from tuner.run.run import Run
from tuner.run.run_record import TeacherRecord
from tuner.run.teacher_probs import TeacherProbs, read_teacher_probs, write_teacher_probs
from tuner.run.trial import EpochMetrics, read_history, write_history, write_status, write_trial
from tuner.space import load_run_space
from tuner.training.loop import train
from tuner.tuning.budget import Budget
from tuner.tuning.distill import make_distill_request
from tuner.tuning.proposers import FixedProposer
from tuner.tuning.ray_backend.driver import capacity_of, connected_run
from tuner.tuning.recorder import make_tuner
from tuner.tuning.refit import (
    _copy_missing_teacher,
    _epochs_of,
    begin_refit,
    finalists,
    make_refit_request,
    plan_refit,
    refit,
    resume_refit,
)
from tuner.tuning.request import make_search_request
from tuner.tuning.resources import CapacityPlan, TrialResources
from tuner.tuning.tuner import Assignment, Tuner

CPU = torch.device("cpu")
QUICK = str(Path(__file__).parents[1] / "search_spaces" / "quick.yaml")


def plan_of(widths: int, seeds: int) -> RefitConfig:
    configs = tuple(
        TrialConfig(model=ModelConfig("cnn", {"width": width}), epochs=4)
        for width in range(1, widths + 1)
    )
    return RefitConfig(run="tiny", trials=tuple(range(widths)), configs=configs, seeds=seeds)


@given(widths=st.integers(1, 6), seeds=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_every_configuration_is_trained_once_a_round_with_a_seed_of_its_own(
    widths: int, seeds: int, seed: int
) -> None:
    plan = plan_of(widths, seeds)
    configs = finalists(plan, seed)
    assert [replace(config, seed=0) for config in configs] == seeds * list(plan.configs)
    assert len({config.seed for config in configs}) == plan.num_trials
    assert FixedProposer(configs).ask(plan.num_trials) is None


@given(seeds=st.integers(1, 4), more=st.integers(1, 3))
def test_more_seeds_leave_the_earlier_trials_as_they_were(seeds: int, more: int) -> None:
    short, long = (finalists(plan_of(3, n), 7) for n in (seeds, seeds + more))
    assert short == long[: len(short)]


def test_the_best_configurations_are_taken_with_the_epochs_asked_for(finished_run: Run) -> None:
    plan = plan_refit(finished_run, top=2, seeds=3, epochs=100)
    best, second = finished_run.ranked()[:2]
    assert plan.trials == (best.number, second.number)
    assert plan.configs == tuple(replace(t.config, epochs=100, seed=0) for t in (best, second))
    assert plan.num_trials == 6
    assert plan.duplicates == ()


def test_a_refit_of_a_renamed_run_knows_it_by_its_folder(finished_run: Run) -> None:
    made = started(Run.open(finished_run.path.rename(finished_run.path.with_name("renamed"))))
    request = make_refit_request(made, resume=True, source="renamed", command="")
    assert request.plan == made.record.refit


def test_another_metric_than_the_run_s_takes_others_and_is_the_refit_s(
    finished_run: Run, digits: Splits
) -> None:
    labels = digits.val.labels
    place = torch.arange(len(labels))
    # Trial 0 misses a class and nothing else, trial 1 a fifth of each, trial 2 a half.
    for number, wrong in enumerate((labels == 7, place % 5 == 0, place % 2 == 0)):
        taken_for = torch.where(wrong, (labels + 1) % 10, labels)
        probs = 0.02 + 0.8 * torch.nn.functional.one_hot(taken_for, 10).numpy()
        record_probs(finished_run.trial(number), probs.astype("float32"), labels)
    asked = {"command": "", "top": 1, "seeds": 1}
    assert make_refit_request(finished_run, **asked).plan.trials == (0,)
    request = make_refit_request(finished_run, **asked, metric="worst_class")
    assert request.plan.trials == (1,)
    assert request.search.metric == "worst_class"


def copy_trial(run: Run, number: int, **changes: object) -> int:
    """Add a trial that is like another one, but for its configuration; give its number."""
    new = len(run.trials())
    path = copy_of_trial(run, number, new) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return new


def test_by_default_a_refit_trains_as_many_epochs_as_the_trial_did(finished_run: Run) -> None:
    best, second, *_ = (trial.number for trial in finished_run.ranked())
    # Of a space that searches the epochs; the run has the most of them.
    longer = copy_trial(finished_run, best, epochs=7)
    (finished_run.trial_path(longer) / "digests.json").unlink()
    finished_run.update(search=replace(finished_run.record.search, epochs=9, scheduler="none"))
    request = make_refit_request(finished_run, top=3, seeds=1, command="")
    assert request.plan.trials == (best, longer, second)
    assert [config.epochs for config in request.plan.configs] == [2, 7, 2]
    assert request.plan.duplicates == ()
    assert request.search.epochs == 7
    assert _epochs_of(request.plan) == "2 to 7 epochs"


def test_a_configuration_that_differs_in_the_seed_alone_is_taken_once(finished_run: Run) -> None:
    best, second, third = (trial.number for trial in finished_run.ranked())
    copies = copy_trial(finished_run, best, seed=99), copy_trial(finished_run, second, epochs=7)
    plan = plan_refit(finished_run, top=2, seeds=1, epochs=5)
    assert plan.trials == (best, second)
    assert plan.duplicates == copies[:1], "what ranks below the last one taken does not count"
    assert plan_refit(finished_run, top=3, seeds=1, epochs=5).trials == (best, second, third)
    assert plan_refit(finished_run, top=3, seeds=1, epochs=5).duplicates == copies


def test_only_trials_that_ended_well_are_taken_their_checkpoint_kept_or_not(
    finished_run: Run,
) -> None:
    best, second, third = finished_run.ranked()
    write_status(best.path, replace(best.status, state="diverged"))
    second.checkpoint.unlink()
    assert plan_refit(finished_run, top=2, seeds=1, epochs=5).trials == (
        second.number,
        third.number,
    )
    with pytest.raises(UsageError, match="Give --top 2 or less"):
        plan_refit(finished_run, top=3, seeds=1, epochs=5)
    for trial in (second, third):
        write_status(trial.path, replace(trial.status, state="running"))
    with pytest.raises(NoUsableTrials, match="cifar-tune leaderboard tiny --storage "):
        plan_refit(finished_run, top=1, seeds=1, epochs=5)


def started(source: Run, *, all_data: bool = False) -> Run:
    """Make the folder of a refit, as the driver does."""
    plan = plan_refit(source, top=2, seeds=2, epochs=3)
    request = begin_refit(source, plan, name="again", all_data=all_data, seed=5, keep=4, command="")
    record = replace(
        source.record,
        name=request.name,
        search=request.search,
        data=request.data,
        refit=plan,
        status="running",
    )
    return Run.create(request.storage / request.name, record, request.space)


def test_the_plan_is_read_back_from_the_run_folder(finished_run: Run) -> None:
    copy_trial(finished_run, finished_run.ranked()[0].number, seed=99)
    made = started(finished_run)
    assert made.record.refit == plan_refit(finished_run, top=2, seeds=2, epochs=3)
    assert made.record.refit.duplicates
    assert Run.open(made.path).record == made.record
    again = begin_refit(
        made, made.record.refit, name="third", all_data=False, seed=6, keep=1, command=""
    )
    assert again.space == (made.path / "space.yaml").read_text(), "one note is enough"
    assert again.space.splitlines()[0].startswith("# The space that tiny searched")
    assert (
        again.space.splitlines()[1:]
        == (finished_run.path / "space.yaml").read_text().split("\n")[:-1]
    )


def test_a_refit_cut_before_it_had_its_teacher_copies_it_from_its_run(
    finished_run: Run,
) -> None:
    probs = TeacherProbs(train=torch.rand(4, 3), val=torch.rand(2, 3))
    digest = write_teacher_probs(finished_run.path, probs)
    teacher = TeacherRecord(
        ensemble="a/b", path="/a/b", sha256="", members=("trial 1",), probs_sha256=digest
    )
    finished_run.update(teacher=teacher)
    made = started(finished_run)
    plan = made.record.refit
    assert plan is not None
    for elsewhere in ("gone", "../runs/tiny"):
        _copy_missing_teacher(made, replace(plan, run=elsewhere))
        assert not (made.path / "teacher.safetensors").exists()
    _copy_missing_teacher(made, plan)
    assert torch.equal(read_teacher_probs(made.path, teacher).train, probs.train)


def test_trials_get_what_the_space_gives_them(finished_run: Run) -> None:
    plan = plan_refit(finished_run, top=1, seeds=1, epochs=2)

    def resources() -> Resources:
        request = begin_refit(
            finished_run, plan, name="again", all_data=False, seed=5, keep=1, command=""
        )
        return request.resources

    assert resources() == Resources()
    with (finished_run.path / "space.yaml").open("a") as file:
        file.write("resources: {cpus: 2, by: {vit: {gpus: 1}}, large: {parameters: 5.0e6}}\n")
    assert resources() == Resources(
        cpus=2, by={"vit": ShareConfig(gpus=1)}, large=LargeShareConfig(parameters=5_000_000)
    )


@pytest.mark.parametrize(
    ("before", "asked", "expected"),
    [
        ({}, {}, {"keep": 4}),
        ({"keep": 3}, {}, {"keep": 3}),
        ({"keep": 3}, {"keep": 1, "seeds": 3}, {"keep": 1}),
        # All of them.
        ({"keep": 4}, {"seeds": 3}, {"keep": 6}),
        ({"keep": 4}, {"keep": 4, "seeds": 3}, {"keep": 4}),
        ({"gpus_per_trial": 0.5, "cpus_per_trial": 2.0}, {"cpus_per_trial": 1.0}, {"keep": 4}),
    ],
)
def test_the_trials_of_a_refit_that_goes_on_run_as_before_unless_something_else_is_said(
    before: dict[str, Any], asked: dict[str, Any], expected: dict[str, Any], finished_run: Run
) -> None:
    made = started(finished_run)
    made.update(**before)
    request = make_refit_request(made, resume=True, command="", **asked)
    expected = before | {name: asked[name] for name in asked if name != "seeds"} | expected
    assert {name: getattr(request, name) for name in expected} == expected


is_root = pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")


@pytest.mark.parametrize(
    "place",
    [
        "gone",
        "file",
        # Even to ask whether it exists raises an error, as below a home that may not be entered.
        "x" * 300,
        pytest.param("sealed", marks=is_root),
        pytest.param("sealed/folder", marks=is_root),
    ],
)
def test_a_data_folder_that_cannot_be_used_here_is_replaced_by_ones_own(
    place: str,
    run_with_ensemble: Run,
    finished_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sealed" / "folder").mkdir(parents=True)
    (tmp_path / "sealed").chmod(0)
    shutil.copytree(run_with_ensemble.path / "ensembles", finished_run.path / "ensembles")
    teacher = finished_run.path / "ensembles" / "all"
    again = started(finished_run)

    def chosen(**given: Any) -> list[Path]:
        space = load_run_space(finished_run.path / "space.yaml")
        home = {"storage": tmp_path / "runs", "command": "", **given}
        return [
            make_search_request(
                space, space_name="", stem="", resumed=finished_run, **home
            ).data_dir,
            make_refit_request(finished_run, top=1, command="", **given).data_dir,
            make_refit_request(again, resume=True, command="", **given).data_dir,
            make_distill_request(teacher, into="cnn", **home).data_dir,
        ]

    for run in (finished_run, again):
        run.update(data_dir=str(tmp_path))
    assert chosen() == [tmp_path] * 4
    monkeypatch.chdir(tmp_path.parent)
    for unusable in (str(tmp_path / place), tmp_path.name):
        for run in (finished_run, again):
            run.update(data_dir=unusable)
        assert chosen() == [DATA_DIR] * 4
    assert chosen(data_dir=tmp_path / "gone") == [tmp_path / "gone"] * 4
    (tmp_path / "sealed").chmod(0o700)


def test_fewer_seeds_cost_a_refit_no_model(finished_run: Run) -> None:
    made = started(finished_run)
    with pytest.raises(UsageError, match=r"--seeds 1: .*again has 2, and a refit grows only"):
        make_refit_request(made, resume=True, command="", seeds=1)
    assert make_refit_request(made, resume=True, command="", seeds=2).plan == made.record.refit


def test_what_is_given_when_a_refit_goes_on_is_checked_as_for_a_new_run(
    finished_run: Run,
    digits: Splits,
    pretended_nodes: list[dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tuner.tracking.find_spec", lambda name: None)
    made = started(finished_run)
    made.update(concurrent=64, log=("wandb",))
    recorded = make_refit_request(made, resume=True, command="")
    assert recorded.log == ("wandb",)
    assert capacity_of(recorded, Resources(), digits).count == 1, "here fit fewer"
    given = make_refit_request(made, resume=True, command="", concurrent=64, log=("wandb",))
    with pytest.raises(ClusterError, match="--concurrent 64: only 1 trial"):
        capacity_of(given, Resources(), digits)
    with (
        pytest.raises(UsageError, match="wandb"),
        connected_run(given, digits, Console(quiet=True)),
    ):
        pass


def tuner_of(run: Run) -> Tuner:
    search, plan = run.record.search, run.record.refit
    assert plan is not None
    tuner, recorder = make_tuner(
        run,
        FixedProposer(finalists(plan, search.seed)),
        Budget(trials=search.trials),
        CapacityPlan(default=TrialResources(cpus=1, gpus=0), count=2),
    )
    tuner.restore(recorder.restore())
    return tuner


def start(tuner: Tuner) -> Assignment:
    given = tuner.next(lambda running: True)
    assert isinstance(given, Assignment)
    return given


def test_a_killed_refit_goes_on_with_what_is_left_of_its_list(finished_run: Run) -> None:
    made = started(finished_run)
    plan = made.record.refit
    assert plan is not None
    wanted = finalists(plan, 5)[:4]
    shutil.rmtree(finished_run.path)
    tuner = tuner_of(made)
    assert [start(tuner).config for _ in range(2)] == wanted[:2]
    tuner.on(TrialEnded(number=0, state="completed"))
    tuner.end(0)
    resumed = tuner_of(Run.open(made.path))
    left = [start(resumed) for _ in range(3)]
    assert [given.number for given in left] == [1, 2, 3]
    assert [given.config for given in left] == wanted[1:]
    assert resumed.next(lambda running: True) == "wait"


def test_all_data_are_the_training_and_the_validation_images(
    digits: Splits, tmp_path: Path
) -> None:
    whole = load_splits(DataConfig(source="digits", all_data=True), tmp_path)
    assert len(whole.train) == len(digits.train) + len(digits.val) == 1438
    assert torch.equal(whole.val.images, digits.val.images)
    assert torch.equal(whole.val.labels, digits.val.labels)
    assert whole.fingerprint == digits.fingerprint
    assert whole.split_fingerprint != digits.split_fingerprint
    assert (whole.is_val_seen, digits.is_val_seen) == (True, False)
    both = torch.cat([digits.train.images, digits.val.images])
    assert as_rows(whole) == sorted(map(bytes, both.flatten(1).numpy()))
    assert whole.mean[0] == pytest.approx(both.double().mean().item() / 255)
    limited = load_splits(DataConfig(source="digits", all_data=True, train_limit=50), tmp_path)
    assert len(limited.train) == 50 + len(digits.val)
    assert set(as_rows(limited)) >= set(map(bytes, digits.val.images.flatten(1).numpy()))


def as_rows(splits: Splits) -> list[bytes]:
    return sorted(map(bytes, splits.train.images.flatten(1).numpy()))


def seen(run: Run) -> Run:
    """Have the run say that it was trained on its validation images."""
    run.update(data=replace(run.record.data, all_data=True))
    return run


def test_where_validation_was_trained_on_the_last_epoch_counts_and_numbers_rank(
    finished_run: Run,
) -> None:
    assert [trial.number for trial in finished_run.ranked()] != [0, 1, 2]
    first = finished_run.trial(0)
    worse = replace(first.history[-1], epoch=3, val_accuracy=0.01)
    lost = replace(worse, epoch=4, train_loss=float("nan"))
    write_trial(first.path, replace(first.config, epochs=4))
    write_history(first.path, [*first.history, worse, lost])
    best = finished_run.trial(0).best
    assert best is not None
    assert best.epoch < 3
    run = seen(finished_run)
    assert run.trial(0).best == worse
    assert [trial.number for trial in run.ranked()] == [0, 1, 2]
    assert [trial.number for trial in run.top(2)] == [0, 1]


def test_validation_that_was_trained_on_chooses_nothing(finished_run: Run) -> None:
    finished_run.check_unseen_validation("--method greedy")
    run = seen(finished_run)
    run.check_unseen_validation()
    with pytest.raises(UsageError, match=r"^--calibrate: uses the validation images.*Leave"):
        run.check_unseen_validation("--calibrate", "--pool")
    with pytest.raises(UsageError, match=r"^refit: .*trained on them"):
        plan_refit(run, top=1, seeds=1, epochs=5)


@pytest.fixture
def call(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that types a command beside ``runs``."""
    monkeypatch.chdir(tmp_path)
    return call


MISTAKES = {
    "a search gone on with as a refit": (
        ["refit", "--resume", "--name", "tiny"],
        "is a search; resume it with:\n  cifar-tune search --resume --name tiny",
    ),
    "a refit gone on with as a search": (
        ["search", "--resume", "--name", "again"],
        "is a refit; resume it with:\n  cifar-tune refit --resume --name again",
    ),
    "another number of configurations": (
        ["refit", "--resume", "--name", "again", "--top", "3"],
        "--top was fixed when",
    ),
    "other epochs": (
        ["refit", "--resume", "--name", "again", "--epochs", "9"],
        "--epochs was fixed when",
    ),
    "all data of a refit that began without": (
        ["refit", "--resume", "--name", "again", "--all-data"],
        "--all-data was fixed when",
    ),
    "another run": (["refit", "other", "--resume", "--name", "again"], "RUN was fixed when"),
    "too many configurations": (["refit", "tiny"], "Give --top 3 or less"),
    "a run that is not there": (["refit", "tin"], "did you mean 'tiny'?"),
    "a folder for a name": (["refit", "tiny", "--top", "1", "--name", "a/b"], "a plain name"),
    "an option for a name": (
        ["refit", "tiny", "--top", "1", "--name=-x"],
        "'-x' begins as an option does",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_trained(
    mistake: str, finished_run: Run, call: Call
) -> None:
    made = started(finished_run)
    before = (made.path / "run.json").read_text()
    words, message = MISTAKES[mistake]
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert (made.path / "run.json").read_text() == before


def test_other_images_are_refused(finished_run: Run) -> None:
    finished_run.update(data_fingerprint="0" * 64)
    plan = plan_refit(finished_run, top=1, seeds=1, epochs=1)
    for all_data in (False, True):
        request = begin_refit(
            finished_run, plan, name="again", all_data=all_data, seed=1, keep=1, command=""
        )
        with pytest.raises(DataError, match="not the images that"):
            refit(request, Console(file=io.StringIO()))


def test_the_leaderboard_says_that_validation_was_trained_on(finished_run: Run, call: Call) -> None:
    assert "trained on" not in call("leaderboard", "tiny")[1]
    seen(finished_run)
    assert "The validation images were trained on" in call("leaderboard", "tiny")[1]


def test_the_report_says_that_validation_was_trained_on(finished_run: Run, call: Call) -> None:
    made = started(finished_run)
    (made.path / "space.yaml").write_text("space: {model: {cnn: {stages: 2}}}")
    shutil.copytree(finished_run.path / "trials", made.path / "trials")
    code, out, err = call("report", "again")
    assert (code, err) == (0, "")
    assert "% validation" in out
    seen(made)
    code, out, err = call("report", "again")
    assert code == 0
    assert "% validation" not in out
    assert "The validation images were trained on" in err
    assert "The validation images were trained on" in (made.path / "report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "greedy"),
        ("--method", "weighted"),
        ("--method", "greedy-soup"),
        ("--calibrate",),
        ("--pool", "2"),
        ("--frontier",),
        ("--compare",),
    ],
)
def test_an_ensemble_that_goes_by_validation_is_refused_where_that_was_trained_on(
    words: tuple[str, ...], finished_run: Run, call: Call
) -> None:
    seen(finished_run)
    code, out, err = call("ensemble", "--top", "1", *words)
    assert (code, out) == (2, "")
    assert f"{' '.join(words[:2]) if words[0] == '--method' else words[0]}: uses the" in err
    assert not (finished_run.path / "test_readings.jsonl").exists()


def test_no_search_learns_from_validation_that_was_trained_on(
    finished_run: Run, call: Call
) -> None:
    seen(finished_run)
    code, out, err = call("search", "--space", QUICK, "--name", "new", "--warm-start", "tiny")
    assert (code, out) == (2, "")
    assert "--warm-start: uses the validation images" in err


@pytest.mark.ray
def test_finalists_are_trained_anew_and_vote(session: None, finished_run: Run, call: Call) -> None:
    copy_trial(finished_run, finished_run.ranked()[0].number, seed=99)
    words = ("refit", "tiny", "--top", "2", "--seeds", "2", "--epochs", "2")
    code, out, err = call(*words, "--json")
    assert code == 0, err
    assert "1 trial left out" in err
    honest = Run.open(Path("runs/tiny-refit"))
    assert json.loads(out)["run"] == str(honest.path.absolute())
    code, out, err = call(*words, "--all-data")
    assert code == 0, err
    assert "trained on" in out
    whole = Run.open(Path("runs/tiny-refit2"))
    best, second = (finished_run.trial(number) for number in honest.record.refit.trials)
    for run in (honest, whole):
        assert run.record.status == "finished"
        trials = run.trials()
        assert {trial.status.state for trial in trials} == {"completed"}
        assert [len(trial.history) for trial in trials] == [2] * 4
        for trial, origin in zip(trials, [best, second, best, second], strict=True):
            assert trial.config == replace(origin.config, epochs=2, seed=trial.config.seed)
        assert len({trial.config.seed for trial in trials}) == 4
    assert (honest.record.num_train, whole.record.num_train) == (1294, 1438)
    assert honest.record.num_val == whole.record.num_val == 144
    for trial in whole.trials():
        assert trial.best == trial.history[-1]
    assert [trial.number for trial in whole.top(2)] == [0, 1]
    for run in (honest, whole):
        result = json.loads(call("ensemble", "--top", "4", "--run", run.path.name, "--json")[1])
        assert [member["trial"] for member in result["members"]] == [
            trial.number for trial in run.top(4)
        ]
        assert result["ensemble"]["test"]["accuracy"] > 0.5
        assert result["is_val_seen"] == run.record.data.all_data
    for words in (("--dry-run",), ("--tta", "flip"), ("--method", "soup")):
        code, out, err = call("ensemble", "--top", "2", "--run", "tiny-refit2", *words)
        assert code == 0, err
        assert "The validation images were trained on" in out
        assert "trained on" not in call("ensemble", "--top", "2", "--run", "tiny-refit", *words)[1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_refit_goes_on_without_the_run_it_drew_from(
    finished_run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "again"

    def history() -> list[EpochMetrics]:
        return read_history(path / "trials" / "0000")

    # One trial at a time, whose history tells each epoch as it ends.
    options = ("--concurrent", "1", "--save-seconds", "0")
    words = ("tiny", "--top", "2", "--seeds", "2", "--epochs", "30", "--name", "again")
    with Search(tmp_path, *words, *options, command="refit") as process:
        wait_until(lambda: len(history()) >= 3)
        process.kill_everything()
    shutil.rmtree(finished_run.path)
    killed = history()
    assert 3 <= len(killed) < 30
    with Search(tmp_path, "--resume", "--name", "again", *options, command="refit") as process:
        assert process.wait(300) == 0, process.errors
    run = Run.open(path)
    assert run.record.status == "finished"
    trials = run.trials()
    assert [trial.status.state for trial in trials] == ["completed"] * 4
    assert list(trials[0].history[: len(killed)]) == killed
    assert [text for trial in trials for text in flaws(trial)] == []
    splits = load_splits(run.record.data, Path(run.record.data_dir))
    for row, epoch in zip(trials[0].history, train(trials[0].config, splits, CPU), strict=True):
        for name in FIGURES:
            assert getattr(row, name) == getattr(epoch.figures, name), (row.epoch, name)


@pytest.mark.ray
def test_more_seeds_may_be_asked_for_when_a_refit_goes_on(session: None, finished_run: Run) -> None:
    plan = plan_refit(finished_run, top=2, seeds=1, epochs=1)
    quiet = Console(file=io.StringIO())
    request = begin_refit(
        finished_run, plan, name="again", all_data=False, seed=1, keep=9, command=""
    )
    first = refit(request, quiet).trials()
    run = Run.open(request.storage / "again")
    longer = resume_refit(run, replace(plan, seeds=2), keep=9, command="")
    trials = refit(longer, quiet).trials()
    assert len(first) == 2
    assert trials[:2] == first
    assert [replace(trial.config, seed=0) for trial in trials] == 2 * list(plan.configs)
    record = Run.open(run.path).record
    assert record.refit is not None
    assert (record.refit.seeds, record.search.trials) == (2, 4)
