"""A cell that a spreadsheet would run is harmless, and comes back as it was."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_run import make_run
from tuner.config import ModelConfig, TrialConfig
from tuner.run.trial import TrialStatus, write_status, write_trial
from tuner.storage.spreadsheet import harmless, original, read_csv, write_csv

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "''@a"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text(text: str) -> None:
    assert str(harmless(text)).startswith("'")
    assert original(str(harmless(text))) == text


@pytest.mark.parametrize("value", ["-1.5", "+1e-3", "-inf", -1.5, 7, None, "cat", "a=b", "'tis"])
def test_numbers_and_other_text_stay(value: object) -> None:
    assert harmless(value) is value


@given(st.text(alphabet="'=+-@\t\r\n,;\"a1é", max_size=8))
def test_any_text_comes_back(text: str) -> None:
    assert original(str(harmless(text))) == text


def test_a_table_comes_back_with_its_head(tmp_path: Path) -> None:
    rows = [["=a", "-1.5"], ["x\r\ny", "'@"]]
    write_csv(tmp_path / "table.csv", ["true \\ predicted", "=class"], rows)
    assert read_csv(tmp_path / "table.csv") == [["true \\ predicted", "=class"], *rows]


def test_the_leaderboard_has_no_formula(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a")
    write_trial(run.trial_path(0), TrialConfig(model=ModelConfig("cnn"), epochs=1))
    write_status(run.trial_path(0), TrialStatus(state="failed", reason="=HYPERLINK(1)"))
    run.write_leaderboard()
    text = (run.path / "leaderboard.csv").read_text()
    assert ",'=HYPERLINK(1)," in text
