"""TensorBoard files: one folder per trial, with its curves and hyperparameters."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.summary import hparams, scalar, text

from tuner.config import TrialConfig
from tuner.run.layout import TENSORBOARD
from tuner.run.run import Run
from tuner.run.trial import ENDED_BADLY, OPEN, EpochMetrics, TrialState, TrialStatus, flatten
from tuner.storage.paths import check_no_link, replace_folder
from tuner.storage.temporary import TemporaryFolder
from tuner.tracking.figures import figures, hyperparameters


class TensorBoard:
    """Writes ``tensorboard/NUMBER`` in the run folder.

    The writer is from ``tensorboardX``, a dependency of Ray Tune. Its better-known SummaryWriter
    has two threads and a pipe per trial, and stays in memory until the program ends. Files for an
    object store are sent there when a trial ends.
    """

    def __init__(self, run: Run) -> None:
        self._kept = run.path / TENSORBOARD
        self._scratch = TemporaryFolder()
        self._folder = self._kept if isinstance(self._kept, Path) else Path(self._scratch.name)
        self._writers: dict[int, EventsWriter] = {}

    def trial_started(
        self, number: int, config: TrialConfig, history: Sequence[EpochMetrics]
    ) -> None:
        """Write the hyperparameters, and again the epochs from which the trial resumes."""
        if (old := self._writers.pop(number, None)) is not None:
            old.close()
        check_no_link(self._folder)
        folder = self._folder / f"{number:04d}"
        check_no_link(folder)
        # A killed search may have logged more epochs than it saved.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        writer = self._writers[number] = EventsWriter(str(folder / "events"))
        # TensorBoard has columns for plain values only.
        plain = {
            key: value
            for key, value in flatten(hyperparameters(config)).items()
            if isinstance(value, bool | int | float | str)
        }
        # TensorBoard shows the columns of the first experiment that it finds; without one, it
        # combines the parameters and figures of all trials.
        _, start, _ = hparams(plain, {})
        _write(writer, start, 0, time.time())
        writer.flush()
        for row in history:
            self.epoch_ended(number, row)

    def epoch_ended(self, number: int, row: EpochMetrics) -> None:
        """Write the figures of an epoch."""
        writer = self._writers[number]
        for tag, value in figures(row).items():
            _write(writer, scalar(tag, value), row.epoch, row.time)
        writer.flush()

    def trial_ended(
        self, number: int, status: TrialStatus, history: Sequence[EpochMetrics]
    ) -> None:
        """Write how the trial ended, and close its file."""
        writer = self._writers.pop(number)
        now = time.time()
        if status.state not in OPEN:
            _write(writer, _end(status.state), 0, now)
        told = f"{status.state}: {status.reason}".rstrip(": ")
        _write(writer, text("end", told), len(history), now)
        writer.close()
        self._send(number)

    def close(self) -> None:
        """Write everything that is still pending."""
        for number, writer in self._writers.items():
            writer.close()
            self._send(number)
        self._writers.clear()
        self._scratch.cleanup()

    def _send(self, number: int) -> None:
        name = f"{number:04d}"
        if self._folder != self._kept:
            replace_folder(self._folder / name, self._kept / name)


def _write(writer: EventsWriter, summary: Summary, step: int, moment: float) -> None:
    writer.write_event(Event(summary=summary, step=step, wall_time=moment))


def _end(state: TrialState) -> Summary:
    """Return the mark of success or failure of a trial; tensorboardX only knows success."""
    status = Status.Value("STATUS_FAILURE" if state in ENDED_BADLY else "STATUS_SUCCESS")
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=status), version=0)
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    tag = "_hparams_/session_end_info"
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
