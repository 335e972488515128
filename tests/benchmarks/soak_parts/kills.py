"""Searches that are killed at random moments, and resumed."""

from pathlib import Path

from rich.console import Console

from tests.benchmarks import faults
from tests.benchmarks.soak_parts.tried import Tried

NAMES: dict[faults.Kind, str] = {
    "driver": "kills of the driver",
    "worker": "kills of the processes that train",
    "ray": "kills of Ray's raylet or GCS",
    "everything": "kills of all processes of a search",
}


def try_kills(number: int, seed: int, folder: Path, messages: Console) -> list[Tried]:
    """Kill searches, as often in each way, and hold what they leave to what was promised.

    Args:
        number: Of kills in all.
        seed: Of their moments.
        folder: An empty one.
        messages: Where each search is told.
    """
    share, rest = divmod(number, len(NAMES))
    counts = {kind: share + (place < rest) for place, kind in enumerate(NAMES)}
    references, found = faults.measure(folder, counts, seed, messages)
    tried = [Tried(what=NAMES[kind]) for kind in found]
    for one, verdicts in zip(tried, found.values(), strict=True):
        for verdict in verdicts:
            one.enter(verdict.broken, verdict.seconds)
            # Several kills befall a search.
            one.kept += (verdict.kills - 1) * (not verdict.broken)
    for one, verdicts in zip(tried, found.values(), strict=True):
        row = faults.summary(verdicts)
        one.notes.append(
            "finished trials lost {lost}, run again {run_again}; trained past their stop "
            "{past_stop}; seconds that a trial lost, most {lost_max:.1f}, mean {lost_mean:.1f}; "
            "the figures of an unkilled training {same_figures} of {compared}".format(**row)
        )
    broken = [text for reference in references.values() for text in reference.broken]
    if broken:
        tried[0].enter(broken, 0.0)
    return tried
