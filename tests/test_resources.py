import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.config import LargeShareConfig, ModelConfig, Resources, ShareConfig, TrialConfig
from tuner.errors import ClusterError, SpaceError, UsageError
from tuner.space import load_space
from tuner.tuning.ray_backend import capacity
from tuner.tuning.ray_backend.autoscaler import Autoscaler, NodeKind
from tuner.tuning.ray_backend.capacity import fits_together, plan_capacity
from tuner.tuning.resources import CapacityPlan, Packing, TrialResources

nodes = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 16), "GPU": st.integers(0, 4)}), max_size=5
)
shares = st.builds(
    TrialResources,
    cpus=st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0]),
    gpus=st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.75, 1.0, 2.0]),
)


@given(nodes, st.lists(shares, max_size=30))
def test_what_is_packed_never_exceeds_what_there_is(
    have: list[dict[str, float]], asked: Sequence[TrialResources]
) -> None:
    packing = Packing(have)
    packed = [share for share in asked if packing.add(share)]
    for name in ("cpus", "gpus"):
        total = sum(node[name[:-1].upper()] for node in have)
        assert sum(getattr(share, name) for share in packed) <= total + 1e-3


@given(nodes, shares)
def test_as_many_of_one_share_fit_as_each_node_takes_by_itself(
    have: list[dict[str, float]], share: TrialResources
) -> None:
    def takes(node: dict[str, float]) -> int:
        by_cpu = int(node["CPU"] / share.cpus)
        if not share.gpus:
            return by_cpu
        if share.gpus < 1:
            return min(by_cpu, node["GPU"] * int(1 / share.gpus + 1e-9))
        return min(by_cpu, int(node["GPU"] / share.gpus))

    assert Packing(have).add_all(share) == sum(map(takes, have))


def test_a_share_of_a_gpu_lies_on_one_gpu() -> None:
    assert Packing([{"CPU": 8, "GPU": 2}]).add_all(TrialResources(cpus=1, gpus=0.6)) == 2


def trial(family: str) -> TrialConfig:
    return TrialConfig(model=ModelConfig(family), epochs=1)


def test_the_default_gives_way_to_the_familys_and_both_to_what_large_networks_need() -> None:
    counts = {"cnn": 10, "resnet": 10, "vit": 1000}
    plan = CapacityPlan(
        default=TrialResources(cpus=1, gpus=0.5),
        count=1,
        own=Resources(
            by={"cnn": ShareConfig(gpus=0.25), "vit": ShareConfig(cpus=4)},
            large=LargeShareConfig(parameters=1000, gpus=1.0, cpus=2),
        ),
        count_parameters=lambda config: counts[config.model.family],
    )
    assert plan.resources_of(trial("resnet")) == TrialResources(cpus=1, gpus=0.5)
    assert plan.resources_of(trial("cnn")) == TrialResources(cpus=1, gpus=0.25)
    assert plan.resources_of(trial("vit")) == TrialResources(cpus=4, gpus=1.0)
    assert {plan.resources_of(trial(name)) for name in counts} <= set(plan.all_resources())


def test_a_family_that_no_node_could_train_is_refused(
    pretended_nodes: list[dict[str, float]],
) -> None:
    with pytest.raises(ClusterError, match="asks for 1 CPU and 2 GPUs, but the largest of 1 node"):
        plan_capacity(Resources(by={"vit": ShareConfig(gpus=2)}))
    with pytest.raises(UsageError, match="only whole GPUs"):
        plan_capacity(Resources(by={"vit": ShareConfig(gpus=1.5)}))


def test_as_many_as_fit_of_the_smallest_share_may_be_wanted(
    pretended_nodes: list[dict[str, float]],
) -> None:
    pretended_nodes[:] = [{"CPU": 32.0, "GPU": 1.0}]
    by_family = Resources(by={"cnn": ShareConfig(gpus=0)})
    plan = plan_capacity(by_family, concurrent=8)
    assert plan.concurrent == 8
    assert plan.count == 1, "of the default resources"
    with pytest.raises(ClusterError, match="only 32 trials of 1 CPU can run at once"):
        plan_capacity(by_family, concurrent=33)
    with pytest.raises(ClusterError, match="only 1 trial of 1 CPU and 1 GPU can run at once"):
        plan_capacity(Resources(), concurrent=2)
    assert plan_capacity(Resources(), concurrent=2, is_most=True).count == 1


GPU_NODE = NodeKind(resources={"CPU": 8, "GPU": 1}, most=8)


def have(monkeypatch: pytest.MonkeyPatch, autoscaler: Autoscaler) -> None:
    monkeypatch.setattr(capacity, "find_autoscaler", lambda: autoscaler)


def test_what_an_autoscaler_could_bring_is_waited_for(
    pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_nodes[:] = [{"CPU": 0.0, "node:__internal_head__": 1.0}]
    have(monkeypatch, Autoscaler(kinds=(GPU_NODE,)))
    assert plan_capacity(Resources()).default == TrialResources(cpus=1, gpus=1)
    assert plan_capacity(Resources()).count == 8
    assert plan_capacity(Resources(gpus=0.5)).count == 16
    assert plan_capacity(Resources(gpus=0.5), concurrent=12).count == 12
    with pytest.raises(ClusterError, match=r"adds none that has more .at most 8 of 8 CPUs"):
        plan_capacity(Resources(gpus=2))


def test_an_autoscaler_that_does_not_tell_what_it_adds_may_bring_anything(
    pretended_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended_nodes.clear()
    have(monkeypatch, Autoscaler())
    assert plan_capacity(Resources(gpus=8)).count == 1
    assert plan_capacity(Resources(gpus=8), concurrent=50).count == 50


SPACE = "space: {model: {choice: [cnn, vit]}}\nresources: {gpus: 0.25, by: {vit: {gpus: 1}}"


def test_a_space_says_what_its_trials_get(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE + ", large: {parameters: 5.0e6, cpus: 4}}\n")
    resources = load_space(path).resources
    assert resources.by == {"vit": ShareConfig(gpus=1)}
    assert resources.large == LargeShareConfig(parameters=5e6, cpus=4)
    assert resources.gpus == 0.25
    path.write_text(load_space(path).resolved())
    assert load_space(path).resources == resources
    assert dataclasses.replace(resources, gpus=1.0).by == resources.by


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resources: {by: {vti: {gpus: 1}}}", "did you mean 'vit'"),
        ("resources: {gpus: -1}", "at least 0"),
        ("resources: {cpus: 0}", "above 0"),
        ("resources: {large: {gpus: 1}}", "parameters"),
        ("resources: {gpu: 1}", "did you mean 'gpus'"),
    ],
)
def test_mistakes_in_resources_are_told_where_they_stand(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"space: {{model: cnn}}\n{text}\n")
    with pytest.raises(SpaceError, match=message) as caught:
        load_space(path)
    assert "space.yaml:2:" in str(caught.value)


def test_trials_fit_together_as_the_nodes_take_them(
    pretended_nodes: list[dict[str, float]],
) -> None:
    fit = fits_together(plan_capacity(Resources(by={"vit": ShareConfig(gpus=1)}, gpus=0.5)))
    small, large = TrialResources(cpus=1, gpus=0.5), TrialResources(cpus=1, gpus=1)
    assert fit([small, small])
    assert fit([large])
    assert not fit([small, large])
    pretended_nodes[0]["GPU"] = 2.0
    assert not fit([small, large])
    assert fits_together(plan_capacity(Resources(by={"vit": ShareConfig(gpus=1)}, gpus=0.5)))(
        [small, large]
    )


def test_no_more_trials_fit_together_than_are_wanted_and_one_always_does(
    pretended_nodes: list[dict[str, float]],
) -> None:
    default = TrialResources(cpus=1, gpus=0.5)
    assert not fits_together(plan_capacity(Resources(gpus=0.5), concurrent=1))([default, default])
    by_family = Resources(by={"vit": ShareConfig(cpus=2)}, gpus=0.5)
    assert not fits_together(plan_capacity(by_family, concurrent=1))([default, default])
    assert fits_together(plan_capacity(by_family))([TrialResources(cpus=64, gpus=0)])
