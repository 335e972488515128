"""``report``: write a run as one page."""

import click

from tuner.cli import completion
from tuner.cli.insights import insights_of, print_advice, tentative_importance
from tuner.cli.options import JSON, STORAGE
from tuner.cli.output import print_json
from tuner.run.resuming import short_path
from tuner.storage.paths import AnyPath


@click.command(epilog="Example: cifar-tune report")
@click.argument("run", required=False, shell_complete=completion.runs)
@STORAGE
@JSON
def report(run: str | None, storage: AnyPath, as_json: bool) -> None:
    """Write a run as one HTML page.

    The page is report.html in the folder of the run, and works offline.
    """
    from tuner.report import write_report
    from tuner.run.run import find_run

    found = find_run(storage, run)
    ranked = found.ranked()
    known = insights_of(found, ranked)
    tentative = tentative_importance(found, known, ranked)
    made = write_report(found, ranked, known.space, known.importance, known.advice, tentative)
    if as_json:
        print_json({"report": str(made.path), "verdict": made.verdict, "advice": made.advice})
        return
    click.echo(made.verdict.replace("\N{NO-BREAK SPACE}%", "%"))
    print_advice(made.advice)
    click.echo(f"Report: {short_path(made.path)}")
