import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tuner.config import Resources, ShareConfig
from tuner.tuning.ray_backend import capacity as capacities
from tuner.tuning.ray_backend.autoscaler import Autoscaler, NodeKind
from tuner.tuning.ray_backend.capacity import Capacity, plan_capacity
from tuner.tuning.ray_backend.nodes import Answer
from tuner.tuning.resources import TrialResources


def test_room_follows_the_nodes_that_join_and_leave(
    pretended_nodes: list[dict[str, float]],
) -> None:
    said: list[str] = []
    plan = plan_capacity(Resources(gpus=0.5))
    capacity = Capacity(plan, said.append)
    running = [plan.default] * 2
    assert capacity.has_room(running[:1])
    assert not capacity.has_room(running)
    pretended_nodes.append({"CPU": 4.0, "GPU": 2.0})
    assert capacity.has_room(running)
    assert said == ["The cluster has 2 nodes now, room for 6 trials at a time."]
    pretended_nodes.clear()
    assert not capacity.has_room([])


def test_room_counts_different_shares_together(pretended_nodes: list[dict[str, float]]) -> None:
    plan = plan_capacity(Resources(gpus=0.25, by={"vit": ShareConfig(gpus=0.75)}))
    capacity = Capacity(plan, lambda line: None)
    large, small = TrialResources(cpus=1, gpus=0.75), TrialResources(cpus=1, gpus=0.25)
    assert capacity.has_room([large])
    assert not capacity.has_room([large, small])
    assert capacity.has_room([small] * 3)
    assert not capacity.has_room([small] * 4)


def test_no_more_run_than_the_user_wants(pretended_nodes: list[dict[str, float]]) -> None:
    capacity = Capacity(plan_capacity(Resources(gpus=0), concurrent=2), lambda line: None)
    share = TrialResources(cpus=1, gpus=0)
    pretended_nodes.append({"CPU": 64.0})
    assert capacity.has_room([share])
    assert not capacity.has_room([share] * 2)
    assert capacity.count == 2, "the live table tells it"


HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
WORKER = {"CPU": 2.0}


@pytest.fixture
def growing(
    pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[dict[str, float]]]:
    """Return the nodes of a cluster that starts with its head and grows to three workers."""
    pretended_nodes[:] = [HEAD]
    autoscaler = Autoscaler(kinds=(NodeKind(resources=WORKER, most=3),))
    monkeypatch.setattr(capacities, "find_autoscaler", lambda: autoscaler)
    return pretended_nodes


def test_as_many_trials_wait_as_run_until_the_cluster_has_grown(
    growing: list[dict[str, float]],
) -> None:
    plan = plan_capacity(Resources())
    capacity = Capacity(plan, lambda line: None)

    def most() -> int:
        return next(n for n in range(100) if not capacity.has_room([plan.default] * n))

    demands = [most()]
    for _ in range(3):
        growing.append(WORKER)
        demands.append(most())
    assert demands == [1, 4, 6, 6]


def test_it_is_said_once_that_a_search_waits_for_nodes(growing: list[dict[str, float]]) -> None:
    plan = plan_capacity(Resources())
    said: list[str] = []
    capacity = Capacity(plan, said.append)
    assert capacity.has_room([])
    for _ in range(2):
        assert not capacity.has_room([plan.default])
    assert said == ["Waiting for a node that has 1 CPU, from the autoscaler."]
    growing.append(WORKER)
    assert capacity.has_room([plan.default])
    assert said[1:] == ["The cluster has 2 nodes now, room for 2 trials at a time."]


def test_trials_of_other_shares_wait_too(growing: list[dict[str, float]]) -> None:
    plan = plan_capacity(Resources(by={"vit": ShareConfig(cpus=2)}))
    capacity = Capacity(plan, lambda line: None)
    growing.append(WORKER)
    small, large = TrialResources(cpus=1, gpus=0), TrialResources(cpus=2, gpus=0)
    assert capacity.has_room([small] * 2)
    assert capacity.has_room([large] * 2)
    assert not capacity.has_room([large] * 3)


def test_a_line_of_several_workers_is_told_once(pretended_nodes: list[dict[str, float]]) -> None:
    said: list[str] = []
    capacity = Capacity(plan_capacity(Resources(gpus=0.5)), said.append)
    for line in ("On a, they take turns.", "On b, they take turns.", "On a, they take turns."):
        capacity.tell_once(line)
    assert said == ["On a, they take turns.", "On b, they take turns."]


def test_a_node_without_the_storage_is_tried_again_and_one_of_other_versions_is_not(
    pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacities, "REFUSED_SECONDS", 0.2)
    monkeypatch.setattr(capacities, "is_gone", lambda node: False)
    said: list[str] = []
    capacity = Capacity(plan_capacity(Resources(gpus=0.5)), said.append)
    answers = (
        Answer(node="a", host="a", problem="it does not see /x"),
        Answer(
            node="b", host="b", value={"python": "", "ray": "1", "torch": "", "torchvision": ""}
        ),
    )
    for trial in range(2):
        for answer in answers:
            problem = answer.problem and f"{answer.problem}/trials/{trial}"
            capacity.refuse(replace(answer, problem=problem))
        assert capacity.refused == ["a", "b"]
        time.sleep(0.3)
        assert capacity.refused == ["b"]
        assert capacity.has_lost("a"), "no trial answers for what it lost there"
    assert len(said) == 2
    capacity.accept("a")
    assert not capacity.has_lost("a")
    capacity.refuse(answers[0])
    assert len(said) == 3, "it could be used in between"
