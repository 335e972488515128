"""``--space auto``: measure networks, apply the rules of ``auto``, and write a space."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from tuner.config import AUTO, DIVISION, DataConfig, SearchConfig, TrialConfig
from tuner.data.cache import Images
from tuner.data.known import KNOWN, WITHOUT_NETWORK
from tuner.data.splits import Splits
from tuner.data.survey import Survey, survey
from tuner.errors import UsageError
from tuner.models.cost import count_cost
from tuner.monitor.steps import step
from tuner.monitor.terminal import tell
from tuner.schema import plural
from tuner.space import RandomTrial, SearchSpace, load_space
from tuner.space.source import SHIPPED, said_of
from tuner.storage.paths import scratch
from tuner.training.initial_weights import load_all_initial_weights, weights_at_hand
from tuner.tuning.budget import Budget
from tuner.tuning.planning.auto import (
    SIDES,
    SMALL,
    TRAININGS,
    TRANSFER,
    Machine,
    Recipe,
    RecipeNetwork,
    Settings,
    batch_size_of,
    choose,
    recipes_of,
    sides_of,
    space_of,
)
from tuner.tuning.planning.measure import Measured, measure_all
from tuner.tuning.planning.simulated import TrialCost, simulate
from tuner.tuning.ray_backend.capacity import fits_together
from tuner.tuning.ray_backend.cluster import connected
from tuner.tuning.ray_backend.driver import capacity_of
from tuner.tuning.ray_backend.payload import pack, pack_initial_weights
from tuner.tuning.request import SearchRequest
from tuner.tuning.resources import CapacityPlan, TrialResources

DEFAULT_SECONDS = 1800.0
"""Default search time in seconds."""
MEASURED_SHARE = 0.05
"""Share of the time in which measurements may start; networks are measured twice at most."""
MOST_BLANKS = 2048
MOST_BLANK_BYTES = 2**28
"""Maximum number of images on which networks are measured, and of their bytes; for more images, the
time of an epoch is scaled by their number."""
DRAWS, SIMULATIONS = 40, 5
LEAST_LEFT = 0.9
"""Minimum share of the time for the search itself, however long measuring took."""
LEAST_TRIALS, MOST_TRIALS = 8, 300


@contextmanager
def making_space(
    make: Callable[[SearchSpace], SearchRequest], overrides: Sequence[str], console: Console
) -> Iterator[SearchRequest]:
    """Make a space for the images, the machine and the time of a request, and show it.

    The cluster stays connected for the block, so that the search can run there.

    Args:
        make: Returns the request for a space.
        overrides: ``KEY=VALUE`` each, as for ``load_space``; they override the rules.
        console: Where the space is shown.

    Yields:
        The request with its space, and with the remaining time.

    Raises:
        UsageError: If no data are named, or no network can be trained on them.
        DataError: If the images cannot be read.
        ClusterError: As ``connected`` and ``plan_capacity``.
    """
    tops = [word.partition("=")[0].partition(".")[0].strip() for word in overrides]
    if "dataset" not in tops:
        raise UsageError("--space auto: makes a space for images; name them with --data")
    general = [word for word, top in zip(overrides, tops, strict=True) if top != "space"]
    request = make(load_space(_file(SMALL), general))
    if math.isinf(request.seconds) and math.isinf(request.gpu_hours):
        minutes = DEFAULT_SECONDS / 60
        tell(
            console,
            f"--space auto: the search takes {minutes:.0f} minutes; --time-budget says otherwise",
        )
        request = replace(request, seconds=DEFAULT_SECONDS)
    with step(console, f"Looking at {request.data.source}"):
        images = survey(request.data, request.data_dir)
    with connected(request.address, console=console):
        began = time.monotonic()
        blanks = _blanks(images, SIDES[-1])
        capacity = capacity_of(request, request.space.resources, blanks)
        seconds = min(request.seconds, 3600 * request.gpu_hours / _gpus_of(capacity))
        maker = _Maker(
            request=request,
            overrides=overrides,
            images=images,
            capacity=capacity,
            machine=Machine(
                slots=capacity.count, has_gpu=capacity.default.gpus > 0, seconds=seconds
            ),
            console=console,
        )
        space = maker.make()
        left = _left(request.seconds, began)
        tell(console, space.resolved().rstrip())
        yield replace(make(space), seconds=left)


def _left(seconds: float, began: float) -> float:
    """Return what is left of the time of a search for the search itself."""
    return max(seconds - (time.monotonic() - began), LEAST_LEFT * seconds)


def _file(recipe: Recipe) -> Path:
    return SHIPPED / f"{recipe.space}.yaml"


def _gpus_of(capacity: CapacityPlan) -> float:
    """Return the GPUs of all trials at once; without any, a tiny number: GPU hours never end."""
    return capacity.count * capacity.default.gpus or math.ulp(0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Maker:
    request: SearchRequest
    overrides: Sequence[str]
    images: Survey
    capacity: CapacityPlan
    machine: Machine
    console: Console
    measured: dict[RecipeNetwork, tuple[int, Measured]] = field(default_factory=dict)
    """Network -> side of the images, and the measurement."""
    configs: dict[tuple[RecipeNetwork, int], TrialConfig] = field(default_factory=dict)
    """Network and side of the images -> configuration."""
    began: float = field(default_factory=time.monotonic)

    @property
    def machine_left(self) -> Machine:
        """The machine with the remaining time."""
        return replace(self.machine, seconds=_left(self.machine.seconds, self.began))

    def make(self) -> SearchSpace:
        """Measure on small images, choose, measure the choice at its own size, and choose again."""
        networks = self.networks()
        sides = self.sides()
        self.measure(networks, sides[-1])
        choice = self.choose(sides)
        if choice.side != sides[-1]:
            self.measure(
                [RecipeNetwork(recipe=choice.recipe, name=name) for name in choice.names],
                choice.side,
            )
            choice = self.choose([side for side in sides if side <= choice.side])
        if self.is_asked("epochs"):
            choice = replace(choice, epochs=self.request.search.epochs)
        return self.space(choice)

    def is_asked(self, key: str) -> bool:
        """Whether the user has set ``key`` of ``search:``."""
        return f"search.{key}" in said_of(self.overrides)

    def sides(self) -> tuple[int, ...]:
        if self.request.data.image_size is not None:
            return (self.request.data.image_size,)
        is_known = self.request.data.source in KNOWN
        return (self.images.side,) if is_known else sides_of(self.images.side)

    def networks(self) -> list[RecipeNetwork]:
        """Return the networks to consider, those of the best recipe first."""
        names = yaml.safe_load(_file(TRANSFER).read_text(encoding="utf-8"))["space"]["model"]
        at_hand = weights_at_hand(names["pretrained"]["name"]["choice"])
        networks = []
        for recipe in recipes_of(len(at_hand), self.machine.has_gpu):
            own = at_hand if recipe is TRANSFER else list(families_of(base_of(recipe)))
            networks += [RecipeNetwork(recipe=recipe, name=name) for name in own]
        return networks

    def choose(self, sides: Sequence[int]) -> Settings:
        usable = [network for network, (_, one) in self.measured.items() if not one.problem]
        if not usable:
            _, first = next(iter(self.measured.values()))
            raise UsageError(f"--space auto: no network can be trained here: {first.problem}")
        return choose(usable, self.seconds_of, sides, self.images, self.machine_left)

    def measure(self, networks: Sequence[RecipeNetwork], side: int) -> None:
        """Train a few steps of each network on blank images, on all slots at once.

        Other networks run at the same time, as in the search: one alone would be faster.
        """
        count = max(len(networks), self.capacity.count)
        configs = [self.config_of(network, side) for network in islice(cycle(networks), count)]
        blanks = _blanks(self.images, side)
        models = [config.model for config in configs]
        weights = load_all_initial_weights(models, blanks, self.request.storage)
        seconds = MEASURED_SHARE * self.machine.seconds
        parent = self.request.plan_path(blanks, self.capacity).absolute().parent
        with (
            scratch(parent, ".measuring-") as folder,
            step(self.console, f"Measuring {plural(len(networks), 'network')}"),
        ):
            found = measure_all(
                configs,
                self.capacity.resources_of,
                self.capacity.count,
                {"data": pack(blanks), "initial_weights": pack_initial_weights(weights)},
                folder,
                seconds,
                lambda number: None,
                windows=1,
            )
        # With folds, an epoch trains one network per fold.
        share = (self.request.data.folds or 1) * self.images.num_train / len(blanks.train)
        for place, network in enumerate(networks):
            own = [one for one in found[place :: len(networks)] if one is not None]
            if own:
                failed = next((one for one in own if one.problem), None)
                seconds = share * statistics.fmean(one.epoch_seconds for one in own)
                self.measured[network] = side, failed or replace(own[0], epoch_seconds=seconds)

    def seconds_of(self, network: RecipeNetwork, side: int) -> float:
        """Return the seconds of an epoch, scaled by FLOPs from the side that was measured."""
        measured_side, one = self.measured[network]
        flops, known = (
            self.flops_of(self.config_of(network, at), at) for at in (side, measured_side)
        )
        return one.epoch_seconds * flops / known

    def flops_of(self, config: TrialConfig, side: int) -> int:
        shape = (self.images.channels, side, side)
        return max(1, count_cost(config.model, self.images.num_classes, shape).flops)

    def config_of(self, network: RecipeNetwork, side: int) -> TrialConfig:
        """Return the configuration that represents a network: its baseline, or else a draw."""
        if (network, side) not in self.configs:
            self.configs[network, side] = self._config_of(network, side)
        return self.configs[network, side]

    def _config_of(self, network: RecipeNetwork, side: int) -> TrialConfig:
        choice = Settings(
            recipe=network.recipe,
            names=(network.name,),
            side=side,
            epochs=network.recipe.epochs[1],
            batch_size=batch_size_of(self.images.num_train, self.machine.has_gpu),
            trainings=TRAININGS,
        )
        config = _first_config(self.load(self.plain(choice)))
        return replace(config, batch_size=choice.batch_size)

    def plain(self, choice: Settings) -> dict[str, Any]:
        is_mirrored = self.request.data.source not in WITHOUT_NETWORK
        return space_of(choice, base_of(choice.recipe), is_mirrored=is_mirrored)

    def load(self, plain: dict[str, Any]) -> SearchSpace:
        """Load a space; baseline values that the user's overrides exclude are left out."""
        text = yaml.safe_dump(plain, sort_keys=False)
        return load_space(Path(AUTO), self.overrides, self.request.storage, text=text)

    def space(self, choice: Settings) -> SearchSpace:
        """Return the space for a choice, with the number of trials and the reasons."""
        plain = self.plain(choice)
        data = self.request.data
        settings = {
            key: value
            for key in DIVISION
            if (value := getattr(data, key)) != getattr(DataConfig(), key)
        }
        if data.source not in KNOWN and data.resize != "auto":
            settings["resize"] = data.resize
        if data.source not in KNOWN or data.image_size is not None:
            settings["image_size"] = choice.side
        if settings:
            plain["dataset"] = {"source": data.source, **settings}
        trials = self.request.search.trials
        if not self.is_asked("trials"):
            trials = self.trials(choice, self.load(plain))
        plain["search"]["trials"] = trials
        plain["description"] = "\n".join(self.reasons(choice, trials))
        return self.load(dict(sorted(plain.items(), key=lambda entry: entry[0] != "description")))

    def trials(self, choice: Settings, space: SearchSpace) -> int:
        """Return how many trials fit into the time."""
        costs = []
        for seed in range(DRAWS):
            config = space.sample(RandomTrial(seed), epochs=space.search.epochs, seed=seed)
            network = RecipeNetwork(recipe=choice.recipe, name=_name_of(config))
            if network not in self.measured:
                # The user has fixed the model, which was measured in place of each network.
                network = RecipeNetwork(recipe=choice.recipe, name=choice.names[0])
            _, one = self.measured[network]
            ratio = self.flops_of(config, choice.side) / self.flops_of(
                self.config_of(network, choice.side), choice.side
            )
            costs.append(
                TrialCost(
                    config=config,
                    resources=self.capacity.resources_of(config),
                    setup_seconds=one.setup_seconds,
                    epoch_seconds=ratio * self.seconds_of(network, choice.side),
                    write_seconds=one.write_seconds,
                )
            )
        fit = fits_together(self.capacity)
        return most_trials(costs, space.search, self.machine_left.seconds, fit)

    def reasons(self, choice: Settings, trials: int) -> Iterator[str]:
        """Yield a line for each part of the space, with the numbers behind it."""
        images, machine = self.images, self.machine
        yield f"Made by --space auto, for {machine.seconds / 60:.3g} minutes."
        count = f"{images.num_train} to train on, {images.num_val} to validate on"
        if folds := self.request.data.folds:
            count += f" in each of {folds} folds"
        yield (
            f"Images: {count}, {images.num_classes} classes, {images.side} pixels at the median; "
            f"trained on at {choice.side}."
        )
        told = ", ".join(
            f"{network.name} {self.seconds_of(network, choice.side):.2g}"
            for network, (_, one) in self.measured.items()
            if not one.problem
        )
        yield (
            f"Networks: {', '.join(choice.names)}. Seconds of an epoch at {choice.side} pixels, "
            f"measured: {told}; {self.capacity}."
        )
        steps = images.num_train // choice.batch_size
        yield f"Batches: from {choice.batch_size}, which is {steps} steps an epoch."
        room = f"the time is enough for {choice.trainings:.0f} full trainings"
        yield f"Epochs: {choice.epochs}{', as asked' if self.is_asked('epochs') else f'; {room}'}."
        most = "as many as a simulated search ends within the time"
        yield f"Trials: {trials}, {'as asked' if self.is_asked('trials') else most}."


def most_trials(
    costs: Sequence[TrialCost],
    search: SearchConfig,
    seconds: float,
    fit: Callable[[Sequence[TrialResources]], bool],
) -> int:
    """Return how many trials simulated searches complete in a given time, at the median.

    Args:
        costs: Costs of configurations of the space.
        search: The search to simulate, with varying numbers of trials.
        seconds: The time in seconds.
        fit: See ``simulate_search``.
    """

    def ends(trials: int) -> bool:
        searches = simulate(
            costs,
            0,
            replace(search, trials=trials),
            Budget(trials=trials),
            fit,
            start_seconds=0.0,
        )
        return statistics.median(one.seconds for one in islice(searches, SIMULATIONS)) <= seconds

    low, high = LEAST_TRIALS, LEAST_TRIALS
    while high < MOST_TRIALS and ends(high):
        low, high = high, min(MOST_TRIALS, 2 * high)
    # To within a tenth, since simulations differ by as much.
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        low, high = (middle, high) if ends(middle) else (low, middle)
    return low


def _first_config(space: SearchSpace) -> TrialConfig:
    index = 0 if space.baseline else None
    params = space.baseline_params(0) if space.baseline else {}
    return space.sample(
        RandomTrial(params=params), epochs=space.search.epochs, seed=0, baseline=index
    )


def _name_of(config: TrialConfig) -> str:
    """Return the name of a configuration's network, as in ``RecipeNetwork``."""
    return str(config.model.params.get("name") or config.model.family)


@functools.cache
def base_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's space, resolved."""
    plain: dict[str, Any] = yaml.safe_load(load_space(_file(recipe)).resolved())
    return plain


def families_of(base: dict[str, Any]) -> Sequence[str]:
    """Return the families of a space's networks."""
    model = base["space"]["model"]
    return list(model.get("choice", model))


def _blanks(images: Survey, side: int) -> Splits:
    """Return noise images of a given side, as many as are measured on."""
    room = max(1, MOST_BLANK_BYTES // (images.channels * side**2))
    number = min(images.num_train, MOST_BLANKS, room)
    generator = torch.Generator().manual_seed(0)

    def noise(count: int) -> Images:
        shape = (count, images.channels, side, side)
        return Images(
            images=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
            labels=torch.arange(count) % images.num_classes,
        )

    return Splits(
        train=noise(number),
        val=noise(max(1, images.num_val * number // images.num_train)),
        classes=tuple(map(str, range(images.num_classes))),
        mean=(0.5,) * images.channels,
        std=(0.25,) * images.channels,
        fingerprint="noise",
        split_fingerprint=str(side),
    )
