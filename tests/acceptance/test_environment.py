"""Guide: Environment Variable Management."""

from __future__ import annotations

import os

import pytest

from container_manager.core.errors import InvalidJob
from container_manager.models import ContainerJob, EnvironmentVariableTemplate, ExecutorHost
from tests.acceptance.running import drain, finished, stored

pytestmark = pytest.mark.engine

DEVELOPMENT = """
DEBUG=true
LOG_LEVEL=DEBUG
PYTHONPATH=/app
PYTHONDONTWRITEBYTECODE=1
PYTHONUNBUFFERED=1
DATABASE_URL=sqlite:///dev.db
"""

SERVICE = """
# Service
SERVICE_NAME=user-service
SERVICE_PORT=8080

# Database
DB_HOST=postgres.internal
DB_POOL_SIZE=10

# Watching
HEALTH_CHECK_PATH=/health
GREETING="hello, world"
CERTIFICATE="first line
second line"
PRICE=$5
"""

PRINT_ENVIRONMENT = ["python", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


@pytest.fixture
def development(transactional_db: None) -> EnvironmentVariableTemplate:
    return EnvironmentVariableTemplate.objects.create(
        name="python-development",
        description="Standard Python development environment",
        environment_variables_text=DEVELOPMENT,
    )


def test_a_template_is_used_by_its_name(
    local_host: ExecutorHost, development: EnvironmentVariableTemplate
) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11",
        command=PRINT_ENVIRONMENT,
        environment_template="python-development",
        name="django-tests",
    )
    assert job.environment_template == development
    seen = finished(job).parsed_output
    assert (seen["DEBUG"], seen["DATABASE_URL"], seen["PYTHONPATH"]) == ("true", "sqlite:///dev.db", "/app")


def test_a_template_is_used_as_an_instance_and_overridden(
    local_host: ExecutorHost, development: EnvironmentVariableTemplate
) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11",
        command=PRINT_ENVIRONMENT,
        environment_template=development,
        environment_vars={"DATABASE_URL": "postgresql://user:pass@prod-db:5432/myapp", "DEBUG": "false"},
        name="production-migration",
    )
    seen = finished(job).parsed_output
    assert seen["DATABASE_URL"] == "postgresql://user:pass@prod-db:5432/myapp"
    assert (seen["DEBUG"], seen["LOG_LEVEL"]) == ("false", "DEBUG")


def test_comments_quotes_and_values_of_several_lines_survive(local_host: ExecutorHost) -> None:
    EnvironmentVariableTemplate.objects.create(name="microservice-config", environment_variables_text=SERVICE)
    job = ContainerJob.objects.create_job(
        image="python:3.11", command=PRINT_ENVIRONMENT, environment_template="microservice-config"
    )
    seen = finished(job).parsed_output
    assert {name: seen.get(name) for name in ("SERVICE_NAME", "DB_POOL_SIZE", "HEALTH_CHECK_PATH")} == {
        "SERVICE_NAME": "user-service",
        "DB_POOL_SIZE": "10",
        "HEALTH_CHECK_PATH": "/health",
    }
    assert seen["GREETING"] == "hello, world"
    assert seen["CERTIFICATE"] == "first line\nsecond line"
    assert seen["PRICE"] == "$5"
    assert not [name for name in seen if name.startswith("#")]


def test_a_template_changed_later_does_not_change_a_job(
    local_host: ExecutorHost, development: EnvironmentVariableTemplate
) -> None:
    job = ContainerJob.objects.create_job(
        image="python:3.11", command=PRINT_ENVIRONMENT, environment_template=development
    )
    development.environment_variables_text = "DEBUG=changed"
    development.save()
    assert finished(job).parsed_output["DEBUG"] == "true"


def test_a_secret_reaches_the_program_and_nothing_else(
    local_host: ExecutorHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SECRET_API_KEY", "the-key-of-the-vault")
    EnvironmentVariableTemplate.objects.create(name="base-config", environment_variables_text="REGION=north")
    job = ContainerJob.objects.create_job(
        image="app:latest",
        command='test "$API_KEY" = the-key-of-the-vault && echo "right in $REGION"',
        environment_template="base-config",
        environment_vars={"API_KEY": os.environ["SECRET_API_KEY"]},
        name="secure-deployment",
    )
    broken = ContainerJob.objects.create_job(
        image="app:latest",
        command="no-such-program",
        environment_vars={"API_KEY": os.environ["SECRET_API_KEY"]},
    )
    with caplog.at_level("DEBUG", logger="container_manager"):
        drain()
    job, broken = stored(job), stored(broken)
    assert (job.status, job.clean_output) == ("completed", "right in north\n")
    assert broken.status == "failed"
    for text in (job.docker_log, broken.docker_log, broken.exit_message, caplog.text):
        assert "the-key-of-the-vault" not in text


def test_an_unknown_template_is_named(local_host: ExecutorHost) -> None:
    with pytest.raises(InvalidJob, match="python-developement") as caught:
        ContainerJob.objects.create_job(
            image="python:3.11", command="true", environment_template="python-developement"
        )
    assert caught.value.field == "environment_template"
    assert not ContainerJob.objects.exists()


def test_a_malformed_line_is_refused_with_the_template(db: None) -> None:
    with pytest.raises(InvalidJob, match="2"):
        EnvironmentVariableTemplate.objects.create(
            name="wrong", environment_variables_text="FINE=1\nno equals sign here\n"
        )
    assert not EnvironmentVariableTemplate.objects.exists()
