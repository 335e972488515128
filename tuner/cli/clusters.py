"""Clusters: ``doctor``, ``cluster-template``, and runs that are submitted as jobs."""

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from tuner.cli.options import DATA_DIR, JSON, STORAGE, Duration, option
from tuner.cli.tables import print_json
from tuner.errors import ClusterError, TunerError, UsageError
from tuner.storage.paths import AnyPath, extra_for

NOT_SENT = ("space", "address", "storage", "name")
"""Options that a job is not given as they are."""
FOLDED = ("trials", "epochs", "sampler", "scheduler", "seed", "data", "as_json")
"""Options of a search that the space holds already, or that are for this end of the job."""
TEMPLATES = {"kuberay": "kuberay.yaml", "ray-up": "ray-up.yaml", "slurm": "slurm.sh"}


@click.command("cluster-template", epilog="Example: cifar-tune cluster-template slurm > search.sh")
@click.argument("kind", type=click.Choice(list(TEMPLATES)))
def cluster_template(kind: str) -> None:
    """Print a file to start a cluster from, for Kubernetes, a cloud or Slurm."""
    click.echo((files("tuner") / "templates" / TEMPLATES[kind]).read_text(), nl=False)


@click.command(epilog="Example: cifar-tune doctor --address auto --storage /shared/runs")
@option("--address", help="A Ray cluster, as for search. [default: this machine]")
@STORAGE
@option("--data", default="cifar10", show_default=True, help="As for search.")
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
    """See whether a search would run: nodes, versions, storage, data, and how many trials fit."""
    if is_dashboard(address := address or os.environ.get("RAY_ADDRESS")):
        return _submit_doctor(context, str(address))
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
    storage = _storage(context, None)
    words = ["doctor", "--storage", storage, *_words(context, NOT_SENT)]
    extra = extra_for(storage)
    job = jobs.submit(client, words, files={}, metadata={}, tell=_say, extra=extra)
    if not context.params["as_json"]:
        context.exit(jobs.exit_code(jobs.follow(client, job, _writer(False))))
    parts: list[str] = []
    ended = jobs.follow(client, job, parts.append)
    document, rest = split_output("".join(parts))
    click.echo(rest, err=True, nl=False)
    if document is not None:
        print_json(document)
    context.exit(jobs.exit_code(ended))


def split_output(text: str) -> tuple[list[Any] | None, str]:
    """Part the list that a command printed from what others wrote before and after it.

    Args:
        text: All that a job wrote, to stdout and stderr.

    Returns:
        The list, ``None`` if there is none, and the rest of the text.
    """
    for match in re.finditer(r"^\[", text, re.MULTILINE):
        # Ray's own lines may begin with a bracket, too.
        with contextlib.suppress(json.JSONDecodeError):
            document, end = json.JSONDecoder().raw_decode(text, match.start())
            if text[end : end + 1] == "\n":
                return document, text[: match.start()] + text[end + 1 :]
    return None, text


def is_dashboard(address: str | None) -> bool:
    """Whether this is the address of a dashboard, where jobs are submitted."""
    return (address or "").startswith(("http://", "https://"))


def submit_search(context: click.Context, address: str, overrides: list[str]) -> None:
    """Have a cluster run the search of this command line, and follow it.

    Args:
        context: Of ``search``.
        address: Of the dashboard.
        overrides: ``KEY=VALUE`` each, those of flags and environment among them.
    """
    from tuner.models.trust import check_code_trusted, code_of, remember
    from tuner.space import find_space, load_space

    options = context.params
    name, texts = options["name"], {}
    words = list(_words(context, (*NOT_SENT, *FOLDED)))
    if options["space"]:
        path = find_space(options["space"])
        space = load_space(path, overrides)
        remember(space.own_code)
        code = code_of(space.models_with_code())
        check_code_trusted(code, path, trust=options["trust_code"])
        texts["space.yaml"] = space.resolved()
        words += ["--space", "space.yaml"]
        if code and not options["trust_code"]:
            # It is known here, and there it may not be.
            words.append("--trust-code")
        if not options["resume"]:
            name = name or f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    elif not options["resume"]:
        raise click.UsageError("Missing option '--space'.", context)
    else:
        words += overrides
    _submit(context, address, name, words, texts)


def submit_refit(context: click.Context, address: str) -> None:
    """Have a cluster run the refit of this command line, and follow it."""
    options = context.params
    if not options["name"] and not options["resume"]:
        raise UsageError("refit: as a job it needs the --name of the new run")
    source = [options["run"]] if options["run"] else []
    words = [*source, *_words(context, (*NOT_SENT, "as_json"))]
    _submit(context, address, options["name"], words, {})


def _submit(
    context: click.Context,
    address: str,
    name: str | None,
    words: Sequence[str],
    files: Mapping[str, str],
) -> None:
    """Submit a command that makes a run, or find its job that is under way, and follow it.

    Args:
        context: Of the command.
        address: Of the dashboard.
        name: Of the run; ``None`` for that of the newest job, where one is to go on.
        words: Arguments of the command but for name and storage.
        files: See ``jobs.submit``.
    """
    from tuner.tuning.ray_backend import jobs

    options, command = context.params, str(context.command.name)
    if not options["resume"]:
        _storage(context, None)
    client = jobs.connect(address)
    earlier = jobs.find(client, name) if options["resume"] else None
    known = earlier.metadata if earlier else {}
    name = name or known.get(jobs.RUN_KEY)
    if name is None:
        raise UsageError(f"--resume: {address} knows no run; give its --name")
    if earlier is not None and not earlier.status.is_terminal():
        storage, job = known[jobs.STORAGE_KEY], earlier.submission_id
    else:
        storage = _storage(context, known.get(jobs.STORAGE_KEY))
        job = jobs.submit(
            client,
            [command, "--name", name, "--storage", storage, *words],
            files=files,
            metadata={jobs.RUN_KEY: name, jobs.STORAGE_KEY: storage},
            tell=_say,
            extra=extra_for(storage),
        )
    trusted = " --trust-code" if "--trust-code" in words else ""
    again = f"cifar-tune {command} --resume --name {shlex.quote(name)} --address {address}{trusted}"
    click.echo(f"{name} is job {job} on {address}. Ctrl-C leaves it running.", err=True)
    try:
        ended = jobs.follow(client, job, _writer(options["as_json"]))
    except KeyboardInterrupt:
        raise Left(job, address, again) from None
    code = jobs.exit_code(ended)
    if options["as_json"]:
        print_json({"job": job, "address": address, "run": f"{storage}/{name}", "exit_code": code})
    if code == 130:
        click.echo(f"Go on with: {again}", err=True)
    context.exit(code)


def _storage(context: click.Context, known: str | None) -> str:
    """Return the storage as the cluster's nodes will find it."""
    is_given = context.get_parameter_source("storage") != click.core.ParameterSource.DEFAULT
    storage = str(context.params["storage"]) if is_given or known is None else known
    if not Path(storage).is_absolute() and ":/" not in storage:
        raise UsageError(
            f"--storage {storage}: a job needs a folder that all nodes of the cluster share, by "
            "its full path"
        )
    return storage


def _words(context: click.Context, without: tuple[str, ...]) -> Iterator[str]:
    """Yield the options that were set by flag or environment, as they would be typed."""
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        is_default = context.get_parameter_source(name) == click.core.ParameterSource.DEFAULT
        if not isinstance(parameter, click.Option) or is_default or name in without:
            continue
        flag = max(parameter.opts, key=len)
        if parameter.is_flag:
            yield from [flag] if value else []
        elif parameter.multiple:
            for entry in value or ():
                yield from (flag, str(entry))
        elif isinstance(parameter.type, Duration):
            yield from (flag, f"{value:.0f}s")
        else:
            yield from (flag, str(value))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _writer(as_json: bool) -> Any:
    """Return what shows a job's output; stdout is for the document alone where one is wanted."""
    stream = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


class Left(TunerError):
    """A job that goes on without being followed."""

    exit_code = 130

    def __init__(self, job: str, address: str, again: str) -> None:
        super().__init__(
            f"left; job {job} goes on. Follow it with: {again}\n"
            f"End it with: ray job stop --address {address} {job}"
        )
