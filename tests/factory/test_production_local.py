"""The compose file's twin for real: Celery workers, PostgreSQL, Redis. Both DAGs, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.programs import require_production_programs
from tests.support.waiting import wait_until

COMMAND = (sys.executable, "-m", "tasks", "production_local", "--root")
TIMEOUT_S = 1800  # for a machine that is very busy; a quiet one with two cores takes three to four minutes


def working_below(root: Path) -> list[str]:
    """Command lines of the processes whose current folder is below `root`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(root):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def heed_interrupts() -> None:
    """In the child: a test run that a shell put into the background ignores SIGINT, and its children would, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def databases() -> set[Path]:
    """Folders of PostgreSQL clusters that twins made."""
    return set(Path(tempfile.gettempdir()).glob("megapairs-postgres-*"))


@pytest.mark.slow
@pytest.mark.airflow
def test_both_dags_on_real_executors(tmp_path: Path):
    require_production_programs()
    before = databases()
    root = tmp_path / "twin"
    done = subprocess.run([*COMMAND, str(root)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["dataset_refresh"], seen["bge_vl_finetune"]) == ("success", "success")
    assert seen["started_by"] == "asset_triggered"
    assert seen["tasks_by_queue"]["default"] > 5 and seen["tasks_by_queue"]["gpu"] > 5
    assert all(lines > 5 for lines in seen["log_lines"].values()) and set(seen["log_lines"]) == {"ingest", "recaption"}
    assert "gate 'images' stopped the run" in seen["mail"]
    assert {"scheduler", "api-server", "worker", "gpu-worker", "git"} <= set(seen["healthy"])
    assert seen["cloned"].startswith("dataset/")
    assert working_below(root) == [] and databases() <= before
    assert json.loads((root / "summary.json").read_text()) == seen


@pytest.mark.slow
@pytest.mark.airflow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_starts_it_stops_what_it_started(tmp_path: Path, number: int):
    require_production_programs()
    before = databases()
    root = tmp_path / "twin"
    process = subprocess.Popen(
        [*COMMAND, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    )
    init = root / "services" / "init.log"
    wait_until(lambda: init.exists() or process.poll() is not None, "the database is being made")
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, out
    assert "stopped" in out
    assert working_below(root) == [] and databases() <= before
