"""Compilation inside the captured step: its cost, cold and warm, and its gain."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings, ratios, spread
from tests.benchmarks.gpu_parts.cases import CASES, EPOCHS, TINY
from tests.benchmarks.gpu_parts.workers import WorkerError, WorkerProcess

READY_SECONDS = 120.0
COMPILE_SECONDS = 300.0
ROUNDS = 4
LEAST_RATIO = 0.98
"""Minimum speed-up: no trial may be slower by more than 2 %."""


def run(settings: Settings, report: Report) -> None:
    """Measure each network with its own compiler cache, empty at first."""
    report.figures = {"cases": {}, "problems": {}}
    for name in ("speednet", "cnn"):
        try:
            _measure(name, settings, report)
        except WorkerError as error:
            report.figures["problems"][name] = str(error)
        report.write()


def _measure(name: str, settings: Settings, report: Report) -> None:
    config = (TINY if settings.is_tiny else CASES)[name].config(EPOCHS)
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(Path(settings.scratch) / f"cache-{name}")}
    entry: dict[str, Any] = {"rates": {"plain": [], "compiled": []}}
    report.figures["cases"][name] = entry
    with ExitStack() as stack:
        # All start at once, so that their imports overlap.
        cold, warm, plain = (
            stack.enter_context(WorkerProcess(settings, f"{name}-{kind}", environment=cache))
            for kind in ("cold", "warm", "plain")
        )
        for worker in (cold, warm, plain):
            worker.wait_until_ready(READY_SECONDS)

        def prepare(worker: WorkerProcess, mode: str) -> dict[str, Any]:
            options = {"compile_mode": mode}
            return worker.ask(
                "prepare", COMPILE_SECONDS, config=config, options=options, num_val=64
            )

        def epoch(worker: WorkerProcess) -> dict[str, Any]:
            return worker.ask("epoch", READY_SECONDS)

        first = {"plain": prepare(plain, "never"), "cold": prepare(cold, "always")}
        entry["execution"] = first["cold"]["execution"]
        for _ in range(ROUNDS):
            for way, worker in (("plain", plain), ("compiled", cold)):
                answer = epoch(worker)
                entry["rates"][way].append(answer["images"] / answer["seconds"])
            usual = answer["images"] / statistics.median(entry["rates"]["compiled"])
            entry["cold_seconds"] = first["cold"]["seconds"][0] - usual
            report.write()
        entry["warm_seconds"] = prepare(warm, "always")["seconds"][0] - usual


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of one row per network."""
    rows = []
    for name, entry in figures["cases"].items():
        rates = entry["rates"]
        seconds = [
            f"{entry[key]:.1f}" if key in entry else "-" for key in ("cold_seconds", "warm_seconds")
        ]
        rows.append(
            (
                name,
                *seconds,
                spread(rates["plain"]),
                spread(rates["compiled"]),
                spread(ratios(rates["compiled"], rates["plain"]), 3),
                entry.get("execution", "-"),
            )
        )
    notes = [f"{name}: {why.splitlines()[-1]}" for name, why in figures["problems"].items()]
    title = "\n".join(["Compilation: seconds, and images/s without and with", *notes])
    headings = ("network", "cold, s", "warm, s", "captured", "compiled", "times", "how")
    return [Rows(title=title, headings=headings, rows=rows)]


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Compare the compiled rate with the plain one."""
    judged = []
    for name, entry in figures["cases"].items():
        if found := ratios(entry["rates"]["compiled"], entry["rates"]["plain"]):
            value = statistics.median(found)
            judged.append(
                Judged(what=f"{name}: compiled over captured", value=value, target=LEAST_RATIO)
            )
    return judged
