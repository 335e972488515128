import io
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.processes import PROGRAM
from tests.test_conductor import SLOTS, World
from tuner.search.conductor import Conductor
from tuner.search.progress import Progress, sparkline


def conductor_under_way(folder: Path) -> Conductor:
    world = World(folder)
    conductor = world.conductor()
    first, second = world.begin(conductor), world.begin(conductor)
    first.step(0.5)
    first.step(0.6)
    second.step(0.1)
    return conductor


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal_and_tells_what_goes_on(tmp_path: Path, width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=24, no_color=True)
    conductor = conductor_under_way(tmp_path)
    with Progress(conductor, SLOTS, console):
        pass
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "best 0.6000 (trial 0)" in text
    assert "1 stopped" in text
    assert "2/4" in text
    assert "▁█" in text
    assert all(len(line) <= width for line in text.replace("\r", "\n").splitlines())


def test_off_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    screen = io.StringIO()
    with Progress(conductor_under_way(tmp_path), SLOTS, Console(file=screen, width=200)):
        pass
    assert "\x1b" not in screen.getvalue()
    assert screen.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([0.5], "▁"), ([0.1, 0.2, 0.3], "▁▅█"), ([0.1, float("nan"), 0.3], "▁ █")],
)
def test_a_curve_goes_from_its_lowest_to_its_highest(values: list[float], drawn: str) -> None:
    assert sparkline(values) == drawn


@pytest.mark.ray
def test_a_real_terminal_shows_the_table_and_is_whole_after_an_interrupt(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    search = subprocess.Popen(
        [PROGRAM, "search", "--space", "quick", "--name", "run", "--epochs", "60"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    end = time.monotonic() + 120
    sent = False
    while time.monotonic() < end:
        if select.select([ours], [], [], 1)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:
                break
        if not sent and b"best 0." in seen:
            search.send_signal(signal.SIGINT)
            sent = True
    assert search.wait(30) == 130
    text = seen.decode()
    assert "Traceback" not in text
    assert "epochs/s" in text
    assert "cifar-tune search --resume --name run" in text.replace("\r\n", "")
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is shown again"
