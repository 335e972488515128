"""From a run to an ensemble: members, weights, one reading of the test set, the folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from tuner.data.datasets import DatasetPart
from tuner.data.splits import load_test
from tuner.ensemble.choosing import Choice
from tuner.ensemble.duplicates import Duplicates, read_duplicates
from tuner.ensemble.folder import write_ensemble
from tuner.ensemble.latency import MOST_COMBINED, measure_latency
from tuner.ensemble.members import Local, Network, Predict
from tuner.ensemble.plan import Plan, Say, make_plan
from tuner.ensemble.request import EnsembleRequest
from tuner.ensemble.result import EnsembleResult, assess, vote_on_test
from tuner.ensemble.students import compare_ensemble, find_teacher
from tuner.errors import TunerError
from tuner.metrics.figures import Latency
from tuner.models.trust import check_code_trusted, code_of
from tuner.run.digests import Damage
from tuner.run.layout import ENSEMBLE, ENSEMBLES
from tuner.run.run import Run
from tuner.run.run_record import Reading
from tuner.schema import plural, to_json
from tuner.storage.paths import AnyPath, check_no_link, copy_file, scratch
from tuner.storage.records import explaining_damage

Key = tuple[int, ...]
"""Positions of the candidates in a network: one, or several for a soup."""


@contextmanager
def planning(
    run: Run,
    request: EnsembleRequest,
    *,
    devices: Sequence[torch.device],
    predict: Predict | None = None,
    beside: AnyPath | None = None,
    say: Say = lambda message: None,
) -> Iterator[Plan]:
    """Choose members on validation images; soups made for this are kept until the block ends.

    Args:
        run: The run; its search may still be running.
        request: How members are chosen and vote.
        devices: Devices of this machine, used in parallel.
        predict: Computes networks; by default, on ``devices``.
        beside: Where the folder of these soups is made; in the run by default. Whatever computes
            networks must be able to read it.
        say: Receives messages about slow steps.

    Raises:
        NoUsableTrials: If the run has no usable trial.
        UsageError: If it has too few for what is asked.
        DataError: If the images cannot be read, or have changed since.
        TunerError: If a candidate's files are damaged.
    """
    with scratch(run.path if beside is None else beside, ".ensemble-") as folder:
        yield make_plan(
            run,
            request,
            folder=folder,
            predict=predict or Local(devices),
            device=devices[0],
            say=say,
        )


def make_ensemble(plan: Plan, *, say: Say = lambda message: None) -> EnsembleResult:
    """Read the test set once, for everything that was planned, and write the ensemble's folder.

    Without a test set, the figures are cross-fitted on the validation images.

    The run's folder ``ensembles/NAME`` replaces one of the same name.

    Raises:
        UsageError: If the list of duplicates cannot be used.
        DataError: If the test images cannot be read.
        TunerError: If a member's file is damaged or gone.
    """
    run, request = plan.run, plan.request
    check_code_trusted(code_of(plan.models()), run.path, trust=request.trust_code)
    source = run.record.data.source
    with explaining_damage(run.path / ENSEMBLES):
        check_no_link(run.path / ENSEMBLES)
    listed = read_duplicates(request.duplicates, source) if request.duplicates else None
    # Before the test images are read, so that neither a damaged file nor a number that cannot be
    # written costs a reading.
    _check_finite(plan)
    path = run.path / ENSEMBLES / request.folder_name
    if (path / ENSEMBLE).exists():
        say(f"takes the place of the ensemble {path.name}; another --name would keep both")
    # May choose again, without trials whose files are damaged.
    plan, networks = _with_checked_copies(plan)
    latencies = _time_members(plan, networks, say) if request.frontier else None
    known = find_teacher(run, say, trust_code=request.trust_code)
    if plan.splits.has_test:
        test, probs = _read_test(plan, networks, listed, say)
        vote_of: Callable[[Choice], Tensor] = partial(vote_on_test, probs=probs)
    else:
        test, probs = _validation_instead(plan, say)
        vote_of = attrgetter("crossfit")
    vote = vote_of(plan.choice)
    comparison = None
    if known is not None:
        comparison = compare_ensemble(
            known,
            plan,
            [networks[key] for key in plan.networks(plan.choice)],
            test if plan.splits.has_test else None,
            vote,
        )
    result = assess(
        plan,
        probs,
        test.images.labels,
        vote_of=vote_of,
        path=path,
        latencies=latencies,
        listed=listed,
        teacher=comparison,
    )
    write_ensemble(result, plan, networks, test, vote)
    return result


def _read_test(
    plan: Plan, networks: Mapping[Key, Network], listed: Duplicates | None, say: Say
) -> tuple[DatasetPart, dict[Key, Tensor]]:
    """Read the test images, record the reading, and let the networks predict them."""
    run, request = plan.run, plan.request
    assert plan.splits.config is not None
    test = load_test(plan.splits.config, plan.data_dir)
    if listed is not None:
        listed.expect(len(test.images))
    for note in test.notes:
        say(note)
    earlier = {entry.fingerprint for entry in run.test_readings() if entry.by == "ensemble"}
    if earlier - {test.fingerprint}:
        say(
            "the test images have changed since an earlier reading (their fingerprint differs): "
            "its figures and these are of different images"
        )
    run.log_test_reading(
        Reading(
            by="ensemble",
            name=request.folder_name,
            method=plan.choice.method or "",
            trials=tuple(plan.pool.trials[i].number for i in plan.choice.members),
            compared=tuple(choice.label for choice in plan.others if choice.is_calibrated),
            tta=request.tta,
            fingerprint=test.fingerprint,
        )
    )
    say(f"Reading {len(test.images):,} test images with {plural(len(networks), 'network')}")
    predicted = plan.predict(list(networks.values()), test.images.images, request.tta)
    probs = dict(zip(networks, predicted, strict=True))
    _check_predictions(plan, probs)
    return test, probs


def _validation_instead(plan: Plan, say: Say) -> tuple[DatasetPart, dict[Key, Tensor]]:
    """Return the validation images in place of test images, and the candidates' predictions."""
    splits = plan.splits
    say(
        "there are no test images, and the validation images were trained on: figures on them "
        "say nothing"
        if splits.is_val_seen
        else "there are no test images: figures are those of the validation images, each voted "
        "on by a choice that was made without it"
    )
    part = DatasetPart(
        images=splits.val,
        classes=splits.classes,
        fingerprint=splits.fingerprint,
        names=splits.val_names,
    )
    return part, {(i,): plan.pool.probs[i] for i in range(len(plan.pool))}


def _check_finite(plan: Plan) -> None:
    """Make sure that all weights, temperatures and figures so far are finite numbers.

    Raises:
        TunerError: If one is NaN or infinite.
    """
    for choice in plan.to_plain()["choices"]:
        try:
            to_json(choice)
        except ValueError:
            trials = ", ".join(str(member["trial"]) for member in choice["members"])
            raise TunerError(
                f"{plan.run.path}: a figure of {choice['method']} of trials {trials} on the "
                "validation images is not a finite number; the test images were not read. "
                "Leave out the damaged trial."
            ) from None


def _check_predictions(plan: Plan, probs: Mapping[Key, Tensor]) -> None:
    """Make sure that the networks returned probabilities for every test image.

    Raises:
        TunerError: If a probability is NaN.
    """
    for key, said in probs.items():
        if unknown := int((~said.isfinite().all(dim=1)).sum()):
            trials = ", ".join(str(plan.pool.trials[i].number) for i in key)
            raise TunerError(
                f"{plan.run.path}: the network of trial {trials} gives no probabilities for "
                f"{unknown} test images: its outputs overflow. Leave it out."
            )


def _time_members(plan: Plan, networks: Mapping[Key, Network], say: Say) -> tuple[Latency, ...]:
    """Return the latencies of the members that a frontier combines, timing each at most once."""
    members = plan.choice.members[:MOST_COMBINED]
    if timed := plan.pool.latencies:
        return tuple(timed[i] for i in members)
    device = plan.device
    say(f"timing members on {device}: {len(members)}")
    return tuple(
        measure_latency(networks[i,], plan.splits.image_shape, plan.request.tta, device)
        for i in members
    )


def _all_networks(plan: Plan) -> dict[Key, Network]:
    """Return all networks that predict the test images, the best single candidate's first."""
    needed = plan.networks(plan.single)
    for choice in (plan.choice, *plan.others):
        # The ingredients of a soup predict them, too.
        needed |= {(i,): plan.pool.network(i) for i in choice.members}
        needed |= plan.networks(choice)
    return needed


def _with_checked_copies(plan: Plan) -> tuple[Plan, dict[Key, Network]]:
    """Copy the networks, because a running search may remove the originals, and check the copies.

    Returns:
        The plan, without the trials of damaged files if the request leaves them out, and its
        networks.

    Raises:
        DamagedError: If files are damaged, gone, or not those that were recorded.
        UntrustedCodeError: If others take their place that are made by code nobody trusts.
    """
    copies: dict[int, AnyPath] = {}
    while True:
        damage = [
            entry
            for i in plan.candidates
            if plan.pool.trials[i].number not in copies
            for entry in _copy_checked(plan, i, copies)
        ]
        if not damage:
            break
        plan = plan.without(damage)
        check_code_trusted(code_of(plan.models()), plan.run.path, trust=plan.request.trust_code)
    return plan, {
        key: replace(network, file=copies[plan.pool.trials[key[0]].number])
        if len(key) == 1
        else network
        for key, network in _all_networks(plan).items()
    }


def _copy_checked(plan: Plan, position: int, copies: dict[int, AnyPath]) -> list[Damage]:
    """Copy a candidate's network, and return what is wrong with it."""
    trial = plan.pool.trials[position]
    copy = plan.folder / f"{trial.number:04d}.safetensors"
    try:
        with explaining_damage(trial.checkpoint):
            copy_file(trial.checkpoint, copy)
    except TunerError as error:
        return [Damage.of(error, trial.path, trial.number)]
    damage = plan.damage_of_network(position, file=copy)
    if not damage:
        copies[trial.number] = copy
    return damage
