import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.processes import PROGRAM
from tests.test_tuner import World, read_space
from tuner.monitor import steps
from tuner.monitor.live_table import sparkline, stretched
from tuner.monitor.terminal import is_live, tell
from tuner.tuning.progress import Progress

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def shown(folder: Path, width: int, *, live: bool = True, **budget: float) -> str:
    """Return what the progress of a small search writes on a console."""
    screen = io.StringIO()
    console = Console(
        file=screen, force_terminal=live, width=width, height=40, color_system=None, _environ={}
    )
    world = World(folder)
    tuner = world.tuner(**budget)
    with Progress(tuner, console, lambda: 2, read_space(world.text)):
        first, second = world.begin(tuner), world.begin(tuner)
        first.step(0.5)
        first.step(0.6)
        second.step(0.1)
        third = world.begin(tuner)
        third.finish("failed", reason="RuntimeError: broken")
    return screen.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal_and_tells_what_goes_on(tmp_path: Path, width: int) -> None:
    text = ESCAPES.sub("", shown(tmp_path, width))
    assert "best 0.6000 (trial 0)" in text
    assert "1 of 2 slots busy · 1 stopped · 1 failed" in text
    assert "errors: 1 RuntimeError" in text
    assert "2/6 trials" in text
    assert "2/4" in text
    assert "▁█" in text
    assert re.search(r"1 +2 +1 +1\b", text), "of two that came to rung 1 one passed, one stopped"
    assert "ETA 0:" in text
    assert re.search(r"3 epochs of 2 s · elapsed 0:00:0\d", text)
    assert "batch_size" in text, "what is searched"
    assert "budget" not in text
    assert all(len(line) <= width for line in text.replace("\r", "\n").splitlines())


@pytest.mark.parametrize(
    ("budget", "latest"),
    # Three epochs of two seconds on half a GPU spend three GPU-seconds; one trial runs on.
    [({}, 60), ({"seconds": 5.5}, 5), ({"gpu_seconds": 4.0}, 2)],
)
def test_the_time_left_ends_with_the_budget(
    tmp_path: Path, budget: dict[str, float], latest: int
) -> None:
    text = ESCAPES.sub("", shown(tmp_path, 200, **budget))
    *_, (minutes, seconds) = re.findall(r"ETA 0:(\d\d):(\d\d)", text)
    left = 60 * int(minutes) + int(seconds)
    assert left <= latest
    assert ("budget left 0:00:0" in text) == bool(budget)
    assert budget or left > 5


def test_without_colour_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not is_live(Console(force_terminal=True))
    monkeypatch.delenv("NO_COLOR")
    assert is_live(Console(force_terminal=True, _environ={"TERM": "xterm"}))


def test_a_long_step_is_told_of_again_and_a_short_one_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "MOMENT", 0.05)
    monkeypatch.setattr(steps, "PULSE", 0.2)
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    with steps.step(console, "Blinking"):
        pass
    with steps.step(console, "Sleeping"):
        time.sleep(0.6)
    first, *others = screen.getvalue().splitlines()
    assert first == "Sleeping ..."
    assert others
    assert all(re.fullmatch(r"Sleeping \.\.\. \d s so far", line) for line in others)


def test_what_was_told_last_is_told_again_while_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "PULSE", 0.2)
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    with steps.telling(console) as tell:
        tell("Timing members")
        tell("Reading images")
        time.sleep(0.6)
    with steps.step(console, "Training") as change:
        time.sleep(0.3)
        change("Training, epoch 1 done")
        time.sleep(0.3)
    lines = screen.getvalue().splitlines()
    assert lines[:2] == ["Timing members", "Reading images"]
    assert re.fullmatch(r"Reading images \.\.\. \d s so far", lines[2])
    assert "Training ..." in lines
    assert lines[-1].startswith("Training, epoch 1 done ... ")


def test_off_a_terminal_there_are_plain_lines(tmp_path: Path) -> None:
    text = shown(tmp_path, 200, live=False)
    assert "\x1b" not in text
    assert text.splitlines() == [
        "0/6 trials · 0 of 2 slots busy",
        "trial 1 stopped · 1 epoch · best accuracy 0.1000 · epoch 1: 0.1000 below 0.5000, 1 peer",
        "trial 2 failed · 0 epochs · no accuracy · RuntimeError: broken",
    ]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([0.5], "▁"), ([0.1, 0.2, 0.3], "▁▅█"), ([0.1, float("nan"), 0.3], "▁ █")],
)
def test_a_curve_goes_from_its_lowest_to_its_highest(values: list[float], drawn: str) -> None:
    assert sparkline(values) == drawn


def test_a_step_curve_holds_its_value_until_the_next_step() -> None:
    assert stretched([(1, 0.1), (3, 0.2), (5, 0.4)], 5, 5) == [0.1, 0.1, 0.2, 0.2, 0.4]
    assert stretched([(4, 0.5)], 4, 3) == [0.5, 0.5, 0.5]


def read_until(ours: int, *words: bytes, seconds: float = 120) -> bytes:
    """Read a terminal until it has shown one of ``words``, or is closed."""
    seen = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not any(word in seen for word in words):
        if select.select([ours], [], [], 1)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:
                break
    return seen


def in_terminal(folder: Path, *words: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the program in a terminal of 80 columns; give it with our end of the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, *words],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


@pytest.mark.ray
def test_a_real_terminal_shows_the_table_and_is_whole_after_an_interrupt(tmp_path: Path) -> None:
    search, screen = in_terminal(
        tmp_path, "search", "--space", "quick", "--name", "run", "--epochs", "60"
    )
    seen = read_until(screen, b"best 0.")
    # Another terminal follows it, from the folder alone, and leaves it running.
    watch, window = in_terminal(tmp_path, "show", "run", "--follow")
    followed = read_until(window, b"slots busy", seconds=60)
    watch.send_signal(signal.SIGINT)
    followed += read_until(window, seconds=20)
    assert watch.wait(30) == 0
    search.send_signal(signal.SIGINT)
    seen += read_until(screen)
    assert search.wait(60) == 130
    assert "cifar-tune search --resume --name run" in seen.decode().replace("\r\n", "")
    for text in (seen.decode(), followed.decode()):
        assert "Traceback" not in text
        assert "2 of 2 slots busy" in text
        assert "ETA" in text
        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is shown again"
    assert json.loads((tmp_path / "runs/run/run.json").read_text())["status"] == "interrupted"


TMUX = ("tmux", "-L", f"cifar-tune-{os.getpid()}")


def tmux(*words: str) -> str:
    return subprocess.run([*TMUX, *words], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_a_terminal_made_narrower_keeps_one_table_and_what_stood_above_it(tmp_path: Path) -> None:
    world = World(tmp_path / "runs")
    tuner = world.tuner()
    first, second = world.begin(tuner), world.begin(tuner)
    for accuracy in (0.4, 0.5, 0.6):
        first.step(accuracy)
    second.step(0.5)
    # A resize between the last look at the width and the writing leaves a line, which is rare but
    # on a busy machine; three in a row are none of those.
    above = [str(number) for number in range(901, 910)]
    for _ in range(3):
        lines = narrowed(tmp_path)
        words = ("6 trials", "2 running", "best 0.6", "trial  model", "rung  arrived")
        counts = [sum(word in line for line in lines) for word in words]
        if counts == [1] * len(words) and lines[:9] == above:
            break
    assert counts == [1] * len(words), lines
    assert lines[:9] == above
    assert lines[9].startswith("0/6 trials")


def narrowed(folder: Path) -> list[str]:
    """Follow a run below nine numbers, in a terminal made narrower; give all lines it then has."""
    program = f"env -u COLUMNS -u LINES {PROGRAM} show run --follow"
    tmux("-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "40", "sh")
    try:
        tmux("send-keys", f"cd {folder} && clear && seq 901 909 && {program}", "Enter")
        screen_with("2 running", "rung")
        for width, height in (("60", "24"), ("50", "30"), ("45", "24")):
            tmux("resize-window", "-x", width, "-y", height)
            time.sleep(1)
        lines = tmux("capture-pane", "-p", "-S", "-").splitlines()
        return lines[lines.index("901") :]
    finally:
        tmux("kill-server")
        # Who comes while it ends, is sent away.
        while subprocess.run([*TMUX, "has-session"], capture_output=True).returncode == 0:
            time.sleep(0.1)
        time.sleep(0.5)


def screen_with(*words: str) -> str:
    """Wait until the terminal shows all of ``words``, and give what it shows."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        text = tmux("capture-pane", "-p")
        if all(word in text for word in words):
            return text
        time.sleep(0.3)
    raise AssertionError(f"no {words} in:\n{text}")


def test_a_step_is_told_as_it_is_written() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with steps.step(console, "Reading toys[/old]/:ship:"):
        pass
    assert "Reading toys[/old]/:ship: ..." in screen.getvalue()


def test_a_line_is_told_as_it_is_where_it_is_longer_than_the_console() -> None:
    screen = io.StringIO()
    line = "The 5 best configurations of toys[/old], each with 3 seeds"
    tell(Console(file=screen, width=20), line)
    assert screen.getvalue() == f"{line}\n"
