"""Several trials on one GPU: images per second of all trials, by the way of sharing.

Processes take turns on the device. Under NVIDIA's MPS, as in the product, they compute side by
side; so do the threads of one process, each with a training on a stream of its own. All ways use
the same ``train``. Rates are measured over a window in which every training runs, after each has
trained an epoch.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tests.benchmarks.gpu_parts import Judged, Report, Rows, Settings
from tests.benchmarks.gpu_parts.cases import CASES, EPOCHS, TINY, Case
from tests.benchmarks.gpu_parts.workers import WorkerError, WorkerProcess
from tuner.tuning.ray_backend import mps

TARGETS = {("cnn", 8): 1.7, ("speednet", 4): 1.15}
COUNTS = {"cnn": (1, 8, 4, 2), "speednet": (1, 4, 2)}
"""Numbers of trials at once, in the order in which they are measured."""
WINDOW_SECONDS = 2.5
LEAST_WAIT = 10.0


class Way:
    """A way to share a GPU, and the workers that train in it.

    Args:
        workers: One worker per trial, or one for all.
        is_threaded: Whether one worker trains all trials.
    """

    def __init__(self, workers: Sequence[WorkerProcess], *, is_threaded: bool) -> None:
        self._workers = workers
        self._is_threaded = is_threaded

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until all workers have loaded the images."""
        for worker in self._workers:
            worker.wait_until_ready(seconds)

    def tell_prepare(self, case: Case, most: int) -> None:
        """Make the workers prepare as many trainings as will run at once."""
        count = most if self._is_threaded else 1
        for worker in self._chosen(most):
            worker.tell("prepare", config=case.config(EPOCHS), options={}, count=count, num_val=64)

    def answer_prepare(self, most: int, seconds: float) -> str:
        """Wait until each training has trained an epoch; return how the steps are run."""
        answers = [worker.answer(seconds) for worker in self._chosen(most)]
        return str(answers[0]["execution"])

    def rate(self, active: int, window: float, seconds: float) -> float:
        """Return images per second of ``active`` trainings together."""
        until = time.monotonic() + 0.2 + window
        for worker in self._chosen(active):
            worker.tell("run", until=until, active=active if self._is_threaded else 1)
        answers = [worker.answer(seconds) for worker in self._chosen(active)]
        return rate_of([marks for answer in answers for marks in answer["marks"]], until)

    def _chosen(self, number: int) -> Sequence[WorkerProcess]:
        return self._workers[: 1 if self._is_threaded else number]


def rate_of(marks: Sequence[Sequence[Sequence[float]]], until: float) -> float:
    """Return images per second of all trainings over the time in which all ran.

    Args:
        marks: For each training, moments with the number of images done until then.
        until: The end of the window, before the last moment of each training.
    """
    since = max(training[0][0] for training in marks)
    done = 0.0
    for training in marks:
        times, images = np.array(training).T
        done += float(np.diff(np.interp([since, until], times, images))[0])
    return done / (until - since)


def run(settings: Settings, report: Report) -> None:
    """Measure each way with each number of trials, twice if the time allows."""
    cases = TINY if settings.is_tiny else CASES
    counts = {"cnn": (1, 2)} if settings.is_tiny else COUNTS
    window = 0.3 if settings.is_tiny else WINDOW_SECONDS
    report.figures = {"rates": {}, "execution": {}, "problems": {}}
    rates, problems = report.figures["rates"], report.figures["problems"]
    with ExitStack() as stack:
        ways = _begin(settings, max(max(numbers) for numbers in counts.values()), stack, problems)
        _each(ways, problems, Way.wait_until_ready, _patience(settings))
        for case_name, numbers in counts.items():
            case, most = cases[case_name], max(numbers)
            here = dict(ways)
            _each(here, problems, Way.tell_prepare, case, most)
            executions = _each(here, problems, Way.answer_prepare, most, _patience(settings))
            report.figures["execution"][case_name] = executions
            for turn in range(2):
                for number in numbers:
                    if turn and settings.seconds_left < len(counts) * 30:
                        break
                    found = _each(here, problems, Way.rate, number, window, _patience(settings))
                    for name, rate in found.items():
                        by_number = rates.setdefault(case_name, {}).setdefault(name, {})
                        by_number.setdefault(str(number), []).append(rate)
                    report.write()


def _patience(settings: Settings) -> float:
    """Return the seconds to wait for a worker, so that one that hangs leaves time for others."""
    return max(LEAST_WAIT, settings.seconds_left / 3)


def _each(
    ways: dict[str, Way], problems: dict[str, str], ask: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    """Call ``ask`` for each way; drop those that fail, and record why."""
    answers = {}
    for name, way in list(ways.items()):
        try:
            answers[name] = ask(way, *arguments)
        except WorkerError as error:
            problems[name] = str(error)
            del ways[name]
    return answers


def _begin(
    settings: Settings, most: int, stack: ExitStack, problems: dict[str, str]
) -> dict[str, Way]:
    """Start the workers of all ways at once; a worker that waits for a command is idle."""

    def workers(name: str, number: int, environment: Mapping[str, str]) -> list[WorkerProcess]:
        return [
            stack.enter_context(WorkerProcess(settings, f"{name}-{index}", environment=environment))
            for index in range(number)
        ]

    ways = {
        "processes": Way(workers("process", most, {}), is_threaded=False),
        "threads": Way(workers("threads", 1, {}), is_threaded=True),
    }
    # The other workers started before this process looks for the daemon, so they do not use it.
    sharing = mps.join()
    if sharing.how == "side by side":
        environment = {mps.PIPE: sharing.pipe} if sharing.pipe is not None else {}
        ways["MPS"] = Way(workers("mps", most, environment), is_threaded=False)
    else:
        problems["MPS"] = sharing.reason or "there is no GPU here"
    return ways


def tables(figures: Mapping[str, Any]) -> Sequence[Rows]:
    """Return a table of one row per network and way."""
    rows = []
    for case, ways in figures["rates"].items():
        numbers = sorted({int(number) for by in ways.values() for number in by})
        alone = _alone(ways)
        for way, by_number in ways.items():
            cells = []
            for number in numbers:
                found = by_number.get(str(number))
                rate = statistics.median(found) if found else None
                ratio = f" ({rate / alone:.2f}x)" if rate and alone else ""
                cells.append(f"{number}: {rate:,.0f}{ratio}" if rate else f"{number}: -")
            rows.append((case, way, "; ".join(cells)))
    notes = [f"{way}: {problem.splitlines()[-1]}" for way, problem in figures["problems"].items()]
    title = "\n".join(["Trials that share a GPU: images/s of all (times one trial)", *notes])
    return [Rows(title=title, headings=("network", "way", "trials at once"), rows=rows)]


def _alone(ways: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
    """Return the rate of one trial that has the GPU to itself."""
    found = ways.get("processes", {}).get("1") or ways.get("threads", {}).get("1")
    return statistics.median(found) if found else None


def judge(figures: Mapping[str, Any]) -> Sequence[Judged]:
    """Compare the best way with one trial alone."""
    judged = []
    for (case, number), target in TARGETS.items():
        ways = figures["rates"].get(case, {})
        alone = _alone(ways)
        totals = {
            way: statistics.median(by_number[str(number)])
            for way, by_number in ways.items()
            if str(number) in by_number
        }
        if alone and totals:
            best = max(totals, key=lambda way: totals[way])
            judged.append(
                Judged(
                    what=f"{number} trials of {case} over one, by {best}",
                    value=totals[best] / alone,
                    target=target,
                )
            )
    return judged
