"""A little of each part of the soak that no other test is: it is long, and this is quick."""

import io
import shutil
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.faults import Moment
from tests.benchmarks.processes import Search
from tests.benchmarks.promises import Watch
from tests.benchmarks.soak_parts.failures import STEADY, Place, failing_search, faulty_disk
from tests.benchmarks.soak_parts.inputs import try_checks, try_spaces
from tests.benchmarks.soak_parts.leftovers import try_leftovers
from tests.benchmarks.soak_parts.together import try_together
from tests.benchmarks.soak_parts.trials import try_trials
from tuner.run.run import Run

QUIET = Console(file=io.StringIO())


def test_spaces_with_mistakes_are_read_or_refused(tmp_path: Path) -> None:
    tried = try_spaces(300, 0, tmp_path)
    assert tried.lost == {}
    assert min(tried.kept, tried.refused) > 0


def test_changed_files_are_named_by_check(run_with_ensemble: Run, tmp_path: Path) -> None:
    shutil.copytree(run_with_ensemble.path, tmp_path / "tiny")
    tried = try_checks(15, 0, Run.open(tmp_path / "tiny"))
    assert tried.lost == {}
    assert tried.kept == 15


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["errors of input and output", "a lost study"])
def test_a_search_in_which_something_fails_keeps_its_promises(tmp_path: Path, kind: str) -> None:
    place = Place(folder=tmp_path)
    place.storage.mkdir()
    verdict = failing_search(place, kind, Moment(3, 0.2), 3.0, faulty_disk(tmp_path))
    assert verdict.broken == []
    assert verdict.kills == 1


@pytest.mark.ray
@pytest.mark.slow
def test_searches_at_once_keep_their_promises(tmp_path: Path) -> None:
    for tried in try_together(1, 0, tmp_path, QUIET):
        assert tried.lost == {}
        assert tried.kept == 1


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_stays_small_over_many_trials() -> None:
    tried = try_trials(400)
    assert tried.lost == {}, tried.notes


@pytest.mark.ray
@pytest.mark.slow
def test_killed_searches_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # A short path, for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as name:
        folder, temporary = Path(name, "killed"), Path(name, "t")
        for path in (folder, temporary):
            path.mkdir()
        for variable in ("TMPDIR", "RAY_TMPDIR"):
            monkeypatch.setenv(variable, str(temporary))
        (folder / "space.yaml").write_text(STEADY)
        begin = ("--space", "space.yaml", "--name", "run", "--concurrent", "2")
        with Search(folder, *begin) as search, Watch(folder / "runs" / "run") as watch:
            assert Moment(3, 0.2).arrives(search, watch), search.errors
            search.kill_everything()
        assert len(list((temporary / "ray").glob("session_2*"))) == 1
        tried = try_leftovers(temporary, folder, "--resume", "--name", "run")
        assert tried.lost == {}
