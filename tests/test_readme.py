"""What README and guides show is what the program does."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import context_of
from tuner.cli import cli
from tuner.cli.guide import GUIDES
from tuner.errors import SpaceError
from tuner.models.build import build_model
from tuner.run.run import Run
from tuner.space import RandomTrial, find_space, load_space

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README": README} | {
    path.stem: path.read_text() for path in (ROOT / "tuner" / "guides").glob("*.md")
}
EXAMPLES = [
    text
    for page in PAGES.values()
    for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    if "space:" in text.splitlines()
]
(NETWORK,) = re.findall(r"```python\n(from torch.*?)```", README, re.DOTALL)
LINES = sorted(
    {
        line.strip()
        for page in PAGES.values()
        for line in re.findall(r"^ {4}(cifar-tune .*)$", page, re.MULTILINE)
    }
)
QUICK = (
    "cifar-tune space check my.yaml",
    "cifar-tune space sample my.yaml -n 5",
    "cifar-tune data info photos/",
    "cifar-tune data split photos/ photos-split/",
    "cifar-tune cluster-template slurm",
)
"""Commands that need neither a cluster nor a run."""
WITH_RUN = (
    "cifar-tune leaderboard",
    "cifar-tune show NAME --follow",
    "cifar-tune ensemble --top 5",
    "cifar-tune ensemble --top 5 --compare",
    "cifar-tune ensemble --top 5 --method greedy --calibrate",
    "cifar-tune predict new-photos/ --format csv",
    "cifar-tune evaluate DATA --corrupt",
    "cifar-tune report",
    "cifar-tune data issues NAME --csv issues.csv",
    "cifar-tune compare NAME OTHER --html side.html",
)
"""Commands that need a run, in an order in which they find what they need."""


def examples_of(command: click.Command) -> Iterator[str]:
    """Yield the examples in the help of a command and of those below it."""
    if command.epilog:
        yield from command.epilog.removeprefix("Example: ").split(" && ")
    if isinstance(command, click.Group):
        for one in command.commands.values():
            yield from examples_of(one)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "search_spaces", tmp_path, dirs_exist_ok=True)
    (tmp_path / "nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_spaces_load_and_sample(folder: Path, text: str) -> None:
    Path("my.yaml").write_text(text)
    space = load_space(Path("my.yaml"))
    for seed in range(50):
        config = space.sample(RandomTrial(seed), epochs=space.search.epochs, seed=seed)
    # Which tries the network on two images.
    build_model(config.model, num_classes=10, image_shape=(3, 32, 32))


def test_the_example_mistake_is_told_as_shown(folder: Path) -> None:
    (text,) = (text for text in EXAMPLES if text in PAGES["spaces"])
    Path("my.yaml").write_text(text.replace("1.0e-4", "1e-4"))
    with pytest.raises(SpaceError) as caught:
        load_space(Path("my.yaml"))
    assert f"    {caught.value}\n" in PAGES["spaces"]


def test_every_shipped_space_is_in_the_table(folder: Path) -> None:
    for path in folder.glob("*.yaml"):
        assert f"| `{path.stem}` |" in README


def test_every_guide_is_listed_shown_and_linked() -> None:
    assert set(PAGES) == {"README", *GUIDES}
    listed = CliRunner().invoke(cli, ["guide"]).output
    for name in GUIDES:
        assert f"(tuner/guides/{name}.md)" in README
        assert name in listed
        assert CliRunner().invoke(cli, ["guide", name]).output == PAGES[name]


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_one_of_the_program(folder: Path, line: str) -> None:
    for name in ("photos", "new-photos", "labelled-photos", "DATA"):
        Path(name).mkdir()
    for name in ("photo.jpg", "my.yaml", "other.yaml"):
        Path(name).touch()
    context_of(line)


@pytest.mark.parametrize("line", sorted(set(examples_of(cli))))
def test_every_example_of_a_help_is_a_command_and_its_space_comes_with_the_program(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = context_of(line).params
    for name in filter(None, (params.get("space"), params.get("file"))):
        assert find_space(name).is_file()


@pytest.mark.parametrize("line", QUICK)
def test_quick_commands_run_as_they_stand(folder: Path, line: str) -> None:
    assert line in LINES
    for number in range(40):
        kind = Path("photos") / ("cats" if number % 2 else "dogs")
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (number, 200, 90)).save(kind / f"{number}.png")
    Path("my.yaml").write_text(EXAMPLES[0])
    result = CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_commands_of_a_run_run_as_they_stand(
    finished_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished_run.path.parent.parent
    monkeypatch.chdir(folder)
    shutil.copytree(finished_run.path, folder / "runs" / "OTHER")
    for number in range(20):
        for place in ("new-photos", f"DATA/{number % 10}"):
            Path(place).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 12 * number).save(Path(place) / f"{number}.png")
    for line in WITH_RUN:
        assert line in LINES
        # The run has three trials.
        words = shlex.split(line.replace("NAME", "tiny").replace("--top 5", "--top 3"))[1:]
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0, (line, result.output)
    assert (folder / "side.html").exists()
    assert (folder / "issues.csv").exists()
