"""The networks of torchvision and their weights, by name.

Importing torchvision takes a second or two, so only users of its networks wait for it.
"""

import functools
from typing import Any

from tuner.schema import did_you_mean


@functools.cache
def model_names() -> tuple[str, ...]:
    """Return the names of the torchvision classification models that work here."""
    from torchvision import models

    # MNASNet loads weights only with a version number that only torch's own files contain.
    names = models.list_models(module=models)
    return tuple(name for name in names if not name.startswith("mnasnet"))


@functools.cache
def weight_names(name: str) -> tuple[str, ...]:
    """Return the names of the weights of one of ``model_names``."""
    from torchvision.models import get_model_weights

    # Some VGG weights have no classes, because they are meant for object detection.
    members = [member for member in get_model_weights(name) if member.meta["categories"]]
    return ("DEFAULT", *(member.name for member in members))


def find_weights(name: str, weights: str) -> Any:
    """Return torchvision's entry for weights, with ``url``, ``meta`` and ``transforms()``."""
    from torchvision.models import get_model_weights

    return get_model_weights(name)[weights]


def why_not_model(name: str) -> str | None:
    """Return what is wrong with a model's name, or ``None``."""
    if name in model_names():
        return None
    if name.startswith("mnasnet"):
        return f"{name} cannot be saved apart from torchvision's files; take mobilenet_v2"
    hint = did_you_mean(name, model_names())
    known = "; take one of its classification models, such as resnet18"
    return f"torchvision has no model {name!r} to start from{hint or known}"


def why_not_weights(weights: str, *names: str) -> str | None:
    """Return what is wrong with the name of weights for these models; ``None`` if one has them."""
    known = list(dict.fromkeys(word for name in names for word in weight_names(name)))
    if weights in known:
        return None
    hint = did_you_mean(weights, known) or f"; known are {', '.join(known)}"
    return f"{', '.join(names)} has no weights {weights!r}{hint}"


def why_not_pretrained(name: str, weights: str, image_size: int | None) -> str | None:
    """Return why a model cannot start from these weights at this size, or ``None``."""
    problem = why_not_model(name) or why_not_weights(weights, name)
    if problem or image_size is None:
        return problem
    unit, least = 1, find_weights(name, weights).meta["min_size"][0]
    if name.startswith("vit"):
        unit = least = int(name.rpartition("_")[2])
    elif name.startswith("maxvit"):
        unit = least
    elif name.startswith("swin"):
        # torchvision gives the size of their training, but pads smaller images to its windows.
        least = 1
    if image_size < least:
        return f"image_size: {name} needs images of at least {least} pixels, not {image_size}"
    if image_size % unit:
        near = image_size // unit * unit
        return f"image_size: {name} needs a multiple of {unit}, not {image_size}; write {near}"
    return None
