"""A live table that a terminal may be resized under."""

from collections.abc import Callable
from itertools import chain

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment


class LiveTable(Live):
    """Shows what ``draw(width, height)`` gives, four times a second.

    Rich goes up as many lines as it wrote before it writes again. Most terminals (tmux, VTE, kitty,
    Windows Terminal) wrap what stands on them when they are made narrower, and then it is more
    lines; those are counted and erased here. On one that cuts lines instead (xterm), as many lines
    above the table are erased with it.
    """

    def __init__(self, draw: Callable[[int, int], RenderableType], console: Console) -> None:
        self._lines = _Lines(draw)
        super().__init__(console=console, get_renderable=lambda: self._lines, refresh_per_second=4)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """See ``rich.console.RenderHook``."""
        wrapped = sum((cells - 1) // self.console.width for cells in self._lines.cells if cells)
        up = (
            ControlType.CARRIAGE_RETURN,
            (ControlType.ERASE_IN_LINE, 2),
            (ControlType.CURSOR_UP, 1),
        )
        return [Control(*up * wrapped), *super().process_renderables(renderables)]


class _Lines:
    """What was drawn, with the width of each line when it was rendered last."""

    def __init__(self, draw: Callable[[int, int], RenderableType]) -> None:
        self.cells: list[int] = []
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = self._draw(*console.size)
        lines = [_stripped(line) for line in console.render_lines(drawn, options, pad=False)]
        self.cells = [Segment.get_line_length(line) for line in lines]
        yield from chain.from_iterable((*line, Segment.line()) for line in lines)


def _stripped(line: list[Segment]) -> list[Segment]:
    """Leave out the blanks at the end: some terminals wrap them, too, and others do not."""
    while line and not line[-1].text.strip():
        line = line[:-1]
    if line:
        text, style, control = line[-1]
        line = [*line[:-1], Segment(text.rstrip(), style, control)]
    return line
