"""Searches at once: two that want one name, and others beside them, on one machine."""

import random
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.benchmarks.faults import HANG_SECONDS, SPACE, baselines
from tests.benchmarks.processes import Search
from tests.benchmarks.promises import Verdict, Watch, judge
from tests.benchmarks.soak_parts.tried import Tried
from tuner.errors import UsageError
from tuner.run.run import Run

TRIALS = 3
STEADY = SPACE.replace("trials: 12", f"trials: {TRIALS}") + baselines(TRIALS)
MOST_SECONDS = 15.0
"""Between the beginnings of two searches."""


def try_together(number: int, seed: int, folder: Path, messages: Console) -> list[Tried]:
    """Begin a search, a second one under its name, and a third beside them, and wait for all.

    Args:
        number: How often.
        seed: Of when the second one begins.
        folder: An empty one.
        messages: Where each is told.
    """
    draw = random.Random(seed)
    same = Tried(what="a second search under one name")
    beside = Tried(what="two searches on one machine")
    for count in range(number):
        broken, both, seconds = three_searches(folder / str(count), draw.uniform(0, MOST_SECONDS))
        same.enter(broken, seconds)
        beside.enter(both, seconds)
        told = "; ".join([*broken, *both]) or "all promises kept"
        messages.print(f"three searches at once: {told}, {seconds:.0f} s", markup=False)
    return [same, beside]


def three_searches(folder: Path, wait: float) -> tuple[list[str], list[str], float]:
    """Run three searches in one storage, two of them under one name.

    Args:
        folder: For them.
        wait: Seconds before the second one begins.

    Returns:
        What was not as promised of the two under one name, and of the two others, and seconds.
    """
    storage = folder / "first" / "runs"
    storage.mkdir(parents=True)
    for name in ("first", "second", "third"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "space.yaml").write_text(STEADY)
        if name != "first":
            (folder / name / "runs").symlink_to(storage)
    began = time.monotonic()
    begin = ("--space", "space.yaml", "--concurrent", "1", "--name")
    with ExitStack() as stack, Watch(storage / "one") as watch:
        first = stack.enter_context(Search(folder / "first", *begin, "one"))
        third = stack.enter_context(Search(folder / "third", *begin, "two"))
        first.wait(wait)
        is_there = (storage / "one" / "run.json").exists()
        again = ("--resume", "--name") if is_there else begin
        second = stack.enter_context(Search(folder / "second", *again, "one"))
        codes = [search.wait(HANG_SECONDS) for search in (first, second, third)]
        watch.look()
    seconds = time.monotonic() - began
    broken, both = [], []
    # One that begins after the first has ended goes on with nothing.
    promised = ([0, UsageError.exit_code], [UsageError.exit_code, 0], *([[0, 0]] * is_there))
    if codes[:2] not in promised:
        broken.append(f"two under one name ended with {codes[:2]}: {second.errors[-300:]}")
    for search, code in ((first, codes[0]), (second, codes[1])):
        # What went on before it was refused, as Ray that starts, is told in lines of its own.
        lines = search.errors.partition("cifar-tune: ")[2].splitlines()
        if code == UsageError.exit_code and (
            not 1 <= len(lines) <= 2 or "Traceback" in search.errors
        ):
            broken.append(f"refused in {len(lines)} lines: {search.errors[-300:]}")
    if codes[2] != 0:
        both.append(f"the one beside them ended with {codes[2]}: {third.errors[-300:]}")
    for name, found in (("one", broken), ("two", both)):
        verdict = Verdict()
        judge(Run.open(storage / name), [], watch if name == "one" else Watch(storage), verdict)
        found += verdict.broken
    return broken, both, seconds
