"""``check``: find all that is wrong with a run's files."""

from dataclasses import asdict
from pathlib import Path

import click

from tuner.cli import completion
from tuner.cli.options import DATA, DEVICE, JSON, MOVED_DATA_DIR, STORAGE, TRUST_CODE
from tuner.cli.output import print_json
from tuner.storage.paths import AnyPath


@click.command(epilog="Example: cifar-tune check quick-20260101-120000")
@click.argument("run", required=False, shell_complete=completion.runs)
@STORAGE
@DATA
@MOVED_DATA_DIR
@DEVICE
@TRUST_CODE
@JSON
@click.pass_context
def check(
    context: click.Context,
    /,
    run: str | None,
    storage: AnyPath,
    data: str | None,
    data_dir: Path | None,
    device: str,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Find damaged, missing and left-over files of a run.

    Every file is read. Networks must reproduce the recorded probabilities, for which the images are
    read. The last line names what could not be checked. Exits with 0 if no damage is found, and
    with 1 otherwise.
    """
    from tuner.deploy.predictor import read_ensemble
    from tuner.ensemble.check import damage_of_run
    from tuner.errors import StorageError, TunerError, UntrustedCodeError, UsageError
    from tuner.report.ensembles import read_ensemble as read_shown
    from tuner.report.ensembles import read_figures
    from tuner.run.digests import Damage
    from tuner.run.layout import ENSEMBLE, ENSEMBLES
    from tuner.run.run import find_run
    from tuner.storage.paths import folders_with, to_path
    from tuner.training.device import find_device

    unchecked: list[str] = []

    def skip(what: str, error: TunerError) -> None:
        click.echo(f"Not checked: {what}: {error}", err=True)
        if what not in unchecked:
            unchecked.append(what)

    where = find_device(device)
    path = None
    try:
        found = find_run(storage, run)
        path = found.path
        damage = damage_of_run(
            found, where, data=data, data_dir=data_dir, trust_code=trust_code, skip=skip
        )
        for folder in folders_with(path / ENSEMBLES, ENSEMBLE):
            if any(f"{entry.file}/".startswith(f"{folder}/") for entry in damage):
                continue
            try:
                read_shown(folder, read_figures(folder))
                read_ensemble(folder, where, trust_code=trust_code)
            except UntrustedCodeError as error:
                skip("ensembles whose code is not trusted", error)
            except TunerError as error:
                damage.append(Damage.of(error, folder))
    except (StorageError, UsageError):
        raise
    except TunerError as error:
        named = path or storage / (run or "")
        if run and not str(error).startswith(str(named)):
            named = to_path(run)
        damage = [Damage.of(error, named)]
    if as_json:
        document = {
            "run": str(path) if path else run,
            "damage": [asdict(entry) for entry in damage],
        }
        print_json(document | ({"unchecked": unchecked} if unchecked else {}))
    else:
        for entry in damage:
            click.echo(str(entry))
        told = "no damage found" if unchecked else "all is well"
        if damage:
            told = f"damaged, missing or left over: {len(damage)}"
        if unchecked:
            told += f"; not checked: {', '.join(unchecked)}"
        click.echo(f"{path or run}: {told}")
    context.exit(1 if damage else 0)
