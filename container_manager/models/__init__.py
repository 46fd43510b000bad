"""The tables: jobs and their attempts, events, logs, hosts, environment templates, leases, workers."""

from container_manager.models.environment import EnvironmentVariableTemplate
from container_manager.models.event import JobEvent
from container_manager.models.execution import ExecutionMetadata
from container_manager.models.host import ExecutorHost
from container_manager.models.installation import Installation
from container_manager.models.job import ContainerJob
from container_manager.models.lease import EngineLease
from container_manager.models.log import LogChunk
from container_manager.models.worker import RegisteredWorker

__all__ = [
    "ContainerJob",
    "EngineLease",
    "EnvironmentVariableTemplate",
    "ExecutionMetadata",
    "ExecutorHost",
    "Installation",
    "JobEvent",
    "LogChunk",
    "RegisteredWorker",
]
