"""Networks computed on a real cluster of two nodes give what they give here."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from torch import Tensor

from tuner.config import ModelConfig
from tuner.data.splits import Splits
from tuner.ensemble import make_ensemble, planning
from tuner.ensemble.members import Local, Network
from tuner.ensemble.request import EnsembleRequest
from tuner.errors import TunerError
from tuner.run.run import Run
from tuner.tuning.ray_backend import cluster_predict
from tuner.tuning.ray_backend.cluster_predict import predict_on_cluster, predicting_on_cluster

pytestmark = pytest.mark.ray
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_members_are_computed_on_the_cluster(
    finished_run: Run, digits: Splits, address: str, tmp_path: Path
) -> None:
    trials = finished_run.trials()
    pool = [(trial.checkpoint, trial.config) for trial in trials]
    networks = [Network(file=f, model=c.model, precision=c.precision) for f, c in pool]
    with predicting_on_cluster(address) as predict:
        there = predict(networks, digits.val.images, "flip")
        torch.testing.assert_close(there, Local([CPU])(networks, digits.val.images, "flip"))

        request = EnsembleRequest(top=2)
        with planning(finished_run, request, devices=[CPU], predict=predict) as plan:
            spread_out = make_ensemble(plan)
        with planning(finished_run, request, devices=[CPU]) as plan:
            here = make_ensemble(plan)
        assert spread_out.ensemble.test.nll == pytest.approx(here.ensemble.test.nll, rel=1e-5)

        gone = replace(networks[0], file=tmp_path / "gone.safetensors")
        with pytest.raises(TunerError, match=r"gone\.safetensors") as caught:
            predict_on_cluster([gone], digits.val.images, "none")
        assert len(str(caught.value).splitlines()) == 1
    assert not ray.is_initialized()


def test_who_is_given_no_gpu_predicts_on_the_cpu_whatever_the_process_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[torch.device] = []

    def predict(network: object, images: Tensor, tta: str, device: torch.device) -> Tensor:
        devices.append(device)
        return images

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cluster_predict, "predict_network", predict)
    network = Network(file=Path("none"), model=ModelConfig("cnn"), precision="float32")
    for gpus in (0.0, 1.0):
        cluster_predict._predict(network, np.zeros(1), "none", gpus)
    assert devices == [CPU, torch.device("cuda", 0)]
