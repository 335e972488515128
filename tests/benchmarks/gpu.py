"""Run all measurements on a GPU, by one command that ends in time.

    python -m tests.benchmarks.gpu --data FOLDER --minutes 5 --json FILE

FOLDER is CIFAR-10 as class folders. The tests of ``tests/gpu`` run first, then each table, so that
what is cut off is at the end. Each part is a process of its own with a share of the time that is
left, and is killed when it is over. The JSON is written after each part, with whatever the part has
reported. ``--before`` names a folder with an earlier checkout of this repository, whose training is
measured in the same run; ``--record`` names a folder with the record's code.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.benchmarks.gpu_parts import PARTS, WEIGHTS, Rows, Settings
from tests.benchmarks.processes import descendants

TRAINING = ("tuner/train.py", "tuner/training/loop.py")
"""Where ``train`` is in a checkout: up to commit a475a52, and since."""

REPOSITORY = Path(__file__).parents[2]
IMAGE_SECONDS = 90.0
"""Maximum number of seconds to decode the images."""
GRACE_SECONDS = 4.0
"""Seconds reserved for the last part's end, tables and JSON."""
TINY_SECONDS = 120.0
ERROR_LINES = 15


def main() -> None:
    """Run the parts; print their tables and which targets were reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as class folders")
    parser.add_argument("--data-dir", type=Path, default=Path.home() / ".cache" / "cifar-tune")
    parser.add_argument("--minutes", type=float, default=5.0, help="the most that all takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each part")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--list", action="store_true", help="name the parts, and end")
    parser.add_argument("--before", type=Path, help="folder of an earlier checkout")
    parser.add_argument("--record", type=Path, help="folder of the record's code")
    parser.add_argument("--device", default="cuda:0", help="cpu runs what needs no GPU")
    parser.add_argument("--tiny", action="store_true", help="smallest settings, to try the command")
    options = parser.parse_args()
    if options.list:
        for name, text in PARTS.items():
            print(f"{name:8} {text}")
        return
    if not options.data:
        parser.error("the following arguments are required: --data")
    if options.before and not any((options.before / file).exists() for file in TRAINING):
        parser.error(f"--before: {options.before} is no checkout of this repository")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=160)
    command = Command(options, console)
    try:
        command.run()
    finally:
        command.clear()


class Command:
    """One run of the command.

    Args:
        options: The parsed options.
        console: Console for the tables.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options = options
        self._console = console
        self._end = time.monotonic() + 60 * options.minutes
        # A short path: sockets below it may have 107 characters.
        self._scratch = Path(tempfile.mkdtemp(prefix="gpu-"))
        self._document: dict[str, Any] = {
            "command": sys.argv[1:],
            "host": platform.node(),
            "python": platform.python_version(),
            "parts": {},
            "summary": [],
        }

    def run(self) -> None:
        """Decode the images, then run each part with its share of the time."""
        names = self._options.only
        if names != ["tests"]:
            self._part("images", min(IMAGE_SECONDS, self._end - time.monotonic() - GRACE_SECONDS))
            if self._document["parts"]["images"]["ended"] != "whole":
                self._conclude()
                return
        for index, name in enumerate(names):
            left = self._end - time.monotonic() - GRACE_SECONDS
            share = left * WEIGHTS[name] / sum(WEIGHTS[later] for later in names[index:])
            self._part(name, TINY_SECONDS if self._options.tiny else share)
        self._conclude()

    def clear(self) -> None:
        """Remove files that the parts have left."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _part(self, name: str, seconds: float) -> None:
        """Run a part, and keep its report however it ended."""
        entry: dict[str, Any] = {"seconds_given": round(seconds, 1)}
        self._document["parts"][name] = entry
        if seconds < 1:
            entry["ended"] = "left out: no time was left"
        else:
            self._run(name, seconds, entry)
        self._console.print(f"\n{name}: {entry['ended']}", style="bold", markup=False)
        if "error" in entry:
            self._console.print(entry["error"], markup=False)
        for rows in entry.pop("tables", []):
            self._console.print(as_table(Rows(**rows)))
        self._document["summary"] += [{"part": name} | each for each in entry.pop("summary", [])]
        self._write()

    def _run(self, name: str, seconds: float, entry: dict[str, Any]) -> None:
        scratch = self._scratch / name
        scratch.mkdir()
        settings, result, log = (
            self._scratch / f"{name}.{kind}" for kind in ("settings", "result", "log")
        )
        began = time.monotonic()
        self._settings(scratch, seconds).write(settings)
        module = "tests.benchmarks.gpu_parts"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, name, str(settings), str(result)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                kill(process)
        entry["seconds"] = round(time.monotonic() - began, 1)
        entry["ended"] = {0: "whole", None: f"cut off after {seconds:.0f} s"}.get(code, "failed")
        if code != 0:
            lines = log.read_text(errors="replace").strip().splitlines()
            entry["error"] = "\n".join(lines[-ERROR_LINES:])
        if result.exists():
            entry |= json.loads(result.read_text())
        shutil.rmtree(scratch, ignore_errors=True)

    def _settings(self, scratch: Path, seconds: float) -> Settings:
        options = self._options
        data = options.data if options.data == "digits" else str(Path(options.data).resolve())
        return Settings(
            data=data,
            data_dir=str(options.data_dir.absolute()),
            device=options.device,
            scratch=str(scratch),
            seconds=seconds,
            is_tiny=options.tiny,
            before=options.before and str(options.before.resolve()),
            record=options.record and str(options.record.resolve()),
        )

    def _conclude(self) -> None:
        rows = [
            (
                each["part"],
                each["what"],
                f"{each['value']:.3g}",
                f"{'at most' if each['is_most'] else 'at least'} {each['target']:g}",
                "yes" if each["is_met"] else "NO",
            )
            for each in self._document["summary"]
        ]
        headings = ("part", "what", "value", "target", "met")
        self._console.print(as_table(Rows(title="Reached", headings=headings, rows=rows)))
        self._write()

    def _write(self) -> None:
        if (path := self._options.json) is not None:
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_text(json.dumps(self._document, indent=2))
            temporary.replace(path)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a part's process and all processes that it started."""
    started = descendants(process.pid)
    process.kill()
    for each in started:
        each.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)


def as_table(rows: Rows) -> Table:
    """Return a table for the terminal."""
    table = Table(title=escape(rows.title), title_justify="left")
    for heading in rows.headings:
        table.add_column(heading)
    for row in rows.rows:
        # The names of tests have brackets, which are not markup.
        table.add_row(*map(escape, row))
    return table


if __name__ == "__main__":
    main()
