"""Students: their loss, their search, and how they stand beside their teacher."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tuner
from tests.conftest import Call
from tuner.augment import augment_batch
from tuner.cli.student_table import print_student
from tuner.config import (
    Augment,
    DataConfig,
    Distill,
    Metric,
    ModelConfig,
    Sgd,
    TrialConfig,
)
from tuner.data.splits import Splits, load_splits
from tuner.ensemble.students import Contender, TeacherComparison, find_student, find_teacher
from tuner.ensemble.teacher import open_teacher, record_teacher
from tuner.errors import DataError, SpaceError, TunerError, UsageError
from tuner.metrics.figures import Interval, Latency
from tuner.metrics.predict import Scores
from tuner.run.run import Run
from tuner.run.run_record import TeacherRecord
from tuner.run.teacher_probs import TeacherProbs, read_teacher_probs, write_teacher_probs
from tuner.run.trial import EpochMetrics
from tuner.space import RandomTrial, load_space
from tuner.training.loop import predict_epoch_seconds, train
from tuner.training.loss import TrainingLoss
from tuner.tuning.distill import STUDENTS, make_distill_request, prepare_teaching, student_space
from tuner.tuning.ray_backend.payload import pack, unpack
from tuner.tuning.request import make_search_request

CPU = torch.device("cpu")
N, K = 6, 5


def config_of(distill: Distill | None = None, **changes: object) -> TrialConfig:
    config = TrialConfig(
        model=ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 8}),
        epochs=2,
        batch_size=32,
        optimizer=Sgd(lr=0.1),
        distill=distill or Distill(),
    )
    return replace(config, **changes)


# The loss


def training_loss(
    logits: torch.Tensor, targets: torch.Tensor, config: TrialConfig, taught: torch.Tensor
) -> torch.Tensor:
    loss = TrainingLoss(config, torch.arange(K), K)
    return loss.part(logits, targets, loss.weight_of(targets), taught)


def test_the_loss_is_that_of_hinton_et_al() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(N, K, generator=generator)
    labels = torch.randint(K, (N,), generator=generator)
    temperature, alpha = 3.0, 0.7
    taught = (torch.randn(N, K, generator=generator) / temperature).softmax(dim=1)

    total = 0.0
    for row, label, aim in zip(logits.tolist(), labels.tolist(), taught.tolist(), strict=True):
        soft = [math.exp(value / temperature) for value in row]
        hard = [math.exp(value) for value in row]
        divergence = sum(p * math.log(p * sum(soft) / q) for p, q in zip(aim, soft, strict=True))
        of_label = -math.log(hard[label] / sum(hard))
        total += (1 - alpha) * of_label + alpha * temperature**2 * divergence
    config = config_of(Distill(alpha=alpha, temperature=temperature))
    assert training_loss(logits, labels, config, taught).item() == pytest.approx(total / N)


@pytest.mark.parametrize(
    ("distill", "smoothing"), [(Distill(alpha=0.0), 0.1), (Distill(alpha=1.0, temperature=1.0), 0)]
)
def test_gradients_are_the_ordinary_ones_without_a_share_or_of_a_teacher_who_says_the_labels(
    distill: Distill, smoothing: float
) -> None:
    logits = torch.randn(N, K, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(N) % K
    whole = torch.nn.functional.one_hot(labels, K).float()
    taught = torch.full((N, K), 1 / K) if distill.alpha == 0 else whole
    config = config_of(distill, label_smoothing=smoothing)
    ordinary = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    (expected,) = torch.autograd.grad(ordinary, logits)
    (found,) = torch.autograd.grad(training_loss(logits, whole, config, taught), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_the_teacher_is_mixed_by_the_share_of_the_labels(mixing: dict[str, float]) -> None:
    images = torch.randint(256, (N, 3, 8, 8), dtype=torch.uint8)
    whole = torch.nn.functional.one_hot(torch.arange(N) % K, K).float()
    _, targets = augment_batch(
        images,
        torch.cat([whole, whole], dim=1),
        settings=Augment(**mixing),  # type: ignore[arg-type]
        num_classes=K,
        mean=torch.zeros(1, 3, 1, 1),
        std=torch.ones(1, 3, 1, 1),
        generator=torch.Generator().manual_seed(1),
    )
    of_labels, of_teacher = targets.tensor_split(2, dim=1)
    assert torch.equal(of_labels, of_teacher)
    assert not torch.equal(of_labels, whole)


# The training


def figures(config: TrialConfig, splits: Splits) -> list[EpochMetrics]:
    rows = [epoch.figures for epoch in train(config, splits, CPU)]
    return [replace(row, seconds=0.0, time=0.0) for row in rows]


def test_without_a_share_a_teacher_changes_nothing(digits: Splits) -> None:
    taught = replace(digits, teacher=torch.full((len(digits.train), 10), 0.1))
    config = config_of(Distill(alpha=0.0), augment=Augment(mixup=0.2))
    assert figures(config, taught) == figures(config, digits)
    with pytest.raises(UsageError, match="there is no teacher to learn from"):
        figures(config_of(Distill(alpha=0.5)), digits)


def test_a_student_learns_what_its_teacher_says_and_not_the_labels(digits: Splits) -> None:
    shifted = torch.nn.functional.one_hot((digits.train.labels + 1) % 10, 10).float()
    taught = replace(digits, teacher=shifted)
    config = config_of(Distill(alpha=1.0), micro_batches=2, augment=Augment(cutmix=1.0), epochs=4)
    last = list(train(config, taught, CPU))[-1]
    said = last.val_probs.argmax(dim=1)
    assert ((said - 1) % 10 == digits.val.labels).double().mean() > 0.7
    assert (said == digits.val.labels).double().mean() < 0.1
    assert predict_epoch_seconds(config, taught, CPU) > 0


def test_a_teacher_travels_to_workers_with_the_images(digits: Splits) -> None:
    teacher = torch.rand(len(digits.train), 10)
    taught = replace(digits, teacher=teacher, teacher_fingerprint="f")
    found = unpack(pack(taught), CPU)
    assert torch.equal(found.teacher, teacher)
    assert found.teacher_fingerprint == "f"
    assert unpack(pack(digits), CPU).teacher is None


# The file


def test_a_teachers_file_that_is_damaged_or_gone_is_told(tmp_path: Path) -> None:
    probs = TeacherProbs(train=torch.rand(4, 3), val=torch.rand(2, 3))
    digest = write_teacher_probs(tmp_path, probs)
    record = TeacherRecord(
        ensemble="a/b", path="/a/b", sha256="", members=("trial 1",), probs_sha256=digest
    )
    assert torch.equal(read_teacher_probs(tmp_path, record).train, probs.train)
    file = tmp_path / "teacher.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TunerError, match=r"teacher\.safetensors: damaged, or not what was written"):
        read_teacher_probs(tmp_path, record)
    bad = write_teacher_probs(tmp_path, replace(probs, val=torch.full((2, 3), math.nan)))
    with pytest.raises(TunerError, match="val holds no class probabilities"):
        read_teacher_probs(tmp_path, replace(record, probs_sha256=bad))
    file.unlink()
    with pytest.raises(TunerError, match=r"probabilities are missing\. Put the file back"):
        read_teacher_probs(tmp_path, record)


# The space


@pytest.mark.parametrize("family", STUDENTS)
def test_students_of_each_family_can_be_sampled(family: str) -> None:
    space = student_space(family, ["dataset=cifar10"], Path("runs"))
    drawn = [space.sample(RandomTrial(seed), epochs=9, seed=0) for seed in range(200)]
    assert {config.model.family for config in drawn} == {family}
    assert len({config.distill for config in drawn}) == 200
    assert all(0.3 <= config.distill.alpha <= 1 for config in drawn)


def test_what_a_space_says_of_the_teacher_stays(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("extends: quick\nspace: {distill: {temperature: 4}}\n")
    rows = dict(student_space(str(file), [], Path("runs")).rows())
    assert rows["distill.alpha"] == "float 0.3 to 1"
    assert "distill.temperature" not in rows
    rows = dict(student_space("quick", ["space.distill.alpha=1"], Path("runs")).rows())
    assert "distill.alpha" not in rows
    assert rows["distill.temperature"] == "float 1 to 10, log"


def test_what_cannot_be_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--into custom: has no networks before a space"):
        student_space("custom", [], tmp_path)
    with pytest.raises(
        SpaceError, match="--into 'resnt': neither a family of networks nor a space; did you mean"
    ):
        student_space("resnt", [], tmp_path)
    space = load_space(Path("x"), text="space: {model: cnn, distill: {alpha: 0.5}}")
    with pytest.raises(UsageError, match="there is no teacher in a search"):
        make_search_request(space, stem="x", storage=tmp_path, data_dir=tmp_path)


# The teacher


@pytest.fixture
def teacher_run(run_with_ensemble: Run, tmp_path: Path) -> Run:
    """Return a copy of a run with the ensemble ``all``, in ``tmp_path/runs``."""
    shutil.copytree(run_with_ensemble.path, tmp_path / "runs" / "tiny")
    return Run.open(tmp_path / "runs" / "tiny")


def test_students_get_the_teachers_images_as_they_were_divided(teacher_run: Run) -> None:
    folder = teacher_run.path / "ensembles" / "all"
    ask = {"storage": teacher_run.path.parent, "keep": 3, "command": ""}
    request = make_distill_request(folder, into="quick", image_size=12, **ask)
    assert request.name == "tiny-student"
    assert request.data == replace(teacher_run.record.data, image_size=12)
    assert request.teacher is not None
    assert request.teacher.members == ("trial 1", "trial 2", "trial 0")
    assert request.space.data["image_size"] == 12, "a resumed search reads it there"
    with pytest.raises(UsageError, match=r"dataset\.train_limit: a student learns from the"):
        make_distill_request(folder, into="quick", overrides=["dataset.train_limit=500"], **ask)
    for word in ("dataset=cifar100", "dataset.source=photos"):
        with pytest.raises(UsageError, match=f"{word}: a student learns from the teacher's images"):
            make_distill_request(folder, into="quick", overrides=[word], **ask)
    shutil.copytree(folder, teacher_run.path.parents[1] / "moved")
    moved = make_distill_request(teacher_run.path.parents[1] / "moved", into="quick", **ask)
    assert replace(moved.data, resize="auto") == replace(
        request.data, resize="auto", image_size=None
    )
    with pytest.raises(UsageError, match="--into custom: has no networks"):
        tuner.distill("tiny/all", into="custom", storage=teacher_run.path.parent)
    teacher_run.update(data=replace(teacher_run.record.data, all_data=True))
    with pytest.raises(UsageError, match="distill: uses the validation images"):
        make_distill_request(folder, into="quick", **ask)


@pytest.mark.parametrize("path", ["s3://evil/x", "/home/me/other/ensembles/all"])
def test_the_record_of_a_resumed_run_leads_to_no_teacher_outside_its_storage(
    path: str, teacher_run: Run, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_teacher(teacher_run.path / "ensembles" / "all")
    teacher_run.update(teacher=replace(record, path=path))
    request: Any = SimpleNamespace(
        storage=teacher_run.path.parent, name="tiny", resume=True, teacher=None
    )
    monkeypatch.setattr("tuner.tuning.distill.open_teacher", None)
    with pytest.raises(UsageError, match=f"the teacher {path} has not predicted the images yet"):
        prepare_teaching(request, digits)

    shares = [torch.full((len(part), 10), 0.1) for part in (digits.train, digits.val)]
    digest = write_teacher_probs(teacher_run.path, TeacherProbs(train=shares[0], val=shares[1]))
    teacher_run.update(teacher=replace(record, path=path, probs_sha256=digest))
    monkeypatch.setattr("tuner.ensemble.students.open_teacher", None)
    said: list[str] = []
    known = find_teacher(teacher_run, said.append, trust_code=True)
    assert known is not None
    assert known.teacher is None
    assert f"alone: {path} is outside {teacher_run.path.parent}" in said[0]


def test_students_are_ranked_by_the_metric_that_is_asked_for_in_python_too(
    teacher_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.tuning.session.search", lambda request, console: request)
    request: Any = tuner.distill(
        "tiny/all", into="cnn", metric="nll", storage=teacher_run.path.parent
    )
    assert request.search.metric == "nll"


def test_a_teacher_sees_the_images_as_it_was_trained_on_them(
    teacher_run: Run, digits: Splits, tmp_path: Path
) -> None:
    folder = teacher_run.path / "ensembles" / "all"
    record = record_teacher(folder)
    teacher = open_teacher(folder, record.sha256, trust_code=False)
    larger = load_splits(DataConfig(source="digits", image_size=12), tmp_path)
    seen = teacher.splits_like(larger, tmp_path)
    assert torch.equal(seen.train.images, digits.train.images)
    assert torch.equal(seen.train.labels, larger.train.labels)

    fewer = load_splits(DataConfig(source="digits", train_limit=500), tmp_path)
    with pytest.raises(DataError, match="divided differently for its training"):
        teacher.splits_like(fewer, tmp_path)
    member = folder / teacher.record.members[0].file
    member.write_bytes(member.read_bytes() + b"x")
    with pytest.raises(TunerError, match="not the file of the ensemble that teaches"):
        open_teacher(folder, record.sha256, trust_code=False)


# The whole way


SPACE = """
search: {trials: 4, epochs: 3, grace: 1, reduction: 2}
space:
  batch_size: 32
  model: {cnn: {stages: 2, blocks: 1, width: 8}}
  optimizer: {sgd: {lr: {float: [0.05, 0.2], log: true}}}
"""


@pytest.mark.ray
def test_students_are_searched_resumed_refitted_and_combined(
    session: None, teacher_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = teacher_run.path.parents[1]
    monkeypatch.chdir(folder)
    (folder / "small.yaml").write_text(SPACE)
    code, out, err = call("distill", "--ensemble", "tiny", "--into", "small.yaml", "--trials", "2")
    assert code == 0, err
    assert "Student: trial" in out
    assert "tiny/all looks at 1,294 training images" in err

    run = Run.open(folder / "runs" / "tiny-student")
    teacher = run.record.teacher
    assert teacher is not None
    assert (teacher.ensemble, len(teacher.members)) == ("tiny/all", 3)
    probs = load_file(str(run.path / "teacher.safetensors"))
    ensemble = tuner.load_ensemble("tiny", device="cpu")
    splits = load_splits(run.record.data, folder)
    for part, images in (("train", splits.train), ("val", splits.val)):
        expected = ensemble.predict(images.images.permute(0, 2, 3, 1).numpy())
        # The members may be computed in bfloat16 here.
        np.testing.assert_allclose(probs[part].numpy(), expected, atol=0.05)
    trials = run.trials()
    assert all(0.3 <= trial.config.distill.alpha <= 1 for trial in trials)

    comparison = find_student(run)
    assert comparison is not None
    assert comparison.student.val.accuracy == run.ranked()[0].best.val_accuracy  # type: ignore[union-attr]
    assert comparison.student.num_parameters < comparison.teacher.num_parameters
    gain = comparison.student.val.accuracy - comparison.teacher.val.accuracy
    assert comparison.val_gain.gain == pytest.approx(gain)
    code, out, _ = call("show", "tiny-student", "--json")
    assert json.loads(out)["student"]["teacher"]["name"] == "tiny/all"

    code, out, err = call("search", "--resume", "--name", "tiny-student", "--trials", "3", "--json")
    assert code == 0, err
    assert "looks at" not in err
    assert len(json.loads(out)["trials"]) == 3
    code, out, _ = call("rerun", "tiny-student", str(run.ranked()[0].number), "--device", "cpu")
    assert "3 of 3 epochs gave the same numbers" in out
    code, _, err = call("refit", "tiny-student", "--top", "1", "--seeds", "1", "--all-data")
    assert (code, "has said nothing of the validation images" in err) == (2, True)
    code, out, err = call("refit", "tiny-student", "--top", "1", "--seeds", "1")
    assert code == 0, err
    assert "Student: trial 0" in out

    code, out, err = call("ensemble", "--run", "tiny-student", "--top", "2", "--device", "cpu")
    assert code == 0, err
    metrics = json.loads((run.path / "ensembles" / "top2" / "metrics.json").read_text())
    known = json.loads((teacher_run.path / "ensembles" / "all" / "metrics.json").read_text())
    beside = metrics["teacher"]
    assert beside["teacher"]["test"] == pytest.approx(known["ensemble"]["test"], abs=0.02)
    assert beside["student"]["test"] == metrics["ensemble"]["test"]
    assert "teacher: tiny/all" in (run.path / "ensembles" / "top2" / "model_card.md").read_text()
    assert "takes the place of" not in err
    shutil.rmtree(teacher_run.path / "ensembles")
    code, _, err = call("ensemble", "--run", "tiny-student", "--top", "2", "--device", "cpu")
    assert code == 0
    assert "takes the place of the ensemble top2" in err
    assert "compared with its teacher on the validation images alone" in err

    file = run.path / "teacher.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    for words in ("search --resume --name tiny-student", "rerun tiny-student 0", "refit --top 1"):
        code, _, err = call(*words.split(), *(["tiny-student"] if "refit" in words else []))
        assert code == 1, err
        assert "teacher.safetensors: damaged, or not what was written" in err
    code, out, _ = call("check", "tiny-student", "--device", "cpu")
    assert code == 1
    assert "teacher.safetensors: damaged" in out


def test_a_student_beside_its_teacher_fits_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rest = {"brier": 0.1, "ece": 0.02, "ece_equal_mass": 0.02, "top3": 1.0}
    classes = {"balanced_accuracy": 0.9, "macro_f1": 0.9, "worst_class": 0.5}
    scores = Scores(accuracy=0.91234, nll=0.3, **rest, **classes)
    contender = Contender(
        name="cnn_small-20260101-120000/greedy5",
        val=scores,
        test=scores,
        num_parameters=123_456_789,
        latency=Latency(one_ms=12.3, batch_ms=1234.5),
    )
    gain = Interval(gain=-0.012, low=-0.02, high=0.001)
    comparison = TeacherComparison(
        teacher=contender,
        student=contender,
        device="cpu",
        val_gain=gain,
        test_gain=gain,
    )
    for metric, value in (("accuracy", "91.23%"), ("worst_class", "50.00%"), ("nll", "0.3000")):
        print_student(comparison, cast("Metric", metric))
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert "  test       -1.20 [-2.00, +0.10]" in lines
        (student,) = (line for line in lines if line.startswith("student"))
        assert student.split()[1:3] == [value, value]
