"""Feed the program what was damaged at random, and count what it does not tell in a line.

    python -m tests.benchmarks.soak --spaces 20000 --damages 5000 --images 2000

Search spaces with mistakes are read; run folders of which one file is damaged go through every
command that only looks; files that were images go through ``predict``. Each has to be read, or
refused by an error that a user can mend: anything else, such as a traceback, is printed, and the
benchmark ends with status 1.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tuner
from tests.test_damaged_runs import RUN, damage_and_read, undamaged_runs
from tests.test_predicting import mutants
from tuner.console import MOST_LINE, shortened
from tuner.deploy.predictor import Ensemble
from tuner.errors import TunerError
from tuner.space import load_space

SPACES = Path(__file__).parents[2] / "search_spaces"
WORDS = (
    *("", "null", "true", "yes", "0", "-1", "1e-4", "1.0e400", ".nan", ".inf", "2**53", "0x10"),
    *("1:30", "2026-01-01", "[1, 2]", "{int: [1, 2]}", "{choice: []}", "{float: [0, 1]}", "{}"),
    *("&a [*a]", "<<: *a", "!!python/object:os.system {}", "'", '"', "\t", "\x1b[31m", "é"),
    *("\ud800", "\u202e", "\0", "extends: cnn", "- ", "? x", "%YAML 9"),
    *("a" * 1000, "9" * 400, "[" * 200, "{a: " * 200),
)


def mutated(text: str, draw: random.Random) -> str:
    """Return a space with one to three random mistakes."""
    for _ in range(draw.randint(1, 3)):
        match draw.randrange(6):
            case 0:  # A word is replaced.
                spans = [m.span() for m in re.finditer(r"[^\s:,{}\[\]]+", text)]
                start, end = draw.choice(spans or [(0, 0)])
                text = text[:start] + draw.choice(WORDS) + text[end:]
            case 1:  # A line is left out, doubled or moved.
                lines = text.splitlines(keepends=True) or [""]
                line = lines.pop(draw.randrange(len(lines)))
                for _ in range(draw.randrange(3)):
                    lines.insert(draw.randint(0, len(lines)), line)
                text = "".join(lines)
            case 2:  # A character is changed.
                place = draw.randint(0, len(text))
                text = (
                    text[:place] + draw.choice(":,{}[]-#&*!|>'\"%@` \n\t\0x0") + text[place + 1 :]
                )
            case 3:  # Indentation.
                lines = text.splitlines(keepends=True) or [""]
                place = draw.randrange(len(lines))
                lines[place] = " " * draw.randrange(8) + lines[place].lstrip(" ")
                text = "".join(lines)
            case 4:  # The end is cut off.
                text = text[: draw.randint(0, len(text))]
            case 5:  # Two words change places.
                spans = [m.span() for m in re.finditer(r"[^\s:,{}\[\]]+", text)]
                if len(spans) > 1:
                    (a, b), (c, d) = sorted(draw.sample(spans, 2))
                    text = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]
    return text


@dataclass(kw_only=True)
class Tried:
    """What became of the inputs of one kind."""

    what: str
    read: int = 0
    refused: int = 0
    """By an error that a user can mend."""
    slowest: float = 0.0
    """Seconds."""
    others: Counter[str] = field(default_factory=Counter)
    """What else happened -> how often: none of it may."""

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count what becomes of the input that the block reads."""
        began = time.perf_counter()
        try:
            yield
            self.read += 1
        except TunerError as error:
            self.refused += 1
            longest = max(map(len, shortened(str(error)).splitlines()), default=0)
            if not 0 < longest <= MOST_LINE:
                self.others[f"a message with a line of {longest} characters"] += 1
        except Exception as error:
            self.others[f"{type(error).__name__}: {error}"[:200]] += 1
        self.slowest = max(self.slowest, time.perf_counter() - began)


def try_spaces(number: int, seed: int, folder: Path) -> Tried:
    """Read shipped spaces with one to three mistakes each."""
    tried = Tried(what="search spaces with mistakes")
    draw = random.Random(seed)
    texts = [path.read_text() for path in sorted(SPACES.glob("*.yaml"))]
    path = folder / "space.yaml"
    for _ in range(number):
        text = mutated(draw.choice(texts), draw)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with tried.one():
            load_space(path)
    return tried


def try_damages(number: int, seed: int, storage: Path) -> Tried:
    """Damage one file of a run at a time, and look at the run in one way."""
    tried = Tried(what="damaged files of runs")
    for one in range(number):
        with tried.one():
            damage_and_read(storage, seed * 1_000_003 + one)
    return tried


def try_images(number: int, seed: int, ensemble: Ensemble, folder: Path) -> Tried:
    """Classify files that were images before they were changed."""
    tried = Tried(what="changed image files")
    for file in mutants(folder, number, seed):
        with tried.one():
            ensemble.predict(file)
    return tried


def main() -> None:
    """Run the benchmark; print a table, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spaces", type=int, default=20_000)
    parser.add_argument("--damages", type=int, default=5_000)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        (folder / "runs").mkdir()
        found = [try_spaces(options.spaces, options.seed, folder)]
        with undamaged_runs(folder / "runs") as storage:
            ensemble = tuner.load_ensemble(storage / RUN / "ensembles" / "top2", device="cpu")
            found.append(try_damages(options.damages, options.seed, storage))
            found.append(try_images(options.images, options.seed, ensemble, folder))
    if options.json:
        print(json.dumps([asdict(tried) for tried in found], indent=2))
    else:
        table = Table("what", "read", "refused", "otherwise", "slowest, s")
        for tried in found:
            counts = (tried.read, tried.refused, tried.others.total())
            table.add_row(tried.what, *map(str, counts), f"{tried.slowest:.2f}")
        console = Console(highlight=False, width=100)
        console.print(table)
        for tried in found:
            for text, count in tried.others.most_common():
                console.print(f"{tried.what}, {count} times: {text}", markup=False)
    sys.exit(any(tried.others for tried in found))


if __name__ == "__main__":
    main()
