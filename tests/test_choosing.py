"""Who is chosen, by which images, and why others are not; what a comparison tells."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Call, record_probs
from tuner.config import Method, Tta
from tuner.data.splits import Splits
from tuner.ensemble import choosing, make_ensemble, planning
from tuner.ensemble.choosing import FITS, PoolVote
from tuner.ensemble.duplicates import Duplicates, read_duplicates
from tuner.ensemble.members import Local
from tuner.ensemble.plan import Plan
from tuner.ensemble.request import METHODS, SOUPS, EnsembleRequest
from tuner.ensemble.result import ComparedMethod, EnsembleResult
from tuner.ensemble.soup import estimate_statistics, mean_of
from tuner.errors import UsageError
from tuner.metrics import latency
from tuner.metrics.predict import score
from tuner.run.checkpoint import load_checkpoint, save_checkpoint
from tuner.run.digests import read_digests, write_digests
from tuner.run.run import Run
from tuner.run.trial import write_status, write_trial
from tuner.storage.paths import sha256_of
from tuner.voting import uniform
from tuner.voting.temperature import fit_temperature, soften
from tuner.voting.weighted import NoWeightsError

CPU = torch.device("cpu")


@contextmanager
def made_plan(run: Run, top: int = 3, **asked: Any) -> Iterator[Plan]:
    with planning(run, EnsembleRequest(top=top, **asked), devices=[CPU]) as plan:
        yield plan


def choose(run: Run, top: int = 3, **asked: Any) -> Plan:
    """Choose members and read no test image."""
    with made_plan(run, top, **asked) as plan:
        return plan


def ensemble(run: Run, top: int = 3, **asked: Any) -> EnsembleResult:
    with made_plan(run, top, **asked) as plan:
        return make_ensemble(plan)


def members_of(plan: Plan) -> list[int]:
    return [plan.pool.trials[i].number for i in plan.choice.members]


def reasons_of(plan: Plan) -> dict[int, str]:
    return {entry.trial: entry.reason for entry in plan.left_out}


def change(run: Run, number: int, **changes: Any) -> None:
    """Change a trial's status."""
    trial = run.trial(number)
    write_status(trial.path, dataclasses.replace(trial.status, **changes))


# Choosing


@pytest.mark.parametrize("method", sorted(set(METHODS) - SOUPS))
def test_no_model_is_loaded_to_choose(finished_run: Run, method: Method) -> None:
    for trial in finished_run.trials():
        trial.checkpoint.write_bytes(b"no weights")
        digests = read_digests(trial.path)
        write_digests(trial.path, digests | {trial.checkpoint.name: sha256_of(trial.checkpoint)})
    assert members_of(choose(finished_run, method=method, calibrate=True))


def test_the_engine_is_not_imported_to_combine() -> None:
    code = "import sys, tuner.ensemble; print({'ray', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("calibrate", [False, True])
def test_every_method_gives_shares_to_so_many_at_most(
    finished_run: Run, method: Method, calibrate: bool
) -> None:
    choice = choose(finished_run, 2, method=method, calibrate=calibrate).choice
    assert 1 <= len(choice.members) <= 2
    assert choice.weights.sum().item() == pytest.approx(1, abs=1e-9)
    assert (choice.weights > 0).all()
    if len(choice.members) == 1 and choice.temperatures != (1,):
        assert choice.temperature == pytest.approx(1, abs=1e-3)
    else:
        assert (choice.temperature != 1) == calibrate
    for probs in (choice.val, choice.crossfit):
        # To the rounding of the networks' own float32.
        torch.testing.assert_close(probs.sum(dim=1), torch.ones(144).double(), rtol=0, atol=1e-6)


def calibrated(plan: Plan) -> Tensor:
    labels = plan.pool.labels
    return torch.stack([soften(p, fit_temperature(p, labels)) for p in plan.pool.probs])


def let_members_be_too_sure(run: Run) -> None:
    """Leave validation probabilities of members that know something, each sure in its own way."""
    generator = torch.Generator().manual_seed(0)
    labels = choose(run).pool.labels
    for trial, sureness in zip(run.trials(), (0.3, 2.0, 8.0), strict=True):
        logits = torch.randn(len(labels), 10, generator=generator)
        logits += 2 * nn.functional.one_hot(labels, 10)
        probs = (sureness * logits).softmax(dim=1)
        record_probs(trial, probs.numpy(), labels)


@pytest.mark.parametrize("method", ["greedy", "weighted"])
def test_a_fitted_vote_is_no_worse_than_the_best_alone(finished_run: Run, method: Method) -> None:
    let_members_be_too_sure(finished_run)
    for top in (1, 2, 3):
        plan = choose(finished_run, top, method=method)
        best = min(score(member, plan.pool.labels).nll for member in calibrated(plan))
        assert score(plan.choice.val, plan.pool.labels).nll <= best + 1e-6


def test_a_weighted_vote_is_no_worse_than_a_uniform_one(finished_run: Run) -> None:
    let_members_be_too_sure(finished_run)
    plan = choose(finished_run, method="weighted")
    uniform = calibrated(plan).mean(dim=0)
    reached = score(plan.choice.val, plan.pool.labels).nll
    assert reached <= score(uniform, plan.pool.labels).nll + 1e-6


@pytest.mark.parametrize("method", sorted(set(METHODS) - SOUPS))
def test_members_are_calibrated_where_weights_are_fitted(finished_run: Run, method: Method) -> None:
    let_members_be_too_sure(finished_run)
    plan = choose(finished_run, method=method)
    labels = plan.pool.labels
    for member, temperature in zip(plan.choice.members, plan.choice.temperatures, strict=True):
        fitted = fit_temperature(plan.pool.probs[member], labels)
        assert temperature == (1 if method == "vote" else fitted)


def test_temperatures_of_members_are_fitted_without_the_fold(finished_run: Run) -> None:
    let_members_be_too_sure(finished_run)
    choice = choose(finished_run, 1, method="weighted", pool=1).choice
    assert not torch.allclose(choice.crossfit, choice.val, atol=1e-6)
    assert torch.equal(choice.crossfit.argmax(dim=1), choice.val.argmax(dim=1))


@pytest.mark.parametrize("method", ["greedy", "weighted"])
def test_how_sure_a_member_is_has_no_say_in_its_weight(finished_run: Run, method: Method) -> None:
    labels = choose(finished_run).pool.labels
    generator = torch.Generator()
    weights = []
    for temperature in (1.0, 4.0):
        generator.manual_seed(0)
        for trial in finished_run.trials():
            logits = torch.randn(len(labels), 10, generator=generator)
            logits += 2 * nn.functional.one_hot(labels, 10)
            probs = (logits / (temperature if trial.number == 0 else 1)).softmax(dim=1)
            record_probs(trial, probs.numpy(), labels)
        choice = choose(finished_run, method=method).choice
        weights.append(dict(zip(choice.members, choice.weights.tolist(), strict=True)))
    assert len(weights[0]) == 3
    assert weights[1] == pytest.approx(weights[0], abs=0.05)


def test_a_temperature_changes_the_loss_and_no_decision(finished_run: Run) -> None:
    plain, calibrated = (choose(finished_run, calibrate=c) for c in (False, True))
    before, after = (score(plan.choice.val, plan.pool.labels) for plan in (plain, calibrated))
    assert after.accuracy == before.accuracy
    assert after.nll < before.nll


def evenly_good(labels: Tensor, wrong: Tensor) -> np.ndarray:
    """Return probabilities that are right but where ``wrong`` says."""
    taken_for = torch.where(wrong, (labels + 1) % 10, labels)
    return (0.02 + 0.8 * nn.functional.one_hot(taken_for, 10)).numpy().astype(np.float32)


def by_worst_class(run: Run, digits: Splits) -> None:
    """Let trial 0 miss one class and little else, and trial 1 a fifth of each."""
    labels = digits.val.labels
    place = torch.arange(len(labels))
    record_probs(run.trial(0), evenly_good(labels, labels == 7), labels)
    record_probs(run.trial(1), evenly_good(labels, place % 5 == 0), labels)
    record_probs(run.trial(2), evenly_good(labels, place % 2 == 0), labels)


def test_members_are_those_that_are_best_by_the_metric(finished_run: Run, digits: Splits) -> None:
    by_worst_class(finished_run, digits)
    assert members_of(choose(finished_run, 1)) == [0]
    plan = choose(finished_run, 1, metric="worst_class")
    assert members_of(plan) == [1]
    assert plan.to_plain()["metric"] == "worst_class"
    reason = "below the top 1 by validation accuracy of the worst class"
    assert reasons_of(plan) == {0: reason, 2: reason}
    assert [plan.pool.trials[i].number for i in plan.single.members] == [1]


@pytest.mark.parametrize("method", [None, *METHODS])
def test_who_is_chosen_follows_from_the_images_to_choose_on_alone(
    finished_run: Run, digits: Splits, method: Method | None
) -> None:
    labels = digits.val.labels
    place = torch.arange(len(labels))
    halves = place.tensor_split(2)
    record_probs(finished_run.trial(0), evenly_good(labels, place % 2 == 0), labels)
    # Trials 1 and 2 have one architecture, as a soup needs.
    for number, half in zip((1, 2), halves, strict=True):
        record_probs(
            finished_run.trial(number), evenly_good(labels, ~torch.isin(place, half)), labels
        )
    plan = choose(finished_run)
    request = EnsembleRequest(top=1)
    if method is None:
        chooser = choosing.best_single(plan.pool)
    elif method in SOUPS:
        chooser = choosing.soups(plan.pool, request, method, plan.soup_maker)
    else:
        chooser = choosing.voters(plan.pool, request, method)
    for number, half in zip((1, 2), halves, strict=True):
        (member,) = chooser(half).weights.nonzero().flatten().tolist()
        assert plan.pool.trials[member].number == number


def test_an_image_is_cross_fitted_by_a_choice_made_without_it(finished_run: Run) -> None:
    pool = choose(finished_run).pool

    def chooser(index: Tensor | None) -> PoolVote:
        was_seen = torch.zeros(len(pool.labels))
        was_seen[slice(None) if index is None else index] = 1
        return PoolVote(
            weights=uniform(torch.tensor([0]), len(pool)),
            temperatures=(1.0,) * len(pool),
            probs=torch.stack([was_seen, 1 - was_seen], dim=1),
            reasons={},
        )

    choice = choosing.choose(pool, chooser, "vote", calibrate=False)
    assert (choice.val[:, 0] == 1).all()
    assert (choice.crossfit[:, 0] == 0).all()


def test_an_ensemble_tells_what_it_was_chosen_by(
    finished_run: Run, digits: Splits, call: Call
) -> None:
    by_worst_class(finished_run, digits)
    at = ("--run", "tiny", "--storage", str(finished_run.path.parent))
    words = ("ensemble", *at, "--top", "1", "--metric", "worst_class", "--dry-run")
    code, out, _ = call(*words)
    assert (code, "by accuracy of the worst class" in out) == (0, True)
    assert "cross-fit" in out
    assert "\nAccuracy on 144 validation images: ± " in out


def test_the_frontier_rises_in_the_metric(finished_run: Run) -> None:
    result = ensemble(finished_run, frontier=True, metric="nll")
    values = [point.val_metric for point in result.frontier or ()]
    assert values == sorted(values, reverse=True)
    assert result.metric == "nll"


def test_all_of_the_pool_leaves_a_vote_nothing_to_choose(finished_run: Run) -> None:
    choice = choose(finished_run, 3).choice
    torch.testing.assert_close(choice.crossfit, choice.val)
    calibrated = choose(finished_run, 3, calibrate=True).choice
    assert not torch.allclose(calibrated.crossfit, calibrated.val, atol=1e-6)


def test_a_running_search_gives_what_it_has(finished_run: Run) -> None:
    finished_run.update(status="running")
    change(finished_run, 1, state="running")
    plan = choose(Run.open(finished_run.path), 2)
    assert sorted(members_of(plan)) == [0, 2]
    assert reasons_of(plan) == {1: "running"}


def test_why_a_trial_is_left_out_is_told(finished_run: Run) -> None:
    ranked = [trial.number for trial in finished_run.ranked()]
    assert reasons_of(choose(finished_run, 2)) == {
        ranked[2]: "below the top 2 by validation accuracy"
    }
    finished_run.trial(ranked[0]).checkpoint.unlink()
    change(finished_run, ranked[1], state="out_of_memory", stop=None)
    assert reasons_of(choose(finished_run, 1)) == {
        ranked[0]: "checkpoint not kept (search --keep)",
        ranked[1]: "out of memory",
    }


def test_every_trial_is_a_member_or_left_out(finished_run: Run) -> None:
    for method in METHODS:
        plan = choose(finished_run, 2, method=method)
        assert sorted([*members_of(plan), *reasons_of(plan)]) == [0, 1, 2]


def test_no_ensemble_gets_a_name_that_begins_as_an_option_does() -> None:
    with pytest.raises(UsageError, match="begins as an option does"):
        EnsembleRequest(name="--trust-code")


def test_the_pool_bounds_the_choice(finished_run: Run) -> None:
    best = finished_run.ranked()[0].number
    assert members_of(choose(finished_run, 1, method="weighted", pool=1)) == [best]
    with pytest.raises(UsageError, match="--pool 1"):
        EnsembleRequest(top=2, pool=1)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"vote"}))
def test_a_maximum_of_members_refuses_no_smaller_run(finished_run: Run, method: Method) -> None:
    said: list[str] = []
    request = EnsembleRequest(top=5, method=method)
    with planning(finished_run, request, devices=[CPU], say=said.append) as plan:
        assert 1 <= len(plan.choice.members) <= 3
    assert "candidates: 3, fewer than --top 5" in said


def test_one_of_each_seed_or_family_is_taken(finished_run: Run) -> None:
    ranked = [trial.number for trial in finished_run.ranked()]
    config = finished_run.trial(ranked[1]).config
    seed = finished_run.trial(ranked[0]).config.seed
    write_trial(finished_run.trial_path(ranked[1]), dataclasses.replace(config, seed=seed))
    plan = choose(finished_run, 2, diverse="seed")
    assert members_of(plan) == [ranked[0], ranked[2]]
    assert reasons_of(plan) == {ranked[1]: f"seed {seed}, as trial {ranked[0]}"}
    assert members_of(choose(finished_run, 3, method="greedy", diverse="family")) == ranked[:1]
    with pytest.raises(UsageError, match="Give --top 1"):
        choose(finished_run, 2, diverse="family")


def test_one_of_each_configuration_is_taken_whatever_its_seed(finished_run: Run) -> None:
    ranked = [trial.number for trial in finished_run.ranked()]
    best = finished_run.trial(ranked[0]).config
    again = dataclasses.replace(best, seed=best.seed + 9)
    write_trial(finished_run.trial_path(ranked[1]), again)
    plan = choose(finished_run, 2, diverse="config")
    assert members_of(plan) == [ranked[0], ranked[2]]
    assert reasons_of(plan) == {ranked[1]: f"same config, as trial {ranked[0]}"}


# Budgets


def test_members_stay_within_the_parameters_allowed(finished_run: Run) -> None:
    sizes = {t.number: t.status.num_parameters for t in finished_run.trials()}
    for limit in sorted({min(sizes.values()), sum(sizes.values()) - 1, sum(sizes.values())}):
        for method in ("vote", "greedy", "weighted"):
            plan = choose(finished_run, method=method, max_parameters=limit)
            assert sum(sizes[number] for number in members_of(plan)) <= limit
    with pytest.raises(UsageError, match="the smallest candidate has"):
        choose(finished_run, max_parameters=min(sizes.values()) - 1)


def test_members_stay_within_the_time_allowed(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "MIN_SECONDS", 0.02)
    with pytest.raises(UsageError, match="the fastest candidate takes"):
        choose(finished_run, max_latency_ms=1e-3)
    plan = choose(finished_run, max_latency_ms=60_000)
    assert plan.pool.latencies is not None
    assert len(plan.choice.members) == 3
    for measured in plan.pool.latencies:
        assert min(measured.one_ms, measured.batch_ms) > 0
    fastest = min(measured.one_ms for measured in plan.pool.latencies)
    # A busy machine would give others a second time.
    again = iter(plan.pool.latencies)
    monkeypatch.setattr("tuner.ensemble.plan.measure_latency", lambda *_: next(again))
    slow = choose(finished_run, max_latency_ms=fastest * 1.9)
    assert 1 <= len(slow.choice.members) < 3
    assert any("ms" in reason for reason in reasons_of(slow).values())


def test_the_frontier_rises_with_time(finished_run: Run) -> None:
    points = ensemble(finished_run, frontier=True).frontier
    assert points
    assert len(points[0].members) == 1
    for quicker, slower in itertools.pairwise(points):
        assert quicker.latency_ms <= slower.latency_ms
        assert quicker.val_accuracy < slower.val_accuracy


def test_a_frontier_takes_the_times_that_members_were_chosen_by(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "MIN_SECONDS", 0.02)
    said: list[str] = []
    request = EnsembleRequest(top=3, frontier=True, max_latency_ms=60_000)
    with planning(finished_run, request, devices=[CPU], say=said.append) as plan:
        points = make_ensemble(plan, say=said.append).frontier
        assert plan.pool.latencies is not None
        times = {t.number: m for t, m in zip(plan.pool.trials, plan.pool.latencies, strict=True)}
    assert points
    for point in points:
        assert point.latency_ms == sum(times[number].one_ms for number in point.members)
    assert len([line for line in said if line.startswith("timing")]) == 1


# Views


@pytest.mark.parametrize("tta", ["flip", "flip+shift"])
def test_what_is_chosen_with_views_is_chosen_by_views(
    finished_run: Run, digits: Splits, tta: Tta
) -> None:
    plan = choose(finished_run, tta=tta)
    networks = [plan.pool.network(i) for i in range(3)]
    expected = Local([CPU])(networks, digits.val.images, tta)
    torch.testing.assert_close(plan.pool.probs, expected)
    accuracies = [score(probs, plan.pool.labels).accuracy for probs in plan.pool.probs]
    assert accuracies == sorted(accuracies, reverse=True)
    result = ensemble(finished_run, tta=tta, name="views")
    described = json.loads((result.path / "ensemble.json").read_text())
    assert described["preprocessing"]["tta"] == tta
    alone = {member.trial: member.val for member in result.members}
    for trial, probs in zip(plan.pool.trials, plan.pool.probs, strict=True):
        assert alone[trial.number] == score(probs, plan.pool.labels)


def test_devices_side_by_side_give_the_same(finished_run: Run, digits: Splits) -> None:
    plan = choose(finished_run)
    networks = [plan.pool.network(i) for i in (0, 1, 2, 0)]
    one, two = (Local([CPU] * n)(networks, digits.val.images, "none") for n in (1, 2))
    assert torch.equal(one, two)
    assert torch.equal(one[0], one[3])


# Soups


def test_a_soup_is_the_mean_of_its_weights(finished_run: Run) -> None:
    result = ensemble(finished_run, method="soup")
    # Trials 1 and 2 have one architecture, trial 0 is narrower.
    assert sorted(member.trial for member in result.members) == [1, 2]
    assert {entry.trial: entry.reason for entry in result.left_out} == {0: "another architecture"}
    assert [member.contribution for member in result.members] == [None, None]
    (described,) = json.loads((result.path / "ensemble.json").read_text())["members"]
    assert sorted(described["soup_of"]) == [1, 2]
    trials = [finished_run.trial(number) for number in (1, 2)]
    soup, _ = load_checkpoint(result.path / described["file"], trials[0].config.model)
    one, two = (load_checkpoint(trial.checkpoint, trial.config.model)[0] for trial in trials)
    for name, weight in soup.named_parameters():
        expected = (one.get_parameter(name) + two.get_parameter(name)) / 2
        torch.testing.assert_close(weight, expected)


def test_statistics_are_those_of_the_images(finished_run: Run, digits: Splits) -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
    network[1].running_mean.fill_(7)
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    estimate_statistics(network, digits.train.images, zero, one)
    pixels = digits.train.images.double() / 255
    assert network[1].running_mean.item() == pytest.approx(pixels.mean().item(), rel=1e-3)
    assert network[1].running_var.item() == pytest.approx(pixels.var().item(), rel=1e-2)
    assert not network[1].training
    assert network[1].momentum == 0.1


def test_a_soup_of_one_network_twice_is_that_network() -> None:
    layer = nn.BatchNorm1d(3)
    assert mean_of([layer.state_dict()] * 2)["num_batches_tracked"].dtype == torch.long
    torch.testing.assert_close(mean_of([layer.state_dict()] * 2), dict(layer.state_dict()))


def test_a_soup_of_equal_networks_does_what_they_do(finished_run: Run) -> None:
    one, two = (finished_run.trial(number) for number in (1, 2))
    # The same numbers, to the bit, would be a copy.
    probs = (1 - 1e-6) * one.val_probs() + np.float32(1e-7)
    record_probs(two, probs, choose(finished_run).pool.labels)
    (two.path / "digests.json").unlink()
    # Dropout plays no part in what is averaged.
    params = dict(two.config.model.params) | {"dropout": 0.5}
    model = dataclasses.replace(two.config.model, params=params)
    write_trial(two.path, dataclasses.replace(two.config, model=model))
    network, described = load_checkpoint(one.checkpoint, one.config.model)
    save_checkpoint(two.checkpoint, network, dataclasses.replace(described, model=model))
    plan = choose(finished_run, 2, method="soup")
    soup, alone = (
        score(probs, plan.pool.labels)
        for probs in (plan.choice.val, plan.pool.probs[plan.choice.members[0]])
    )
    # But for the normalization statistics, which are estimated on images that are not augmented.
    assert soup.accuracy == pytest.approx(alone.accuracy, abs=0.05)


def test_a_greedy_soup_is_no_less_accurate_than_its_best_ingredient(finished_run: Run) -> None:
    plan = choose(finished_run, method="greedy-soup")
    best = max(score(plan.pool.probs[i], plan.pool.labels).accuracy for i in plan.choice.members)
    assert score(plan.choice.val, plan.pool.labels).accuracy >= best


def test_networks_of_different_architectures_make_no_soup(finished_run: Run) -> None:
    change(finished_run, 2, state="failed", stop=None)
    with pytest.raises(UsageError, match="share an architecture"):
        choose(finished_run, 2, method="soup")
    plan = choose(finished_run, 2, compare=True)
    assert {skipped.method for skipped in plan.skipped} == SOUPS


def test_what_was_not_asked_for_need_not_fit(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*ignored: object) -> NoReturn:
        raise NoWeightsError("no weights can be fitted")

    monkeypatch.setitem(FITS, "weighted", fit)
    assert choose(finished_run, 2, method="vote").verdict is not None
    assert choose(finished_run, 2, method="auto").choice.method != "weighted"
    skipped = choose(finished_run, 2, method="greedy", compare=True).skipped
    assert [one.method for one in skipped] == ["weighted"]
    with pytest.raises(NoWeightsError):
        choose(finished_run, 2, method="weighted")


# The comparison


@pytest.fixture(scope="module")
def compared_run(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of which an ensemble was compared, not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(trained_run.path, path)
    return Run.open(path)


@pytest.fixture(scope="module")
def compared(compared_run: Run) -> EnsembleResult:
    return ensemble(compared_run, 2, compare=True, name="compared")


def row(result: EnsembleResult, method: str, *, calibrated: bool = False) -> ComparedMethod:
    (found,) = (r for r in result.comparison if (r.method, r.calibrated) == (method, calibrated))
    return found


def test_all_methods_are_compared_by_one_reading(
    compared_run: Run, compared: EnsembleResult
) -> None:
    lines = (compared_run.path / "test_readings.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert set(json.loads(lines[0])["compared"]) == {"best single", *METHODS}
    methods = {(rival.method, rival.calibrated) for rival in compared.comparison}
    both = {(method, c) for method in ("best single", *METHODS) for c in (False, True)}
    assert methods == both | {("mean member", False)}


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_what_the_method_alone_would_choose(
    compared_run: Run, compared: EnsembleResult, method: Method
) -> None:
    plan = choose(compared_run, 2, method=method, calibrate=True)
    rival = row(compared, method, calibrated=True)
    assert rival.figures.val == score(plan.choice.val, plan.pool.labels)
    assert rival.figures.crossfit == score(plan.choice.crossfit, plan.pool.labels)
    assert rival.temperature == plan.choice.temperature
    assert list(rival.members) == members_of(plan)


def test_a_row_is_what_the_method_alone_would_reach(
    finished_run: Run, compared: EnsembleResult
) -> None:
    alone = ensemble(finished_run, 2, method="soup", calibrate=True)
    rival = row(compared, "soup", calibrated=True)
    assert rival.figures == alone.ensemble
    assert rival.gain == alone.gain.over_best_single


def test_the_best_single_gains_nothing_over_itself(compared: EnsembleResult) -> None:
    single = row(compared, "best single")
    assert single.members == (compared.best_single,)
    assert single.figures == compared.best_single_figures
    assert dataclasses.astuple(single.gain) == (0, 0, 0)
    mean = row(compared, "mean member").figures
    accuracies = [member.test.accuracy for member in compared.members]
    assert mean.test.accuracy == pytest.approx(sum(accuracies) / 2)


# Near-duplicates


@pytest.mark.parametrize("text", ["TestID,TrainID\n7,1\n3,9\n7,2\n", "3\n7\n", "7, x\n3\n\n"])
def test_a_list_of_duplicates_is_read_under_any_heading(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert read_duplicates(tmp_path / "list.csv", "cifar10").positions == [3, 7]


@pytest.mark.parametrize(
    "text", ["", "TestID\n", "TestID\nseven\n", "1\n-3\n", "1\n" + "9" * 5000, None], ids=range(6)
)
def test_a_list_without_numbers_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=r"--duplicates .*list\.csv"):
        read_duplicates(tmp_path / "list.csv", "cifar100")


def test_listed_images_are_scored_apart() -> None:
    listed = Duplicates(path=Path("list.csv"), positions=[0, 2])
    correct = torch.tensor([True, True, True, False])
    note = listed.note(correct, torch.tensor([True, False, True, False]))
    assert (note.images, note.accuracy_of_these, note.accuracy_of_others) == (2, 1.0, 0.5)
    assert note.gain_of_others.gain == 0.5
    listed.expect(4)
    for num_images in (2, 1):
        with pytest.raises(UsageError, match=r"list\.csv"):
            listed.expect(num_images)


def test_a_list_for_other_images_reads_no_test_image(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("3\n")
    with pytest.raises(UsageError, match="those of digits"):
        ensemble(finished_run, duplicates=tmp_path / "list.csv")
    assert not (finished_run.path / "test_readings.jsonl").exists()
