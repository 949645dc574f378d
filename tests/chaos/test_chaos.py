"""The short form of the chaos suite: `make chaos CHAOS_OPTIONS=--short`. It starts no Airflow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.__main__ import SHORT, SHORT_KILLS, attempt, table
from tests.chaos.week import Outcome


@pytest.mark.factory
@pytest.mark.slow
def test_every_scenario_of_the_short_form_recovers_and_gives_the_same(project: Path):
    command = [sys.executable, "-m", "tests.chaos", "--short"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(lines[-1])
    assert summary["scenarios"] == summary["equal"] == summary["recovered"] == len(SHORT)
    assert summary["kills"] >= SHORT_KILLS
    assert sum(line.startswith("| ") for line in lines) == len(SHORT) + 1


def test_a_scenario_that_breaks_off_is_neither_recovered_nor_equal():
    def breaks() -> Outcome:
        raise AssertionError("ingest ended with 1")

    out = attempt("disk", breaks)
    assert (out.is_recovered, out.is_equal) == (False, False)
    assert "| disk | 0 | NO | NO |" in table([out]) and "ingest ended with 1" in table([out])
