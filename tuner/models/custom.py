"""Custom networks: a class or function in a user's Python file.

The file's text is part of the configuration, so nodes without the file can build the network, and a
checkpoint can be rebuilt after the file was changed or lost. Building such a network runs that
text, as if the user had run the file; listing a run, or reading its configurations, does not.
``tuner.models.trust`` checks code that came with a run before it is built.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tuner.errors import UsageError
from tuner.models.params import CustomParams
from tuner.models.user_code import first_line_of, load_callable, place_of


def build_custom(
    params: CustomParams, num_classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """Build the network and try it on two images, in the usual layout and in channels-last.

    If it works only in the usual layout, it gets that from then on.

    Raises:
        UsageError: If the code fails, or gives no module, or one that gives no logits.
    """
    make = load_callable(params.path, params.name, params.source)
    try:
        network = make(num_classes=num_classes, image_shape=image_shape, **params.params)
    except (Exception, SystemExit) as error:
        raise _failure(params, "", error) from error
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"{params.path}: {params.name}(...) returns {type(network).__name__}, not a torch "
            "nn.Module; return the network"
        )
    images = torch.zeros(2, *image_shape)
    try:
        logits = _try(network, images)
    except (Exception, SystemExit) as error:
        raise _failure(params, f", on images of shape {tuple(images.shape)}", error) from error
    expected = (2, num_classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(
            f"{params.path}: {params.name} returns {given} for images of shape "
            f"{tuple(images.shape)}; it has to return logits of shape {expected}"
        )
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(dim=1), torch.ones(2), atol=1e-3):
        raise UsageError(
            f"{params.path}: {params.name} returns probabilities; it has to return logits. Remove "
            "its softmax, which the loss applies."
        )
    to_channels_last(network)
    try:
        _try(network, images.contiguous(memory_format=torch.channels_last))
    except Exception:
        # It has just computed the same images in the usual layout, so the layout is at fault: many
        # networks use ``view`` where only ``flatten`` supports both. Their code may raise anything.
        network.register_forward_pre_hook(_contiguous)
        network.to(memory_format=torch.contiguous_format)
    return network


def to_channels_last(network: nn.Module) -> nn.Module:
    """Convert kernels to channels-last, in place, unless a custom network fails with it."""
    if _contiguous in network._forward_pre_hooks.values():
        return network
    for tensor in (*network.parameters(recurse=False), *network.buffers(recurse=False)):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    for child in network.children():
        to_channels_last(child)
    return network


def _contiguous(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *rest = inputs
    return images.contiguous(), *rest


def _try(network: nn.Module, images: Tensor) -> Any:
    """Call the network without affecting its tensors or a training's random numbers.

    Weights that a network fits to the first images that it sees are to be fitted in the training.
    Tensors that it creates only now, such as those of lazy layers, are kept.
    """
    was_training = network.training
    places: list[dict[str, Any]] = []
    for module in network.modules():
        places += [module._parameters, module._buffers]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = [
            (place, name, tensor, tensor.detach(), tensor.clone())
            for place in places
            for name, tensor in place.items()
            if tensor is not None and not is_lazy(tensor)
        ]
        network.eval()
        try:
            return network(images)
        finally:
            network.train(was_training)
            for place, name, tensor, memory, values in before:
                if name in place and getattr(place[name], "shape", None) == memory.shape:
                    memory.copy_(values)
                    tensor.data = memory
                    place[name] = tensor


def _failure(params: CustomParams, when: str, error: BaseException) -> UsageError:
    place = place_of(params.path, error)
    return UsageError(f"{place}: {params.name} failed{when}: {first_line_of(error)}")
