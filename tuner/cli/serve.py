"""``serve``: an ensemble behind HTTP."""

import click

from tuner.cli.options import (
    DEVICE,
    ENSEMBLE,
    STORAGE,
    TRUST_CODE,
    TTA,
    Amount,
    Duration,
    option,
)
from tuner.console import Console
from tuner.errors import UsageError, how_to_get
from tuner.monitor.steps import loading
from tuner.storage.paths import AnyPath


@click.command(epilog="Example: cifar-tune serve --ensemble first/top5 --port 8000")
@ENSEMBLE
@STORAGE
@option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 is reached from other machines.",
)
@option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on.",
)
@option(
    "--replicas",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that compute, each with its share of this machine.",
)
@option(
    "--gpus-per-replica",
    type=Amount(min=0, max=1),
    help="GPUs of each replica; may be a fraction. [default: all GPUs, shared]",
)
@TTA
@option("--reject", type=Amount(min=0, max=1), help="Mark what is less confident than this.")
@option(
    "--max-body",
    type=Amount(min=0, min_open=True),
    default=16,
    show_default=True,
    metavar="MIB",
    help="Size of the largest request that is taken.",
)
@option(
    "--max-images",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Most images of a request.",
)
@option(
    "--max-megapixels",
    type=Amount(min=0, min_open=True),
    default=50,
    show_default=True,
    help="Megapixels of the largest image that is taken.",
)
@option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Most requests at a time, for each replica; others are told to come back.",
)
@option(
    "--timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="Longest time that a request may take.",
)
@DEVICE
@TRUST_CODE
def serve(
    ensemble: str | None,
    storage: AnyPath,
    host: str,
    port: int,
    replicas: int,
    gpus_per_replica: float | None,
    tta: str | None,
    reject: float | None,
    max_body: float,
    max_images: int,
    max_megapixels: float,
    max_requests: int,
    timeout: float,
    device: str,
    trust_code: bool,
) -> None:
    """Answer HTTP requests with an ensemble.

    There is a page to drop images on, and an interface. POST /predict takes an image or several;
    /docs says how, / is the page. Images are prepared as by predict, and none is kept. It runs on
    Ray Serve, on this machine.
    """
    from tuner.run.ensembles import find_ensemble

    folder = find_ensemble(storage, ensemble)
    try:
        with loading(Console(stderr=True, highlight=False), "PyTorch and Ray"):
            import python_multipart  # noqa: F401 - what reads forms is imported when there is one.

            from tuner.deploy.uploads import Limits
            from tuner.tuning.ray_backend.serve import ServeRequest, run_server
    except ImportError as error:
        raise UsageError(
            f"serve needs what is not installed here ({error.name}): {how_to_get('serve')}"
        ) from error

    run_server(
        ServeRequest(
            folder=folder,
            host=host,
            port=port,
            replicas=replicas,
            gpus_per_replica=gpus_per_replica,
            device=device,
            tta=tta,  # type: ignore[arg-type]
            reject=reject,
            limits=Limits(
                body_bytes=int(max_body * 2**20),
                images=max_images,
                pixels=int(max_megapixels * 1e6),
                seconds=timeout,
                requests=max_requests,
            ),
            trust_code=trust_code,
        ),
        tell=lambda text: click.echo(text, err=True),
    )
