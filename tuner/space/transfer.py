"""The starting points of a space's ``pretrained`` models: checks names and looks up runs."""

from tuner.errors import TunerError
from tuner.models.catalogue import why_not_model, why_not_weights
from tuner.models.families import Source
from tuner.schema import Scalar, join, to_json
from tuner.space.source import descend, words
from tuner.space.tree import Node, file_of
from tuner.storage.paths import AnyPath, sha256_of


def with_origins(root: Node, storage: AnyPath) -> Node:
    """Check ``space.model.pretrained``, if there is one, and add the architecture of its run.

    A node that already holds its ``source``, as in the ``space.yaml`` of a run, is left unchanged.

    Args:
        root: The top level of a space.
        storage: Folder of the runs.

    Raises:
        SpaceError: On a model or weights that torchvision lacks, and on a run or trial that is
            missing.
    """
    return descend(root, "pretrained", lambda node: _with_origin(node, storage))


def _with_origin(node: Node, storage: AnyPath) -> Node:
    assert isinstance(node.value, dict)
    names = list(words(node.value.get("name")))
    for name in names:
        if problem := why_not_model(str(name.value)):
            raise name.error(problem)
    for weights in words(node.value.get("weights")):
        known = [str(name.value) for name in names]
        if known and (problem := why_not_weights(str(weights.value), *known)):
            raise weights.error(problem)
    held = node.value.get("source")
    keys = [key for key in ("run", "trial") if key in node.value]
    # A run's source belongs to the trial next to it, not to one from an override.
    moved = [key for key in keys if held and file_of(node.value[key]) != file_of(held)]
    if "run" not in node.value or (held is not None and not moved):
        return node
    if moved == ["run"]:
        node = node.with_value({key: v for key, v in node.value.items() if key != "trial"})
    return _with_run(node, storage)


def _with_run(node: Node, storage: AnyPath) -> Node:
    # These import PyTorch, which only such spaces should wait for.
    from tuner.run.check import check_records
    from tuner.run.checkpoint import read_description
    from tuner.run.layout import CHECKPOINT
    from tuner.run.run import find_run

    assert isinstance(node.value, dict)
    run, trial = node.value["run"], node.value.get("trial")
    if not isinstance(run.value, str):
        raise run.error("is not the name of a run; write one name; a run cannot be searched")
    if trial is not None and (problem := Scalar(kind=int).problem(trial.value)):
        raise trial.error(f"{problem}; write one number; a trial cannot be searched")
    try:
        found = find_run(storage, run.value)
    except TunerError as error:
        raise run.error(str(error)) from error
    number = None if trial is None else trial.value
    assert number is None or isinstance(number, int)
    try:
        record = found.top(1)[0] if number is None else found.trial(number)
    except TunerError as error:
        raise (trial or run).error(str(error)) from error
    if not record.checkpoint.exists():
        what = f"the checkpoint of trial {record.number} was not kept; name another one"
        raise (trial or run).error(what)
    check_records([record], CHECKPOINT, mend="Put the file back, or name another trial.")
    description = read_description(record.checkpoint, record.config.model)
    if description.folds:
        what = f"trial {record.number} is {description.folds} networks, one a fold"
        raise (trial or run).error(
            f"{what}; name a run without folds or, to train on other images, a refit of this one "
            "with --all-data"
        )
    size = node.value.get("image_size")
    if size is not None and size.value is not None and description.model.family == "pretrained":
        raise size.error(
            f"trial {record.number} brings images to a size of its own; leave image_size out"
        )
    # Grey images already have three channels when they are normalized for ImageNet's weights.
    image_shape = (len(description.mean), *description.image_shape[1:])
    source = Source(model=description.model, image_shape=image_shape)
    # The absolute path of a folder is recorded, so that it is found from anywhere.
    is_name = found.path == storage / run.value
    added: dict[str, str | int] = {
        "run": run.value if is_name else str(found.path.absolute()),
        "trial": record.number,
        "source": to_json(source, sort_keys=True),
        "sha256": sha256_of(record.checkpoint),
    }
    nodes = {
        key: Node(value=value, path=join(node.path, key), place=run.place, key_place=run.key_place)
        for key, value in added.items()
    }
    return node.with_value(node.value | nodes)
