"""The ensemble's folder: the networks with their weights, figures, pictures and mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tuner import __version__
from tuner.augment import per_channel
from tuner.data.datasets import DatasetPart
from tuner.data.decoding import image_of
from tuner.ensemble.members import Network
from tuner.ensemble.model_card import model_card
from tuner.ensemble.plan import Plan
from tuner.ensemble.request import SOUPS
from tuner.ensemble.result import EnsembleResult
from tuner.metrics.predict import mistakes, predict_probs
from tuner.run import layout, probe
from tuner.run.checkpoint import load_checkpoint, read_description
from tuner.run.ensemble_record import (
    DataRecord,
    EnsembleMember,
    EnsembleRecord,
    PreprocessingRecord,
    ProbeRecord,
)
from tuner.run.run_record import now
from tuner.storage.files import replacing, write_json, write_text
from tuner.storage.paths import copy_file, replace_folder, sha256_of
from tuner.storage.records import write_record
from tuner.storage.spreadsheet import write_csv
from tuner.storage.temporary import TemporaryFolder, remove_abandoned
from tuner.training.device import prediction_dtype

MOST_MISTAKES = 24
MISTAKE_SIDE = 128
"""Maximum side of a mistake's image in pixels: even of noise, a report has room for all."""


def write_ensemble(
    result: EnsembleResult,
    plan: Plan,
    networks: Mapping[tuple[int, ...], Network],
    test: DatasetPart,
    vote: Tensor,
) -> None:
    """Write the whole folder, then move it into place.

    Args:
        result: Figures of the ensemble.
        plan: The plan that it was made from.
        networks: By the positions of the candidates in them; those of other choices are ignored.
        test: The test images.
        vote: The vote's probabilities of these images, shape (N, K).
    """
    # Matplotlib takes a quarter of a second, which a search would otherwise wait for, too.
    from tuner.ensemble.plots import write_pictures

    beside = result.path.parent if isinstance(result.path, Path) else None
    if beside:
        beside.mkdir(exist_ok=True)
        remove_abandoned(beside)
    with TemporaryFolder(beside, ".ensemble-") as scratch:
        folder = Path(scratch) / "new"
        members = _write_members(folder, result, plan, networks)
        probe.write_probe(folder / layout.PROBE, _make_probe(plan, networks))
        record = replace(
            _record(result, plan, networks[0,], members),
            data=_data(plan, test),
            probe=ProbeRecord(file=layout.PROBE, sha256=sha256_of(folder / layout.PROBE)),
        )
        write_record(folder / layout.ENSEMBLE, record)
        write_text(folder / layout.MODEL_CARD, model_card(result, plan, record))
        write_json(folder / layout.METRICS, result.to_plain())
        images = result.tested_on
        accuracy = f"{images} accuracy {result.ensemble.test.accuracy:.2%}"
        title = f"{result.run}: {result.method} of {len(result.members)}, {accuracy}"
        write_pictures(folder, result.classes, result.confusion, result.reliability, title)
        _write_mistakes(folder / layout.MISTAKES, test, vote, result.classes)
        replace_folder(folder, result.path, last=layout.METRICS)


def _write_members(
    folder: Path, result: EnsembleResult, plan: Plan, networks: Mapping[tuple[int, ...], Network]
) -> tuple[EnsembleMember, ...]:
    """Copy the checkpoints and describe each."""
    described = []
    trials = {i: plan.pool.trials[i].number for i in plan.choice.members}
    weights = dict(zip(plan.choice.members, plan.choice.weights.tolist(), strict=True))
    temperatures = dict(zip(plan.choice.members, plan.choice.temperatures, strict=True))
    for key, network in plan.networks(plan.choice).items():
        trial = trials[key[0]] if len(key) == 1 else None
        name = layout.member_file(trial)
        with replacing(folder / name) as temporary:
            copy_file(networks[key].file, temporary)
        described.append(
            EnsembleMember(
                file=name,
                model=network.model,
                sha256=sha256_of(folder / name),
                trial=trial,
                soup_of=() if trial is not None else tuple(trials[i] for i in key),
                weight=1.0 if plan.choice.method in SOUPS else weights[key[0]],
                temperature=temperatures[key[0]],
                folds=plan.splits.num_folds,
                precision=network.precision,
                floor=network.floor,
            )
        )
    return tuple(described)


def _record(
    result: EnsembleResult, plan: Plan, best_single: Network, members: tuple[EnsembleMember, ...]
) -> EnsembleRecord:
    """Return everything needed to predict with the ensemble, and its origin."""
    checkpoint = read_description(best_single.file, best_single.model)
    data = plan.splits.config or plan.run.record.data
    return EnsembleRecord(
        run=result.run,
        made=now(),
        made_by=f"cifar-tune {__version__}",
        method=result.method,
        classes=result.classes,
        image_size=plan.run.record.data.image_size,
        temperature=result.temperature,
        preprocessing=PreprocessingRecord(
            image_shape=checkpoint.image_shape,
            resize=data.resize,
            black=data.black,
            white=data.white,
            mean=checkpoint.mean,
            std=checkpoint.std,
            tta=result.tta,
        ),
        members=members,
    )


def _data(plan: Plan, test: DatasetPart) -> DataRecord:
    """Return what the ensemble was trained, chosen and tested on."""
    record = plan.run.record
    return DataRecord(
        source=record.data.source,
        fingerprint=record.data_fingerprint,
        split_fingerprint=record.split_fingerprint,
        test_fingerprint=test.fingerprint if plan.splits.has_test else None,
        train_images=record.num_train,
        val_images=record.num_val,
        test_images=len(test.images),
    )


def _make_probe(plan: Plan, networks: Mapping[tuple[int, ...], Network]) -> probe.Probe:
    """Run each member on a few validation images, the way a loaded ensemble computes it.

    Before views and floors, as in ``Ensemble.check_against``.
    """
    images = probe.choose_images(plan.splits.val.images)
    device = plan.device
    probs, dtypes = [], []
    for key in plan.networks(plan.choice):
        model, checkpoint = load_checkpoint(networks[key].file, networks[key].model)
        mean, std = per_channel(checkpoint.mean), per_channel(checkpoint.std)
        dtype = prediction_dtype(networks[key].precision, device)
        probs.append(predict_probs(model.to(device), images, mean, std, device=device, dtype=dtype))
        dtypes.append(str(dtype))
    return probe.Probe(
        images=images, probs=torch.stack(probs), device=device.type, dtypes=tuple(dtypes)
    )


def _write_mistakes(folder: Path, part: DatasetPart, vote: Tensor, classes: Sequence[str]) -> None:
    """Write the wrongly classified test images of highest confidence, surest first."""
    test = part.images
    confidence, predicted = vote.max(dim=1)
    rows = []
    for number, index in enumerate(mistakes(vote, test.labels)[:MOST_MISTAKES].tolist()):
        name = f"{number:02d}.png"
        image = image_of(test.images[index].permute(1, 2, 0).numpy())
        with replacing(folder / name) as temporary:
            image.thumbnail((MISTAKE_SIDE, MISTAKE_SIDE))
            image.save(temporary, format="PNG")
        true, taken_for = classes[int(test.labels[index])], classes[int(predicted[index])]
        path = part.names[index] if part.names else ""
        rows.append([name, index, true, taken_for, f"{confidence[index].item():.6f}", path])
    head = ["file", "index", "true", "predicted", "confidence", "path"]
    write_csv(folder / layout.MISTAKES_TABLE, head, rows)
