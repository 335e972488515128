"""Hold the floors: who may import whom, read from the imports of every module."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = {"ray", "optuna"}
TOP_LEVEL = {"tuner", "search_spaces", "tests", "pyproject.toml", "README.md", "LICENSE.md"}

MAY_IMPORT = {
    "errors": "",
    "passwords": "",
    "loopback": "",
    "console": "passwords",
    "voting": "errors",
    "schema": "errors",
    "config": "schema",
    "storage": "errors schema",
    "augment": "config",
    "optim": "config",
    "models": "errors schema config",
    "metrics": "voting schema config augment",
    "data": "errors schema config storage",
    "run": "errors passwords schema config storage models metrics",
    "space": "errors schema config storage models run",
    "training": "errors voting schema config storage augment optim models metrics data run",
    "ensemble": "errors voting schema config storage augment models metrics data run space "
    "training",
    "deploy": "errors loopback voting schema config storage augment models metrics data run "
    "training ensemble",
    "tracking": "errors config storage run",
    "monitor": "schema config storage metrics run space",
    "report": "errors loopback schema config storage metrics run space",
    "tuning": "errors passwords loopback schema config storage augment models metrics data run "
    "space training ensemble deploy tracking monitor",
    "api": "errors console schema config storage models run space training ensemble deploy tuning",
    "cli": "errors passwords loopback console schema config storage models metrics data run space "
    "training ensemble deploy monitor report tuning",
    "__main__": "cli",
}
"""Package or loose module of ``tuner`` -> what else of it that may import: rows above its own."""

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


def test_each_row_of_the_table_names_only_rows_above_it_that_it_imports() -> None:
    used: dict[str, set[str]] = {row: set() for row in MAY_IMPORT}
    for name in MODULES:
        if name != "tuner":
            used[row_of(name)] |= {row_of(module) for module in own_imports_of(name)}
    above: set[str] = set()
    for row, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= above, row
        assert set(allowed.split()) == used[row] - {row}, row
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


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("tuner.tuning.tuner", {"ray", "optuna", "torch"}),
        ("tuner.tuning.planning.simulated", {"ray", "optuna", "torch"}),
        ("tuner.tuning.recorder", {"ray", "optuna"}),
        ("tuner.monitor.follow", {"ray", "optuna", "torch"}),
        # A node that joined in mid-search may lack PyTorch.
        ("tuner.tuning.ray_backend.worker", {"torch"}),
    ],
)
def test_a_module_and_what_it_imports_do_without(name: str, others: set[str]) -> None:
    code = f"import sys, {name}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not others & set(loaded.split())


PRIVATE = ("tuner.tuning.ray_backend.private", "tuner.tuning.ray_backend.private_serve")


def private_names() -> list[tuple[str, str]]:
    """Return module and name of all of Ray that is used and not public."""
    trees = [ast.parse(MODULES[name].read_text(encoding="utf-8")) for name in PRIVATE]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return [(str(node.module), alias.name) for node in imports for alias in node.names]


@pytest.mark.parametrize(("module", "name"), private_names())
def test_what_is_private_in_ray_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@every_module
def test_what_is_private_in_ray_is_imported_in_one_place(name: str) -> None:
    imported = set(imports_of(MODULES[name].read_text(encoding="utf-8")))
    private = {
        module
        for module in imported
        if module.startswith(("ray._", "ray.experimental", "ray.serve._")) and name not in PRIVATE
    }
    assert not private


UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@every_module
def test_nothing_is_unpickled(name: str) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    imported = {part for module in imports_of(source) for part in module.split(".")}
    # One module names an error of pickle, and calls nothing of it.
    allowed = {"pickle"} if name == "tuner.training.initial_weights" else set()
    assert imported & UNPICKLERS == allowed
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name("pickle"), attr=attribute):
                assert attribute == "UnpicklingError"
            case ast.ImportFrom(module="pickle" | "torch", names=names):
                assert not {"load", "loads"} & {alias.name for alias in names}
            case ast.Call(func=function, keywords=keywords):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
                assert given.get("allow_pickle", "False") == "False"
                if ast.unparse(function) == "torch.load":
                    assert given.get("weights_only") == "True"


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
