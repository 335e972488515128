"""Distributed search for image classifiers on a Ray cluster, ending in a soft-voting ensemble.

The public names are listed in ``__all__`` and loaded on first use. Everything else may change in
any version.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import combine, distill, load_ensemble, load_space, open_run, refit, search
    from tuner.errors import (
        ClusterError,
        DataError,
        NoUsableTrials,
        SpaceError,
        StorageError,
        TunerError,
        UntrustedCodeError,
        UsageError,
    )
    from tuner.training.loop import train

# Defined here, and read by the build: on a cluster's nodes the package has no metadata.
__version__ = "0.1.0"

__all__ = [
    "ClusterError",
    "DataError",
    "NoUsableTrials",
    "SpaceError",
    "StorageError",
    "TunerError",
    "UntrustedCodeError",
    "UsageError",
    "combine",
    "distill",
    "load_ensemble",
    "load_space",
    "open_run",
    "refit",
    "search",
    "train",
]

MOVED = {
    "tuner.board": "tuner.monitor.live_table",
    "tuner.calibration": "tuner.metrics.calibration",
    "tuner.checkpoint": "tuner.run.checkpoint",
    "tuner.compare": "tuner.report.comparison",
    "tuner.data": "tuner.data.splits",
    "tuner.device": "tuner.training.device",
    "tuner.evaluate": "tuner.metrics.predict",
    "tuner.evidence": "tuner.metrics.significance",
    "tuner.files": "tuner.storage.files",
    "tuner.follow": "tuner.monitor.follow",
    "tuner.forecast": "tuner.run.forecast",
    "tuner.locking": "tuner.storage.paths",
    "tuner.models": "tuner.models.build",
    "tuner.plots": "tuner.ensemble.plots",
    "tuner.remote": "tuner.storage.object_path",
    "tuner.rerun": "tuner.training.rerun",
    "tuner.run": "tuner.run.run",
    "tuner.search": "tuner.tuning",
    "tuner.sources": "tuner.data.datasets",
    "tuner.storage": "tuner.storage.paths",
    "tuner.store": "tuner.storage.object_store",
    "tuner.tally": "tuner.run.state",
    "tuner.train": "tuner.training.loop",
    "tuner.trial": "tuner.run.trial",
    "tuner.weights": "tuner.training.initial_weights",
}
"""Former module names, which users' networks may still import -> current names."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tuner' has no attribute '{name}'")
    if name == "train":
        home = "tuner.training.loop"
    else:
        home = "tuner.errors" if name[0].isupper() else "tuner.api"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
