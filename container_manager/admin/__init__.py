"""The admin of the jobs: plain pages over the models; every act goes through the same calls as code does."""

from container_manager.admin.environment import EnvironmentTemplateAdmin
from container_manager.admin.hosts import HostAdmin
from container_manager.admin.jobs import JobAdmin
from container_manager.admin.records import (
    EventAdmin,
    ExecutionAdmin,
    InstallationAdmin,
    LeaseAdmin,
    WorkerAdmin,
)

__all__ = [
    "EnvironmentTemplateAdmin",
    "EventAdmin",
    "ExecutionAdmin",
    "HostAdmin",
    "InstallationAdmin",
    "JobAdmin",
    "LeaseAdmin",
    "WorkerAdmin",
]
