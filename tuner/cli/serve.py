"""``serve``: serve an ensemble over HTTP."""

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
    help="Address to listen on; use 0.0.0.0 for requests from other machines.",
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
    help="Number of processes that compute, each with its share of this machine.",
)
@option(
    "--gpus-per-replica",
    type=Amount(min=0, max=1),
    help="GPUs per replica; may be a fraction. [default: all GPUs, shared]",
)
@TTA
@option("--reject", type=Amount(min=0, max=1), help="Mark images with a confidence below this.")
@option(
    "--max-body",
    type=Amount(min=0, min_open=True),
    default=16,
    show_default=True,
    metavar="MIB",
    help="Maximum size of a request.",
)
@option(
    "--max-images",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of images per request.",
)
@option(
    "--max-megapixels",
    type=Amount(min=0, min_open=True),
    default=50,
    show_default=True,
    help="Maximum size of an image in megapixels.",
)
@option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Maximum number of requests at once per replica; others are asked to retry later.",
)
@option(
    "--timeout",
    type=Duration(),
    default="30s",
    show_default=True,
    help="Maximum time for a request.",
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

    POST /predict takes one or more images; / is a page to drop images on, and /docs describes the
    interface. Images are prepared as in predict, and none is kept. Runs on Ray Serve, on this
    machine.
    """
    from tuner.run.ensembles import find_ensemble

    folder = find_ensemble(storage, ensemble)
    try:
        with loading(Console(stderr=True, highlight=False), "PyTorch and Ray"):
            import python_multipart  # noqa: F401 - otherwise imported only for the first form.

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
