"""Commands that a cluster runs as jobs: submit them, follow them, and show their output."""

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from tuner.cli.options import Duration
from tuner.cli.output import print_json
from tuner.cli.search_options import MISSING_SPACE, is_auto, named_space, overridden
from tuner.config import AUTO, SPACE_KEYS
from tuner.errors import TunerError, UsageError
from tuner.passwords import hide_passwords
from tuner.storage.paths import extra_for

NOT_SENT = ("space", "address", "storage", "name")
"""Options that are not passed to a job unchanged."""
FOLDED = (*SPACE_KEYS, "as_json")
"""Options of a search that the space already contains, or that concern this end of the job."""


def submit_search(context: click.Context, address: str, overrides: list[str]) -> None:
    """Run the search of this command line on a cluster, and follow it.

    Args:
        context: Context of ``search``.
        address: Address of the dashboard.
        overrides: ``KEY=VALUE`` each, including those of flags and environment.
    """
    from tuner.models.trust import check_code_trusted, code_of, remember
    from tuner.space import find_space, load_space
    from tuner.space.source import said_of, shipped

    options = context.params
    name, texts = options["name"], {}
    sampler = str(said_of(overrides).get("search.sampler", ""))
    words = list(job_words(context, (*NOT_SENT, *FOLDED, *overridden(context))))
    if is_auto(options):
        # The cluster makes the space, from its own measurements.
        words += ["--space", AUTO, *overrides]
        for file in shipped().values():
            texts[f"{file.parent.name}/{file.name}"] = file.read_text(encoding="utf-8")
        name = name or f"{AUTO}-{datetime.now():%Y%m%d-%H%M%S}"
    elif named := named_space(options):
        path = find_space(named)
        space = load_space(path, overrides, options["storage"])
        sampler = space.search.sampler
        remember(space.own_code)
        code = code_of(space.models_with_code())
        check_code_trusted(code, path, trust=options["trust_code"])
        texts["space.yaml"] = space.resolved()
        words += ["--space", "space.yaml"]
        if code and not options["trust_code"]:
            # The code is known here, but may be unknown there.
            words.append("--trust-code")
        if not options["resume"]:
            name = name or f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    elif not options["resume"]:
        raise click.UsageError(MISSING_SPACE, context)
    else:
        words += overrides
    outside: list[str] = []
    if (place := options["study_storage"]) and place == hide_passwords(place):
        outside += ["--study-storage", place]
    if len(options["warm_start"]) == 1:
        outside += ["--warm-start", *options["warm_start"]]
    extras = {sampler, *options["log"]}
    _submit(context, address, name, words, texts, extras, outside=outside)


def submit_refit(context: click.Context, address: str) -> None:
    """Run the refit of this command line on a cluster, and follow it."""
    options = context.params
    if not options["name"] and not options["resume"]:
        raise UsageError("refit: as a job it needs the --name of the new run")
    words = list(job_words(context, (*NOT_SENT, "as_json")))
    source = [options["run"]] if options["run"] else []
    _submit(context, address, options["name"], words, {}, options["log"], arguments=source)


def _submit(
    context: click.Context,
    address: str,
    name: str | None,
    words: Sequence[str],
    files: Mapping[str, str],
    extras: Collection[str],
    *,
    arguments: Sequence[str] = (),
    outside: Sequence[str] = (),
) -> None:
    """Submit a command that makes a run, or find its unfinished job, and follow it.

    Args:
        context: Context of the command.
        address: Address of the dashboard.
        name: Name of the run; ``None`` for that of the newest job, if one is to be resumed.
        words: Options of the command and each ``KEY=VALUE``, except name and storage.
        files: See ``jobs.submit``.
        extras: See ``jobs.submit``.
        arguments: Arguments of the command, which may begin with a dash like options.
        outside: Options among ``words`` that a resumed run needs again; see
            ``SearchRequest.outside_words``.
    """
    from tuner.tuning.ray_backend import jobs

    options, command = context.params, str(context.command.name)
    # A resumed run stays where it was, unless the user gives another storage.
    is_given = context.get_parameter_source("storage") != click.core.ParameterSource.DEFAULT
    asked = job_storage(context) if is_given or not options["resume"] else None
    client = jobs.connect(address)
    earlier = jobs.find(client, command, name, asked) if options["resume"] else None
    known = earlier.metadata if earlier else {}
    name = name or known.get(jobs.RUN_KEY)
    if name is None:
        raise UsageError(f"--resume: {address} has no run to resume; give its --name")
    if earlier is not None and not earlier.status.is_terminal():
        storage, job = known[jobs.STORAGE_KEY], earlier.submission_id
    else:
        storage = asked or known.get(jobs.STORAGE_KEY) or job_storage(context)
        extras = {extra_for(storage), *extras, *known.get(jobs.EXTRAS_KEY, "").split()}
        job = jobs.submit(
            client,
            [command, "--name", name, "--storage", storage, *words, "--", *arguments],
            files=files,
            metadata={
                jobs.RUN_KEY: name,
                jobs.STORAGE_KEY: storage,
                # A resumed search needs the extras of its sampler and trackers again.
                jobs.EXTRAS_KEY: " ".join(sorted(extras)),
            },
            tell=say,
            extras=extras,
        )
    trust = ["--trust-code"] if "--trust-code" in words else []
    place = ["--address", address, "--storage", storage]
    again = shlex.join(
        ["cifar-tune", command, "--resume", "--name", name, *outside, *place, *trust]
    )
    click.echo(f"{name} is job {job} on {address}. Ctrl-C leaves it running.", err=True)
    try:
        ended = jobs.follow(client, job, job_writer(options["as_json"]))
    except KeyboardInterrupt:
        raise Left(job, address, again) from None
    code = jobs.exit_code(ended)
    if options["as_json"]:
        print_json({"job": job, "address": address, "run": f"{storage}/{name}", "exit_code": code})
    if code == 130:
        click.echo(f"Resume with: {again}", err=True)
    context.exit(code)


def job_storage(context: click.Context) -> str:
    """Return the storage by the name under which the cluster's nodes find it."""
    storage = str(context.params["storage"])
    if not Path(storage).is_absolute() and ":/" not in storage:
        raise UsageError(
            f"--storage {storage}: a job needs a folder that all nodes of the cluster share, by "
            "its full path"
        )
    return storage


def job_words(context: click.Context, without: tuple[str, ...]) -> Iterator[str]:
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


def say(line: str) -> None:
    """Print a line on stderr, separate from the job's own output."""
    click.echo(line, err=True)


def job_writer(as_json: bool) -> Any:
    """Return a function that prints a job's output; with JSON, stdout is for the document alone."""
    stream = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


class Left(TunerError):
    """A job that was left running, and is no longer followed."""

    exit_code = 130

    def __init__(self, job: str, address: str, again: str) -> None:
        super().__init__(
            f"left; job {job} keeps running. Follow it with: {again}\n"
            f"End it after its running epochs with: ray job stop --address {address} {job}"
        )
