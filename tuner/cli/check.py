"""``check``: all that is wrong with a run's files."""

from dataclasses import asdict

import click

from tuner.cli import completion
from tuner.cli.options import DEVICE, JSON, STORAGE, TRUST_CODE
from tuner.cli.output import print_json
from tuner.storage.paths import AnyPath


@click.command(epilog="Example: cifar-tune check quick-20260101-120000")
@click.argument("run", required=False, shell_complete=completion.runs)
@STORAGE
@DEVICE
@TRUST_CODE
@JSON
@click.pass_context
def check(
    context: click.Context,
    /,
    run: str | None,
    storage: AnyPath,
    device: str,
    trust_code: bool,
    as_json: bool,
) -> None:
    """Find damaged, missing and left-over files of a run.

    Every file is read. Networks are loaded and have to give the probabilities that were recorded.
    Ends with 0 if all is well, and with 1 if not.
    """
    from tuner.deploy.predictor import read_ensemble
    from tuner.ensemble.check import damage_of_run
    from tuner.errors import TunerError, UntrustedCodeError, UsageError
    from tuner.run.digests import Damage
    from tuner.run.layout import ENSEMBLE, ENSEMBLES
    from tuner.run.run import find_run
    from tuner.storage.paths import folders_with
    from tuner.training.device import find_device

    def say(message: str) -> None:
        click.echo(message, err=True)

    where = find_device(device)
    path = None
    try:
        found = find_run(storage, run)
        path = found.path
        damage = damage_of_run(found, where, trust_code=trust_code, say=say)
        for folder in folders_with(path / ENSEMBLES, ENSEMBLE):
            if any(f"{entry.file}/".startswith(f"{folder}/") for entry in damage):
                continue
            try:
                read_ensemble(folder, where, trust_code=trust_code)
            except UntrustedCodeError as error:
                say(f"The ensemble is not loaded: {error}")
            except TunerError as error:
                damage.append(Damage.of(error))
    except UsageError:
        raise
    except TunerError as error:
        damage = [Damage.of(error)]
    if as_json:
        files = [asdict(entry) for entry in damage]
        print_json({"run": str(path) if path else run, "damage": files})
    else:
        for entry in damage:
            click.echo(str(entry))
        click.echo(
            f"{path or run}: "
            + (f"damaged, missing or left over: {len(damage)}" if damage else "all is well")
        )
    context.exit(1 if damage else 0)
