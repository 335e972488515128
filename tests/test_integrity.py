"""What is on disk is held against what was recorded: attacks on a run, told by file."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tuner
from tests.conftest import Call, copy_of_trial
from tuner.data.splits import Splits
from tuner.ensemble.integrity import sample_of, why_not_network, why_not_probs
from tuner.errors import NoUsableTrials, TunerError
from tuner.metrics.predict import accuracy_and_nll
from tuner.run.check import check_records
from tuner.run.checkpoint import load_checkpoint, save_checkpoint, save_state
from tuner.run.digests import Damage, DamagedError, read_digests, write_digests
from tuner.run.run import Run
from tuner.run.trial import EpochMetrics, read_history, write_history, write_status, write_val_probs
from tuner.storage.paths import sha256_of
from tuner.training.saving import check_resumable

SPACE = "space: {batch_size: 32, model: {cnn: {stages: 2}}, optimizer: {sgd: {lr: 0.1}}}\n"
Attack = Callable[[Path], None]
"""Spoils a run whose trials 0, 1 and 2 lie in the folder; 1 and 2 have one architecture."""


def change_probs(change: Callable[[Any], Any]) -> Attack:
    def attack(trials: Path) -> None:
        path = trials / "0001" / "val_probs.npy"
        np.save(path, change(np.load(path)))

    return attack


def copy_over(name: str) -> Attack:
    def attack(trials: Path) -> None:
        shutil.copyfile(trials / "0002" / name, trials / "0001" / name)

    return attack


def change_history(change: Callable[[list[EpochMetrics]], list[EpochMetrics]]) -> Attack:
    def attack(trials: Path) -> None:
        write_history(trials / "0001", change(read_history(trials / "0001")))

    return attack


def set_accuracy(accuracy: float) -> Attack:
    def change(rows: list[EpochMetrics]) -> list[EpochMetrics]:
        return [dataclasses.replace(row, val_accuracy=accuracy) for row in rows]

    return change_history(change)


def lengthen(rows: list[EpochMetrics]) -> list[EpochMetrics]:
    worse = dataclasses.replace(rows[-1], val_accuracy=0.0)
    return rows + [dataclasses.replace(worse, epoch=epoch) for epoch in range(3, 13)]


def skip_an_epoch(rows: list[EpochMetrics]) -> list[EpochMetrics]:
    return [dataclasses.replace(row, epoch=2 * row.epoch) for row in rows]


def change_weight(trials: Path) -> None:
    path = trials / "0001" / "checkpoint.safetensors"
    network, described = load_checkpoint(path, Run.open(trials.parent).trial(1).config.model)
    with torch.no_grad():
        next(network.parameters()).add_(0.5)
    save_checkpoint(path, network, described)


def tell_another_epoch(trials: Path) -> None:
    path = trials / "0001" / "checkpoint.safetensors"
    network, described = load_checkpoint(path, Run.open(trials.parent).trial(1).config.model)
    save_checkpoint(path, network, dataclasses.replace(described, epoch=described.epoch + 5))


def spoil(name: str, content: bytes) -> Attack:
    def attack(trials: Path) -> None:
        (trials / "0001" / name).write_bytes(content)

    return attack


def remove(name: str) -> Attack:
    return lambda trials: (trials / "0001" / name).unlink()


def change_config(trials: Path) -> None:
    path = trials / "0001" / "config.json"
    text = path.read_text()
    assert '"lr": 0.2' in text
    path.write_text(text.replace('"lr": 0.2', '"lr": 0.02'))


HEADER = b"\x93NUMPY\x01\x00\x06\x00{'a': ("
"""The first bytes of an array's file, by which NumPy knows it."""


def cut(name: str) -> Attack:
    def attack(trials: Path) -> None:
        path = trials / "0001" / name
        path.write_bytes(path.read_bytes()[:-9])

    return attack


ATTACKS: dict[str, tuple[str, Attack]] = {
    "probabilities of another trial": ("val_probs.npy", copy_over("val_probs.npy")),
    "negated": ("val_probs.npy", change_probs(lambda p: -p)),
    "zeroed": ("val_probs.npy", change_probs(np.zeros_like)),
    "rows reversed": ("val_probs.npy", change_probs(lambda p: p[::-1])),
    "classes reversed": ("val_probs.npy", change_probs(lambda p: p[:, ::-1])),
    "not summing to 1": ("val_probs.npy", change_probs(lambda p: p * np.float32(0.9))),
    "not a number": ("val_probs.npy", change_probs(lambda p: p * np.float32("nan"))),
    "an image less": ("val_probs.npy", change_probs(lambda p: p[1:])),
    "of whole numbers": ("val_probs.npy", change_probs(lambda p: (p > 0.5).astype(np.int64))),
    "probabilities cut off": ("val_probs.npy", cut("val_probs.npy")),
    "no probabilities": ("val_probs.npy", spoil("val_probs.npy", b"PK\x03\x04")),
    "checkpoint of another trial": (
        "checkpoint.safetensors",
        copy_over("checkpoint.safetensors"),
    ),
    "a weight changed": ("checkpoint.safetensors", change_weight),
    "another epoch": ("checkpoint.safetensors", tell_another_epoch),
    "checkpoint cut off": ("checkpoint.safetensors", cut("checkpoint.safetensors")),
    "accuracy of 7.5": ("history.csv", set_accuracy(7.5)),
    "accuracy below 0": ("history.csv", set_accuracy(-0.5)),
    "accuracy that is none": ("history.csv", set_accuracy(float("nan"))),
    "twelve epochs of two": ("history.csv", change_history(lengthen)),
    "epochs from 2": ("history.csv", change_history(skip_an_epoch)),
    "no configuration": ("config.json", spoil("config.json", b"[]")),
    "another configuration": ("config.json", change_config),
    "history missing": ("history.csv", remove("history.csv")),
    "probabilities missing": ("val_probs.npy", remove("val_probs.npy")),
    "a header that is none": ("val_probs.npy", spoil("val_probs.npy", HEADER)),
    "digests that are none": ("digests.json", spoil("digests.json", b'{"history.csv": 7}')),
    "digests too deep": ("digests.json", spoil("digests.json", b"[" * 200_000)),
}


def no_test_image_was_read(run: Run) -> bool:
    return not (run.path / "test_readings.jsonl").exists()


CASES = [
    *((attack, "with digests") for attack in ATTACKS),
    *((attack, "without digests") for attack in ("rows reversed", "accuracy of 7.5")),
    *((attack, "without digests") for attack in ("checkpoint of another trial", "another epoch")),
    ("rows reversed", "digests rewritten"),
]


@pytest.mark.parametrize(("attack", "when"), CASES)
def test_damage_is_told_by_file_before_a_test_image_is_read(
    finished_run: Run, call: Call, attack: str, when: str
) -> None:
    name, spoil_run = ATTACKS[attack]
    trials = finished_run.path / "trials"
    spoil_run(trials)
    file = trials / "0001" / name
    if when == "digests rewritten":
        digests = read_digests(file.parent)
        write_digests(file.parent, digests | {name: sha256_of(file)})
    elif when == "without digests":
        for path in trials.iterdir():
            (path / "digests.json").unlink()
    at = ("tiny", "--storage", str(finished_run.path.parent), "--device", "cpu")
    code, out, err = call("ensemble", "--top", "3", "--run", *at)
    assert code == 1, err
    (line,) = [line for line in err.splitlines() if str(file) in line]
    assert line.endswith("--skip-damaged (in Python, skip_damaged=True).")
    assert "Traceback" not in err
    if name == "checkpoint.safetensors":
        assert call("ensemble", "--top", "3", "--dry-run", "--run", *at)[0] == 1
    assert no_test_image_was_read(finished_run)
    assert not (finished_run.path / "ensembles").exists()
    code, out, _ = call("check", *at, "--json")
    assert code == 1
    assert {entry["file"] for entry in json.loads(out)["damage"]} == {str(file)}


@pytest.mark.parametrize("attack", ["negated", "accuracy of 7.5", "a weight changed"])
@pytest.mark.parametrize("method", ["vote", "greedy"])
def test_a_damaged_trial_is_left_out_where_the_user_says_so(
    finished_run: Run, attack: str, method: Any
) -> None:
    ATTACKS[attack][1](finished_run.path / "trials")
    ensemble = tuner.combine(
        finished_run, top=1, method=method, skip_damaged=True, device="cpu", progress=False
    )
    assert 1 not in {member.trial for member in ensemble.members}
    left_out = {entry["trial"]: entry["reason"] for entry in ensemble.metrics["left_out"]}
    assert left_out[1].startswith(f"damaged: {finished_run.trial_path(1)}")


def test_a_damaged_trial_and_a_copy_share_no_soup(finished_run: Run) -> None:
    ATTACKS["negated"][1](finished_run.path / "trials")
    # Of one architecture with trial 0, as trial 1 is with trial 2.
    copy_of_trial(finished_run, 0, 7)
    with pytest.raises(TunerError, match="share an architecture"):
        tuner.combine(
            finished_run,
            top=1,
            method="greedy-soup",
            skip_damaged=True,
            device="cpu",
            progress=False,
        )


def test_too_few_are_left_for_a_vote(finished_run: Run) -> None:
    ATTACKS["negated"][1](finished_run.path / "trials")
    with pytest.raises(TunerError, match=r"--top 3 --skip-damaged: .* Give --top 2 or less"):
        tuner.combine(finished_run, top=3, skip_damaged=True, device="cpu", progress=False)


def test_a_run_of_which_all_is_damaged_has_no_usable_trials(finished_run: Run) -> None:
    for file in (finished_run.path / "trials").glob("*/val_probs.npy"):
        file.write_bytes(b"z")
    with pytest.raises(NoUsableTrials, match="No candidate is left; put the files back") as caught:
        tuner.combine(finished_run, top=1, skip_damaged=True, device="cpu", progress=False)
    assert str(caught.value).count("No candidate") == 1


def test_all_damage_is_told_at_once(finished_run: Run, call: Call) -> None:
    for number, name in ((0, "val_probs.npy"), (1, "history.csv"), (2, "config.json")):
        (finished_run.trial_path(number) / name).write_bytes(b"nothing")
    code, _, err = call("ensemble", "--storage", str(finished_run.path.parent), "--top", "2")
    assert code == 1
    assert len(err.splitlines()) == 3
    code, out, _ = call("check", str(finished_run.path))
    assert code == 1
    for number, name in ((0, "val_probs.npy"), (1, "history.csv"), (2, "config.json")):
        assert f"{number:04d}/{name}: " in err
        assert f"{number:04d}/{name}: " in out


# Voting twice


def copy_trial(trials: Path) -> None:
    shutil.copytree(trials / "0001", trials / "0003")


def link_trial(trials: Path) -> None:
    (trials / "0003").symlink_to("0001")


def link_files(trials: Path) -> None:
    (trials / "0003").mkdir()
    for file in (trials / "0001").iterdir():
        os.link(file, trials / "0003" / file.name)


@pytest.mark.parametrize("attack", [copy_trial, link_trial, link_files])
def test_no_trial_votes_twice(finished_run: Run, call: Call, attack: Attack) -> None:
    attack(finished_run.path / "trials")
    at = ("--storage", str(finished_run.path.parent), "--device", "cpu")
    code, _, err = call("ensemble", "--top", "2", *at)
    assert code == 1
    assert "0003" in err
    assert no_test_image_was_read(finished_run)
    code, out, _ = call("check", "tiny", *at)
    assert code == 1
    assert "0003" in out
    code, _, err = call("ensemble", "--top", "3", "--skip-damaged", *at)
    assert code == 0, err


def test_a_folder_of_another_name_is_no_trial(finished_run: Run, call: Call) -> None:
    trials = finished_run.path / "trials"
    shutil.copytree(trials / "0001", trials / "1")
    assert [trial.number for trial in finished_run.trials()] == [0, 1, 2]
    code, out, _ = call("check", str(finished_run.path), "--device", "cpu")
    assert code == 1
    assert f"{trials / '1'}: is not the name of a trial's folder" in out


# Kills, earlier versions and searches that go on


def leave_as_killed(run: Run, epochs: int | None) -> None:
    """Leave the trials as a fault does that comes after an epoch's files, before their digests.

    Args:
        run: Whose trials it meets; they are to be gone on with.
        epochs: Those of which the digests tell; ``None`` if they are an earlier version's.
    """
    for trial in run.trials():
        write_status(trial.path, dataclasses.replace(trial.status, state="interrupted"))
        save_state(trial.state, {"w": torch.zeros(1)}, trial.history)
        digests = read_digests(trial.path)
        older = dict.fromkeys(digests.keys() - {"config.json"}, "0" * 64)
        write_digests(trial.path, digests | older, epochs)


@pytest.mark.parametrize("epochs", [1, None])
def test_files_newer_than_their_digests_go_on(
    finished_run: Run, call: Call, epochs: int | None
) -> None:
    leave_as_killed(finished_run, epochs)
    # The clock of the node that wrote the digests was ahead.
    for trial in finished_run.trials():
        os.utime(trial.path / "digests.json", (2e9, 2e9))
    check_resumable(finished_run)
    at = ("tiny", "--storage", str(finished_run.path.parent), "--device", "cpu")
    code, out, err = call("ensemble", "--run", *at, "--top", "3", "--json")
    assert code == 0, err
    assert len(json.loads(out)["members"]) == 3
    assert call("check", *at)[0] == 0


def test_files_of_the_epochs_of_their_digests_are_those_recorded(
    finished_run: Run, call: Call
) -> None:
    leave_as_killed(finished_run, epochs=2)
    with pytest.raises(DamagedError) as told:
        check_resumable(finished_run)
    names = {Path(entry.file).name for entry in told.value.damage}
    assert names == {"checkpoint.safetensors", "val_probs.npy"}
    at = ("tiny", "--storage", str(finished_run.path.parent), "--device", "cpu")
    assert call("ensemble", "--run", *at, "--top", "3")[0] == 1


# Trials in each other's place


def exchange(trials: Path, *names: str) -> None:
    """Exchange trials 1 and 2, whole or some of their files."""
    for name in names or ("",):
        one, two, aside = trials / "0001" / name, trials / "0002" / name, trials / "aside"
        one.rename(aside)
        two.rename(one)
        aside.rename(two)


OWN = ("config.json", "history.csv", "checkpoint.safetensors", "val_probs.npy", "digests.json")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "status.json"),
        (("status.json",), "status.json"),
        (OWN, "digests.json"),
        (OWN[:1], "config.json"),
        (OWN[1:], "digests.json"),
        (OWN[:4], "config.json"),
    ],
    ids=["whole", "status", "files", "configuration", "training", "undigested"],
)
def test_trials_in_each_others_place_are_told(
    finished_run: Run, call: Call, names: tuple[str, ...], told: str
) -> None:
    exchange(finished_run.path / "trials", *names)
    (finished_run.path / "space.yaml").write_text(SPACE)
    at = ("tiny", "--storage", str(finished_run.path.parent), "--device", "cpu")
    code, out, _ = call("check", *at, "--json")
    assert code == 1
    found = {entry["file"] for entry in json.loads(out)["damage"]}
    assert {str(finished_run.trial_path(n) / told) for n in (1, 2)} <= found
    for command in (("ensemble", "--top", "3", "--run", *at), ("report", *at[:3])):
        code, _, err = call(*command)
        assert code == 1, command
        assert f"0001/{told}: " in err
        assert "Traceback" not in err
    assert no_test_image_was_read(finished_run)


@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_run_without_digests_goes_on(finished_run: Run, call: Call, is_emptied: bool) -> None:
    for trial in finished_run.trials():
        (trial.path / "digests.json").unlink()
        if is_emptied:
            # By a loss of power.
            (trial.path / "digests.json").write_bytes(b"\0\0")
        # Nor did checkpoints tell how they were computed.
        network, described = load_checkpoint(trial.checkpoint, trial.config.model)
        save_checkpoint(trial.checkpoint, network, dataclasses.replace(described, computed=""))
        write_val_probs(trial.path, trial.val_probs().astype(np.float16))
    at = ("tiny", "--storage", str(finished_run.path.parent), "--device", "cpu")
    code, _, err = call("ensemble", "--run", *at, "--top", "3")
    assert code == 0, err
    assert call("check", *at)[0] == 0


def test_a_trial_that_is_taken_up_while_it_is_read_is_no_candidate(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = finished_run.trial(1)
    ranked = Run.ranked

    def ranked_before(run: Run, *options: Any) -> Any:
        found = ranked(run, *options)
        write_status(best.path, dataclasses.replace(best.status, state="running"))
        copy_over("val_probs.npy")(finished_run.path / "trials")
        return found

    monkeypatch.setattr(Run, "ranked", ranked_before)
    ensemble = tuner.combine(finished_run, top=2, device="cpu", progress=False)
    assert {member.trial for member in ensemble.members} == {0, 2}
    left_out = {entry["trial"]: entry["reason"] for entry in ensemble.metrics["left_out"]}
    assert left_out[1] == "running"


@pytest.mark.parametrize("state", ["completed", "interrupted"])
def test_a_run_with_damage_is_not_gone_on_with(finished_run: Run, state: Any) -> None:
    trial = finished_run.trial(1)
    write_status(trial.path, dataclasses.replace(trial.status, state=state))
    check_resumable(finished_run)
    file = trial.path / ("history.csv" if state == "completed" else "config.json")
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(DamagedError, match=file.name):
        check_resumable(finished_run)


def test_a_paused_trial_is_promoted_by_the_history_that_its_worker_wrote(
    finished_run: Run,
) -> None:
    trial = finished_run.trial(1)
    write_status(trial.path, dataclasses.replace(trial.status, state="paused"))
    digest = save_state(trial.state, {"w": torch.zeros(1)}, trial.history)
    write_digests(trial.path, read_digests(trial.path) | {trial.state.name: digest}, 2)
    check_resumable(finished_run)
    set_accuracy(0.999)(finished_run.path / "trials")
    with pytest.raises(DamagedError, match=r"0001/history\.csv: is not what the trial's worker"):
        check_resumable(finished_run)


def test_what_is_ranked_by_and_trained_anew_is_what_was_recorded(
    finished_run: Run, call: Call
) -> None:
    file = finished_run.trial_path(1) / "history.csv"
    set_accuracy(0.999)(finished_run.path / "trials")
    with pytest.raises(DamagedError, match=r"history\.csv: is not what the trial's worker wrote"):
        check_records(finished_run.trials())
    (finished_run.path / "space.yaml").write_text(SPACE)
    for words in (["refit", "--top", "1"], ["rerun", "1"], ["report"]):
        command, *options = words
        name = str(finished_run.path)
        code, _, err = call(command, name, *options)
        assert code == 1, err
        assert str(file) in err


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("space.yaml", "search: {}\n", "1:1: 'space' is missing"),
        ("space.yaml", SPACE + SPACE, "2:1: space: duplicate key"),
        ("space.yaml", SPACE.replace("cnn", "cnm"), "did you mean 'cnn'"),
        ("test_readings.jsonl", "{}\n", "is missing"),
    ],
)
def test_what_other_commands_stop_at_is_damage(
    finished_run: Run, call: Call, name: str, text: str, told: str
) -> None:
    file = finished_run.path / name
    file.write_text(text)
    code, out, _ = call("check", str(finished_run.path), "--device", "cpu", "--json")
    assert code == 1
    ((found, problem),) = [(e["file"], e["problem"]) for e in json.loads(out)["damage"]]
    assert found == str(file)
    assert told in problem
    assert "\n" not in problem


# Ensembles


def test_a_run_and_its_ensembles_are_whole(finished_run: Run, call: Call) -> None:
    for method in ("vote", "greedy", "soup"):
        tuner.combine(finished_run, top=2, method=method, name=method, device="cpu", progress=False)
    code, out, err = call("check", str(finished_run.path), "--device", "cpu", "--json")
    assert code == 0, out + err
    assert json.loads(out) == {"run": str(finished_run.path), "damage": []}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.json", '"accuracy": 0.', '"accuracy": 3.'),
        ("metrics.json", '"trial": ', '"trial": 4'),
        ("confusion.csv", "\n0,", "\n0,5"),
        ("confusion.csv", "\n9,", "\n\n9,"),
        ("ensemble.json", '"trial"', '"number"'),
        ("ensemble.json", '"members"', '"networks"'),
    ],
)
def test_an_ensemble_whose_files_do_not_agree_is_told(
    finished_run: Run, call: Call, name: str, old: str, new: str
) -> None:
    path = tuner.combine(finished_run, top=2, device="cpu", progress=False).path
    file = Path(str(path)) / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    code, out, _ = call("check", str(finished_run.path), "--device", "cpu")
    assert code == 1
    assert f"ensembles/top2/{name}: " in out


def test_a_changed_member_and_what_is_left_over_are_told(finished_run: Run, call: Call) -> None:
    path = Path(str(tuner.combine(finished_run, top=2, device="cpu", progress=False).path))
    one, two = sorted((path / "members").iterdir())
    tensors = load_file(one)
    save_file(tensors, one)
    shutil.copy(two, two.with_name("0009.safetensors"))
    (finished_run.path / "trials" / "0000" / ".history.csv.x1").touch()
    (finished_run.path / "space.yaml").unlink()
    code, out, _ = call("check", str(finished_run.path), "--device", "cpu", "--json")
    assert code == 1
    told = {entry["file"]: entry["problem"] for entry in json.loads(out)["damage"]}
    names = {str(Path(file).relative_to(finished_run.path)) for file in told}
    assert names == {
        "ensembles/top2/members/0001.safetensors",
        "ensembles/top2/members/0009.safetensors",
        "trials/0000/.history.csv.x1",
        "space.yaml",
    }
    with pytest.raises(TunerError, match=r"0001\.safetensors"):
        tuner.load_ensemble(path)


def test_damage_of_one_ensemble_hides_none_of_another(finished_run: Run, call: Call) -> None:
    one, other = (
        Path(str(tuner.combine(finished_run, top=2, name=name, device="cpu", progress=False).path))
        for name in ("top2", "top2-more")
    )
    (one / "probe.safetensors").write_bytes(b"x")
    for name in ("confusion.csv", "probe.safetensors"):
        (other / name).write_text("x\n")
    shutil.rmtree(other / "members")
    (other / "members").touch()
    code, out, _ = call("check", str(finished_run.path), "--device", "cpu")
    assert code == 1
    told = {line.partition(": ")[0] for line in out.splitlines()}
    for file in (one / "probe.safetensors", other / "probe.safetensors", other / "confusion.csv"):
        assert str(file) in told
    assert any(name.startswith(str(other / "members")) for name in told)


def test_a_run_that_cannot_be_opened_is_told(finished_run: Run, call: Call) -> None:
    (finished_run.path / "run.json").write_text("{}")
    code, out, _ = call("check", str(finished_run.path), "--json")
    assert code == 1
    assert json.loads(out)["damage"][0]["file"] == str(finished_run.path / "run.json")


def test_a_run_with_a_colon_in_its_name_is_told_by_its_folder(
    finished_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished_run.path / "run.json").write_text("{}")
    monkeypatch.chdir(Path(str(finished_run.path)).rename(finished_run.path.parent / "a: b").parent)
    damage = json.loads(call("check", "a: b", "--json", "--storage", "elsewhere").out)["damage"]
    assert damage[0]["file"] == "a: b/run.json"


def test_damage_is_told_by_file_in_a_run_whose_name_has_a_colon(
    finished_run: Run, digits: Splits
) -> None:
    path = Path(str(finished_run.path))
    run = Run.open(path.rename(path.with_name("exp: 1")))
    for number in (0, 1):
        (run.trial_path(number) / "history.csv").write_text("nothing\n")
    damage: list[Damage] = []
    run.trials(damage)
    assert [entry.file for entry in damage] == [
        str(run.trial_path(number) / "history.csv") for number in (0, 1)
    ]
    assert all(entry.problem.startswith("damaged or unreadable: ") for entry in damage)
    assert len(DamagedError(damage, "").damage) == 2
    trial = run.trial(2)
    trial.checkpoint.write_bytes(b"nothing")
    cpu = torch.device("cpu")
    wrong = why_not_network(trial.checkpoint, trial, digits, torch.ones(1), 0.0, cpu)
    assert wrong is not None
    assert wrong.startswith("not a usable checkpoint: ")


def test_what_cannot_be_checked_is_said_last_until_the_images_are_found(
    finished_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = finished_run.record.data
    finished_run.update(data=dataclasses.replace(data, source="/moved/away"))
    at = (str(finished_run.path), "--device", "cpu")
    code, out, err = call("check", *at)
    assert code == 0
    assert "unknown dataset '/moved/away'" in err
    unchecked = "the networks and probabilities of the trials"
    assert out.splitlines()[-1].endswith(f": no damage found; not checked: {unchecked}")
    assert json.loads(call("check", *at, "--json")[1])["unchecked"] == [unchecked]
    # The network of this one does not give its probabilities, which its digests do not tell.
    file = finished_run.trial_path(1) / "checkpoint.safetensors"
    change_weight(finished_run.path / "trials")
    write_digests(file.parent, read_digests(file.parent) | {file.name: sha256_of(file)})
    assert call("check", *at)[0] == 0
    code, out, _ = call("check", *at, "--data", "digits")
    assert code == 1
    assert f"{file}: " in out
    assert "not checked" not in out
    for words in (["--data", "/moved/too"], ["--data-dir", "elsewhere"]):
        code, out, err = call("check", *at, *words)
        assert (code, out) == (2, ""), "what the user names has to be there"
        assert "unknown dataset" in err
    monkeypatch.setenv("CIFAR_TUNE_DATA", "digits")
    assert call("check", *at)[0] == 1, "as every option, it may come from the environment"


# Arithmetic


def test_what_ties_after_rounding_may_have_been_right(digits: Splits) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = digits.val.labels
    probs = (0.3 * torch.randn(len(labels), 10, generator=generator)).softmax(dim=1)
    truth = torch.arange(len(labels)), labels
    # Every second image has its class as good as level with another one.
    other = (labels + 1) % 10
    probs[truth] = probs.max(dim=1).values + torch.where(labels % 2 == 0, 2e-6, 1e-2)
    probs[torch.arange(len(labels)), other] = probs[truth] - torch.where(labels % 2 == 0, 1e-6, 0.1)
    probs = probs.clamp(min=0)
    probs /= probs.sum(dim=1, keepdim=True)
    accuracy, loss = accuracy_and_nll(probs, labels)
    row = EpochMetrics(
        epoch=1, train_loss=1, val_loss=loss, val_accuracy=accuracy, lr=0, seconds=0, time=0
    )
    for dtype in (np.float32, np.float16):
        assert why_not_probs(probs.numpy().astype(dtype), row, labels, 10) is None
    lower = dataclasses.replace(row, val_accuracy=accuracy - 0.4)
    assert why_not_probs(probs.numpy(), lower, labels, 10)
    assert why_not_probs(probs.numpy().astype(np.float16), lower, labels, 10) is None


@pytest.mark.parametrize("count", [1, 5, 64, 65, 1000])
def test_a_network_is_checked_by_images_from_all_over(count: int) -> None:
    index = sample_of(count)
    assert len(index) == min(count, 64)
    assert index[0] == 0
    assert len(index.unique()) == len(index)
    assert count - 1 - index[-1] <= count / 64


def test_too_few_are_left_for_a_vote_whose_networks_are_computed(finished_run: Run) -> None:
    ATTACKS["a weight changed"][1](finished_run.path / "trials")
    with pytest.raises(TunerError, match=r"--top 3 --skip-damaged: .* Give --top 2 or less"):
        tuner.combine(
            finished_run, top=3, tta="flip", skip_damaged=True, device="cpu", progress=False
        )
