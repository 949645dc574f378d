"""Processes by name, on toy commands: each ends as it was asked to, with everything that it started."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.demo.processes import is_alive
from tasks.demo.services import RESTARTS, Service, Services, find_program, wait_ready
from tasks.errors import ConfigError, TransientError
from tests.support.waiting import wait_until

# Starts a child, says its pid, and waits; SIGTERM ends it unless it is told to be deaf.
PARENT = """
import pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = pathlib.Path(sys.argv[1])
path.with_suffix(".new").write_text(str(child.pid))
path.with_suffix(".new").rename(path)
time.sleep(600)
"""


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(tmp_path / "logs")
    yield made
    made.stop_all()


def started(services: Services, folder: Path, name: str, how: str = "polite") -> int:
    """Start a parent with one child; the child's process id."""
    said = folder / f"{name}.pid"
    said.unlink(missing_ok=True)
    command = (sys.executable, "-S", "-c", PARENT, str(said), how)
    services.add(Service(name, command, {"PATH": os.defpath}, folder))
    services.start(name)
    wait_until(said.exists, "the child has started")
    return int(said.read_text())


def state(pid: int) -> str:
    """The letter of a process's state."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


@pytest.mark.parametrize("how", ["polite", "deaf"])
def test_stop_ends_a_service_and_its_children(services: Services, tmp_path: Path, how: str):
    child = started(services, tmp_path, "one", how)
    parent = services.pid("one")
    services.stop("one", patience_s=5 if how == "polite" else 0.2)
    assert not is_alive(parent) and not is_alive(child) and not services.is_running("one")
    services.check_alive()  # it was meant to be down
    services.start("one")
    assert services.is_running("one") and services.pid("one") != parent


def test_kill_with_and_without_children(services: Services, tmp_path: Path):
    child = started(services, tmp_path, "whole")
    services.kill("whole")
    assert not is_alive(child)
    orphan = started(services, tmp_path, "head")
    services.kill("head", with_children=False)
    assert not services.is_running("head") and is_alive(orphan)
    assert orphan in services.family("head"), "an orphan of a killed service is still known"
    services.stop_all()
    assert not is_alive(orphan)


def test_suspend_and_resume_everything_of_a_service(services: Services, tmp_path: Path):
    child = started(services, tmp_path, "one")
    services.suspend("one")
    wait_until(lambda: state(child) == "T" and state(services.pid("one")) == "T", "both are stopped")
    assert services.is_running("one")
    services.resume("one")
    wait_until(lambda: state(child) == "S", "the child goes on")
    services.suspend("one")
    services.stop_all()  # suspended processes end, too
    assert not is_alive(child)


def test_what_ends_by_itself_is_noticed_and_what_was_killed_is_not(services: Services, tmp_path: Path):
    started(services, tmp_path, "meant")
    services.kill("meant")
    services.check_alive()
    command = (sys.executable, "-S", "-c", "import sys; print('the last words'); sys.exit(3)")
    services.add(Service("short", command, {}, tmp_path))
    services.start("short")
    wait_until(lambda: not services.is_running("short"), "it has ended")
    with pytest.raises(TransientError, match=r"service short ended with 3:\nthe last words"):
        services.check_alive()
    with pytest.raises(TransientError, match="service short ended with 3"):
        wait_ready("meant", lambda: False, services, timeout_s=60)


def test_two_starts_and_a_missing_program_are_refused(services: Services, tmp_path: Path):
    started(services, tmp_path, "one")
    with pytest.raises(ConfigError, match="runs already"):
        services.start("one")
    with pytest.raises(ConfigError, match=r"no-such-server: not found .* `apt-get install the-package`"):
        find_program("no-such-server", package="the-package")


def test_a_signal_of_ones_own_choice(services: Services, tmp_path: Path):
    started(services, tmp_path, "one")
    services.kill("one", signal.SIGTERM, with_children=False)
    wait_until(lambda: not services.is_running("one"), "it has ended")


def test_what_is_restarted_comes_back_by_itself_but_not_for_ever(services: Services, tmp_path: Path):
    command = (sys.executable, "-S", "-c", "import sys; sys.exit(4)")
    services.add(Service("short", command, {}, tmp_path, is_restarted=True))
    services.start("short")
    seen = set()
    with pytest.raises(TransientError, match="service short ended with 4"):
        while True:
            seen.add(services.pid("short"))
            wait_until(lambda: not services.is_running("short"), "it has ended", poll_s=0.01)
            services.check_alive()
    assert len(seen) == 1 + RESTARTS
