"""PostgreSQL and Redis for tests that run them: where they are missing, one line that CI treats as a failure."""

import pytest

from tasks.demo.production_local import POSTGRES_FOLDERS, PROGRAMS
from tasks.demo.services import find_program
from tasks.errors import ConfigError


def require_production_programs() -> None:
    """Skip the test where PostgreSQL or Redis is not installed; .ci/run fails on that reason."""
    try:
        for name, package in PROGRAMS.items():
            find_program(name, POSTGRES_FOLDERS, package)
    except ConfigError as error:
        pytest.skip(f"production-local: {error}")
