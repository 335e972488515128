"""``show``: print a summary of a run, a trial or an ensemble."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli import completion
from tuner.cli.ensemble_tables import print_ensemble
from tuner.cli.insights import searched_columns
from tuner.cli.options import JSON, STORAGE, option
from tuner.cli.output import (
    figure,
    finite,
    make_console,
    print_json,
    print_sentence,
    print_table,
    spelt_scores,
)
from tuner.cli.student_table import print_student
from tuner.cli.trials_table import print_best, print_leaderboard
from tuner.errors import UsageError
from tuner.metrics.goal import name_of
from tuner.run.resuming import WITHOUT_PATIENCE
from tuner.schema import whole_number
from tuner.storage.paths import AnyPath, to_path

if TYPE_CHECKING:
    from tuner.run.run import Run
    from tuner.run.trial import TrialRecord

PORT = 8050
"""Default port of the report's page."""
MOST_TRIALS = 5
"""Number of best trials of a run that are listed."""


@click.command(epilog="Example: cifar-tune show quick-20260101-120000 7")
@click.argument(
    "target", required=False, metavar="[RUN|ENSEMBLE]", shell_complete=completion.runs_or_ensembles
)
@click.argument(
    "trial", type=click.IntRange(min=0), required=False, shell_complete=completion.trials
)
@STORAGE
@option("--follow", is_flag=True, help="Watch the search until it ends; Ctrl-C leaves it running.")
@option("--serve", is_flag=True, help="Show the report in a browser; Ctrl-C ends the server.")
@option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port of --serve; 0 takes a free one. [default: {PORT}]",
)
@JSON
def show(
    target: str | None,
    trial: int | None,
    storage: AnyPath,
    follow: bool,
    serve: bool,
    port: int | None,
    as_json: bool,
) -> None:
    """Print a summary of a run, a trial or an ensemble.

    Without RUN, shows the newest run, or its TRIAL. To watch a search that another process runs,
    use --follow in the terminal, or --serve in a browser: a page for this machine only, which
    refreshes itself.
    """
    from tuner.run.run import find_run

    if target is not None and trial is None:
        number = whole_number(target)
        if number is not None and not _is_run(storage, target):
            target, trial = None, number
    if target is not None and trial is None and (folder := _ensemble(storage, target)):
        if follow or serve:
            flag = "--follow" if follow else "--serve"
            raise click.UsageError(f"{flag} shows a run; leave it out for an ensemble.")
        print_json(_figures(folder)) if as_json else print_ensemble(folder, is_whole=True)
        return
    source = click.get_current_context().get_parameter_source("port")
    # In the environment, it may be meant for serve --port.
    if source is click.core.ParameterSource.COMMANDLINE and not serve:
        raise click.UsageError("--port says where --serve listens; add --serve.")
    found = find_run(storage, target)
    if serve:
        if trial is not None or as_json or follow:
            raise click.UsageError("--serve shows a whole run in a browser; leave out the rest.")
        _serve(found, PORT if port is None else port)
    elif follow:
        if trial is not None or as_json:
            raise click.UsageError("--follow shows a whole run as a table; leave out the rest.")
        _follow(found)
    elif trial is None:
        _show_run(found, as_json)
    else:
        _show_trial(found, found.trial(trial), as_json)


def _is_run(storage: AnyPath, name: str) -> bool:
    from tuner.run.layout import RUN

    named = to_path(name)
    places = (storage / name, named) if isinstance(named, Path) else (named,)
    return any((place / RUN).exists() for place in places)


def _ensemble(storage: AnyPath, name: str) -> AnyPath | None:
    """Return the folder of the ensemble of that name; ``None`` if a run is meant."""
    from tuner.run.ensembles import find_ensemble
    from tuner.run.run import find_run

    if _is_run(storage, name):
        return None
    try:
        return find_ensemble(storage, name)
    except UsageError:
        if "/" in name:
            raise
        # Its error lists the runs.
        find_run(storage, name)
        raise


def _figures(folder: AnyPath) -> Any:
    import json

    from tuner.report.ensembles import read_figures
    from tuner.run.layout import METRICS
    from tuner.storage.paths import read_text

    read_figures(folder)  # Raises if the folder is damaged.
    return json.loads(read_text(folder / METRICS))


def _show_run(run: "Run", as_json: bool) -> None:
    from tuner.report.front import front_of
    from tuner.run.outlook import outlook_of
    from tuner.run.run import clock
    from tuner.run.rung_worth import rung_worths
    from tuner.run.uncertainty import validated_on
    from tuner.schema import to_plain

    record = run.record
    student = None
    if record.teacher is not None:
        from tuner.ensemble.students import find_student

        student = find_student(run)
    if as_json:
        plain = {"path": str(run.path), **_standing(run), **to_plain(record)}
        print_json(plain | ({"student": to_plain(student)} if record.teacher else {}))
        return
    ranked = run.ranked()
    states = Counter(trial.status.state.replace("_", " ") for trial in ranked)
    told = ", ".join(f"{count} {state}" for state, count in states.most_common())
    search = record.search
    images = validated_on(run)
    if record.data.folds is None:
        images = f"{record.num_train} training images, {images}"
    click.echo(
        f"{record.name}: {record.status}, {told or 'no trial yet'}, of {search.trials} trials\n"
        f"{record.data.source}: {images}\n"
        f"{record.space}: {search.epochs} epochs at most, {search.sampler}, {search.scheduler}, "
        f"seed {search.seed}\n"
        f"started {record.started[:19].replace('T', ' ')} UTC, {clock(record.active_seconds)} of "
        "searching\n"
    )
    if ranked:
        print_leaderboard(run, ranked, MOST_TRIALS)
        if not record.refit:
            print_best(run, ranked)
    if front := front_of(run, ranked):
        click.echo()
        metric = search.metric
        rows = [
            {"trial": str(one.trial), "model": one.family, metric: figure(one.value)}
            | {name: figure(amount) for name, amount in one.costs.items()}
            for one in front
        ]
        print_table(rows, f"The front of {search.objectives}")
    if worths := rung_worths(search, [trial.history for trial in ranked]):
        click.echo("\n" + "\n".join(map(str, worths)))
    if outlook := outlook_of(run, ranked):
        click.echo(f"\n{outlook}")
    if record.reason:
        command = run.resume_command(*WITHOUT_PATIENCE)
        click.echo(f"\nEnded: {record.reason}.\nResume with:\n  {command}")
    if student is not None:
        print_student(student, run.metric)
    if rows := list(_ensembles(run)):
        click.echo()
        print_table(rows, "Ensembles, the newest first")
    is_open = record.status == "interrupted" or states["interrupted"] or states["paused"]
    if is_open and record.status != "running" and not record.reason:
        # If trials are open though the run is finished, it has spent its budget.
        factor = 1 if record.status == "interrupted" else 2
        click.echo(f"\nResume with:\n  {run.resume_command(factor=factor)}")


def _ensembles(run: "Run") -> Any:
    from tuner.report.ensembles import read_figures
    from tuner.run.ensembles import ensemble_folders

    for folder in ensemble_folders(run.path):
        result = read_figures(folder)
        test = result.ensemble.test
        tested = test if result.has_test else None
        yield {
            "name": folder.name,
            "method": result.method,
            "members": str(len(result.members)),
            **({} if run.metric == "accuracy" else {"by": name_of(run.metric)}),
            "cross-fit": spelt_scores(result.ensemble.crossfit, run.metric),
            "test": spelt_scores(tested, run.metric),
            "NLL": f"{test.nll:.4f}",
        }


def _standing(run: "Run") -> dict[str, Any]:
    """Return trials per state, the best trial, and what rungs, outlook and front show."""
    from tuner.report.front import front_of
    from tuner.run.outlook import outlook_of
    from tuner.run.run import leader
    from tuner.run.rung_worth import rung_worths
    from tuner.run.trial import METRIC_COLUMNS
    from tuner.run.uncertainty import val_margin
    from tuner.schema import to_plain

    ranked = run.ranked()
    states = Counter(trial.status.state for trial in ranked)
    first = leader(ranked)
    found: dict[str, Any] | None = None
    if first and (best := first.best):
        column = METRIC_COLUMNS[run.metric]
        found = {
            "trial": first.number,
            "val_accuracy": best.val_accuracy,
            column: best.value(run.metric),
        }
        if note := val_margin(run, best.val_accuracy):
            found["val_margin"] = note
    worths = rung_worths(run.record.search, [trial.history for trial in ranked])
    return {
        "states": dict(states.most_common()),
        "best": found,
        **({"rungs": [str(worth) for worth in worths]} if worths else {}),
        **({"outlook": outlook} if (outlook := outlook_of(run, ranked)) else {}),
        **({"front": to_plain(front_of(run, ranked))} if run.record.search.costs else {}),
    }


def _show_trial(run: "Run", trial: "TrialRecord", as_json: bool) -> None:
    import yaml

    from tuner.run.trial import METRIC_COLUMNS
    from tuner.run.uncertainty import val_margin
    from tuner.schema import to_plain

    status, best = trial.status, trial.best
    note = val_margin(run, best.val_accuracy) if best else ""
    history = [asdict(row) for row in trial.history]
    if as_json:
        known = {key: value for key, value in to_plain(status).items() if value}
        # JSON has no NaN for the losses of an epoch that diverged.
        told = [{key: finite(value) for key, value in row.items()} for row in history]
        named = {"path": str(trial.path), "trial": trial.number}
        if best and note:
            known |= {"val_accuracy": best.val_accuracy, "val_margin": note}
        print_json({**named, **known, "config": trial.config.to_dict(), "history": told})
        return
    epochs = f"{len(history)} of {trial.config.epochs} epochs"
    size = f"{status.num_parameters:,} parameters, " if status.num_parameters else ""
    if status.size_mb is not None:
        size += f"{status.size_mb:.3g} MB, "
    if status.latency_ms is not None:
        size += f"{status.latency_ms:.3g} ms an image, "
    click.echo(
        f"{run.record.name}, trial {trial.number}: {trial.config.model.family}, "
        f"{status.state.replace('_', ' ')} after {epochs}"
    )
    if status.reason:
        print_sentence(make_console(), f"ended: {status.reason}")
    if best:
        click.echo(
            f"best: epoch {best.epoch}, accuracy {best.val_accuracy:.4f}, loss {best.val_loss:.4f}"
            + (f" ({note})" if note else "")
        )
    click.echo(f"{size}{trial.seconds:.1f} s of training\n")
    text = yaml.safe_dump(
        trial.config.to_dict(),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        # A line ends only after the word that crosses this width, and a key stays with its value.
        width=60,
    )
    click.echo(text.rstrip())
    if history:
        click.echo()
        keys = ["epoch", "train_loss", "val_loss", "val_accuracy", "lr", "seconds"]
        if (column := METRIC_COLUMNS[run.metric]) not in keys:
            keys.insert(4, column)
        rows = [{key: figure(row[key]) for key in keys} for row in history]
        # A learning rate may be small throughout.
        rows = [
            row | {"lr": f"{epoch['lr']:.3g}"} for row, epoch in zip(rows, history, strict=True)
        ]
        print_table(rows, "")
    if status.traceback:
        click.echo(f"\n{status.traceback.rstrip()}")


def _follow(run: "Run") -> None:
    from contextlib import suppress

    from tuner.console import Console
    from tuner.monitor.follow import follow

    searched = searched_columns(run, run.trials())
    # Leaving does not interrupt the search.
    with suppress(KeyboardInterrupt):
        follow(run.path, Console(highlight=False), searched)


def _serve(run: "Run", port: int) -> None:
    from contextlib import suppress

    from tuner.loopback import HOST
    from tuner.report.live import LivePage, page_server

    page = LivePage(run.path, _page)
    # Leaving does not interrupt the search.
    with page_server(page, port) as server, suppress(KeyboardInterrupt):
        address = f"http://{HOST}:{server.server_port}/"
        click.echo(f"The report of {run.record.name}: {address} (Ctrl-C ends it)")
        server.serve_forever()
    click.echo("\nNot served any more.")


def _page(run: "Run", version: str) -> str:
    from tuner.cli.insights import insights_of, tentative_importance
    from tuner.report import make_page

    ranked = run.ranked()
    known = insights_of(run, ranked)
    tentative = tentative_importance(run, known, ranked)
    return make_page(
        run, ranked, known.space, known.importance, known.advice, tentative, version=version
    ).html
