"""Guide: Base Images, Container Job Configuration, Resource Limits, Command Formats, Working Directory."""

from __future__ import annotations

import json

import docker
import pytest
from django.db import transaction

from container_manager.core.errors import InvalidJob
from container_manager.models import ContainerJob, ExecutorHost
from tests.acceptance.running import drain, finished, stored

pytestmark = pytest.mark.engine

# Both versions of the control groups, as the container itself sees its limits.
LIMITS_PROGRAM = """
import json, pathlib
def read(*names):
    for name in names:
        path = pathlib.Path("/sys/fs/cgroup", name)
        if path.exists():
            return path.read_text().split()
quota = read("cpu.max") or read("cpu/cpu.cfs_quota_us") + read("cpu/cpu.cfs_period_us")
print(json.dumps({
    "memory": int(read("memory.max", "memory/memory.limit_in_bytes")[0]),
    "cores": int(quota[0]) / int(quota[1]),
    "pids": int(read("pids.max", "pids/pids.max")[0]),
}))
"""


def test_a_job_made_by_create_runs(local_host: ExecutorHost) -> None:
    docker_host = ExecutorHost.objects.filter(executor_type="docker", is_active=True).first()
    job = ContainerJob.objects.create(
        docker_host=docker_host,
        docker_image="python:3.11-slim",
        command="python -c 'print(\"Hello Docker World\")'",
        name="hello-world-job",
        memory_limit=256,
        cpu_limit=1.0,
        timeout_seconds=300,
    )
    assert job.status == "pending"
    job = finished(job)
    assert (job.status, job.exit_code, job.exit_reason) == ("completed", 0, "success")
    assert job.clean_output == "Hello Docker World\n"
    assert job.started_at is not None
    assert job.completed_at is not None
    assert job.duration == job.completed_at - job.started_at


def test_a_job_made_by_create_job_has_its_environment(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11",
        command=["python", "-c", "import json, os; print(json.dumps(dict(os.environ)))"],
        name="data-processing-job",
        environment_vars={"DEBUG": "false", "WORKERS": "4", "LOG_LEVEL": "INFO"},
        memory_limit=512,
        cpu_limit=1.0,
        timeout_seconds=1800,
    )
    environment = finished(job).parsed_output
    assert {name: environment[name] for name in ("DEBUG", "WORKERS", "LOG_LEVEL")} == {
        "DEBUG": "false",
        "WORKERS": "4",
        "LOG_LEVEL": "INFO",
    }


def test_the_images_of_the_guide_run_side_by_side(local_host: ExecutorHost) -> None:
    jobs = [
        ContainerJob.objects.create_job(
            image="alpine:3.18", command="echo 'Hello from Alpine'", memory_limit=64, cpu_limit=0.5
        ),
        ContainerJob.objects.create_job(
            image="python:3.11-slim",
            command="python -c 'import sys; print(sys.version)'",
            memory_limit=256,
            cpu_limit=1.0,
        ),
        ContainerJob.objects.create_job(
            image="node:18-alpine",
            command="sh -c 'exit 0'",  # the guide's `npm test` stands for any program of the image
            memory_limit=512,
            cpu_limit=1.5,
            timeout_seconds=1800,
        ),
    ]
    drain()
    assert [stored(job).status for job in jobs] == ["completed"] * 3
    assert stored(jobs[1]).clean_output.startswith("3.")


def test_a_worker_sees_a_job_only_after_the_commit(local_host: ExecutorHost) -> None:
    def regret() -> None:
        with transaction.atomic():
            ContainerJob.objects.create_job(image="alpine:3.18", command="true")
            raise RuntimeError("the caller changed its mind")

    with pytest.raises(RuntimeError):
        regret()
    drain()
    assert not ContainerJob.objects.exists()


@pytest.mark.parametrize(("memory", "cores"), [(64, 0.5), (256, 1.0), (2048, 2.0)])
def test_limits_are_in_force_inside_the_container(
    local_host: ExecutorHost, memory: int, cores: float
) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11",
        command=["python", "-c", LIMITS_PROGRAM],
        memory_limit=memory,
        cpu_limit=cores,
        name=f"cpu-test-{cores}-cores",
    )
    seen = finished(job).parsed_output
    assert seen == {"memory": memory * 2**20, "cores": pytest.approx(cores), "pids": seen["pids"]}
    assert 0 < seen["pids"] <= 4096


def test_memory_beyond_the_limit_ends_the_job_and_swap_does_not_help(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11", command=["python", "-c", "print(len(b'x' * (200 << 20)))"], memory_limit=64
    )
    assert finished(job).exit_reason == "out_of_memory"


def test_every_job_has_limits_even_if_none_were_given(local_host: ExecutorHost) -> None:
    job = finished(
        ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", LIMITS_PROGRAM])
    )
    assert (job.memory_limit, job.cpu_limit, job.timeout_seconds) == (256, 1.0, 300)
    assert (job.parsed_output["memory"], job.parsed_output["cores"]) == (256 * 2**20, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_limit", 2049),
        ("memory_limit", 0),
        ("memory_limit", None),
        ("cpu_limit", 2.5),
        ("cpu_limit", None),
        ("timeout_seconds", 3601),
    ],
)
def test_the_ceilings_of_the_guide_hold_without_a_wrapper(
    local_host: ExecutorHost, field: str, value: object
) -> None:
    with pytest.raises(InvalidJob) as caught:
        ContainerJob.objects.create_job(image="alpine:3.18", command="true", **{field: value})
    assert caught.value.field == field
    assert str(value) in str(caught.value)
    assert not ContainerJob.objects.exists()


def test_a_command_with_shell_features_runs_in_a_shell(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="bash:latest", command="echo $HOME && ls -la /tmp && date", name="shell-command"
    )
    job = finished(job)
    lines = job.clean_output.splitlines()
    assert (job.status, job.command_form, lines[0]) == ("completed", "shell", "/tmp")
    assert len(lines) > 3


def test_a_command_without_them_runs_directly(local_host: ExecutorHost) -> None:
    # Its quotes keep the semicolon from any shell, and no shell stands between: it is process 1.
    job = ContainerJob.objects.create_job(
        image="python:3.11",
        command='python -c "import os; print(os.getcwd(), os.getpid())"',
        name="exec-command",
    )
    job = finished(job)
    assert (job.command_form, job.clean_output) == ("exec", "/ 1\n")


def test_a_named_shell_with_nested_quotes_gets_its_text_unharmed(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="node:18",
        command="""/bin/bash -c 'echo "first step" && echo second && echo "it is $((6 * 7))"'""",
        name="build-and-test",
        timeout_seconds=1800,
    )
    job = finished(job)
    assert job.command_form == "exec"
    assert job.clean_output == "first step\nsecond\nit is 42\n"


def test_a_list_is_taken_as_it_is(local_host: ExecutorHost) -> None:
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    arguments = ["$HOME", "a b", "it's", '"', "*", "", "a;b", "žluťoučký"]
    job = ContainerJob.objects.create_job(image="python:3.11", command=["python", "-c", program, *arguments])
    assert finished(job).parsed_output == arguments


def test_an_explicit_form_wins(local_host: ExecutorHost) -> None:
    raw = ContainerJob.objects.create_job(image="bash:latest", command="echo $HOME", command_form="exec")
    plain = ContainerJob.objects.create_job(image="bash:latest", command="echo plain", command_form="shell")
    drain()
    assert stored(raw).clean_output == "$HOME\n"
    assert (stored(plain).clean_output, stored(plain).command_form) == ("plain\n", "shell")


def test_unbalanced_quotes_are_refused(local_host: ExecutorHost) -> None:
    with pytest.raises(InvalidJob, match="command"):
        ContainerJob.objects.create_job(image="bash:latest", command="echo 'never closed")
    assert not ContainerJob.objects.exists()


def test_the_working_directory_is_where_the_program_starts(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_job(
        image="node:18", command="pwd", working_directory="/usr/lib", name="node-app-test"
    )
    assert finished(job).clean_output == "/usr/lib\n"


def test_temporary_files_are_the_jobs_own(local_host: ExecutorHost) -> None:
    first = ContainerJob.objects.create_job(
        image="alpine:latest",
        command="echo data > /tmp/data.csv && cat /tmp/data.csv",
        name="data-downloader",
    )
    assert finished(first).clean_output == "data\n"
    second = ContainerJob.objects.create_job(image="python:3.11", command="ls -A /tmp", name="data-processor")
    assert finished(second).clean_output == ""


def test_the_record_names_container_image_and_host(
    local_host: ExecutorHost, engine: docker.DockerClient
) -> None:
    job = finished(ContainerJob.objects.create_job(image="python:3.11", command="true"))
    execution = job.executions.get()
    assert execution.container_name == job.get_execution_identifier()
    assert len(execution.container_id) == 64
    assert execution.image_id == engine.images.get("python:3.11").id
    assert execution.engine_id == engine.info()["ID"]
    assert execution.docker_host == local_host
    assert execution.removed_at is not None
    moves = [(event.from_status, event.to_status) for event in job.events.all()]
    assert moves == [
        ("", "pending"),
        ("pending", "launching"),
        ("launching", "running"),
        ("running", "completed"),
    ]


def test_a_management_command_is_one_call(local_host: ExecutorHost) -> None:
    job = ContainerJob.objects.create_command_job("check", "--deploy", image="app:latest")
    assert json.dumps(job.command) == '"python manage.py check --deploy"'
    job = finished(job)
    assert (job.status, job.name) == ("failed", "check")  # the image of this test holds no project
    assert "manage.py" in job.stderr_log
