"""``compare``: runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli import completion
from tuner.cli.insights import print_advice
from tuner.cli.options import DATA, JSON, METRIC, MOVED_DATA_DIR, STORAGE, option
from tuner.cli.output import output_file, print_comparison, print_json
from tuner.run.resuming import command_line, short_path, storage_words
from tuner.storage.paths import AnyPath

if TYPE_CHECKING:
    from tuner.config import Metric


@click.command(epilog="Example: cifar-tune compare tpe-1 random-1 --html compare.html")
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN RUN...", shell_complete=completion.runs
)
@STORAGE
@option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page to this file, too.",
)
@METRIC
@DATA
@MOVED_DATA_DIR
@JSON
def compare(
    runs: tuple[str, ...],
    storage: AnyPath,
    html: Path | None,
    metric: "Metric | None",
    data: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Compare runs side by side.

    Shows what they searched, what they spent, and their results. Images are read only for
    --metric, and only for runs of an earlier version; --data gives the images of all of these.
    """
    from tuner.report.comparison import compare as describe
    from tuner.report.comparison import comparison_page, differences
    from tuner.run.run import find_run

    if len(runs) < 2:
        line = command_line("runs", *storage_words(storage))
        raise click.UsageError(f"give two runs or more; '{line}' lists them.")
    found = [find_run(storage, name) for name in runs]
    if metric is not None:
        from tuner.training.run_images import ranked_by

        found = [ranked_by(run, metric, data=data, data_dir=data_dir) for run in found]
    described = describe(found)
    if html:
        with output_file(html, "--html") as file:
            file.write(comparison_page(described))
    if as_json:
        print_json({"runs": described, "html": str(html) if html else None})
        return
    print_comparison(described)
    if warning := differences(described):
        print_advice([warning])
    if html:
        click.echo(f"\nPage: {short_path(html)}")
