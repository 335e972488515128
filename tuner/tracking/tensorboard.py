"""TensorBoard's files: a folder a trial, with its curves and its hyperparameters."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from tuner.config import TrialConfig
from tuner.run import Run
from tuner.storage import replace_folder
from tuner.tracking.figures import figures
from tuner.trial import EpochRow, TrialStatus, flatten

FOLDER = "tensorboard"
FLUSH_SECONDS = 10


class TensorBoard:
    """Writes ``tensorboard/NUMBER`` in the run folder.

    The writer is ``tensorboardX``, which Ray Tune brings along. What belongs in a store is sent
    there when a trial ends.
    """

    def __init__(self, run: Run) -> None:
        self._kept = run.path / FOLDER
        self._scratch = tempfile.TemporaryDirectory(prefix="cifar-tune-")
        self._folder = self._kept if isinstance(self._kept, Path) else Path(self._scratch.name)
        self._writers: dict[int, SummaryWriter] = {}

    def trial_began(self, number: int, config: TrialConfig, history: Sequence[EpochRow]) -> None:
        """Write the hyperparameters, and again the epochs that the trial goes on from."""
        if (old := self._writers.pop(number, None)) is not None:
            old.close()
        folder = self._folder / f"{number:04d}"
        # A search that was killed may have told more than was saved.
        shutil.rmtree(folder, ignore_errors=True)
        writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)
        # Only plain values have a column there.
        plain = {
            key: value
            for key, value in flatten(config.to_dict()).items()
            if isinstance(value, bool | int | float | str) and not key.endswith(".source")
        }
        # The last part says that a trial was a success, which is not known yet.
        experiment, start, _ = hparams(plain, {"accuracy/validation": 0.0})
        for part in (experiment, start):
            writer.file_writer.add_summary(part)
        self._writers[number] = writer
        for row in history:
            self.epoch_ended(number, row)

    def epoch_ended(self, number: int, row: EpochRow) -> None:
        """Write the figures of an epoch."""
        for tag, value in figures(row).items():
            self._writers[number].add_scalar(tag, value, row.epoch, walltime=row.time)

    def trial_ended(self, number: int, status: TrialStatus, history: Sequence[EpochRow]) -> None:
        """Write how the trial ended, and close its file."""
        writer = self._writers.pop(number)
        writer.add_text("end", f"{status.state}: {status.reason}".rstrip(": "), len(history))
        writer.close()
        self._send(number)

    def close(self) -> None:
        """Write what has not been written."""
        for number, writer in self._writers.items():
            writer.close()
            self._send(number)
        self._writers.clear()
        self._scratch.cleanup()

    def _send(self, number: int) -> None:
        name = f"{number:04d}"
        if self._folder != self._kept:
            replace_folder(self._folder / name, self._kept / name)
