"""Fixtures of the judging tests."""

from pathlib import Path

import pytest

from tasks.config import Params
from tasks.store import Store
from tests.support.colour_pairs import colour_params, write_colour_store


@pytest.fixture
def params() -> Params:
    return colour_params()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_colour_store(tmp_path)
