"""An ensemble on Ray Serve: replicas of the web application, behind one address of this machine."""

import errno
import ipaddress
import logging
import math
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from fastapi import FastAPI
from PIL import Image
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.schema import LoggingConfig

from tuner.config import Tta
from tuner.deploy.predictor import read_ensemble
from tuner.deploy.uploads import FIELD, Limits
from tuner.deploy.web import RETRY_SECONDS, create_app
from tuner.errors import ClusterError, TunerError, UsageError
from tuner.loopback import HOST
from tuner.schema import plural
from tuner.storage.paths import AnyPath
from tuner.training.device import find_device
from tuner.tuning.ray_backend.cluster import connected, is_alive
from tuner.tuning.ray_backend.private_serve import replica_module
from tuner.tuning.ray_backend.signals import drained_by_signals, interrupted_by_signals

NAME = "cifar-tune"
GRACE_SECONDS = 5.0
"""Seconds that Serve waits longer than the application, whose answers say more."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeRequest:
    """What to serve, and how."""

    folder: AnyPath
    """Folder of the ensemble."""
    host: str = HOST
    """Where it listens; at ``HOST``, requests for another host are refused."""
    port: int = 8000
    replicas: int = 1
    gpus_per_replica: float | None = None
    """At most 1; ``None`` shares all GPUs if they are used."""
    device: str = "auto"
    tta: Tta | None = None
    reject: float | None = None
    limits: Limits = field(default_factory=Limits)
    trust_code: bool = False


class Replica:
    """Loads the ensemble and answers requests; one of ``ServeRequest.replicas``."""

    def __init__(self, request: ServeRequest, device: str) -> None:
        _listen_on_loopback()
        warnings.filterwarnings("ignore", module=r"PIL\.")  # About malformed metadata.
        # Pillow refuses twice as many pixels, also in images within others.
        Image.MAX_IMAGE_PIXELS = request.limits.pixels // 2
        self._request = request
        self._ensemble = read_ensemble(
            request.folder, find_device(device), trust_code=request.trust_code
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls it by this name."""
        request = self._request
        return create_app(
            self._ensemble,
            tta=request.tta,
            reject=request.reject,
            limits=request.limits,
            is_local=request.host == HOST,
        )


def run_server(request: ServeRequest, tell: Callable[[str], None]) -> None:
    """Serve an ensemble until a signal ends it; requests under way are still answered.

    Args:
        request: What to serve, and how.
        tell: Called with the address, and with what is going on.

    Raises:
        UsageError: If there is no such ensemble, or the address cannot be used.
        ClusterError: If there are fewer GPUs than are asked for, or Ray has ended.
        TunerError: If a file of the ensemble is damaged, or the replicas cannot start.
    """
    is_open = _check_address(request.host, request.port)
    device = find_device(request.device)
    if device.type == "cuda" and ":" in request.device:
        raise UsageError(
            f"--device {request.device}: Ray gives each replica its GPU. Take --device cuda, and "
            "CUDA_VISIBLE_DEVICES for some of them."
        )
    # An error is reported here in one line, and by a replica in pages.
    loaded = read_ensemble(request.folder, torch.device("cpu"), trust_code=request.trust_code)
    about = f"{plural(len(loaded.members), 'member')}, {len(loaded.classes)} classes"
    del loaded
    tell(f"Starting {plural(request.replicas, 'replica')} on {device.type}")
    with interrupted_by_signals(), connected("local"):
        _start(request, device, resources_of(request, device))
        url = f"http://{_authority(request)}"
        if is_open:
            tell(
                f"Warning: --host {request.host} lets everybody who can reach this machine use "
                "the server; it asks for no password."
            )
        tell(
            f"{request.folder}: {about}, served on {url}\n"
            f"    curl -F {FIELD}=@photo.jpg {url}/predict\n"
            "Ctrl-C ends it."
        )
        stopping = False

        def stop() -> None:
            nonlocal stopping
            stopping = True

        with drained_by_signals(stop, is_over=lambda: False):
            while not stopping:
                if not is_alive():
                    raise ClusterError("Ray has ended, by itself or by somebody. Start it again.")
                time.sleep(LOOK_SECONDS)
            tell("Answering what is under way; Ctrl-C again ends it at once.")
            serve.delete(NAME)
            serve.shutdown()  # type: ignore[no-untyped-call]


def _listen_on_loopback() -> None:
    """Make this replica listen on 127.0.0.1 alone.

    Ray Serve 2.60 starts a server for other deployments in each replica, on all addresses; nobody
    uses it here.
    """
    replica: Any = replica_module
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, "127.0.0.1:0")


def _start(request: ServeRequest, device: torch.device, resources: dict[str, float]) -> None:
    """Start the replicas, and the proxy that answers at the address.

    Raises:
        TunerError: If they cannot start.
    """
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    patience = request.limits.seconds + GRACE_SECONDS
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        num_replicas=request.replicas,
        ray_actor_options=resources,
        # The application itself refuses requests, in JSON; this is for when it cannot.
        max_ongoing_requests=2 * request.limits.requests,
        max_queued_requests=request.limits.requests,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_SECONDS),
        graceful_shutdown_timeout_s=patience,
        graceful_shutdown_wait_loop_s=LOOK_SECONDS,
    )
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(
                host=request.host, port=request.port, request_timeout_s=patience
            ),
            logging_config=quiet,
        )
        serve.run(
            deployment.bind(request, device.type),
            name=NAME,
            route_prefix="/",
            logging_config=quiet,
        )
    except (RuntimeError, RayError) as error:
        raise TunerError(f"the server could not start: {_why_not(error)}") from error


def _why_not(error: Exception) -> str:
    """Return in one line why the replicas or the proxy could not start."""
    text = str(error)
    # A replica's own error is only here, below a traceback.
    if (application := serve.status().applications.get(NAME)) is not None:
        text = "\n".join(each.message for each in application.deployments.values()) or text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("tuner.errors.") if lines else type(error).__name__


def resources_of(request: ServeRequest, device: torch.device) -> dict[str, float]:
    """Return a replica's share of this machine.

    Raises:
        UsageError: If it gets GPUs that it does not use.
        ClusterError: If there are not enough of them.
    """
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, count = have["CPU"], request.replicas
    # Ray sets a worker's number of threads to that of its CPUs.
    shares = {"num_cpus": cpus // count or _share(cpus / count), "num_gpus": 0.0}
    given = request.gpus_per_replica
    if device.type != "cuda":
        if given:
            raise UsageError(f"--gpus-per-replica {given:g}: it computes on {device.type}")
        return shares
    gpus = int(have.get("GPU", 0))
    # A replica uses one GPU.
    share = _share(1 / math.ceil(count / max(gpus, 1)) if given is None else given)
    if not share:
        raise UsageError("--gpus-per-replica 0: a replica needs some of a GPU; or --device cpu")
    if (most := gpus * int(1 / share)) < count:
        raise ClusterError(
            f"--replicas {count}: only {most} have room, with {share:g} of a GPU each on {gpus}"
        )
    return shares | {"num_gpus": share}


def _share(share: float) -> float:
    """Round a share down to ten-thousandths, the unit in which Ray counts."""
    return math.floor(share * 10_000) / 10_000


def _check_address(host: str, port: int) -> bool:
    """Return whether other machines can reach an address, which has to be free.

    Raises:
        UsageError: If it is not, or no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError as error:
        raise UsageError(
            f"--host {host}: no name of a machine. Take 127.0.0.1, or 0.0.0.0 for all addresses of "
            "this one."
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"--port {port}: in use on {host}; take another, such as --port {port + 1}"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"--port {port}: not allowed; take one from 1024 on") from error
        raise UsageError(
            f"--host {host}: no address of this machine ({error.strerror}). Take 127.0.0.1, or "
            "0.0.0.0 for all of its addresses."
        ) from error
    return not ipaddress.ip_address(address[0]).is_loopback


def _authority(request: ServeRequest) -> str:
    """Return the address by which this machine itself reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(request.host, request.host)
    return f"[{host}]:{request.port}" if ":" in host else f"{host}:{request.port}"
