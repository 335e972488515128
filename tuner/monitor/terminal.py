"""A live table that a terminal may be resized under."""

from collections.abc import Callable

from rich.console import Console, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment, SegmentLines


def is_live(console: Console) -> bool:
    """Whether a console shows what moves: not a pipe, and not under ``NO_COLOR``."""
    return console.is_terminal and not console.is_dumb_terminal and not console.no_color


class LiveTable(Live):
    """Shows what ``draw(width, height)`` gives, four times a second.

    Rich goes up as many lines as it wrote before it writes again. Most terminals (tmux, VTE, kitty,
    Windows Terminal) wrap what stands on them when they are made narrower, and then it is more
    lines; those are counted and erased here. On one that cuts lines instead (xterm), as many lines
    above the table are erased with it.
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
        # Asked for last: a terminal that is resized between this and the writing keeps a line.
        width = self.console.width
        wrapped = sum((cells - 1) // width for cells in before if cells)
        up = (
            ControlType.CARRIAGE_RETURN,
            (ControlType.ERASE_IN_LINE, 2),
            (ControlType.CURSOR_UP, 1),
        )
        return [Control(*up * wrapped), *super().process_renderables(renderables)]


def _stripped(line: list[Segment]) -> list[Segment]:
    """Leave out the blanks at the end: some terminals wrap them, too, and others do not."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    if line:
        text, style, control = line[-1]
        line = [*line[:-1], Segment(text.rstrip(), style, control)]
    return line
