"""Connects to a Ray cluster or starts one, with all that its nodes need, and describes it."""

import contextlib
import itertools
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import safetensors
from ray.exceptions import AuthenticationError, RayError
from ray.util.client import ray as ray_client

import tuner
from tuner.errors import ClusterError, TunerError, UsageError
from tuner.passwords import hide_passwords
from tuner.schema import whole_number
from tuner.storage.paths import expanded
from tuner.tuning.ray_backend.nodes import alive_resources, check_versions
from tuner.tuning.ray_backend.private import (
    RAY_JOB_CONFIG_JSON_ENV_VAR,
    GcsClient,
    Node,
    canonicalize_bootstrap_address_or_die,
    get_default_ray_temp_dir,
    maybe_enable_token_auth_if_token_available,
    psutil,
    ray_constants,
    ray_utils,
    worker_module,
)
from tuner.tuning.ray_backend.sessions import marked_session
from tuner.tuning.ray_backend.signals import sheltering_children

if TYPE_CHECKING:
    from rich.console import Console

CONNECT_SECONDS = 5.0
LEAST_ROOM = 2**17
"""Free bytes in Ray's folder below which it does not start; with 200 kB it starts without logs."""
LOUD = (
    *("ray", "ray.tune", "ray.train", "ray.air"),
    *("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"),
)
"""Loggers of Ray that set their own level."""
THROUGH_CLIENT = (
    "through which every result would pass twice, and which ends it when the connection drops."
)
SERVICES = ("start_api_server", "start_log_monitor", "start_monitor")
"""Methods of Ray's node that start services not used here."""


@contextmanager
def connected(
    address: str | None, *, compare: bool = True, console: "Console | None" = None
) -> Iterator[None]:
    """Connect to the cluster at ``address`` or in ``RAY_ADDRESS``, or start Ray for the block.

    A session that the caller has already opened is used, and left open as it was.

    Args:
        address: ``auto``, ``HOST:PORT``, or ``local``, which always starts Ray here.
        compare: Whether to refuse a cluster whose nodes have other versions than this machine.
        console: Shows the steps that take long; ``None`` to show nothing.

    Raises:
        UsageError: If the address is of a kind that cannot be searched from.
        ClusterError: If nothing answers there, or not as a Ray cluster, or nodes have versions
            other than this machine's.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_silenced())
        if not ray.is_initialized():
            stack.enter_context(_own_session(address, compare, console))
        elif ray_client.is_connected():  # type: ignore[no-untyped-call]
            raise UsageError(
                f"ray.init() has connected this program over ray://, {THROUGH_CLIENT} Call "
                "ray.shutdown() first, and run it on a machine of the cluster with address auto."
            )
        yield


@contextmanager
def _own_session(address: str | None, compare: bool, console: "Console | None") -> Iterator[None]:
    """Connect to a cluster, or start Ray, for the block; see ``connected``."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address == "local":
        address = None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        import torch

        if not torch.cuda.is_available():
            # Ray would count GPUs that PyTorch has no build or no driver for.
            options["num_gpus"] = 0
        if ray_utils.get_num_cpus() < 1:
            # In a container with a share of a CPU, Ray would count none.
            options["num_cpus"] = 1
    else:
        _check_address(address)
        options |= {"address": address, "runtime_env": _runtime_env()}
    with contextlib.nullcontext() if address else marked_session():
        _initialize(address, options, console)
        # Ray configures its own logging as it starts.
        silence_ray()
        try:
            if address is not None and compare:
                check_versions()
            yield
        finally:
            _shut_down()


def _initialize(address: str | None, options: Mapping[str, Any], console: "Console | None") -> None:
    """Connect to Ray, or start it if there is no address.

    Raises:
        ClusterError: If that fails.
    """
    with contextlib.ExitStack() as stack:
        # First: the thread of the step display could receive the signals that are held back.
        stack.enter_context(sheltering_children())
        stack.enter_context(_hiding_passwords())
        if console:
            # Nodes examine themselves with modules of this package, and may lack rich.
            from tuner.monitor.steps import step

            what = f"Connecting to Ray at {address}" if address else "Starting Ray on this machine"
            stack.enter_context(step(console, what))
        if address is None:
            stack.enter_context(_on_loopback())
            stack.enter_context(_without_services())
            stack.enter_context(_whole_or_not())
        try:
            if address is None:
                make_token_private()
            # In a cluster that requires no token, workers do not answer a client that sends one.
            elif _asks_for_token(address):
                use_local_token()
            ray.init(**options)
        except TunerError:
            raise
        except Exception as error:
            # Of any type: Ray raises a plain Exception if one of its processes ends on start.
            reason = _why_not(error)
            raise ClusterError(
                f"--address {address}: no Ray cluster could be used: {reason}"
                if address
                else f"Ray could not be started here: {reason}"
            ) from error


@contextmanager
def _hiding_passwords() -> Iterator[None]:
    """Hide passwords in the command line that Ray stores and its dashboard shows."""
    line_of_this_process: Callable[[], str] = ray_utils.get_entrypoint_name
    with replaced(ray_utils, get_entrypoint_name=lambda: hide_passwords(line_of_this_process())):
        yield


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make the Ray that is started in the block listen on 127.0.0.1 alone.

    Ray 2.60 replaces a given loopback address by the machine's own, and then listens on all of
    them, unless it is not allowed to form a cluster, as on Windows and macOS.
    """
    with (
        replaced(ray_constants, ENABLE_RAY_CLUSTER=False),
        variables({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}),
    ):
        yield


@contextmanager
def replaced(owner: object, **values: Any) -> Iterator[None]:
    """Set attributes of ``owner`` in the block, and restore them afterwards."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in the block, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _without_services() -> Iterator[None]:
    """Start Ray in the block without three processes that nobody uses here.

    Ray 2.60 starts its dashboard's server even without ``include_dashboard``, the process that
    forwards the workers' output even without ``log_to_driver``, and an autoscaler for one node.
    Without them it is ready 1 to 2 s earlier on two cores.
    """
    with replaced(Node, **dict.fromkeys(SERVICES, lambda node, **options: None)):
        yield


@contextmanager
def _whole_or_not() -> Iterator[None]:
    """End what was started in the block if it is left early, for example by Ctrl-C.

    Ray 2.60 then ends its own children, but leaves theirs for a minute.
    """
    before = psutil.Process().children()
    try:
        yield
    except BaseException:
        started = [child for child in psutil.Process().children() if child not in before]
        _kill([*started, *_descendants(started)])
        raise


def make_token_private() -> None:
    """Make sure that nobody else can read the token by which Ray's processes authenticate.

    Ray would make it readable for everybody.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
    if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def is_started_here() -> bool:
    """Whether Ray was started by this process, and ends with it."""
    node = worker_module._global_node
    return node is not None and bool(node.all_processes)


def is_alive() -> bool:
    """Whether all Ray processes that this process started are still alive."""
    node = worker_module._global_node
    return node is not None and not node.dead_processes()


def _shut_down() -> None:
    """Leave the cluster, and end the Ray processes that were started here with SIGKILL.

    Ray 2.60 would send SIGTERM, which its processes do not receive, and wait for a second. Two that
    are not its own children try for a minute to notify Ray, which has ended, of its end.
    """
    node: Any = worker_module._global_node
    started = []
    for each in itertools.chain(*(node.all_processes.values() if node else ())):
        each.process.terminate = each.process.kill
        with contextlib.suppress(psutil.NoSuchProcess):
            started.append(psutil.Process(each.process.pid))
    descendants = _descendants(started)
    ray.shutdown()
    _kill(descendants)


def _descendants(processes: Iterable[Any]) -> list[Any]:
    """Return the processes that these have started, and theirs in turn."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.children(recursive=True)
    return found


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def py_modules() -> list[str]:
    """Return the folders of packages that trials need and nodes may lack: ours and safetensors."""
    return [str(Path(str(module.__file__)).parent) for module in (tuner, safetensors)]


def _runtime_env() -> dict[str, Any]:
    """Return the runtime environment of this search; a job got it when it was submitted."""
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return {} if "py_modules" in job.get("runtime_env", {}) else {"py_modules": py_modules()}


def _why_not(error: Exception) -> str:
    """Explain in one line why Ray cannot be used, and how to fix it where that is known."""
    if full := _full_folder():
        return f"{full} is full. Make room there, or set RAY_TMPDIR to a folder that has some."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if _is_about_token(text):
        return TOKEN_ADVICE
    if text.startswith("Failed to connect"):
        # The port was checked before: something listens. Ray 2.60 does not mention the token.
        return f"something answers, but not to us. If it is a Ray head, {TOKEN_ADVICE}"
    home = expanded("~")
    is_in_home = isinstance(error, OSError) and Path(str(error.filename)).is_relative_to(home)
    # The latter is how pathlib reports a user without a home.
    if is_in_home or "home directory" in text:
        return (
            f"{lines[0].rstrip('.')}. Set HOME to a folder that can be written, where Ray keeps a "
            "token, or RAY_AUTH_MODE=disabled to do without."
        )
    if text.startswith("Version mismatch"):
        return f"{text}. Give this machine the versions of the cluster."
    return lines[0] if lines else type(error).__name__


def _full_folder() -> str:
    """Return the folder in which Ray has no room for its files; empty if it has room.

    Ray itself only reports a timeout. It does not need shared memory: it uses the folder instead.
    """
    folder = Path(get_default_ray_temp_dir()).parent  # type: ignore[no-untyped-call]
    is_full = folder.is_dir() and shutil.disk_usage(folder).free < LEAST_ROOM
    return str(folder) if is_full else ""


TOKEN_ADVICE = (
    "it wants another token than is here. Copy the file ~/.ray/auth_token of its head node to this "
    "machine. Ray leaves such a file wherever it was once started by a program, and 'ray start' "
    "there asks for it from then on; RAY_AUTH_MODE=disabled at 'ray start' and here does without."
)


def use_local_token() -> None:
    """Make Ray send the local token, if there is one.

    The user's ``RAY_AUTH_MODE`` takes precedence.
    """
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _asks_for_token(address: str) -> bool:
    """Whether a cluster requires a token, and this process sends none."""
    try:
        GcsClient(address=canonicalize_bootstrap_address_or_die(address))
    except AuthenticationError:
        return True
    except (RuntimeError, ConnectionError, RayError):
        # Ray's own connection attempt explains any other problem better.
        return False
    return False


def _is_about_token(text: str) -> bool:
    """Whether Ray's message is about its authentication."""
    words = ("InvalidAuthToken", "Unauthenticated", "authentication token", "RAY_AUTH_MODE")
    return any(word.lower() in text.lower() for word in words)


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the engine's notices off the terminal in the block."""
    levels = {name: logging.getLogger(name).level for name in LOUD}
    are_shown = worker_module._worker_logs_enabled
    silence_ray()
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        worker_module._worker_logs_enabled = are_shown


def silence_ray() -> None:
    """Keep the engine's notices off the terminal; we report what goes wrong."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray prints some on stdout, whatever log_to_driver says: 51 lines for a lost raylet.
    worker_module._worker_logs_enabled = False


def _check_address(address: str) -> None:
    """Refuse at once an address on which Ray would wait, or fail with pages of text."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--address {address}: a search cannot run over ray://, {THROUGH_CLIENT} Give the "
            "dashboard's address, http://HOST:8265, or run it on a machine of the cluster with "
            "--address auto."
        )
    if address == "auto":
        return
    host, _, digits = address.rpartition(":")
    port = whole_number(digits)
    if not host or port is None:
        raise UsageError(
            f"--address {address}: not an address. Give auto, HOST:PORT, "
            "or http://HOST:8265 to submit the search as a job."
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"--address {address}: nothing answers there ({error}). Start a cluster with "
            "'ray start --head', or leave --address out to search on this machine."
        ) from error


def hardware() -> dict[str, Any]:
    """Describe the connected cluster for the run's record."""
    nodes = alive_resources()
    kinds = {
        key.removeprefix("accelerator_type:")
        for node in nodes
        for key in node
        if "accelerator_type:" in key
    }
    return {
        "nodes": len(nodes),
        "cpus": sum(node.get("CPU", 0) for node in nodes),
        "gpus": sum(node.get("GPU", 0) for node in nodes),
        "accelerators": sorted(kinds),
    }
