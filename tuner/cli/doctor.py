"""``doctor``: check whether a search would run."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import click

from tuner.cli.jobs import NOT_SENT, job_storage, job_words, job_writer, say
from tuner.cli.options import DATA_DIR, JSON, STORAGE, option
from tuner.cli.output import print_json
from tuner.errors import ClusterError
from tuner.storage.paths import AnyPath, extra_for
from tuner.tuning.address import find_dashboard


@click.command(epilog="Example: cifar-tune doctor --address auto --storage /shared/runs")
@option("--address", help="Address of a Ray cluster, as for search. [default: this machine]")
@STORAGE
@option(
    "--data", default="cifar10", show_default=True, help="Images to look for, named as for search."
)
@DATA_DIR
@JSON
@click.pass_context
def doctor(
    context: click.Context,
    /,
    address: str | None,
    storage: AnyPath,
    data: str,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Check whether a search would run.

    Checks nodes, versions, storage and data, and reports how many trials fit.
    """
    if dashboard := find_dashboard(address):
        return _submit_doctor(context, dashboard)
    from dataclasses import asdict

    from tuner.config import DataConfig
    from tuner.data.datasets import find_source
    from tuner.tuning.ray_backend.doctor import examine

    findings = []
    for finding in examine(address, storage, DataConfig(source=find_source(data)), data_dir):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.level:8} {finding.about}: {finding.text}")
            if finding.mend:
                click.echo(f"         {finding.mend}")
    levels = [finding.level for finding in findings]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if "failure" in levels:
        raise ClusterError(f"{levels.count('failure')} of {len(levels)} checks failed")


def _submit_doctor(context: click.Context, address: str) -> None:
    from tuner.tuning.ray_backend import jobs

    client = jobs.connect(address)
    storage = job_storage(context)
    words = ["doctor", "--storage", storage, *job_words(context, NOT_SENT)]
    extras = [extra_for(storage)]
    job = jobs.submit(client, words, files={}, metadata={}, tell=say, extras=extras)
    if not context.params["as_json"]:
        context.exit(jobs.exit_code(jobs.follow(client, job, job_writer(False))))
    parts: list[str] = []
    ended = jobs.follow(client, job, parts.append)
    document, rest = split_output("".join(parts))
    click.echo(rest, err=True, nl=False)
    if document is not None:
        print_json(document)
    context.exit(jobs.exit_code(ended))


def split_output(text: str) -> tuple[list[Any] | None, str]:
    """Separate the list that a command printed from the text that others wrote around it.

    Args:
        text: Everything that a job wrote to stdout and stderr.

    Returns:
        The list, or ``None`` if there is none, and the rest of the text.
    """
    for match in re.finditer(r"^\[", text, re.MULTILINE):
        # Ray's own lines may begin with a bracket, too.
        with contextlib.suppress(json.JSONDecodeError):
            document, end = json.JSONDecoder().raw_decode(text, match.start())
            if text[end : end + 1] == "\n":
                return document, text[: match.start()] + text[end + 1 :]
    return None, text
