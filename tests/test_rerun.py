import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tuner.config import DataConfig
from tuner.run.trial import write_status
from tuner.space import load_space
from tuner.training.rerun import rerun
from tuner.tuning.request import SearchRequest
from tuner.tuning.session import search

CPU = torch.device("cpu")

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    '''Whole batches fit for an epoch and a half; batch norm tells halves from wholes.'''

    def __init__(self, num_classes, image_shape):
        super().__init__()
        channels, height, width = image_shape
        self.norm = nn.BatchNorm1d(channels * height * width)
        self.head = nn.Linear(channels * height * width, num_classes)
        self.register_buffer("num_whole", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        if self.training and len(images) == 64:
            self.num_whole += 1
            if self.num_whole > 33:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self.head(self.norm(images.flatten(1)))
"""
SPACE = """
dataset: digits
search: {trials: 1, epochs: 4, scheduler: none}
resources: {by: {custom: {cpus: 2}}}
space:
  batch_size: 64
  model: {custom: {path: net.py, name: Net}}
"""


@pytest.mark.ray
def test_a_rerun_trains_with_the_threads_halves_and_compilation_of_its_trial(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    space = load_space(path)
    request = SearchRequest(
        space=space,
        space_name=str(path),
        search=space.search,
        data=DataConfig(source="digits"),
        data_dir=tmp_path,
        storage=tmp_path / "runs",
        name="run",
        command="",
        keep=3,
        cpus_per_trial=1,
    )
    run = search(request, Console(file=io.StringIO()))
    trial = run.trial(0)
    assert trial.status.state == "completed"
    assert trial.status.halved_from == 2
    assert run.record.hardware["threads_per_trial"] == 1

    before = torch.get_num_threads()
    try:
        rows = list(rerun(run, 0, CPU))
        assert torch.get_num_threads() == 2
        # That it is asked for is enough: to compile takes half a minute.
        monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(1) or network)
        for execution, count in (("eager", 0), ("compiled", 2)):
            write_status(trial.path, replace(trial.status, execution=execution))
            compiled: list[int] = []
            assert len(list(rerun(run, 0, CPU))) == 4
            # Once more from where its batches were halved.
            assert len(compiled) == count
    finally:
        torch.set_num_threads(before)
    assert len(rows) == 4
    for recorded, found in rows:
        assert (found.train_loss, found.val_loss) == (recorded.train_loss, recorded.val_loss)
