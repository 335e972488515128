"""Events as workers report them to the engine, which accepts only dictionaries.

Nothing here needs PyTorch; see ``ray_backend.worker``.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tuner.config import TrialConfig
from tuner.run.events import (
    EpochEnded,
    Event,
    TrialEnded,
    TrialMeasured,
    TrialPlaced,
    TrialStarted,
)
from tuner.run.trial import EpochMetrics

EVENT = "event"


def to_report(event: Event, **more: Any) -> dict[str, Any]:
    """Return a worker's report of an event, with ``more`` entries for the driver."""
    plain = asdict(event)
    if isinstance(event, TrialStarted):
        plain["config"] = event.config.to_dict()
    # In a list, because Tune flattens mappings; it also keeps statistics of each number it sees.
    return {EVENT: [type(event).__name__, plain], **more}


def event_in(report: Mapping[str, Any]) -> Event | None:
    """Return the event that a worker has reported, if there is one."""
    if EVENT not in report:
        return None
    name, plain = report[EVENT]
    match name:
        case "TrialStarted":
            config = TrialConfig.from_dict(plain["config"])
            history = tuple(EpochMetrics(**row) for row in plain["history"])
            return TrialStarted(**plain | {"config": config, "history": history})
        case "TrialPlaced":
            return TrialPlaced(**plain)
        case "TrialMeasured":
            return TrialMeasured(**plain)
        case "EpochEnded":
            return EpochEnded(**plain | {"metrics": EpochMetrics(**plain["metrics"])})
        case "TrialEnded":
            return TrialEnded(**plain)
    raise AssertionError(f"no worker reports {name}")
