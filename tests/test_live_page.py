"""A run's page that is served: what a request gets, and when the page is made anew."""

import http.client
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.benchmarks.processes import PROGRAM
from tests.conftest import Call
from tests.test_report import SEARCH, simulated, spaces
from tuner.cli.show import show
from tuner.report import live
from tuner.report.live import LivePage
from tuner.run.run import Run
from tuner.run.trial import write_history
from tuner.storage.paths import AnyPath, copy_file


@contextmanager
def served(path: AnyPath, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield the address of a run's page, and the process that serves it."""
    command = [PROGRAM, "show", str(path), "--serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().split()[-4], process
    finally:
        process.kill()
        process.communicate()


def ask(address: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.netloc, timeout=30)
    connection.request("GET", place.path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_the_page_is_served_to_this_machine_until_ctrl_c(tmp_path: Path) -> None:
    run = simulated(tmp_path, replace(SEARCH, trials=5), spaces())
    with served(run.path) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        answer, body = ask(address, {})
        assert answer.status == 200
        assert b"refresh while the search runs" in body
        assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
        same, body = ask(address, {"If-None-Match": answer.headers["ETag"]})
        assert (same.status, body) == (304, b"")
        # A page elsewhere whose name leads here must not read it.
        assert ask(address, {"Host": "elsewhere.example"})[0].status == 403
        assert ask(f"{address}../run.json", {})[0].status == 404
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert told == "\nNot served any more.\n"
    assert not (run.path / "report.html").exists(), "it was not asked for"


def test_the_page_is_made_anew_when_files_of_the_run_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SECONDS", 0.0)
    monkeypatch.setattr(live, "IDLE", 0)
    run = simulated(tmp_path, replace(SEARCH, trials=3), spaces())
    made: list[str] = []

    def build(run: Run, version: str) -> str:
        made.append(version)
        return f"<p>{run.record.status}, {len(run.trials()[0].history)} epochs</p>"

    page = LivePage(run.path, build)
    first = page.current()
    assert page.current() == first
    assert len(made) == 1
    trial = run.trials()[0]
    write_history(trial.path, trial.history[:-1])
    version, html = page.current()
    assert version != first[0]
    assert html == f"<p>running, {len(trial.history) - 1} epochs</p>".encode()
    run.update(status="finished")
    assert b"finished" in page.current()[1]
    assert len(set(made)) == len(made) == 3
    # And not more often than it was said.
    monkeypatch.setattr(live, "SECONDS", 60.0)
    page = LivePage(run.path, build)
    run.update(status="failed")
    assert b"finished" in page.current()[1]


def test_a_run_in_a_bucket_is_served(bucket: AnyPath, tmp_path: Path) -> None:
    local = simulated(tmp_path, replace(SEARCH, trials=2), spaces())
    for file in sorted(local.path.rglob("*")):
        if file.is_file():
            copy_file(file, bucket / "run" / file.relative_to(local.path).as_posix())
    with served(bucket / "run") as (address, _):
        answer, body = ask(address, {})
        assert answer.status == 200
        assert b"Best of 2 trials" in body


def test_a_port_in_the_environment_is_for_what_is_served(
    run_with_ensemble: Run, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As serve --port has it, too.
    monkeypatch.setenv("CIFAR_TUNE_PORT", "8051")
    code, _, err = call("show", str(run_with_ensemble.path), "--json")
    assert code == 0, err
    assert show.make_context("show", ["--serve"]).params["port"] == 8051


def test_what_serve_does_not_go_with_is_refused(run_with_ensemble: Run, call: Call) -> None:
    run, path = str(run_with_ensemble.path), run_with_ensemble.path
    for words, told in (
        ([run, "1", "--serve"], "--serve shows a whole run"),
        ([run, "--port", "8051"], "add --serve"),
        ([str(path / "ensembles" / "all"), "--serve"], "--serve shows a run"),
    ):
        code, _, err = call("show", *words)
        assert code == 2
        assert told in err
