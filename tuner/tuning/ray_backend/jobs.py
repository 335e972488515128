"""Commands as jobs of a Ray cluster: submitted over HTTP, followed, left and found again.

The job's driver runs on the head node. This package, the space and whatever else nodes may lack
travel with it; pip installs what else the driver needs, such as Optuna, if the head lacks it.
"""

import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import requests
from packaging.requirements import Requirement
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from tuner.errors import ClusterError, UsageError, how_to_get
from tuner.passwords import hide_passwords
from tuner.storage.files import write_text
from tuner.storage.temporary import TemporaryFolder
from tuner.tuning.ray_backend.cluster import TOKEN_ADVICE, py_modules, silence_ray, use_local_token

POLL_SECONDS = 1.0
LOST_SECONDS = 120.0
"""Seconds for which a dashboard that does not answer is retried."""
STOP_SECONDS = 3600
"""Seconds for a search to end its epochs after ``ray job stop``; Ray would kill it after 3 s."""
RUN_KEY = "cifar-tune-run"
STORAGE_KEY = "cifar-tune-storage"
EXTRAS_KEY = "cifar-tune-extras"
"""Keys of a job's metadata that describe the run that it searches."""
TRAVELS = ("ray", "torch", "torchvision")
"""Packages that a cluster must provide itself."""
LOOK = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
def find(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
print(json.dumps([sys.executable, {name: find(name) for name in sys.argv[1:]}]))
"""
"""Prints its Python and the versions of packages, before this package is there."""


def connect(address: str) -> JobSubmissionClient:
    """Connect to a dashboard.

    Args:
        address: For example ``http://head:8265``.

    Raises:
        UsageError: If what it takes is not installed here.
        ClusterError: If nothing answers there, or not as a Ray dashboard.
    """
    # Ray prefers the environment to its argument, and RAY_ADDRESS may name another cluster.
    os.environ["RAY_API_SERVER_ADDRESS"] = address.rstrip("/")
    silence_ray()
    use_local_token()
    with _explaining(address):
        return JobSubmissionClient(address.rstrip("/"))


@contextmanager
def _explaining(address: str) -> Iterator[None]:
    """Explain in one line what is wrong with a dashboard."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"--address {address}: needs packages that are missing here: {how_to_get('cluster')}"
        ) from error
    except AuthenticationError as error:
        raise ClusterError(f"--address {address}: {TOKEN_ADVICE}") from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(
            f"--address {address}: no Ray dashboard answers there. It is started by 'ray start "
            "--head --dashboard-host 0.0.0.0', on port 8265, where the head node has ray[default]; "
            "from outside, forward it: ssh -L 8265:localhost:8265 HEAD, or kubectl port-forward."
        ) from error
    except RuntimeError as error:
        # Ray's client raises it for a missing extra and for whatever the server refuses.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "ray[default]" in str(error):
            reason = f"needs packages that are not installed here: {how_to_get('cluster')}"
        if "No available agent" in reason:
            reason = reason.rstrip(".") + (
                ". If that does not help, something else on the head node, such as another Ray, "
                "has the port of its agent: see --dashboard-agent-listen-port of 'ray start'."
            )
        raise ClusterError(f"--address {address}: {reason}") from error


def submit(
    client: JobSubmissionClient,
    words: Sequence[str],
    *,
    files: Mapping[str, str],
    metadata: Mapping[str, str],
    tell: Callable[[str], None],
    extras: Collection[str] = (),
) -> str:
    """Run ``cifar-tune`` with these words on the cluster.

    Args:
        client: Client of the cluster's dashboard.
        words: The command and its arguments.
        files: Name and text of files to put where the command is started.
        metadata: Entries by which the job can be found again.
        tell: Called with a line about each slow step.
        extras: Extras of this package that the command needs; unknown ones are ignored.

    Returns:
        The job's identifier.

    Raises:
        UsageError: If a word holds a password.
        ClusterError: If the cluster takes no job, or lacks what it has to bring along.
    """
    _check_no_password(words)
    tell("Looking at what the head node has.")
    missing = _missing(client, extras)
    environment: dict[str, Any] = {
        "py_modules": py_modules(),
        "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
    }
    if missing:
        environment["pip"] = missing
        tell(f"The head node lacks {', '.join(missing)}; pip installs it there for this job.")
    job = f"{_prefix(words[0])}{secrets.token_hex(4)}"
    with TemporaryFolder() as folder:
        for name, text in files.items():
            write_text(Path(folder) / name, text, flush=False)
        if files:
            environment["working_dir"] = folder
        with _explaining(client.get_address()):
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "tuner", *words]),
                submission_id=job,
                runtime_env=environment,
                metadata=dict(metadata),
            )
    return job


def _check_no_password(words: Sequence[str]) -> None:
    """Refuse a password, because Ray shows a job's command and environment to everybody."""
    for word in words:
        if word != (hidden := hide_passwords(word)):
            raise UsageError(
                f"{hidden}: Ray would keep the password with the job, and show it in its "
                "dashboard. Leave it out; set CIFAR_TUNE_STUDY_STORAGE where Ray is started on "
                "the head node, or keep it in the database's own file there, such as ~/.pgpass."
            )


def _missing(client: JobSubmissionClient, extras: Collection[str]) -> list[str]:
    """Run a short job to find the requirements of this package that the head node does not meet."""
    needed: dict[str, Requirement] = {}
    try:
        named = requires("cifar-tune") or ()
    except PackageNotFoundError:
        raise UsageError(
            "a job needs cifar-tune to be installed here: pip install -e . in the clone"
        ) from None
    for requirement in map(Requirement, named):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            # pip gets no extra, so it would leave out a requirement that still has its condition.
            requirement.marker = None
            needed[requirement.name] = requirement
    with _explaining(client.get_address()):
        job = client.submit_job(entrypoint=shlex.join(["python", "-c", LOOK, *needed]))
    lines: list[str] = []
    ended = follow(client, job, lines.append)
    text = "".join(lines)
    if ended.status is not JobStatus.SUCCEEDED:
        raise ClusterError(
            f"{client.get_address()}: its jobs cannot run: {_last_words(ended, text)}"
        )
    python, found = json.loads(text.strip().splitlines()[-1])
    missing = {
        name: requirement
        for name, requirement in needed.items()
        if found[name] is None or not requirement.specifier.contains(found[name], prereleases=True)
    }
    if own := [str(missing[name]) for name in TRAVELS if name in missing]:
        raise ClusterError(
            f"{client.get_address()}: {python} on the head node, which runs its jobs, has no "
            f"{' and no '.join(own)}. All nodes need them, in the same versions; everything else "
            "is sent with the search. If another environment has them, start Ray with that one "
            "activated."
        )
    return [str(requirement) for requirement in missing.values()]


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> Any:
    """Forward a job's output until it has ended; return Ray's details of it.

    Raises:
        ClusterError: If the dashboard does not answer for ``LOST_SECONDS``.
    """
    shown = 0
    heard = time.monotonic()
    while True:
        try:
            # The state first, so that the output is complete when the job has ended.
            details = client.get_job_info(job)
            text = client.get_job_logs(job)
        except (requests.RequestException, RuntimeError) as error:
            if time.monotonic() - heard > LOST_SECONDS:
                raise ClusterError(
                    f"{client.get_address()}: no answer for {LOST_SECONDS:.0f} s; job {job} may "
                    "still run"
                ) from error
        else:
            heard = time.monotonic()
            if len(text) > shown:
                write(text[shown:])
                shown = len(text)
            if details.status.is_terminal():
                return details
        time.sleep(POLL_SECONDS)


def find(client: JobSubmissionClient, command: str, name: str | None, storage: str | None) -> Any:
    """Return Ray's details of a run's job, or ``None``.

    The run is that of the newest matching job. Its job is the newest that has not ended, or else
    the newest: a second job for a run that is being searched ends at once.

    Args:
        client: Client of the cluster's dashboard.
        command: The command that the job runs.
        name: Name of the run; ``None`` for any.
        storage: Where the run is; ``None`` for anywhere.
    """

    def is_meant(job: Any) -> bool:
        known = job.metadata or {}
        return (
            (job.submission_id or "").startswith(_prefix(command))
            and RUN_KEY in known
            and name in (None, known[RUN_KEY])
            and storage in (None, known.get(STORAGE_KEY))
        )

    with _explaining(client.get_address()):
        jobs = client.list_jobs()
    ours = [job for job in jobs if is_meant(job)]
    newest = max(ours, key=_started, default=None)
    same = [job for job in ours if _run_of(job) == _run_of(newest)]
    return max(same, key=lambda job: (not job.status.is_terminal(), _started(job)), default=None)


def _started(job: Any) -> int:
    return int(job.start_time or sys.maxsize)


def _run_of(job: Any) -> tuple[str, str | None]:
    """Return the name and the storage of the run that a job searches."""
    return job.metadata[RUN_KEY], job.metadata.get(STORAGE_KEY)


def _prefix(command: str) -> str:
    """Return the prefix of the names of a command's jobs."""
    return f"cifar-tune-{command}-"


def exit_code(details: Any) -> int:
    """Return the exit code of the command that a job ran.

    Raises:
        ClusterError: If it did not end by itself.
    """
    if details.status is JobStatus.SUCCEEDED:
        return 0
    if details.driver_exit_code is not None and 0 < details.driver_exit_code < 255:
        return int(details.driver_exit_code)
    raise ClusterError(
        f"job {details.submission_id} {details.status.value.lower()}: {_last_words(details, '')}"
    )


def _last_words(details: Any, text: str) -> str:
    lines = (text.strip() or details.message or "no message").strip().splitlines()
    return lines[-1]
