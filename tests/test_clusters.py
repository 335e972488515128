import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import jsonschema
import pytest
import ray
import yaml
from click.testing import CliRunner
from ray.job_submission import JobStatus

from tests.conftest import Call
from tuner.cli import jobs as submitting
from tuner.cli.cluster_template import TEMPLATES, cluster_template
from tuner.cli.doctor import split_output
from tuner.cli.search import search
from tuner.errors import ClusterError
from tuner.tuning.ray_backend import jobs

ASSETS = Path(__file__).parent / "assets"


def template(kind: str) -> str:
    result = CliRunner().invoke(cluster_template, [kind])
    assert result.exit_code == 0
    return result.output


def closed(schema: Any) -> Any:
    """Refuse keys that a schema does not name, as a typing error would be."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(entry) for key, entry in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    return inner | ({"additionalProperties": False} if is_object else {})


@pytest.fixture(scope="module")
def ray_job() -> dict[str, Any]:
    return yaml.safe_load(template("kuberay"))


def groups(ray_job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = ray_job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def test_the_ray_job_is_what_kuberay_takes(ray_job: dict[str, Any]) -> None:
    schema = closed(json.loads((ASSETS / "rayjob-v1.json").read_text()))
    jsonschema.validate(ray_job, schema)
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    with pytest.raises(jsonschema.ValidationError, match="entrypont"):
        jsonschema.validate(ray_job | {"spec": ray_job["spec"] | {"entrypont": "x"}}, schema)


def test_every_pod_of_the_ray_job_has_an_image_limits_and_its_volumes(
    ray_job: dict[str, Any],
) -> None:
    for group in groups(ray_job):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "registry.example/cifar-tune:latest"
        assert "memory" in container["resources"]["limits"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        # Ray takes these as flags, and flags are text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_commands_in_the_templates_are_ours(ray_job: dict[str, Any]) -> None:
    script = template("slurm").replace("\\\n", " ")
    lines = [ray_job["spec"]["entrypoint"], *script.splitlines(), *template("ray-up").splitlines()]
    commands = [line.partition("cifar-tune search ")[2] for line in lines]
    found = [command.replace('"$@"', "").split() for command in commands if command]
    assert len(found) == 3
    for words in found:
        # Parsing alone; an unknown option would be refused.
        context = search.make_context("search", words)
        assert context.params["space"] == "wide"


def test_the_ray_up_file_keeps_rays_schema() -> None:
    config = yaml.safe_load(template("ray-up"))
    schema = json.loads(
        Path(ray.__file__).with_name("autoscaler").joinpath("ray-schema.json").read_text()
    )
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    # The autoscaler brings up a node for a trial only if it knows that it would have GPUs.
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    with pytest.raises(jsonschema.ValidationError, match="max_wokers"):
        jsonschema.validate(config | {"max_wokers": 3}, schema)


def test_the_slurm_script_is_bash_without_flaws(tmp_path: Path) -> None:
    path = tmp_path / "slurm.sh"
    path.write_text(template("slurm"))
    subprocess.run(["bash", "-n", str(path)], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed; bash took the script")
    checked = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_slurm_script_asks_ray_for_options_that_it_has() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import symmetric_run

    words = slurm_line().partition("symmetric-run ")[2].partition(" -- ")[0].split()
    options = [*symmetric_run.params, *start.params]
    known = {name for option in options for name in option.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("gpus", ["8", "a100:8"])
def test_the_slurm_script_has_ray_offer_what_slurm_gives(tmp_path: Path, gpus: str) -> None:
    line = slurm_line().partition(" -- ")[0]
    words = ("SLURM_CPUS_PER_TASK=64", f"SLURM_GPUS_PER_TASK={gpus}", "SLURM_NNODES=4", "head=h")
    script = "\n".join(("set -eu", *words, "port=1", line.replace("srun", "echo", 1)))
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    for word in ("--cpus-per-task=64 ray", "--num-cpus=64", "--num-gpus=8", "--min-nodes 4"):
        assert word in told.stdout


def slurm_line() -> str:
    """Return the command that starts it all, as one line."""
    script = template("slurm").replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    return " ".join(line.split())


def test_a_new_file_system_is_given_to_the_user_after_it_is_mounted() -> None:
    commands = yaml.safe_load(template("ray-up"))["setup_commands"]
    (mount,) = [n for n, command in enumerate(commands) if "sudo mount" in command]
    (chown,) = [n for n, command in enumerate(commands) if "chown" in command]
    assert mount < chown


def test_every_template_is_shipped_with_the_package() -> None:
    folder = Path(__file__).parents[1] / "tuner" / "templates"
    assert {path.name for path in folder.iterdir()} == set(TEMPLATES.values())


def test_a_dashboard_that_does_not_answer_is_told(call: Call) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        words = ("search", "--space", "quick", "--storage", "/shared", "--address", address)
        code, _, said = call(*words)
    assert code == 4
    assert "no Ray dashboard answers there" in said


def test_a_job_wants_a_storage_that_the_cluster_can_find(call: Call) -> None:
    # Said before the dashboard is asked, for nobody listens there.
    words = ("search", "--space", "quick", "--address", "http://127.0.0.1:9")
    code, _, said = call(*words)
    assert code == 2
    assert "a folder that all nodes of the cluster share" in said


def test_what_was_typed_is_what_the_job_is_given() -> None:
    from tuner.cli.jobs import FOLDED, NOT_SENT, job_words

    typed = ["--space", "wide", "--time-budget", "1h30m", "--quiet", "--keep", "3", "--trials", "9"]
    typed += ["--log", "wandb", "--log", "mlflow"]
    context: click.Context = search.make_context("search", typed)
    words = list(job_words(context, (*NOT_SENT, *FOLDED)))
    assert sorted(words) == sorted(
        ["--time-budget", "5400s", "--keep", "3", "--quiet", "--log", "wandb", "--log", "mlflow"]
    )


@pytest.mark.parametrize(
    ("command", "name", "storage", "expected"),
    [
        ("search", "first", None, "cifar-tune-search-2"),
        ("search", "first", "s3://b/exp1", "cifar-tune-search-1"),
        ("search", "first", "s3://b/exp3", None),
        ("search", None, None, "cifar-tune-search-2"),
        ("refit", None, None, "cifar-tune-refit-1"),
        ("refit", "first", None, None),
    ],
)
def test_the_job_of_a_run_is_found_by_command_name_and_storage(
    command: str, name: str | None, storage: str | None, expected: str | None
) -> None:
    client = dashboard(
        Mock(submission_id=None, metadata=None, start_time=None),
        job("cifar-tune-refit-1", run="again", storage="s3://b/exp1"),
        job("cifar-tune-search-1", run="first", storage="s3://b/exp1"),
        job("cifar-tune-search-2", run="first", storage="s3://b/exp2"),
        job("cifar-tune-doctor-1"),
    )
    found = jobs.find(client, command, name, storage)
    assert (found and found.submission_id) == expected


def job(name: str, status: JobStatus = JobStatus.SUCCEEDED, **metadata: str) -> Any:
    known = {f"cifar-tune-{key}": value for key, value in metadata.items()}
    return Mock(submission_id=name, metadata=known, status=status)


def dashboard(*listed: Any) -> Any:
    """Return a client of a dashboard that lists these jobs, the oldest first."""
    for number, one in enumerate(listed, 1):
        one.start_time = number
    client = Mock()
    client.get_address.return_value = "http://head:8265"
    client.list_jobs.return_value = [*listed]
    return client


def test_a_job_that_goes_on_is_found_before_a_later_one_that_failed() -> None:
    client = dashboard(
        job("cifar-tune-search-1", JobStatus.RUNNING, run="other"),
        job("cifar-tune-search-2", JobStatus.RUNNING, run="first"),
        job("cifar-tune-search-3", JobStatus.FAILED, run="first"),
    )
    for name in ("first", None):
        assert jobs.find(client, "search", name, None).submission_id == "cifar-tune-search-2"


def test_the_document_of_a_job_is_found_among_what_others_wrote() -> None:
    findings = [{"level": "ok", "text": "[1]\n[2]"}, {"level": "failure", "text": "]"}]
    before, after = "[2026-01-01 I 7] started\nRay is here\n", "Error: 1 of 2 checks failed\n"
    printed = json.dumps(findings, indent=2) + "\n"
    assert split_output(before + printed + after) == (findings, before + after)
    assert split_output(before + after) == (None, before + after)
    assert split_output("[]\n") == ([], "")


def test_a_head_whose_jobs_run_in_another_environment_is_told_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # Without its packages.
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    client = Mock()
    client.get_address.return_value = "http://head:8265"
    client.submit_job.side_effect = lambda entrypoint: subprocess.check_output(
        entrypoint, shell=True, text=True
    )

    def follow(client: Any, output: str, write: Callable[[str], object]) -> Any:
        write(output)
        return Mock(status=JobStatus.SUCCEEDED)

    monkeypatch.setattr(jobs, "follow", follow)
    with pytest.raises(ClusterError) as caught:
        jobs._missing(client, [])
    assert f"{sys.executable} on the head node" in str(caught.value)
    assert "no ray[tune]>=2.60 and no torch>=" in str(caught.value)
    assert "start Ray with that one activated" in str(caught.value)


def test_what_a_space_is_made_of_travels_and_what_is_needed_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(submitting, "_submit", lambda *call, **more: calls.append((*call, more)))
    words = ["--data", "digits", "--log", "wandb", "--log", "mlflow", "--warm-start", "/far/away"]
    words += ["--study-storage", "sqlite:///study.db"]
    context: click.Context = search.make_context("search", words)
    overrides = ['dataset="digits"', 'search.sampler="cmaes"']
    submitting.submit_search(context, "http://head:8265", overrides)
    *_, files, extras, more = calls.pop()
    outside = ["--study-storage", "sqlite:///study.db", "--warm-start", "/far/away"]
    assert more == {"outside": outside}, "the line that resumes it names them again"
    assert {f"search_spaces/{name}.yaml" for name in ("small", "cnn", "transfer")} <= files.keys()
    assert set(extras) == {"cmaes", "wandb", "mlflow"}


def test_what_a_store_needs_is_asked_of_pip_without_a_condition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Mock()

    def follow(client: Any, job: str, write: Callable[[str], object]) -> Any:
        names = shlex.split(client.submit_job.call_args.kwargs["entrypoint"])[3:]
        lacks = ("s3fs", "cmaes")
        write(json.dumps(["python", {n: None if n in lacks else "999" for n in names}]))
        return Mock(status=JobStatus.SUCCEEDED)

    monkeypatch.setattr(jobs, "follow", follow)
    asked = jobs._missing(client, ["s3", "cmaes", "tpe"])
    assert sum(requirement.startswith(("s3fs", "cmaes")) for requirement in asked) == 2
    assert not any(";" in requirement for requirement in asked)


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_no_template_installs_what_no_index_has(kind: str) -> None:
    assert "pip install cifar-tune" not in template(kind)
