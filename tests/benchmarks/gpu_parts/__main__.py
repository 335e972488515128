"""Run one part in this process: ``python -m tests.benchmarks.gpu_parts PART SETTINGS RESULT``."""

import importlib
import sys
from pathlib import Path

from tests.benchmarks.gpu_parts import Report, Settings

MODULES = {
    "tests": "suite",
    "steps": "steps",
    "sharing": "sharing",
    "recipe": "recipe",
    "search": "searching",
    "saving": "saving",
    "compile": "compilation",
    "images": "images",
}


if __name__ == "__main__":
    name, settings, result = sys.argv[1:]
    part = importlib.import_module(f"tests.benchmarks.gpu_parts.{MODULES[name]}")
    part.run(Settings.read(Path(settings)), Report(Path(result), part.tables, part.judge))
