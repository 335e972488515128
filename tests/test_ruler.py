"""The benchmarks that play searches on tables of learning curves."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import patience, samplers
from tests.benchmarks.tables import read_tables


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three tables of 90 configurations, the accuracy of which is best where both are 0.5."""
    generator = np.random.default_rng(0)
    params = generator.uniform(size=(90, 2))
    best = 1 - np.square(params - 0.5).sum(axis=1, keepdims=True)
    curves = best * (1 - 0.5 ** np.arange(10))
    arrays = {
        f"{name}/{part}_accuracy": curves * scale
        for name, scale in (("first", 0.7), ("second", 0.8), ("third", 0.9))
        for part in ("valid", "test")
    }
    np.savez(tmp_path / "made.npz", params=params, param_names=["a", "b"], **arrays)
    found = {table.name: table for table in read_tables(tmp_path)}
    monkeypatch.setattr(samplers, "loaded", found)
    monkeypatch.setattr(patience, "loaded", found)
    return list(found)


LINES = [
    pytest.param(line, marks=pytest.mark.slow if line.startswith("GP") else ())
    for line in (*samplers.LINES, samplers.SCREEN)
]


@pytest.mark.parametrize("line", LINES)
def test_each_way_to_search_comes_nearer_to_the_best_of_a_table(
    line: str, tables: list[str]
) -> None:
    regrets = samplers.search((tables[0], line, 4, 0))["regrets"]
    assert len(regrets) == len(samplers.BUDGETS)
    assert 1 >= max(regrets) >= min(regrets) >= 0
    assert regrets[-1] <= min(0.1, regrets[0])


def test_forecasts_of_a_search_are_set_beside_what_came(tables: list[str]) -> None:
    row = patience.play((tables[0], patience.LINE, 4, 0))
    assert row["gains"]
    assert all(gain["came"] >= 0 <= gain["foreseen"] for gain in row["gains"])
    assert [end["spent"] <= end["budget"] for end in row["ends"]] == [True] * len(row["ends"])
