"""Folds: every image is validated on by the one network that was not trained on it."""

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import TINY_SPACE, record_of, train_trial
from tuner.config import DataConfig, ModelConfig, SearchConfig, Sgd, TrialConfig, Tta
from tuner.data.cache import Images
from tuner.data.splits import Splits, load_splits
from tuner.data.stratified import folds_of
from tuner.data.survey import survey
from tuner.deploy.export import open_exported
from tuner.deploy.predictor import read_ensemble
from tuner.ensemble import make_ensemble, planning
from tuner.ensemble.check import damage_of_run
from tuner.ensemble.request import EnsembleRequest
from tuner.ensemble.teacher import record_teacher
from tuner.errors import DataError, SpaceError, UsageError
from tuner.metrics.predict import predict_probs
from tuner.models.folded import FoldedNetwork
from tuner.run.checkpoint import load_checkpoint, load_state
from tuner.run.digests import read_digests, write_digests
from tuner.run.run import Run
from tuner.run.run_record import now
from tuner.run.trial import EpochMetrics, TrialRecord
from tuner.space import load_space
from tuner.training.folds import fold_seed
from tuner.training.loop import probe_epochs, train
from tuner.training.rerun import rerun
from tuner.training.saving import Saver, restore_files
from tuner.tuning.refit import make_refit_request
from tuner.tuning.request import make_search_request

CPU = torch.device("cpu")
FOLDS, IMAGES = 3, 300
DATA = DataConfig(source="digits", folds=FOLDS, train_limit=IMAGES)
CONFIG = TrialConfig(
    model=ModelConfig("cnn", {"stages": 2, "blocks": 1, "width": 8, "dropout": 0.2}),
    epochs=4,
    seed=5,
    batch_size=32,
    optimizer=Sgd(lr=0.1),
)
"""Drops out, which draws from the generators that all networks share."""


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load_splits(DATA, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folded_run(folded: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of two trials with folds, and an ensemble of both, to be read alone."""
    storage = tmp_path_factory.mktemp("runs")
    record = record_of(
        folded,
        DATA,
        storage / "data",
        name="folded",
        command="cifar-tune search --folds 3",
        space="tiny.yaml",
        search=SearchConfig(trials=2, epochs=4),
        hardware={"threads_per_trial": 1},
    )
    run = Run.create(storage / "folded", record, TINY_SPACE)
    for number in range(2):
        train_trial(run.trial_path(number), dataclasses.replace(CONFIG, seed=number), folded)
    run.write_leaderboard()
    run.update(status="finished", finished=now())
    with planning(run, EnsembleRequest(top=2, calibrate=True), devices=[CPU]) as plan:
        make_ensemble(plan)
    return run


def networks_of(trial: TrialRecord) -> Callable[..., Tensor]:
    """Return what computes a network of a trial's folds on images."""
    network, described = load_checkpoint(trial.checkpoint, trial.config.model)
    assert isinstance(network, FoldedNetwork)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (described.mean, described.std))

    def probs(fold: int, images: Tensor, tta: Tta = "none") -> Tensor:
        one = network.networks[fold]
        return predict_probs(one, images, mean, std, device=CPU, tta=tta)

    return probs


def out_of_fold(trial: TrialRecord, splits: Splits, tta: Tta = "none") -> Tensor:
    """Compute each image by the network that was not trained on it, one image after the other."""
    probs = networks_of(trial)
    assert splits.fold_of is not None
    return torch.cat(
        [
            probs(fold, splits.val.images[i : i + 1], tta)
            for i, fold in enumerate(splits.fold_of.tolist())
        ]
    )


@given(
    counts=st.lists(st.integers(2, 23), min_size=2, max_size=6),
    num_folds=st.integers(2, 10),
    seed=st.integers(0, 99),
)
def test_folds_are_of_one_size_for_each_class_and_for_all(
    counts: list[int], num_folds: int, seed: int
) -> None:
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = folds_of(labels, num_folds)
    assert np.array_equal(folds, folds_of(labels, num_folds))
    for group in (np.ones_like(labels, dtype=bool), *(labels == c for c in range(len(counts)))):
        sizes = np.bincount(folds[group], minlength=num_folds)
        assert sizes.max() - sizes.min() <= 1
    for fold in range(num_folds):
        # Whatever a network is not trained on, it is trained on every class.
        assert set(labels[folds != fold]) == set(range(len(counts)))


def test_every_image_is_validated_on_and_trained_on_by_all_others(folded: Splits) -> None:
    assert len(folded.train) == len(folded.val) == IMAGES
    assert folded.num_trained == len(folded.fold(0).train)
    parts = [folded.fold(number) for number in range(FOLDS)]
    assert sum(len(part.val) for part in parts) == IMAGES
    for part in parts:
        assert part.fold_of is None
        seen = {image.numpy().tobytes() for image in part.train.images}
        assert not any(image.numpy().tobytes() in seen for image in part.val.images)


def test_too_few_images_for_folds_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folds: digits has 10 images, 1 of class") as error:
        load_splits(dataclasses.replace(DATA, train_limit=10), tmp_path)
    assert "\n" not in str(error.value)


def test_each_network_is_trained_as_if_it_were_alone(folded: Splits) -> None:
    together = list(train(CONFIG, folded, CPU))
    assert [epoch.figures.epoch for epoch in together] == [1, 2, 3, 4]
    assert folded.fold_of is not None
    for fold in range(FOLDS):
        own = dataclasses.replace(CONFIG, seed=fold_seed(CONFIG.seed, fold))
        alone = list(train(own, folded.fold(fold), CPU))
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one.val_probs[folded.fold_of == fold], other.val_probs)
    last = together[-1]
    right = last.val_probs.argmax(dim=1) == folded.val.labels
    assert last.figures.val_accuracy == pytest.approx(right.double().mean().item())
    assert last.num_parameters == FOLDS * alone[-1].num_parameters


def test_what_is_said_of_an_image_does_not_depend_on_its_label(folded: Splits) -> None:
    assert folded.fold_of is not None
    held_out = folded.fold_of == 1
    labels = folded.train.labels.clone()
    labels[held_out] = (labels[held_out] + 1) % 10
    relabelled = Images(images=folded.train.images, labels=labels)
    config = dataclasses.replace(CONFIG, epochs=1)
    before = next(train(config, folded, CPU)).val_probs
    other = dataclasses.replace(folded, train=relabelled, val=relabelled)
    after = next(train(config, other, CPU)).val_probs
    assert torch.equal(before[held_out], after[held_out])
    assert not torch.equal(before[~held_out], after[~held_out])


def test_a_trial_that_was_killed_goes_on_in_all_its_folds(folded: Splits, tmp_path: Path) -> None:
    def trained(path: Path, history: list[EpochMetrics], until: int, **state: Any) -> None:
        with Saver(path, CONFIG.model, folded, history, seconds=0) as saver:
            for epoch in train(CONFIG, folded, CPU, epochs_done=len(history), **state):
                saver.keep(epoch)
                if epoch.figures.epoch == until:
                    saver.save()
                    return

    for name, stops in (("whole", [4]), ("killed", [2, 4])):
        (tmp_path / name).mkdir()
        for until in stops:
            history = restore_files(tmp_path / name)
            state = {"state": load_state(tmp_path / name / "state.safetensors")} if history else {}
            torch.rand(3)  # What the global generators did in between does not matter.
            trained(tmp_path / name, history, until, **state)
    whole, killed = (restore_files(tmp_path / name) for name in ("whole", "killed"))
    timeless = partial(dataclasses.replace, seconds=0.0, time=0.0)
    assert list(map(timeless, whole)) == list(map(timeless, killed))
    for name in ("checkpoint.safetensors", "val_probs.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_an_epoch_is_foreseen_with_all_its_networks(folded: Splits) -> None:
    probe = probe_epochs(CONFIG, folded, CPU, steps=2)
    foreseen = next(probe)
    probe.close()
    assert isinstance(foreseen.network, FoldedNetwork)
    assert len(foreseen.network.networks) == FOLDS


def test_a_member_is_the_average_of_its_networks(folded: Splits, folded_run: Run) -> None:
    ensemble = read_ensemble(folded_run.path / "ensembles" / "top2-calibrated", CPU)
    images = folded.val.images[:20]
    found = ensemble.vote(images).members
    for member, probs in zip(ensemble.members, found, strict=True):
        assert member.folds == FOLDS
        assert member.trial is not None
        of_fold = networks_of(folded_run.trial(member.trial))
        by_hand = torch.stack([of_fold(fold, images) for fold in range(FOLDS)]).mean(dim=0)
        torch.testing.assert_close(probs, by_hand, rtol=0, atol=1e-6)
    pixels = images.permute(0, 2, 3, 1)
    voted = torch.from_numpy(ensemble.predict(pixels.numpy()))
    torch.testing.assert_close(ensemble.graph()(pixels), voted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_ensemble_of_folded_members_is_exported_as_it_predicts(
    folded_run: Run, tmp_path: Path, folded: Splits
) -> None:
    ensemble = read_ensemble(folded_run.path / "ensembles" / "top2-calibrated", CPU)
    file = tmp_path / "folded.pt2"
    assert ensemble.export(file).num_members == 2
    images = folded.val.images[:8].permute(0, 2, 3, 1).numpy()
    run = open_exported(file, "pt2")
    np.testing.assert_allclose(run(images), ensemble.predict(images), atol=1e-5)


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_members_are_chosen_by_what_they_say_of_images_they_did_not_see(
    folded: Splits, folded_run: Run, tta: Tta
) -> None:
    request = EnsembleRequest(top=2, tta=tta)
    with planning(folded_run, request, devices=[CPU]) as plan:
        for trial, probs in zip(plan.pool.trials, plan.pool.probs, strict=True):
            expected = out_of_fold(trial, folded, tta)
            # They were validated in bfloat16, if that is what this machine is fast at.
            torch.testing.assert_close(probs, expected, rtol=0, atol=2e-2)


def test_soups_of_folds_are_refused_and_left_out_of_a_comparison(folded_run: Run) -> None:
    with (
        pytest.raises(UsageError, match="with --folds a candidate is several networks"),
        planning(folded_run, EnsembleRequest(top=2, method="soup"), devices=[CPU]),
    ):
        pass
    with planning(folded_run, EnsembleRequest(top=2, compare=True), devices=[CPU]) as plan:
        assert {skipped.method for skipped in plan.skipped} == {"soup", "greedy-soup"}


def test_networks_in_another_order_are_found_out(folded_run: Run, tmp_path: Path) -> None:
    shutil.copytree(folded_run.path, tmp_path / "folded")
    run = Run.open(tmp_path / "folded")
    assert not damage_of_run(run, CPU)
    trial = run.trial(0)
    tensors = safetensors.torch.load_file(trial.checkpoint)
    with safetensors.safe_open(trial.checkpoint, "pt") as file:
        metadata = file.metadata()
    names = {"networks.0.": "networks.1.", "networks.1.": "networks.0."}
    swapped = {
        names.get(name[:11], name[:11]) + name[11:]: tensor for name, tensor in tensors.items()
    }
    safetensors.torch.save_file(swapped, trial.checkpoint, metadata)
    digests = read_digests(trial.path)
    del digests["checkpoint.safetensors"]
    write_digests(trial.path, digests)
    (damage,) = damage_of_run(run, CPU)
    assert "gives other probabilities than val_probs.npy holds" in damage.problem


def test_a_trial_with_folds_is_trained_again_to_the_same_numbers(folded_run: Run) -> None:
    for recorded, again in rerun(folded_run, 1, CPU):
        assert again.val_loss == recorded.val_loss
        assert again.train_loss == recorded.train_loss


def test_a_refit_keeps_the_folds_unless_it_trains_on_all_images(folded_run: Run) -> None:
    refit = partial(make_refit_request, folded_run, top=1, seeds=1, command="", save_seconds=10)
    kept, whole = refit(), refit(all_data=True)
    assert kept.data.folds == FOLDS
    assert whole.data.folds is None
    assert whole.data.all_data
    assert whole.search.epochs == folded_run.record.search.epochs


def test_a_refit_on_all_images_takes_a_limit_that_only_folds_allow(tmp_path: Path) -> None:
    data = DataConfig(source="digits", folds=FOLDS, train_limit=1400)
    assert len(load_splits(data, tmp_path).train) == 1400
    whole = dataclasses.replace(data, folds=None, all_data=True)
    assert len(load_splits(whole, tmp_path).train) == 1438
    with pytest.raises(DataError, match="train_limit 1400 must lie between"):
        load_splits(dataclasses.replace(whole, all_data=False), tmp_path)


def test_folds_and_a_share_to_validate_on_exclude_each_other(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("dataset: {source: digits, folds: 3}\nspace: {model: {cnn: {}}}\n")
    ask = partial(
        make_search_request,
        load_space(space),
        space_name="space",
        stem="space",
        storage=tmp_path,
        data_dir=tmp_path,
        command="",
        keep=1,
    )
    assert ask().data.folds == 3
    assert ask(data_settings={"folds": 4}).data.folds == 4
    with pytest.raises(UsageError, match="leave val_fraction out"):
        ask(data_settings={"val_fraction": 0.2})


def test_a_teacher_that_has_seen_every_image_is_refused(folded_run: Run) -> None:
    with pytest.raises(UsageError, match="none is left to validate students on"):
        record_teacher(folded_run.path / "ensembles" / "top2-calibrated")


def test_no_network_of_several_is_started_from(folded_run: Run, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("space: {model: {pretrained: {run: folded}}}\n")
    message = "is 3 networks, one a fold; name a run without folds or, to train on other images"
    with pytest.raises(SpaceError, match=message):
        load_space(space, storage=folded_run.path.parent)


def test_a_survey_counts_what_the_network_of_a_fold_sees(tmp_path: Path) -> None:
    known = survey(DataConfig(source="digits", folds=4), tmp_path)
    splits = load_splits(DataConfig(source="digits", folds=4), tmp_path)
    assert known.num_train == splits.num_trained
    assert known.num_train + known.num_val == len(splits.train)
