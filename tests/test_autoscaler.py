"""What is known of an autoscaler; that of a real one is in ``test_autoscaling``."""

from tuner.tuning.ray_backend.autoscaler import Autoscaler, NodeKind, read_kinds

SMALL, LARGE = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}
HEAD = {"CPU": 2.0, "node:__internal_head__": 1.0}


def by_cpus(node: object) -> float:
    assert isinstance(node, dict)
    return float(node["CPU"])


def test_nodes_that_are_there_do_not_come_again() -> None:
    autoscaler = Autoscaler(kinds=(NodeKind(resources=SMALL, most=3),))
    assert autoscaler.addable_nodes([HEAD], by_cpus) == [SMALL] * 3
    assert autoscaler.addable_nodes([HEAD, SMALL, SMALL], by_cpus) == [SMALL]
    assert autoscaler.addable_nodes([HEAD, *[SMALL] * 4], by_cpus) == []


def test_of_nodes_that_cannot_all_come_the_worthiest_are_counted() -> None:
    kinds = (NodeKind(resources=SMALL, most=3), NodeKind(resources=LARGE, most=2))
    autoscaler = Autoscaler(kinds=kinds, most=4)
    assert autoscaler.addable_nodes([HEAD, SMALL], by_cpus) == [LARGE, LARGE, SMALL]


def test_the_file_of_ray_up_is_read() -> None:
    types = {
        "head": {"resources": {"CPU": 0}},
        "gpu": {"resources": LARGE, "max_workers": 4},
        "cpu": {"resources": SMALL},
        "off": {"resources": SMALL, "max_workers": 0},
    }
    autoscaler = read_kinds(
        {"max_workers": 6, "head_node_type": "head", "available_node_types": types}
    )
    assert autoscaler is not None
    assert autoscaler.most == 6
    assert autoscaler.kinds == (
        NodeKind(resources=LARGE, most=4),
        NodeKind(resources=SMALL, most=6),
    )
    assert str(autoscaler) == "at most 4 of 8 CPUs and 1 GPU, 6 of 2 CPUs and 0 GPUs"


def test_a_file_that_does_not_say_what_machines_have_tells_of_no_kinds() -> None:
    types = {"head": {}, "own": {"resources": {}, "max_workers": 4}}
    config = {"head_node_type": "head", "available_node_types": types}
    assert read_kinds(config) == Autoscaler()
    types["own"]["max_workers"] = 0
    assert read_kinds(config) is None, "nothing is added"
