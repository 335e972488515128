"""Text on its way to a terminal: characters that could control it or hide text are escaped.

Names of classes, files and runs, and the reasons of failures, may come from others. Everything that
the program prints passes through ``visible`` in one of two ways: tables and progress through
``Console``, everything else through the streams of ``visible_output``.
"""

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TextIO, cast

import rich.console
from rich.segment import Segment
from rich.text import Text

from tuner.passwords import hide_passwords

MOST_WORD = 200
"""Maximum number of characters of a message without a space."""
MOST_LINE = 1000
"""Maximum number of characters in a line of a message."""


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Return the text with invisible characters escaped, as ``\x1b`` or ``\u202e``.

    These are Unicode's control and format characters, such as escape sequences, changes of
    direction and zero-width spaces, and characters that no encoding can write. Passwords in URLs
    are hidden.

    Args:
        text: Any text.
        keep: Control characters to leave unchanged.
    """
    text = hide_passwords(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


PLAIN = str.maketrans("·…▁▂▃▄▅▆▇█\N{MINUS SIGN}", "-~_.,-=+*#-") | {ord("±"): "+-"}
"""Replaces the program's own symbols on a terminal without Unicode."""


RESET = "\x1b[0m"
"""Written at exit by colorama, which comes with Ray; colours come only from ``Console``."""


def encodable(text: str, encoding: str) -> str:
    r"""Return the text with characters that an encoding lacks replaced, or escaped as ``\xe9``."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def shortened(message: str) -> str:
    """Return a message with its long words and lines cut."""
    # A few more are tolerated: the message may have quoted a part and continued after it.
    lines = re.sub(rf"(\S{{{MOST_WORD}}})\S{{10,}}", r"\1…", message).split("\n")
    return "\n".join(
        line if len(line) <= MOST_LINE else f"{line[: MOST_LINE - 300]} … {line[-200:]}"
        for line in lines
    )


class Console(rich.console.Console):
    """A console that escapes invisible characters, except for its own colours and movements."""

    def __init__(self, **options: Any) -> None:
        """Take text literally: ``:ship:`` in a name is not an emoji."""
        super().__init__(emoji=False, **options)

    @property
    def is_terminal(self) -> bool:
        """Whether the stream is a terminal; for rich, FORCE_COLOR makes a pipe one, too."""
        return super().is_terminal and (self._force_terminal or self.file.isatty())

    @property
    def file(self) -> IO[str]:
        """The stream beneath all those that escape invisible characters, and beneath rich's own."""
        stream = rich.console.Console.file.__get__(self)
        # A live display wraps our stream in one of its own.
        while (beneath := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = beneath
        return cast("IO[str]", stream)

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def _check_buffer(self) -> None:
        """Write the buffer, or drop it if the terminal is closed: SIGHUP decides what ends then."""
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO or not stat.S_ISCHR(os.fstat(self.file.fileno()).st_mode):
                raise
            del self._buffer[:]

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to text, escaped here so that a cell is as wide as what is shown."""
        return super().render_str(visible(text), **options)

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """Convert anything to segments; everything that is printed passes here."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(encodable(visible(segment.text), self.encoding), segment.style)


class VisibleStream:
    """A stream that escapes invisible characters in the text that is written to it.

    Attributes:
        rich_proxied_file: The stream beneath, to which ``Console`` writes; rich defines this name.
        is_used: Whether anything was written to it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.rich_proxied_file: Any = stream
        self.is_used = False

    def flush(self) -> None:
        """Write what is buffered; do nothing if the process has no such stream."""
        if self.rich_proxied_file is not None:
            self.rich_proxied_file.flush()

    def write(self, text: str) -> int:
        """Write text; keep a leading carriage return, which progress bars use to redraw a line."""
        if text == RESET:
            return len(text)
        self.is_used = True
        begin = "\r" if text.startswith("\r") else ""
        shown = visible(text.removeprefix(begin))
        self.rich_proxied_file.write(begin + encodable(shown, self.encoding or "utf-8"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def visible_output() -> Iterator[VisibleStream]:
    """Escape invisible characters in what the block writes to stdout and stderr; yield the former.

    After an unexpected error the streams stay replaced, for its traceback, too.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = output, _ = [VisibleStream(stream) for stream in before]
    yield output
    sys.stdout, sys.stderr = before
