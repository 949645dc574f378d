"""deploy/healthy.py: what Airflow's health page says decides, and nobody at home is not healthy."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path("deploy/healthy.py").resolve()
PAGE = {"scheduler": {"status": "healthy"}, "triggerer": {"status": None}, "dag_processor": {"status": "unhealthy"}}


class HealthPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/v2/monitor/health" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(PAGE).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), HealthPage) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/execution/"
        server.shutdown()
        thread.join()


def check(name: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": url, "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-S", str(SCRIPT), name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("scheduler", 0, ""),
        ("triggerer", 1, "triggerer is None"),
        ("dag_processor", 1, "dag_processor is unhealthy"),
        ("nobody", 1, "nobody: KeyError"),
    ],
)
def test_a_component_is_what_the_health_page_says(url: str, name: str, code: int, said: str):
    done = check(name, url)
    assert done.returncode == code and said in done.stderr, done.stderr


def test_nobody_at_home_is_not_healthy():
    done = check("scheduler", "http://127.0.0.1:9/execution/")
    assert done.returncode == 1 and "scheduler: " in done.stderr
