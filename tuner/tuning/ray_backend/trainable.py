"""One trial in its worker: its data, once per node, its training, and its files.

The worker's process outlives the trial and runs the next one, so that importing modules and moving
the data to the device happen only once.
"""

import contextlib
import errno
import gc
import os
import platform
import time
import traceback
from collections.abc import Collection, Iterable, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

import ray
import torch
from ray import tune

from tuner.config import CompileMode, CostObjective, Metric, TrialConfig
from tuner.data.splits import Splits
from tuner.errors import StorageError, first_line
from tuner.run.checkpoint import load_state
from tuner.run.events import EpochEnded, TrialEnded, TrialMeasured, TrialStarted
from tuner.run.layout import STATE
from tuner.run.trial import read_status
from tuner.schema import from_json
from tuner.storage.paths import AnyPath, to_path
from tuner.storage.patience import Patience, patient, persevere
from tuner.training.costs import measure_costs
from tuner.training.device import device_for
from tuner.training.epoch import Epoch
from tuner.training.initial_weights import InitialWeights
from tuner.training.learner import UnfitStateError
from tuner.training.loop import predict_epoch_seconds, train
from tuner.training.saving import Saver, forget_progress, restore_files
from tuner.tuning.ray_backend.device_fault import DeviceFaultError, is_device_fault
from tuner.tuning.ray_backend.notices import NoticeBoard, NoticeReader
from tuner.tuning.ray_backend.payload import unpack, unpack_initial_weights
from tuner.tuning.resources import TrialResources

TRACEBACK_LINES = 30

# Tune gives a trial that it stops 2 s to unwind, and counts the next one as failed if a busy
# machine needs longer.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")


class TooSlowError(Exception):
    """An epoch would take longer than the space allows."""


class SupersededError(Exception):
    """This worker was considered lost, and its trial has continued elsewhere."""


def train_trial(params: dict[str, Any], *, board: NoticeBoard, **payload: Any) -> None:
    """Train one trial, reporting each epoch to the engine and writing the trial's files.

    Resumes from the trial's saved state, if there is one. Reports ``TrialStarted`` if it continues
    after other epochs than the driver knows: more, because some were saved but not reported, or
    fewer, because memory ran short. If another version wrote the state, and this one cannot use it,
    the trial starts again, and that report holds ``tell``, a line for the user. A report that holds
    only ``tell`` is sent while the storage fails. If the driver does not know the trial's ``costs``
    yet, they are reported before its first epoch. The last report is ``TrialEnded``; it holds
    ``storage``, the lasting problem of the storage, if that ended the trial. An error of the
    training itself ends the trial in this way, too: the only exceptions that reach the engine, and
    are retried, are those of a lost worker.

    Args:
        params: What ``TuneSearcher.suggest`` returned.
        board: Where to find the driver's notice.
        payload: What is the same for all trials; see ``_train_trial``.
    """
    reader = NoticeReader(board, ray.get_runtime_context().get_node_id())
    patience = Patience(
        to_path(params["path"]),
        lambda line: tune.report({"tell": f"On {platform.node()}, {line}"}),
        lambda: reader.look().is_ending,
    )
    with patient(patience):
        ending = _train_trial(params, reader, patience, **payload)
    more = {}
    if patience.problem:
        more["storage"] = f"{patience.problem}, on {platform.node()}"
        ending = TrialEnded(
            number=params["number"],
            state="interrupted",
            reason="after its last saved epoch, because the storage failed",
        )
    tune.report({"event": ending, **more})


def _train_trial(
    params: dict[str, Any],
    reader: NoticeReader,
    patience: Patience,
    *,
    data: dict[str, Any],
    initial_weights: dict[str, Any],
    epoch_seconds: float | None = None,
    compile_mode: CompileMode = "never",
    save_seconds: float = 10.0,
    metric: Metric = "accuracy",
    costs: Sequence[CostObjective] = (),
) -> TrialEnded:
    """Train like ``train_trial``, and return how the trial ended, unless the storage failed.

    Args:
        params: As for ``train_trial``.
        reader: Reads the driver's notice.
        patience: Waits for the storage.
        data: What ``pack`` returned.
        initial_weights: What ``pack_initial_weights`` returned.
        epoch_seconds: A trial whose epochs would take longer is stopped after a few steps.
        compile_mode: See ``tuner.training.compilation``.
        save_seconds: See ``Saver``.
        metric: See ``Saver``.
        costs: The costs of the network to measure.
    """
    began = time.monotonic()
    resources = TrialResources(cpus=params["cpus"], gpus=params["gpus"])
    torch.set_num_threads(resources.threads)
    number, halved_from = params["number"], params["halved_from"]
    is_known, more = True, dict[str, str]()
    is_measured = params["is_measured"]
    is_second_try = False
    while True:
        free_memory()
        try:
            path, config = to_path(params["path"]), from_json(TrialConfig, params["config"])
            history = restore_files(path)
            if not is_known or len(history) != params["known"]:
                started = TrialStarted(
                    number=number,
                    config=config,
                    history=tuple(history),
                    attempt=params["attempt"],
                    cpus=params["cpus"],
                    gpus=params["gpus"],
                    num_parameters=params["num_parameters"],
                )
                tune.report({"event": started, **more})
                more = {}
            if reader.look().is_ending:
                return _interrupted(number, len(history), reader)
            halved_from = first_halved(halved_from, len(history), is_short=is_second_try)
            micro_batches = 1 if halved_from is None else 2
            device = device_for(resources.gpus)
            limit_memory(resources, device)
            splits = unpack(data, device)
            start = unpack_initial_weights(initial_weights, config.model)
            if not is_measured:
                measured = measure_costs(config, splits, device, costs, start=start)
                tune.report({"event": TrialMeasured(number=number, **measured)})
                is_measured = True
            if epoch_seconds is not None and not history:
                _check_speed(config, splits, device, start, micro_batches, epoch_seconds)
            saver = Saver(
                path,
                config.model,
                splits,
                history,
                metric=metric,
                seconds=save_seconds,
                check=partial(_check_no_successor, path, params["attempt"]),
            )
            epochs = train(
                config,
                splits,
                device,
                start=start,
                state=persevere(partial(load_state, path / STATE)) if history else None,
                epochs_done=len(history),
                micro_batches=micro_batches,
                compile_mode=compile_mode,
                should_stop=reader.is_over,
                budget_seconds=params["budget_seconds"] - (time.monotonic() - began),
            )
            # The engine may end a trial between two epochs, by a SystemExit from report();
            # closing() then frees what train() holds before the next trial starts in this process.
            with saver, contextlib.closing(epochs):
                return _follow(
                    number, epochs, saver, reader, params["judged"], config.epochs, halved_from
                )
        except SupersededError:
            raise
        except UnfitStateError as error:
            forget_progress(path)
            more = {"tell": f"Trial {number} starts again: {first_line(error)}."}
            is_known, halved_from = False, None
        except TooSlowError as error:
            return TrialEnded(number=number, state="stopped", reason=str(error))
        except StorageError as error:
            # The trial is not at fault, and no other one could be saved.
            patience.give_up(first_line(error))
            return _interrupted(number, 0, reader)
        except Exception as error:
            if patience.blame(error):
                return _interrupted(number, 0, reader)
            if is_out_of_memory(error):
                if is_second_try:
                    reason = first_line(error)
                    return TrialEnded(number=number, state="out_of_memory", reason=reason)
                # With half the memory: two parts of a batch add up to the same step.
                is_known, is_second_try = False, True
            elif is_device_fault(error):
                # It is unknown here whose fault it was: the search treats this worker as lost.
                raise DeviceFaultError(first_line(error)) from error
            else:
                lines = traceback.format_exc().splitlines()[-TRACEBACK_LINES:]
                return TrialEnded(
                    number=number,
                    state="failed",
                    reason=f"{type(error).__name__}: {first_line(error)}",
                    traceback="\n".join(lines),
                )


def _follow(
    number: int,
    epochs: Iterable[Epoch],
    saver: Saver,
    reader: NoticeReader,
    judged: Collection[int],
    num_epochs: int,
    halved_from: int | None,
) -> TrialEnded:
    """Report and save the epochs of a trial, and return how it ended.

    When the engine stops a trial, nothing that follows its report is sure to happen. So an epoch
    that may be judged is on disk before it is reported. In all other cases, the worker ends the
    trial itself, and saves it first.

    Args:
        number: Number of the trial.
        epochs: The epochs that follow ``saver.history``.
        saver: Writes them.
        reader: Reads the driver's notice.
        judged: The epochs after which the trial may be stopped.
        num_epochs: Number of epochs of the whole training.
        halved_from: See ``TrialStatus``.
    """
    for epoch in epochs:
        num_done = epoch.figures.epoch
        if num_done in judged or num_done == num_epochs or not epoch.is_finite:
            saver.save(epoch)
        else:
            saver.keep(epoch)
            saver.save_if_due()
        ended = EpochEnded(
            number=number,
            metrics=epoch.figures,
            num_parameters=epoch.num_parameters,
            execution=epoch.execution,
            halved_from=halved_from,
        )
        tune.report({"event": ended})
        if not epoch.is_finite:
            return TrialEnded(number=number, state="diverged")
        if num_done == num_epochs:
            break
        if reader.look().is_ending:
            break
        if reader.should_migrate:
            saver.save()
            # The engine ends this worker now.
            tune.report({"saved": num_done})
    saver.save()
    if len(saver.history) < num_epochs:
        return _interrupted(number, len(saver.history), reader)
    return TrialEnded(number=number, state="completed")


def _interrupted(number: int, num_epochs: int, reader: NoticeReader) -> TrialEnded:
    cut = ", when the budget was spent" if reader.is_over() else ""
    reason = f"after epoch {num_epochs}{cut}"
    return TrialEnded(number=number, state="interrupted", reason=reason)


def _check_no_successor(path: AnyPath, attempt: int) -> None:
    """Keep a worker that was considered lost from overwriting what its successor has written.

    Such a worker, on a machine that slept or was cut off, is no longer heard, and waits in its next
    report until it is ended; but it would save an epoch before that.
    """
    status = read_status(path)
    if status is None:
        # Writing now would recreate a folder that was removed.
        raise OSError(errno.ESTALE, "the trial's folder is gone")
    if status.attempts != attempt:
        raise SupersededError(f"{path}: continues elsewhere")


def _check_speed(
    config: TrialConfig,
    splits: Splits,
    device: torch.device,
    start: InitialWeights | None,
    micro_batches: int,
    limit: float,
) -> None:
    seconds = predict_epoch_seconds(
        config, splits, device, start=start, micro_batches=micro_batches
    )
    if seconds > limit:
        raise TooSlowError(f"an epoch would take {seconds:.3g} s, above the limit of {limit:.3g} s")


def first_halved(known: int | None, num_epochs: int, *, is_short: bool) -> int | None:
    """Return the first epoch whose batches were, or from now on are, processed in halves.

    Args:
        known: The epoch in the trial's record.
        num_epochs: Epochs after which it resumes; later ones in the record are trained again.
        is_short: Whether memory has just run short.
    """
    if known is not None and known <= num_epochs + 1:
        return known
    return num_epochs + 1 if is_short else None


OUT_OF_MEMORY = (
    "can't allocate memory",  # PyTorch on a CPU.
    # CUDA and its libraries, outside PyTorch's allocator.
    "CUDA error: out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
)
"""What a plain RuntimeError says if memory ran short."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device, or this machine, lacked the requested memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def limit_memory(resources: TrialResources, device: torch.device) -> None:
    """Make a trial that exceeds its share of a GPU's memory fail, instead of its neighbours."""
    if device.type == "cuda" and resources.gpus:
        # Also with a whole GPU: this process may have trained on a part of one before.
        torch.cuda.set_per_process_memory_fraction(min(1.0, resources.gpus), device)


def free_memory() -> None:
    """Free what an earlier training in this process has left."""
    _pass_over_imports()
    # A model of an earlier trial can hang in a reference cycle and hold the device's memory.
    gc.collect()
    if torch.cuda.is_available():
        # 32 MiB for each stream that a training has used; no graph is left that needs one.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


@cache
def _pass_over_imports() -> None:
    """Exempt all objects that exist before the first training from this process's collections.

    These are 450,000 objects of PyTorch and Ray; scanning them took 0.17 to 0.24 s each time on a
    busy machine, and takes no time now.
    """
    # Otherwise an optimizer would import it in the first training.
    import_module("torch._dynamo")
    gc.collect()
    gc.freeze()
