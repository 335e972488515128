import re
import threading
import time
from pathlib import Path

import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from tuner.config import DataConfig
from tuner.errors import ClusterError
from tuner.tuning.ray_backend import doctor, mps
from tuner.tuning.ray_backend.cluster import TOKEN_ADVICE, _why_not, connected
from tuner.tuning.ray_backend.doctor import Finding, examine
from tuner.tuning.ray_backend.nodes import Answer, alive_nodes, ask_nodes


def findings(storage: Path, source: str, data_dir: Path) -> dict[str, Finding]:
    found = examine(None, storage, DataConfig(source=source), data_dir)
    return {finding.about.split()[0]: finding for finding in found}


@pytest.mark.ray
def test_a_machine_where_all_is_well_is_told_so(session: None, tmp_path: Path) -> None:
    found = findings(tmp_path / "runs", "digits", tmp_path)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert list(found) == ["cluster", "node", "versions", "storage", "data", "trials"]
    assert re.match(r"\d+ trials? at a time, each on 1 CPU", found["trials"].text)
    assert list((tmp_path / "runs").iterdir()) == [], "it leaves nothing behind"


@pytest.mark.ray
def test_a_folder_of_images_is_looked_at(session: None, tmp_path: Path) -> None:
    for part, number in (("train", 20), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(number):
                image = Image.new("RGB", (8, 8), (index, 0, 0))
                image.save(tmp_path / "images" / part / name / f"{index}.png")
    found = findings(tmp_path / "runs", str(tmp_path / "images"), tmp_path / "data")
    assert found["data"].level == "ok"
    assert "36 training and 4 validation images" in found["data"].text
    gone = findings(tmp_path / "runs", str(tmp_path / "nothing"), tmp_path / "data")
    assert gone["data"].level == "failure"


@pytest.mark.ray
def test_what_is_wrong_comes_with_what_mends_it(session: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = findings(tmp_path / "file" / "runs", "cifar10", tmp_path / "data")
    assert found["storage"].level == "failure"
    assert "all nodes share" in found["storage"].mend
    assert found["data"].level == "warning"
    line = f"cifar-tune data prepare cifar10 --data-dir {tmp_path / 'data'}"
    assert line in found["data"].mend


def test_what_helps_a_user_without_a_home_is_explained() -> None:
    error = RuntimeError("Could not determine home directory.")
    assert _why_not(error).startswith("Could not determine home directory. Set HOME to a folder")


def test_a_token_that_is_not_the_clusters_is_explained() -> None:
    error = ConnectionError("RPC error: InvalidAuthToken: the request is unauthenticated")
    assert _why_not(error) == TOKEN_ADVICE
    bare = ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:35143")
    assert _why_not(bare).endswith(TOKEN_ADVICE)


@pytest.mark.parametrize(
    ("sharing", "level", "words"),
    [
        (mps.Sharing(how="side by side"), "ok", "run side by side (MPS)"),
        (mps.Sharing(how="by turns", reason="it is not installed"), "ok", "take turns: it is not"),
        (
            mps.Sharing(how="by turns", reason="it does not start", is_broken=True),
            "warning",
            "take turns: it does not start",
        ),
        (mps.Sharing(how="by turns"), "ok", "1 CPU, 2 GPUs (one; other), 4 GB of memory"),
    ],
)
def test_a_node_with_gpus_says_how_trials_share_them(
    sharing: mps.Sharing, level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"NodeID": "ab", "Resources": {"CPU": 1.0, "GPU": 2.0, "memory": 4e9}}
    monkeypatch.setattr(doctor, "alive_nodes", lambda: [node])
    value = {"gpus": ["one", "other"], "torch_gpus": 2, "sharing": sharing}
    finding = doctor._node(Answer(node="ab", host="here", value=value))
    assert finding.level == level
    assert words in finding.text
    assert ("CIFAR_TUNE_MPS=0" in finding.mend) == sharing.is_broken


@pytest.mark.parametrize(("offered", "level"), [(2.0, "failure"), (0.0, "warning")])
def test_gpus_that_pytorch_cannot_use_are_told(
    offered: float, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"NodeID": "ab", "Resources": {"CPU": 1.0, "GPU": offered}}
    monkeypatch.setattr(doctor, "alive_nodes", lambda: [node])
    value = {"gpus": ["one", "other"], "torch_gpus": 0, "sharing": mps.Sharing(how="by turns")}
    finding = doctor._node(Answer(node="ab", host="here", value=value))
    assert finding.level == level
    assert finding.text.endswith("PyTorch can use 0 of the GPUs")


def test_a_cluster_without_room_for_a_trial_says_what_to_do_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(*given: object) -> None:
        raise ClusterError("no node has room. Lower --cpus-per-trial.")

    monkeypatch.setattr(doctor, "plan_capacity", plan)
    (finding,) = doctor._slots()
    assert (finding.level, finding.about) == ("failure", "trials")
    assert finding.text == "no node has room"
    assert finding.mend == "Lower --cpus-per-trial."


def test_a_node_that_leaves_meanwhile_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"NodeID": "b", "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(doctor, "alive_nodes", lambda: [node])
    value = {"gpus": [], "torch_gpus": 0, "sharing": mps.Sharing(how="by turns")}
    answers = [Answer(node=name, host="here", value=value) for name in "ab"]
    assert [one.level for one in map(doctor._node, answers)] == ["warning", "ok"]


@pytest.mark.ray
def test_a_node_that_is_lost_before_it_answers_is_not_missed(tmp_path: Path) -> None:
    """As a spot node: that it has left is known later than that its task has failed."""

    def answer(folder: str) -> None:
        node = ray.get_runtime_context().get_node_id()
        Path(folder, node).touch()
        if Path(folder, "lost").read_text() == node:
            time.sleep(600)

    def lose() -> None:
        while not (tmp_path / lost.node_id).exists():
            time.sleep(0.1)
        cluster.remove_node(lost, allow_graceful=False)

    missed = {"health_check_period_ms": 1000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": missed}
    )
    lost = cluster.add_node(num_cpus=1)
    (tmp_path / "lost").write_text(lost.node_id)
    try:
        with connected(cluster.address, compare=False):
            nodes = {node["NodeID"] for node in alive_nodes()}
            losing = threading.Thread(target=lose)
            losing.start()
            answers = ask_nodes(answer, str(tmp_path))
            losing.join()
    finally:
        cluster.shutdown()
    assert {answer.node for answer in answers} == nodes - {lost.node_id}
    assert [answer.problem for answer in answers] == [""]
