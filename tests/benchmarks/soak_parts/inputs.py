"""Spaces, runs and images that were damaged at random, read in every way."""

import json
import random
import re
import time
from pathlib import Path

from click.testing import CliRunner

from tests.benchmarks.soak_parts.tried import Tried
from tests.test_damaged_runs import damage_and_read
from tests.test_predicting import mutants
from tuner.cli import cli
from tuner.deploy.predictor import Ensemble
from tuner.run.layout import CHECKPOINT, CONFIG, HISTORY, VAL_PROBS
from tuner.run.run import Run
from tuner.space import load_space

SPACES = Path(__file__).parents[3] / "search_spaces"
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


def try_spaces(number: int, seed: int, folder: Path) -> Tried:
    """Read shipped spaces with one to three mistakes each."""
    tried = Tried(what="search spaces with mistakes")
    draw = random.Random(seed)
    texts = [path.read_text() for path in sorted(SPACES.glob("*.yaml"))]
    path = folder / "space.yaml"
    for _ in range(number):
        text = mutated(draw.choice(texts), draw)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with tried.reading():
            load_space(path)
    return tried


def try_damages(number: int, seed: int, storage: Path) -> Tried:
    """Damage one file of a run at a time, and look at the run in one way."""
    tried = Tried(what="damaged files of runs")
    for one in range(number):
        with tried.reading():
            damage_and_read(storage, seed * 1_000_003 + one)
    return tried


def try_images(number: int, seed: int, ensemble: Ensemble, folder: Path) -> Tried:
    """Classify files that were images before they were changed."""
    tried = Tried(what="changed image files")
    for file in mutants(folder, number, seed):
        with tried.reading():
            ensemble.predict(file)
    return tried


def try_checks(number: int, seed: int, run: Run) -> Tried:
    """Change a file of a trial or a member, one at a time, and have ``check`` find it.

    Args:
        number: How often.
        seed: Of the changes.
        run: One of this version, with an ensemble.
    """
    tried = Tried(what="changed files that 'check' has to name")
    draw = random.Random(seed)
    folder = Path(str(run.path))
    names = (CONFIG, HISTORY, CHECKPOINT, VAL_PROBS)
    files = [path for name in names for path in sorted(folder.glob(f"trials/*/{name}"))]
    files += sorted(folder.glob("ensembles/*/members/*"))
    for _ in range(number):
        file = draw.choice(files)
        original = file.read_bytes()
        others = [path for path in files if path.suffix == file.suffix and path != file]
        content = draw.choice(
            [changed_byte(original, draw), cut(original, draw), draw.choice(others).read_bytes()]
        )
        file.write_bytes(content)
        words = ["check", str(folder), "--device", "cpu", "--json"]
        began = time.perf_counter()
        result = CliRunner().invoke(cli, words, standalone_mode=False)
        seconds = time.perf_counter() - began
        file.write_bytes(original)
        found = json.loads(result.stdout)["damage"] if result.stdout else []
        is_told = content == original or str(file) in {entry["file"] for entry in found}
        name = f"{file.relative_to(folder)}, {len(content)} bytes of {len(original)}"
        tried.enter([] if is_told else [f"{name}: {result.exception!r}, {found}"], seconds)
    return tried


def changed_byte(content: bytes, draw: random.Random) -> bytes:
    """Return the content with another byte somewhere."""
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ draw.randint(1, 255)]) + content[place + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """Return the begin of the content."""
    return content[: draw.randrange(len(content))]
