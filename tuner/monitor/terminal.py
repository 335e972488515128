"""A live table that survives resizing the terminal."""

from collections.abc import Callable

from rich.console import Console, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment, SegmentLines


def is_live(console: Console) -> bool:
    """Whether a console can show a live display: not a pipe, and not under ``NO_COLOR``."""
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color


def tell(console: Console, line: str) -> None:
    """Print a line as it is, also where it is longer than the console."""
    console.print(line, markup=False, soft_wrap=True)


class LiveTable(Live):
    """Shows the result of ``draw(width, height)``, four times a second.

    Before it writes again, Rich moves up by the number of lines that it wrote. Most terminals
    (tmux, VTE, kitty, Windows Terminal) wrap their contents when they become narrower, which makes
    more lines; those are counted and erased here. On a terminal that cuts lines instead (xterm),
    the same number of lines above the table is erased, too.
    """

    def __init__(self, draw: Callable[[int, int], RenderableType], console: Console) -> None:
        self._draw = draw
        self._shown = SegmentLines([], new_lines=True)
        super().__init__(console=console, get_renderable=lambda: self._shown, refresh_per_second=4)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """See ``rich.console.RenderHook``."""
        before = [Segment.get_line_length(line) for line in self._shown.lines]
        drawn = self.console.render_lines(self._draw(*self.console.size), pad=False)
        self._shown.lines = [_stripped(line) for line in drawn]
        # Read last: a terminal that is resized between this and the writing keeps a line.
        width = self.console.width
        wrapped = sum((cells - 1) // width for cells in before if cells)
        up = (
            ControlType.CARRIAGE_RETURN,
            (ControlType.ERASE_IN_LINE, 2),
            (ControlType.CURSOR_UP, 1),
        )
        return [Control(*up * wrapped), *super().process_renderables(renderables)]


def _stripped(line: list[Segment]) -> list[Segment]:
    """Remove trailing blanks: some terminals wrap them, too, and others do not."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    if line:
        text, style, control = line[-1]
        line = [*line[:-1], Segment(text.rstrip(), style, control)]
    return line
