"""``plan()``: forecast a search from measured steps and simulated searches."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from rich.console import Console

from tuner.config import SearchConfig, TrialConfig, rung_epochs
from tuner.data.splits import Splits
from tuner.errors import UsageError
from tuner.models.cost import count_cost
from tuner.monitor.steps import step
from tuner.monitor.terminal import tell
from tuner.run.forecast import FamilyForecast, Forecast, Infeasible, RungForecast, Spread
from tuner.schema import plural
from tuner.space import SearchSpace
from tuner.storage.paths import AnyPath, scratch
from tuner.storage.records import write_record
from tuner.training.initial_weights import load_all_initial_weights
from tuner.tuning.budget import Budget
from tuner.tuning.planning.measure import Measured, measure_all
from tuner.tuning.planning.simulated import SimulatedSearch, TrialCost, simulate
from tuner.tuning.ray_backend.capacity import fits_together
from tuner.tuning.ray_backend.cluster import connected
from tuner.tuning.ray_backend.driver import capacity_of
from tuner.tuning.ray_backend.payload import pack, pack_initial_weights
from tuner.tuning.request import SearchRequest, read_splits
from tuner.tuning.resources import CapacityPlan
from tuner.tuning.sampling.sampler import Sampler
from tuner.tuning.sampling.study import check_study_fits, quiet_optuna
from tuner.tuning.session import limit_violation_of, remember_and_check_code

MOST_DRAWN = 100
"""Maximum number of configurations that represent a space."""
STARTUP = 10
"""Number of random trials before Optuna's learning samplers start to learn."""
MOST_SIMULATIONS, LEAST_SIMULATIONS = 300, 50
SIMULATED_TRIALS = 30_000
"""Number of trials in all simulations together, which takes a few seconds."""
ADVISING_SIMULATIONS = 10
"""Simulations per tried number of epochs, to find the number that fits into the budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A forecast, and where it is kept for the report of the search."""

    forecast: Forecast
    path: AnyPath


@quiet_optuna()
def plan(request: SearchRequest, seconds: float, console: Console) -> Plan:
    """Forecast a search, and store the forecast for its report.

    Args:
        request: The search.
        seconds: Seconds in which new measurements may start; those under way are completed.
        console: Where progress is shown.

    Raises:
        UsageError: On data or weights that cannot be read, a sampler that cannot search this space,
            or if none of the configurations that were measured can be trained.
        ClusterError: On a cluster that does not answer, or is too small.
    """
    space = request.space
    check_study_fits(space, request.search)
    remember_and_check_code(request)
    splits = read_splits(request, console)
    initial_weights = load_all_initial_weights(space.starting_models(), splits, request.storage)
    draws = _draw(request, splits)
    with connected(request.address, console=console):
        capacity = capacity_of(request, space.resources, splits)
        path = request.plan_path(splits, capacity).absolute()
        tell(console, f"{capacity}; measuring for {seconds:.0f} s")
        began = time.monotonic()
        with (
            scratch(path.parent, ".measuring-") as folder,
            step(console, "Starting workers") as told,
        ):
            measured = measure_all(
                draws.configs,
                capacity.resources_of,
                capacity.count,
                {"data": pack(splits), "initial_weights": pack_initial_weights(initial_weights)},
                folder,
                seconds,
                lambda number: told(f"{plural(number, 'configuration')} measured"),
            )
        spent = time.monotonic() - began
        fit = fits_together(capacity)
    known = [entry for entry in measured if entry is not None]
    if all(entry.problem for entry in known):
        raise UsageError(
            f"{request.space_name}: none of {plural(len(known), 'configuration')} measured can "
            f"be trained: {known[0].problem}"
        )
    entries = _filled(measured, draws.configs, splits)
    budget = Budget(
        trials=draws.trials, seconds=request.seconds, gpu_seconds=3600 * request.gpu_hours
    )
    # Each slot had one fresh worker.
    starts = sorted(entry.start_seconds for entry in known)[-capacity.count :]
    imagined = partial(
        simulate, num_known=draws.num_known, fit=fit, start_seconds=statistics.median(starts)
    )
    with step(console, "Simulating searches"):
        costs = [_cost(entry, space) for entry in entries]
        searches = imagined(costs, search=request.search, budget=budget)
        simulations = min(
            MOST_SIMULATIONS, max(LEAST_SIMULATIONS, SIMULATED_TRIALS // draws.trials)
        )
        forecast = _forecast(
            request,
            draws,
            capacity,
            splits,
            entries,
            known,
            list(islice(searches, simulations)),
            spent,
        )
        assert forecast.done is not None
        if forecast.done.median < draws.trials:
            forecast = with_advice(forecast, imagined, costs, request.search, budget)
    write_record(path, forecast)
    return Plan(forecast=forecast, path=path)


def with_advice(
    forecast: Forecast,
    imagined: Callable[..., Iterator[SimulatedSearch]],
    costs: Sequence[TrialCost],
    search: SearchConfig,
    budget: Budget,
) -> Forecast:
    """Add to a forecast how a search whose budget is too small could train all its trials."""
    number = max(3, min(ADVISING_SIMULATIONS, SIMULATED_TRIALS // 10 // budget.trials))
    endless = list(
        islice(imagined(costs, search=search, budget=Budget(trials=budget.trials)), number)
    )
    fits, too_many = 0, search.epochs
    while too_many - fits > 1:
        epochs = (fits + too_many) // 2
        shorter = [replace(cost, config=replace(cost.config, epochs=epochs)) for cost in costs]
        brief = replace(search, epochs=epochs, grace=min(search.grace, epochs))
        searches = islice(imagined(shorter, search=brief, budget=budget), number)
        if statistics.median(one.done for one in searches) < budget.trials:
            too_many = epochs
        else:
            fits = epochs
    return replace(
        forecast,
        seconds_of_all=Spread.of([one.seconds for one in endless]),
        fitting_epochs=fits or None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draws:
    configs: list[TrialConfig]
    trials: int
    """Number of trials of the search: fewer than requested if a grid ends before."""
    num_known: int
    """Number of first configurations that the first trials of the search will have."""
    refused: float
    """Share of the drawn configurations that exceed the space's limits."""


def _draw(request: SearchRequest, splits: Splits) -> _Draws:
    """Propose configurations as the search will; at random once it would learn from trials."""
    space, search = request.space, request.search
    limit_violation = limit_violation_of(space, splits)
    own = Sampler(space, search, limit_violation=limit_violation)
    chance = (
        Sampler(space, replace(search, sampler="random"), limit_violation=limit_violation)
        if search.learns
        else own
    )
    configs: list[TrialConfig] = []
    for number in range(min(search.trials, MOST_DRAWN)):
        config = chance.ask(number)
        if search.learns and number < STARTUP:
            config = own.ask(number)
        if config is None:
            break
        configs.append(config)
    is_whole = len(configs) < min(search.trials, MOST_DRAWN)
    size = space.cardinality() if search.sampler == "grid" else None
    return _Draws(
        configs=configs,
        trials=len(configs) if is_whole else min(search.trials, size or search.trials),
        num_known=min(STARTUP, len(configs)) if search.learns else len(configs),
        refused=chance.num_refused / max(1, chance.num_refused + chance.num_accepted),
    )


def _filled(
    measured: Sequence[Measured | None], configs: Sequence[TrialConfig], splits: Splits
) -> list[Measured]:
    """Return costs in which unmeasured configurations have that of the nearest of their family.

    The nearest one is the closest in log FLOPs.
    """

    def size(config: TrialConfig) -> float:
        cost = count_cost(config.model, len(splits.classes), splits.image_shape)
        return math.log(max(1, cost.flops))

    known = [(entry, size(entry.config)) for entry in measured if entry is not None]
    filled = []
    for entry, config in zip(measured, configs, strict=True):
        own_size = size(config) if entry is None else 0.0
        peers = [
            (abs(peer_size - own_size), place)
            for place, (peer, peer_size) in enumerate(known)
            if peer.config.model.family == config.model.family
        ]
        filled.append(entry or replace(known[min(peers)[1]][0], config=config))
    return filled


def _cost(entry: Measured, space: SearchSpace) -> TrialCost:
    return TrialCost(
        config=entry.config,
        resources=entry.resources,
        setup_seconds=entry.setup_seconds,
        epoch_seconds=entry.epoch_seconds,
        write_seconds=entry.write_seconds,
        parameters=max(1, entry.parameters),
        is_infeasible=bool(_problem(entry, space)),
    )


def _problem(entry: Measured, space: SearchSpace) -> str:
    """Return why a configuration cannot or would not be trained; empty if it would be."""
    limit = space.constraints.epoch_seconds
    if limit is not None and entry.epoch_seconds > limit:
        return f"an epoch takes {entry.epoch_seconds:.3g} s, above the limit of {limit:.3g} s"
    return entry.problem


def _forecast(
    request: SearchRequest,
    draws: _Draws,
    capacity: CapacityPlan,
    splits: Splits,
    entries: Sequence[Measured],
    known: Sequence[Measured],
    searches: Sequence[SimulatedSearch],
    measured_seconds: float,
) -> Forecast:
    search = request.search
    rungs = (
        []
        if search.scheduler == "none"
        else rung_epochs(search.grace, search.reduction, search.epochs)
    )
    probs_bytes = 4 * len(splits.val) * len(splits.classes)
    state_bytes = statistics.fmean(entry.state_bytes for entry in entries)
    most, kept = [], []
    for one in searches:
        sizes = [
            entries[index].checkpoint_bytes
            for index, epochs in zip(one.config_indices, one.epochs, strict=True)
            if epochs
        ]
        probs = len(sizes) * probs_bytes
        most.append(sum(sizes) + probs + one.most_states * state_bytes)
        kept.append(sum(sizes[: request.keep]) + probs)
    return Forecast(
        space=request.space_name,
        trials=draws.trials,
        epochs=search.epochs,
        slots=capacity.to_plain(),
        refused=draws.refused,
        measured_seconds=measured_seconds,
        simulations=len(searches),
        seconds=Spread.of([one.seconds for one in searches]),
        training_seconds=Spread.of([one.training_seconds for one in searches]),
        gpu_hours=Spread.of([one.gpu_seconds / 3600 for one in searches]),
        started=Spread.of([len(one.epochs) for one in searches]),
        done=Spread.of([one.done for one in searches]),
        rungs=tuple(
            RungForecast(epoch=epoch, trials=Spread.of([one.reaching(epoch) for one in searches]))
            for epoch in (*rungs, search.epochs)
        ),
        families=tuple(_families([entry for entry in known if not entry.problem])),
        disk_most=Spread.of(most),
        disk_kept=Spread.of(kept),
        misfits=tuple(
            Infeasible(
                family=entry.config.model.family,
                parameters=count_cost(
                    entry.config.model, len(splits.classes), splits.image_shape
                ).parameters,
                reason=problem,
                config=entry.config.to_dict(),
            )
            for entry in known
            if (problem := _problem(entry, request.space))
        ),
    )


def _families(known: Sequence[Measured]) -> list[FamilyForecast]:
    families = {entry.config.model.family: entry.resources for entry in known}
    forecasts = []
    for family, resources in families.items():
        own = [entry for entry in known if entry.config.model.family == family]
        memory = [entry.memory for entry in own if entry.memory is not None]
        forecasts.append(
            FamilyForecast(
                family=family,
                configs=len(own),
                cpus=resources.cpus,
                gpus=resources.gpus,
                epoch_seconds=Spread.of([entry.epoch_seconds for entry in own]),
                parameters=Spread.of([entry.parameters for entry in own]),
                memory=Spread.of(memory) if memory else None,
            )
        )
    return forecasts
