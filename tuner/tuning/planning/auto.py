"""The rules of ``--space auto``: from images, machine and time to a search space.

1. **Recipes** are shipped spaces: ``transfer`` if weights of its networks are on this machine,
   ``cnn`` if trials have GPUs, ``small`` always. They are tried in this order. The first one that
   has networks that fit is used, with those networks.
2. A network **fits** if the time is enough for ``TRAININGS`` whole trainings, as many at once as
   there is room for, each of enough epochs, and if one of them takes at most ``LONGEST_SHARE`` of
   the time. If none fits, the fastest is used.
3. **Images** are as large as the median of the data set, if networks fit: sides are tried from the
   largest down.
4. **Batches** leave ``STEPS`` steps in an epoch, or half as many.
5. **Epochs**: as many as leave time for ``TRAININGS`` whole trainings, up to where more would gain
   little; trials are compared after a quarter and a half of them.
6. **Trials**: as many as a simulated search completes in the time.

The seconds of an epoch are measured on a few steps of each network, as in ``plan``.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.data.survey import Survey

SIDES = (128, 96, 64, 48, 32)
"""Candidate sides of images in pixels; a search keeps all images in memory."""
TRAININGS = 12
"""Number of whole trainings for which the time has to be enough: if half of the trials stop at each
of two rungs, these are 24 trials, of which 6 are trained to the end and can vote."""
LEAST_TRAININGS = 6
"""The same, if no network fits."""
LONGEST_SHARE = 0.25
"""Largest share of the time for one training: a sampler learns from trials that have ended."""
STEPS = 24
"""Minimum number of steps per epoch, with the smaller of the two batch sizes."""
BATCHES = (16, 64)
GPU_BATCHES = (32, 512)
"""Smallest and largest batch size; a GPU needs larger ones."""
REDUCTION = 2
QUARTERS = REDUCTION**2
"""Parts of a training: trials are compared after the first and the second part."""
TRANSFER_SIDE = 64
"""Minimum side in pixels to which pretrained networks enlarge smaller images."""
PIXELS = ("crop", "cutout")
"""Keys of ``augment`` that are in pixels."""
MOST_STAGES = {"cnn": 6, "speednet": 5}
"""Maximum number of stages of the families that halve the side from stage to stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A shipped space, and how long its networks are trained."""

    space: str
    enough: int
    """Training images that a network has to see, over all epochs, to learn something."""
    most: int
    """Training images, over all epochs, beyond which a network gains little."""
    epochs: tuple[int, int]
    """Smallest and largest number of epochs, for both ``enough`` and ``most``."""

    def enough_epochs(self, num_train: int) -> int:
        """Return the number of epochs that a network needs."""
        least, most = self.epochs
        return min(most, max(least, round(self.enough / num_train)))

    def most_epochs(self, num_train: int) -> int:
        """Return the number of epochs beyond which a network gains little."""
        least, most = self.epochs
        return min(most, max(least, round(self.most / num_train)))


TRANSFER = Recipe(space="transfer", enough=2_500, most=400_000, epochs=(2, 30))
GPU = Recipe(space="cnn", enough=40_000, most=4_000_000, epochs=(8, 100))
SMALL = Recipe(space="small", enough=20_000, most=2_000_000, epochs=(4, 100))


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The resources of a search."""

    slots: int
    """Number of trials at once."""
    has_gpu: bool
    """Whether trials have a GPU."""
    seconds: float
    """Search time in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeNetwork:
    """A network of a recipe."""

    recipe: Recipe
    name: str
    """Name of its family, or its own name if it is pretrained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The result of the rules, except for the number of trials."""

    recipe: Recipe
    names: tuple[str, ...]
    """Names of the networks."""
    side: int
    epochs: int
    batch_size: int
    """The smaller of the two batch sizes."""
    trainings: float
    """Number of whole trainings for which the time is enough."""


def recipes_of(num_weights: int, has_gpu: bool) -> list[Recipe]:
    """Return the recipes to consider, best first.

    Args:
        num_weights: Number of pretrained networks whose weights are on this machine.
        has_gpu: Whether trials have GPUs.
    """
    return [*([TRANSFER] if num_weights else []), *([GPU] if has_gpu else []), SMALL]


def sides_of(side: int) -> tuple[int, ...]:
    """Return the sides to consider, largest first: up to the images' own, or else the smallest."""
    return tuple(known for known in SIDES if known <= side) or SIDES[-1:]


def batch_size_of(num_train: int, has_gpu: bool) -> int:
    """Return the largest power of two that leaves ``STEPS`` steps per epoch, within the limits."""
    least, most = GPU_BATCHES if has_gpu else BATCHES
    fitting = 1 << (num_train // STEPS).bit_length() >> 1
    return min(most, max(least, fitting))


def epochs_within(epoch_seconds: float, machine: Machine, trainings: float) -> int:
    """Return how many epochs each of ``trainings`` trainings can have."""
    of_all = machine.slots * machine.seconds / (trainings * epoch_seconds)
    of_one = LONGEST_SHARE * machine.seconds / epoch_seconds
    return int(min(of_all, of_one))


def choose(
    networks: Sequence[RecipeNetwork],
    seconds_of: Callable[[RecipeNetwork, int], float],
    sides: Sequence[int],
    images: Survey,
    machine: Machine,
) -> Settings:
    """Choose recipe, networks, side, batches and epochs.

    Args:
        networks: The candidates, those of the best recipe first.
        seconds_of: Returns the seconds of an epoch with its validation, for a network and a side.
        sides: Sides to consider, largest first.
        images: Survey of the images.
        machine: The resources of the search.
    """

    def chosen(
        recipe: Recipe, fitting: Sequence[RecipeNetwork], side: int, trainings: float
    ) -> Settings:
        slowest = max(seconds_of(network, side) for network in fitting)
        epochs = min(
            epochs_within(slowest, machine, trainings), recipe.most_epochs(images.num_train)
        )
        # A multiple of QUARTERS, so that no rung is right before the end.
        epochs = epochs // QUARTERS * QUARTERS or max(1, epochs)
        return Settings(
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


def space_of(choice: Settings, base: Mapping[str, Any], *, is_mirrored: bool) -> dict[str, Any]:
    """Return a recipe's space for a choice, as plain values; the number of trials is the recipe's.

    Values in pixels, meant for images of side 32, scale with the side of the images; small networks
    get one more stage for each doubling of it.

    Args:
        choice: What was chosen.
        base: The recipe's space, resolved.
        is_mirrored: Whether a mirrored image shows the same thing.
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
    """Return an axis of the distinct values, or the value if there is only one."""
    distinct = list(dict.fromkeys(values))
    return {"choice": distinct} if len(distinct) > 1 else distinct[0]


def _scaled(axis: Any, scale: float) -> Any:
    """Scale pixels, or a choice of them, to another side of the images."""
    values = axis["choice"] if isinstance(axis, dict) else [axis]
    return _axis([round(scale * value) for value in values])


def _add_stages(model: dict[str, Any], more: int) -> None:
    """Add ``more`` stages to the networks of a model's families, up to ``MOST_STAGES``."""
    for family, most in MOST_STAGES.items():
        params = model.get(family)
        if params and "stages" in params:
            stages = params["stages"]
            ends = stages["int"] if isinstance(stages, dict) else [stages]
            added = [min(most, end + more) for end in ends]
            params["stages"] = {"int": added} if len(set(added)) > 1 else added[0]
