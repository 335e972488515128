"""Hold the floors: who may import whom, read from the imports of every module."""

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = {"ray", "optuna"}
TOP_LEVEL = {"tuner", "search_spaces", "tests", "pyproject.toml", "README.md", "LICENSE.md"}

FLOORS_0_TO_2 = (
    "errors store remote storage files locking voting calibration evidence schema config augment "
    "models device optim evaluate trial run sources data space checkpoint weights "
    "plots tally board live advice tracking "
    "forecast trust"
)
MAY_IMPORT = {
    # Floor 0
    "errors": "",
    "store": "errors",
    "remote": "errors store",
    "storage": "errors store remote",
    "files": "remote storage",
    "locking": "errors remote storage",
    "voting": "",
    "calibration": "",
    "evidence": "voting",
    # Floor 1
    "schema": "errors",
    "config": "errors schema",
    "augment": "errors config",
    # Floor 2
    "models": "errors schema config",
    "device": "errors config",
    "optim": "errors config",
    "evaluate": "errors voting calibration augment",
    "trial": "errors files storage schema config",
    "run": "errors files storage locking schema config trial",
    "tally": "config trial",
    "board": "run tally trial",
    "live": "",
    "sources": "errors files schema config",
    "data": "errors storage config sources",
    "plots": "files calibration",
    "checkpoint": "errors files storage schema config models trial",
    "space": "errors files storage schema config models trial run checkpoint",
    "advice": "config space tally trial",
    "tracking": "errors storage config run tally trial",
    "forecast": "files storage run trial",
    "weights": "errors storage schema config models trial run sources checkpoint",
    "trust": "errors config models",
    # Floor 3
    "training": FLOORS_0_TO_2,
    # Floor 4
    "ensemble": FLOORS_0_TO_2,
    "tuning": f"{FLOORS_0_TO_2} training ensemble",
    "rerun": f"{FLOORS_0_TO_2} training",
    "follow": FLOORS_0_TO_2,
    "report": FLOORS_0_TO_2,
    "compare": f"{FLOORS_0_TO_2} report",
    "deploy": FLOORS_0_TO_2,
    "export": FLOORS_0_TO_2,
    # Floor 5
    "cli": f"{FLOORS_0_TO_2} training tuning rerun ensemble follow report compare export",
    "__main__": "cli",
    "api": f"{FLOORS_0_TO_2} training tuning ensemble deploy",
}
"""Module or folder of ``tuner`` -> what else of it that may import, named in a row above."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "tuner").rglob("*.py"))
}
every_module = pytest.mark.parametrize("name", MODULES)


def imports_of(source: str) -> Iterator[str]:
    """Yield the dotted name of every module that ``source`` imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively; write the full name"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else str(node.module)


def own_imports_of(name: str) -> set[str]:
    """Return the modules of ``tuner`` that the module ``name`` imports, less the bare package."""
    imported = set(imports_of(MODULES[name].read_text(encoding="utf-8")))
    return {module for module in imported if module.startswith("tuner.")}


def row_of(module: str) -> str:
    """Return the row of the table that holds ``module``: ``models`` for ``tuner.models.cnn``."""
    return module.split(".")[1]


@every_module
def test_a_module_imports_only_what_the_table_allows(name: str) -> None:
    if name == "tuner":
        # For type checkers; the rest is imported when it is used: tests/test_face.py.
        assert own_imports_of(name) == {"tuner.api", "tuner.errors", "tuner.training.loop"}
        return
    row = row_of(name)
    assert row in MAY_IMPORT, f"{name} has no row in MAY_IMPORT; add it on its floor"
    used = {row_of(module) for module in own_imports_of(name)} - {row}
    excess = used - set(MAY_IMPORT[row].split())
    assert not excess, f"{name} imports {sorted(excess)}, which its row in MAY_IMPORT lacks"


def test_each_row_of_the_table_names_only_rows_above_it() -> None:
    above: set[str] = set()
    for row, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= above, row
        above.add(row)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: own_imports_of(name) for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@every_module
def test_the_engine_is_known_to_the_tuning_folder_alone(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    if not name.startswith("tuner.tuning"):
        assert not {module.split(".")[0] for module in imports_of(source)} & ENGINE


@every_module
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))


def test_the_top_level_of_the_repository_holds_nothing_else() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    top = {line.split("/")[0] for line in listing.splitlines()}
    excess = {name for name in top if not name.startswith(".")} - TOP_LEVEL
    assert not excess


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray.tune as t, os", {"ray.tune", "os"}),
        ("def f():\n    from optuna.trial import Trial", {"optuna.trial"}),
        ("from tuner import models", {"tuner.models"}),
        ("from tuner.models import build_model, cnn", {"tuner.models", "tuner.models.cnn"}),
        ("if TYPE_CHECKING:\n    import ray", {"ray"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, expected: set[str]) -> None:
    assert set(imports_of(source)) == expected


def test_every_folder_of_the_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("tuner/**/*.py")}
    assert listed == folders | {"tuner.search_spaces"}
