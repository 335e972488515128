import re
import shutil
from pathlib import Path

import pytest

from tuner.errors import SpaceError
from tuner.space import RandomTrial, load_space

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "search_spaces", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_space_loads_and_samples(folder: Path) -> None:
    Path("my.yaml").write_text(EXAMPLE)
    space = load_space(Path("my.yaml"))
    for seed in range(200):
        config = space.sample(RandomTrial(seed), epochs=space.search.epochs, seed=seed)
        assert config.augment.flip


def test_the_example_mistake_is_told_as_shown(folder: Path) -> None:
    Path("my.yaml").write_text(EXAMPLE.replace("1.0e-4", "1e-4"))
    with pytest.raises(SpaceError) as caught:
        load_space(Path("my.yaml"))
    assert f"    {caught.value}\n" in README


def test_every_shipped_space_is_in_the_table(folder: Path) -> None:
    for path in folder.glob("*.yaml"):
        assert f"| `{path.stem}` |" in README
