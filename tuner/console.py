"""Text on its way to a terminal: characters that could steer it, or hide something, are shown.

Names of classes, files and runs, and the reasons of failures, may have been made by others. All
that the program prints passes ``visible``, in one of two ways: tables and progress through
``Console``, all else through the streams of ``visible_output``.
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
"""Characters of a message that stand together without a space, at most."""
MOST_LINE = 1000
"""Characters of a line of a message, at most."""


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Return the text with what cannot be seen written as ``\x1b`` or ``\u202e``.

    That is what Unicode calls control and format characters: escape sequences, changes of the
    direction, spaces without width; and what no encoding can write. Passwords in URLs are hidden.

    Args:
        text: Any text.
        keep: Control characters that may stay.
    """
    text = hide_passwords(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


PLAIN = str.maketrans("·…▁▂▃▄▅▆▇█\N{MINUS SIGN}", "-~_.,-=+*#-") | {ord("±"): "+-"}
"""What stands for our own signs on a terminal that has no Unicode."""


RESET = "\x1b[0m"
"""What colorama, which Ray brings along, writes at exit; colours come from ``Console`` alone."""


def encodable(text: str, encoding: str) -> str:
    r"""Return the text with what an encoding lacks written otherwise, or as ``\xe9``."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def shortened(message: str) -> str:
    """Return a message with the long words and lines that it quotes cut."""
    # Some more are let be: the message may have quoted a part and gone on after it.
    lines = re.sub(rf"(\S{{{MOST_WORD}}})\S{{10,}}", r"\1…", message).split("\n")
    return "\n".join(
        line if len(line) <= MOST_LINE else f"{line[: MOST_LINE - 300]} … {line[-200:]}"
        for line in lines
    )


class Console(rich.console.Console):
    """A console that shows what cannot be seen, but for its own colours and movements."""

    def __init__(self, **options: Any) -> None:
        """Take words as they are: ``:ship:`` in a name is no picture."""
        super().__init__(emoji=False, **options)

    @property
    def file(self) -> IO[str]:
        """The stream beneath all that show what cannot be seen, and beneath rich's own."""
        stream = rich.console.Console.file.__get__(self)
        # A live display lays a stream of its own over ours.
        while (beneath := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = beneath
        return cast("IO[str]", stream)

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def _check_buffer(self) -> None:
        """Write what is due, or nowhere once the terminal is closed: SIGHUP says what then ends."""
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO or not stat.S_ISCHR(os.fstat(self.file.fileno()).st_mode):
                raise
            del self._buffer[:]

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string into text; here, so that a cell is as wide as what is shown."""
        return super().render_str(visible(text), **options)

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """Turn anything into segments; whatever is printed passes here."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(encodable(visible(segment.text), self.encoding), segment.style)


class VisibleStream:
    """A stream that shows what cannot be seen in the text that is written to it.

    Attributes:
        rich_proxied_file: The stream beneath, to which ``Console`` writes: the name is rich's.
        is_used: Whether anything was written to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        self.is_used = False

    def write(self, text: str) -> int:
        """Write text; it may begin with a return, by which progress bars go over their line."""
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
    """Show what cannot be seen in all that the block writes to stdout and stderr; yield the former.

    An error that nobody expects leaves it so, for its traceback, too.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = output, _ = [VisibleStream(stream) for stream in before]
    yield output
    sys.stdout, sys.stderr = before
