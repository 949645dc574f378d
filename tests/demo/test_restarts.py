"""A service of the embedded Airflow that ends by itself is started again, and given up when it ends again and again."""

from pathlib import Path

import pytest

from tasks.demo.local_airflow import RESTARTS, LocalAirflow, is_alive
from tasks.errors import TransientError
from tests.support.waiting import wait_until

FAKE = """
import pathlib, sys, time
ending = pathlib.Path(__file__).parent.parent / "ending" / sys.argv[1]
print("started", flush=True)
while not ending.exists():
    time.sleep(0.01)
sys.exit(3)
"""


@pytest.fixture
def airflow(tmp_path: Path) -> LocalAirflow:
    """Services that run until there is a file of their name in `ending`."""
    (tmp_path / "fake" / "airflow").mkdir(parents=True)
    (tmp_path / "fake" / "ending").mkdir()
    (tmp_path / "fake" / "airflow" / "__init__.py").touch()
    (tmp_path / "fake" / "airflow" / "__main__.py").write_text(FAKE)
    (tmp_path / "deployment").mkdir()
    local = LocalAirflow(tmp_path / "deployment", {"PYTHONPATH": str(tmp_path / "fake")})
    local.logs.mkdir(parents=True)
    return local


def starts(airflow: LocalAirflow, service: str) -> int:
    return airflow.last_lines(service, 100).count("started")


def test_a_service_that_ends_comes_back_and_the_others_are_left_alone(airflow: LocalAirflow):
    ending = airflow.root.parent / "fake" / "ending" / "scheduler"
    with airflow:
        airflow.start()
        wait_until(lambda: starts(airflow, "scheduler") == 1 and starts(airflow, "api-server") == 1, "they run")
        scheduler = airflow._processes["scheduler"]
        ending.touch()
        wait_until(lambda: scheduler.poll() is not None, "the scheduler has ended")
        ending.unlink()
        airflow.check_alive()
        wait_until(lambda: starts(airflow, "scheduler") == 2, "the scheduler is started again")
        assert starts(airflow, "api-server") == 1


def test_a_service_that_ends_again_and_again_is_given_up(airflow: LocalAirflow):
    (airflow.root.parent / "fake" / "ending" / "dag-processor").touch()
    with airflow:
        airflow.start()
        with pytest.raises(TransientError, match="airflow dag-processor ended with 3:\nstarted"):
            wait_until(lambda: bool(airflow.check_alive()), "it is given up")
        assert starts(airflow, "dag-processor") == 1 + RESTARTS


def test_a_service_that_was_killed_here_stays_down_until_it_is_started(airflow: LocalAirflow):
    with airflow:
        airflow.start()
        wait_until(lambda: starts(airflow, "api-server") == 1, "it runs")
        airflow.kill_service("api-server")
        airflow.check_alive()
        assert starts(airflow, "api-server") == 1
        airflow.start_service("api-server")
        wait_until(lambda: starts(airflow, "api-server") == 2, "it runs again")
        pids = [process.pid for process in airflow._processes.values()]
    assert not any(is_alive(pid) for pid in pids)


SLOW_API = """
import http.server, os, pathlib, sys, time
name = sys.argv[1]
if name == "db":
    sys.exit(0)
log = pathlib.Path(os.environ["AIRFLOW_HOME"]).parent / "order"
if name != "api-server":
    with log.open("a") as file:
        file.write(name + "\\n")
    time.sleep(1000)
time.sleep(0.5)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if not log.exists() or "healthy" not in log.read_text():
            with log.open("a") as file:
                file.write("healthy\\n")
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(os.environ["AIRFLOW__API__PORT"])), Handler).serve_forever()
"""


def test_a_restarted_scheduler_waits_for_the_api_server(airflow: LocalAirflow):
    """What a stopped run left is taken up by the scheduler at once, and its tasks report to the api-server."""
    (airflow.root.parent / "fake" / "airflow" / "__main__.py").write_text(SLOW_API)
    (airflow.root / "airflow" / "airflow.db").touch()
    with airflow:
        airflow.migrate_and_start()
        order = airflow.root / "order"
        wait_until(lambda: len(order.read_text().splitlines()) == 3, "all services have started")
        assert order.read_text().splitlines()[0] == "healthy"
