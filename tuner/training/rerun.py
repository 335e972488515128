"""Train one trial of a run again, alone, and compare it with the record."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from tuner.models.trust import check_code_trusted, code_of
from tuner.run.check import check_records
from tuner.run.run import Run
from tuner.run.trial import EpochMetrics, threads_of
from tuner.training.epoch import Epoch
from tuner.training.initial_weights import load_initial_weights
from tuner.training.loop import train
from tuner.training.run_images import load_run_splits, with_teacher_probs


def rerun(
    run: Run,
    number: int,
    device: torch.device,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    trust_code: bool = False,
) -> Iterator[tuple[EpochMetrics, EpochMetrics]]:
    """Train trial ``number`` for as many epochs as it was trained, in the same way.

    It has the same seed, threads and halved batches, and is compiled on a CPU if the trial was
    compiled there. What a GPU compiles in the middle of a trial rounds differently from then on.

    Args:
        run: The run.
        number: Number of the trial.
        device: Where to train.
        data: Where the run's images are now; ``None`` if they have not moved.
        data_dir: Likewise, for downloads and decoded images.
        trust_code: Run code that came with the run even if it is not known here.

    Yields:
        Each epoch as recorded and as trained now. On the same CPU and versions, losses and
        accuracies are the same numbers.

    Raises:
        UsageError: If there is no such trial.
        UntrustedCodeError: If code would be run that is neither known nor said to be trusted.
        DamagedError: If what was recorded is damaged, or not what was written.
        DataError: If the images, or the weights it started from, have changed since.
    """
    trial = run.trial(number)
    check_records([trial])
    check_code_trusted(code_of([trial.config.model]), run.path, trust=trust_code)
    splits = with_teacher_probs(load_run_splits(run, data, data_dir), run)
    start = load_initial_weights(
        trial.config.model, splits.classes, splits.image_shape, run.path.parent
    )
    cpus = trial.status.cpus
    usual: int = run.record.hardware["threads_per_trial"]
    torch.set_num_threads(usual if cpus is None else threads_of(cpus))
    train_trial = partial(
        train,
        trial.config,
        splits,
        device,
        start=start,
        compile_mode=(
            "always" if (device.type, trial.status.execution) == ("cpu", "compiled") else "never"
        ),
    )
    with contextlib.closing(_epochs(train_trial, trial.status.halved_from)) as epochs:
        for recorded, epoch in zip(trial.history, epochs, strict=False):
            yield recorded, epoch.figures


def _epochs(
    train_trial: Callable[..., Generator[Epoch]], halved_from: int | None
) -> Generator[Epoch]:
    """Train in whole batches, and in halves from the epoch in which the trial's were halved."""
    if halved_from is None:
        yield from train_trial()
        return
    state = None
    with contextlib.closing(train_trial()) as epochs:
        for epoch in islice(epochs, halved_from - 1):
            yield epoch
            state = {name: tensor.clone() for name, tensor in epoch.learner.state().items()}
    yield from train_trial(state=state, epochs_done=halved_from - 1, micro_batches=2)
