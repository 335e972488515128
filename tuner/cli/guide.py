"""``guide``: show the guides in the terminal."""

from importlib.resources import files

import click
from rich.markdown import Markdown

from tuner.cli.output import make_console

MOST_COLUMNS = 100
"""Maximum width of the text on a wide terminal, in columns."""
GUIDES = {
    "spaces": "search spaces, and how they are searched",
    "data": "your own images",
    "ensembles": "combine, refit and use the best trials",
    "cluster": "many machines, object stores, shares of a GPU",
    "python": "the same from Python",
    "promises": "what a run leaves, what is promised, what words mean",
}


@click.command(epilog="Example: cifar-tune guide spaces")
@click.argument("name", required=False, type=click.Choice(list(GUIDES)))
def guide(name: str | None) -> None:
    """Show a guide, or list the guides if no name is given."""
    if name is None:
        for known, about in GUIDES.items():
            click.echo(f"{known:<10} {about}")
        return
    text = (files("tuner") / "guides" / f"{name}.md").read_text(encoding="utf-8")
    console = make_console()
    if console.is_terminal:
        console.print(Markdown(text), width=min(console.width, MOST_COLUMNS))
    else:
        click.echo(text, nl=False)
