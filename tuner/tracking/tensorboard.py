"""TensorBoard's files: a folder a trial, with its curves and its hyperparameters."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.summary import hparams

from tuner.config import TrialConfig
from tuner.run import Run
from tuner.storage import replace_folder
from tuner.tracking.figures import figures, hyperparameters
from tuner.trial import ENDED_BADLY, EpochRow, TrialState, TrialStatus, flatten

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
            for key, value in flatten(hyperparameters(config)).items()
            if isinstance(value, bool | int | float | str)
        }
        # Of all experiments, TensorBoard shows the columns of the first that it finds; without one
        # it takes the parameters and the figures of all trials together.
        _, start, _ = hparams(plain, {})
        writer.file_writer.add_summary(start)
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
        if status.state != "interrupted":
            writer.file_writer.add_summary(_end(status.state))
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


def _end(state: TrialState) -> Summary:
    """Give what marks a trial as a success or a failure; tensorboardX knows successes alone."""
    status = Status.Value("STATUS_FAILURE" if state in ENDED_BADLY else "STATUS_SUCCESS")
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status), version=0)
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    tag = "_hparams_/session_end_info"
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
