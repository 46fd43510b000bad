"""Django settings of the workers in these tests: those of the tests, and what the case at hand wants."""

from __future__ import annotations

import json
import os

from tests.settings import *  # noqa: F403 - as Django's own documentation has it
from tests.settings import CONTAINER_MANAGER_SETTINGS as _OF_THE_TESTS

CONTAINER_MANAGER_SETTINGS = {**_OF_THE_TESTS, **json.loads(os.environ.get("CM_FAULT_SETTINGS", "{}"))}
