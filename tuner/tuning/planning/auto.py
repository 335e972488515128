"""The rules of ``--space auto``: from images, machine and time to a search space.

1. **Recipes** are shipped spaces: ``transfer`` where weights of its networks lie on this machine,
   ``cnn`` where trials have GPUs, ``small`` everywhere. They are tried in this order, and the first
   is taken that has networks which fit, with those.
2. A network **fits** if the time holds ``TRAININGS`` whole trainings, as many at once as there is
   room for, each of enough epochs, and if one of them takes at most ``LONGEST_SHARE`` of the time.
   Where none fits, the quickest is taken.
3. **Images** are as large as those of the data set at their median, as far as networks fit: sides
   are tried from the largest down.
4. **Batches** leave ``STEPS`` steps in an epoch, or half as many.
5. **Epochs**: as many as leave the time for ``TRAININGS`` whole trainings, up to where more would
   gain little; trials are compared after a quarter and a half of them.
6. **Trials**: as many as a simulated search brings to its end in the time.

The seconds of an epoch are measured: a few steps of each network, as ``plan`` does.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.data.survey import Survey

SIDES = (128, 96, 64, 48, 32)
"""Sides of images that are considered, in pixels; a search keeps all images in memory."""
TRAININGS = 12
"""Whole trainings that the time has to hold: where half of the trials stop at each of two rungs,
these are 24 trials, of which 6 run their course and can vote."""
LEAST_TRAININGS = 6
"""The same, where no network fits."""
LONGEST_SHARE = 0.25
"""Share of the time for one training: a sampler learns from what has ended."""
STEPS = 24
"""In an epoch, at the least, with the smaller of the two batches."""
BATCHES = (16, 64)
GPU_BATCHES = (32, 512)
"""Least and largest batch; a GPU wants larger ones."""
REDUCTION = 2
QUARTERS = REDUCTION**2
"""Parts of a training: trials are compared after the first and the second."""
TRANSFER_SIDE = 64
"""Pixels to which pretrained networks enlarge smaller images, at the least."""
PIXELS = ("crop", "cutout")
"""Keys of ``augment`` that are in pixels."""
MOST_STAGES = {"cnn": 6, "speednet": 5}
"""Most stages of the families that halve the side from stage to stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A shipped space, and how long its networks are trained."""

    space: str
    enough: int
    """Training images that a network sees, all epochs together, to have learnt something."""
    most: int
    """Images beyond which it gains little."""
    epochs: tuple[int, int]
    """Least number for ``enough``, and largest for ``most``."""

    def enough_epochs(self, num_train: int) -> int:
        """Return the epochs that a network has to be given."""
        least, most = self.epochs
        return min(most, max(least, round(self.enough / num_train)))

    def most_epochs(self, num_train: int) -> int:
        """Return the epochs beyond which it gains little."""
        least, most = self.epochs
        return min(most, max(least, round(self.most / num_train)))


TRANSFER = Recipe(space="transfer", enough=2_500, most=400_000, epochs=(2, 30))
GPU = Recipe(space="cnn", enough=40_000, most=4_000_000, epochs=(8, 100))
SMALL = Recipe(space="small", enough=20_000, most=2_000_000, epochs=(4, 100))


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a search has."""

    slots: int
    """Trials at once."""
    has_gpu: bool
    """Whether trials have one."""
    seconds: float
    """Time of the search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network of a recipe."""

    recipe: Recipe
    name: str
    """Name of its family or, for a pretrained one, its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the rules have come to, but for the number of trials."""

    recipe: Recipe
    names: tuple[str, ...]
    """Names of the networks."""
    side: int
    epochs: int
    batch_size: int
    """The smaller of the two."""
    trainings: float
    """Whole trainings that the time holds."""


def recipes_of(num_weights: int, has_gpu: bool) -> list[Recipe]:
    """Return the recipes to consider, the best first.

    Args:
        num_weights: Pretrained networks whose weights lie on this machine.
        has_gpu: Whether trials have GPUs.
    """
    return [*([TRANSFER] if num_weights else []), *([GPU] if has_gpu else []), SMALL]


def sides_of(side: int) -> tuple[int, ...]:
    """Return the sides to consider, the largest first: none above that of the images themselves."""
    return tuple(known for known in SIDES if known <= side) or SIDES[-1:]


def batch_size_of(num_train: int, has_gpu: bool) -> int:
    """Return the largest power of two that leaves ``STEPS`` steps in an epoch."""
    least, most = GPU_BATCHES if has_gpu else BATCHES
    fitting = 1 << (num_train // STEPS).bit_length() >> 1
    return min(most, max(least, fitting))


def epochs_within(epoch_seconds: float, machine: Machine, trainings: float) -> int:
    """Return how many epochs each of so many trainings can have."""
    of_all = machine.slots * machine.seconds / (trainings * epoch_seconds)
    of_one = LONGEST_SHARE * machine.seconds / epoch_seconds
    return int(min(of_all, of_one))


def choose(
    networks: Sequence[Network],
    seconds_of: Callable[[Network, int], float],
    sides: Sequence[int],
    images: Survey,
    machine: Machine,
) -> Choice:
    """Choose recipe, networks, side, batches and epochs.

    Args:
        networks: Those of the best recipe first.
        seconds_of: Network, side of the images -> seconds of an epoch with its validation.
        sides: To consider, the largest first.
        images: How many there are.
        machine: What there is to search on.
    """

    def chosen(recipe: Recipe, fitting: Sequence[Network], side: int, trainings: float) -> Choice:
        slowest = max(seconds_of(network, side) for network in fitting)
        epochs = min(
            epochs_within(slowest, machine, trainings), recipe.most_epochs(images.num_train)
        )
        # In quarters, so that no rung lies beside the end.
        epochs = epochs // QUARTERS * QUARTERS or max(1, epochs)
        return Choice(
            recipe=recipe,
            names=tuple(network.name for network in fitting),
            side=side,
            epochs=epochs,
            batch_size=batch_size_of(images.num_train, machine.has_gpu),
            trainings=machine.slots * machine.seconds / (epochs * slowest),
        )

    for recipe in dict.fromkeys(network.recipe for network in networks):
        own = [network for network in networks if network.recipe is recipe]
        enough = recipe.enough_epochs(images.num_train)
        for side in sides:
            fitting = [
                network
                for network in own
                if epochs_within(seconds_of(network, side), machine, TRAININGS) >= enough
            ]
            if fitting:
                return chosen(recipe, fitting, side, TRAININGS)
    side = sides[-1]
    quickest = min(networks, key=lambda network: seconds_of(network, side))
    return chosen(quickest.recipe, [quickest], side, LEAST_TRAININGS)


def space_of(choice: Choice, base: Mapping[str, Any], *, is_mirrored: bool) -> dict[str, Any]:
    """Return a recipe's space as it was chosen, as plain values; its trials are still the recipe's.

    What is measured in pixels, for images of 32, grows with the side of the images; small networks
    get a stage more for each doubling of it.

    Args:
        choice: What was chosen.
        base: The recipe's space, resolved.
        is_mirrored: Whether a mirror image shows the same.
    """
    plain = copy.deepcopy(dict(base))
    scale = choice.side / 32
    plain["search"] |= {
        "epochs": choice.epochs,
        "grace": max(1, choice.epochs // QUARTERS),
        "reduction": REDUCTION,
    }
    space = plain["space"]
    space["batch_size"] = {"choice": [choice.batch_size, 2 * choice.batch_size]}
    for entry in plain["baseline"]:
        entry.pop("batch_size", None)
    if choice.recipe is TRANSFER:
        params = space["model"]["pretrained"]
        params |= {"name": _axis(choice.names), "image_size": max(TRANSFER_SIDE, choice.side)}
        for entry in plain["baseline"]:
            entry["model"]["pretrained"] |= {"name": choice.names[0]}
            del entry["model"]["pretrained"]["image_size"]
    else:
        families = space["model"].get("choice", space["model"])
        kept = {name: families[name] for name in choice.names}
        space["model"] = {"choice": kept} if len(kept) > 1 else kept
        plain["baseline"] = [
            entry for entry in plain["baseline"] if entry["model"].keys() <= kept.keys()
        ]
        for model in (kept, *(entry["model"] for entry in plain["baseline"])):
            _add_stages(model, max(0, int(math.log2(scale))))
    for part in (space, *plain["baseline"]):
        augment = part.get("augment", {})
        augment |= {key: _scaled(augment[key], scale) for key in PIXELS if key in augment}
        if "flip" in augment:
            augment["flip"] = is_mirrored
    if "flops" in plain.get("constraints", {}):
        plain["constraints"]["flops"] *= scale**2
    return plain


def _axis(values: Sequence[Any]) -> Any:
    """Return the axis of these values, or the only one."""
    distinct = list(dict.fromkeys(values))
    return {"choice": distinct} if len(distinct) > 1 else distinct[0]


def _scaled(axis: Any, scale: float) -> Any:
    """Return pixels, or a choice of them, for images of another side."""
    values = axis["choice"] if isinstance(axis, dict) else [axis]
    return _axis([round(scale * value) for value in values])


def _add_stages(model: dict[str, Any], more: int) -> None:
    """Add so many stages to the networks of a model's families, as far as they can have them."""
    for family, most in MOST_STAGES.items():
        params = model.get(family)
        if params and "stages" in params:
            stages = params["stages"]
            ends = stages["int"] if isinstance(stages, dict) else [stages]
            added = [min(most, end + more) for end in ends]
            params["stages"] = {"int": added} if len(set(added)) > 1 else added[0]
