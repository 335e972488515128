"""What is printed cannot steer a terminal, whoever has written it."""

import ast
import io
import json
import os
import pty
import sys
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tests.conftest import Call
from tests.test_run import make_run
from tuner.cli.output import data_output, print_json
from tuner.console import MOST_LINE, MOST_WORD, Console, shortened, visible, visible_output

EVIL = "cat\x1b[2J\x07\r\x9b1m\u202etac\u200b\udcff"
SHOWN = r"cat\x1b[2J\x07\r\x9b1m\u202etac\u200b\udcff"


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible(EVIL) == SHOWN
    assert visible("räksmörgås 猫 🐈\n\tß") == "räksmörgås 猫 🐈\n\tß"
    assert visible("a\nb", keep="") == r"a\nb"


@pytest.mark.parametrize(
    "content", [EVIL, Text(EVIL), "table", "live"], ids=["string", "text", "table", "live"]
)
def test_a_console_writes_no_code_but_its_own(content: object) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=120)
    table = Table(EVIL.replace("[2J", ""))
    table.add_row(Text(EVIL))
    if content == "live":
        with Live(table, console=console, refresh_per_second=1):
            pass
        own = ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K", "\r")
    else:
        console.print(table if content == "table" else content, markup=False)
        own = ()
    written = file.getvalue()
    for code in own:
        written = written.replace(code, "")
    assert r"\x1b" in written
    assert not [c for c in written if not c.isprintable() and c != "\n"]


def test_cells_are_as_wide_as_what_is_shown() -> None:
    file = io.StringIO()
    table = Table("name", "other")
    table.add_row("a\x1bb", "x")
    table.add_row("plain", "y")
    Console(file=file, width=80).print(table)
    assert len({len(line) for line in file.getvalue().splitlines()[1:]}) == 1


def test_streams_show_it_but_for_the_return_of_a_progress_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with visible_output():
        print(EVIL.replace("\udcff", ""))
        print("\r50 %\x1b[A", file=sys.stderr, end="")
        sys.stderr.write("\x1b[0m")  # As colorama does when a program ends.
        Console(file=None, force_terminal=True, color_system="standard").print("[red]own[/]")
    out, err = capsys.readouterr()
    assert SHOWN.removesuffix(r"\udcff") in out
    assert "\x1b[31mown\x1b[0m" in out, "colours of our own pass"
    assert err == "\r50 %\\x1b[A"


def test_the_traceback_of_a_mistake_of_ours_is_shown_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with visible_output():
            raise KeyError

    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with pytest.raises(KeyError):
        fail()
    print("postgresql://me:hunter2@db/x\x1b", file=sys.stderr)
    assert capsys.readouterr().err == "postgresql://me:***@db/x\\x1b\n"


def test_commands_show_names_from_a_run_and_cut_long_input(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs", "evil\x1b[2J", command="x")
    monkeypatch.chdir(tmp_path)

    code, out, err = call("runs")
    assert code == 0, err
    assert r"evil\x1b[2J" in out + err
    assert "\x1b" not in out + err
    for words in (
        ["show", "nobody\x1b[31m" + "x" * 240],
        ["show", "y" * 3000],
        ["runs", "--storage", "z" * 3000],
        ["leaderboard", "--rows", "x" * 3000],
        ["search", "--space", "w" * 3000],
        ["search", "--space", "quick", "--name", "evil\x1b[2J"],
        ["search", "--space", "quick", "--name", "n" * 256],
    ):
        code, out, err = call(*words)
        text = out + err
        assert code == 2, (words[:2], text)
        assert max(map(len, text.split())) < MOST_WORD + 10
        assert "\x1b" not in text


def test_long_words_and_lines_of_a_message_are_cut() -> None:
    assert shortened("x" * 5000) == "x" * MOST_WORD + "…"
    assert len(shortened("word " * 5000)) <= MOST_LINE
    assert shortened("first\nsecond") == "first\nsecond"


def test_no_console_is_made_but_ours() -> None:
    made = []
    for path in (Path(__file__).parents[1] / "tuner").rglob("*.py"):
        tree = ast.parse(path.read_text())
        is_rich = any(
            isinstance(node, ast.ImportFrom)
            and node.module == "rich.console"
            and any(alias.name == "Console" for alias in node.names)
            for node in ast.walk(tree)
        )
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
        ]
        made += [path] if is_rich and calls else []
    assert not made


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_variable_makes_a_terminal_of_a_pipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    console = Console(file=io.StringIO())
    assert not console.is_terminal
    assert console.color_system is None
    assert Console(file=io.StringIO(), force_terminal=True).is_terminal


def test_what_would_go_to_a_terminal_that_was_closed_goes_nowhere() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        console = Console(file=terminal)
        console.print("seen")
        os.close(master)
        console.print("not seen")
        console.print("nor this")
        # What is left in the stream is not written at its end either.
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), terminal.fileno())


def test_a_word_between_colons_is_no_picture() -> None:
    file = io.StringIO()
    table = Table("class")
    table.add_row("toy:ship:red")
    Console(file=file, width=80).print(table)
    assert "toy:ship:red" in file.getvalue()


def test_data_are_written_unchanged_except_on_a_terminal(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "r\udce4v \u202f\x1b 猫\n"
    with visible_output():
        data_output().write(text)
    assert capsysbinary.readouterr().out == text.encode("utf-8", "surrogateescape")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with visible_output():
        data_output().write(text)
    assert capsysbinary.readouterr().out.decode() == "r\\udce4v \\u202f\\x1b 猫\n"


def test_json_stays_json_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    names = [chr(code) for code in range(256)] + [EVIL]
    with visible_output():
        print_json(names)
    assert json.loads(capsys.readouterr().out) == names
