"""The model card: what it says is what the folder holds, and its commands work."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Call
from tuner.config import RefitConfig
from tuner.run.run import Run


def run_command(line: str, call: Call) -> None:
    code, _, err = call(*shlex.split(line)[1:])
    assert code == 0, err


def test_no_text_of_a_run_is_markup_in_its_card(finished_run: Run, call: Call) -> None:
    markup = "<b>[x](http://x)\n# y"
    finished_run.update(versions={markup: markup}, git_commit=markup, started=markup[:10])
    storage = f"--storage {finished_run.path.parent}"
    run_command(f"cifar-tune ensemble --run tiny --top 1 {storage}", call)
    card = (finished_run.path / "ensembles" / "top1" / "model_card.md").read_text()
    for raw in ("<b>", "[x](", "\n# y"):
        assert raw not in card


@pytest.mark.parametrize("options", ["", "--method greedy --calibrate", "--method soup --name x"])
def test_the_card_tells_figures_members_and_the_command_that_makes_it_again(
    options: str, finished_run: Run, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run is known by its folder, which may have been renamed.
    run = finished_run.path.rename(finished_run.path.with_name("renamed"))
    # From elsewhere than the folder of the runs.
    monkeypatch.chdir(run)
    top = 1 if "soup" in options else 2
    storage = f"--storage {run.parent}"
    run_command(f"cifar-tune ensemble --run renamed --top {top} {options} {storage}", call)
    (folder,) = (run / "ensembles").iterdir()
    card = (folder / "model_card.md").read_text()
    described = json.loads((folder / "ensemble.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"`{described['data']['fingerprint']}`" in card
    assert f"`{described['data']['test_fingerprint']}`" in card
    assert f"| ensemble | {metrics['ensemble']['test']['accuracy']:.2%} (" in card
    assert all(f"| trial {member['trial']} | cnn |" in card for member in metrics["members"])
    is_by_nll = "ranked by; members were chosen by the NLL of their vote." in card
    assert is_by_nll == ("greedy" in options)
    assert ("By accuracy, which they were chosen by." in card) != is_by_nll
    (command,) = re.findall(r"^    (cifar-tune ensemble .*)$", card, re.MULTILINE)
    (folder / "model_card.md").unlink()
    run_command(command, call)
    assert json.loads((folder / "ensemble.json").read_text())["members"] == described["members"]
    assert Path(folder / "model_card.md").exists()


def test_the_card_tells_how_far_a_run_has_grown_since_its_command(
    finished_run: Run, call: Call
) -> None:
    def card() -> str:
        storage = f"--storage {finished_run.path.parent}"
        run_command(f"cifar-tune ensemble --run tiny --top 1 {storage}", call)
        return (finished_run.path / "ensembles" / "top1" / "model_card.md").read_text()

    assert "With all resumes, it was asked for 3 trials. `ensemble.json`" in card()
    config = finished_run.trial(1).config
    plan = RefitConfig(run="first", trials=(7, 4), configs=(config, config), seeds=3)
    finished_run.update(refit=plan)
    told = "With all resumes, it was asked for trials 7, 4 of first, each with 3 seeds."
    assert told in card()
