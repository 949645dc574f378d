"""An embedded Airflow on this machine: its environment, its three processes, and the few REST calls that we need.

SQLite and LocalExecutor below one folder, on a free port of the loopback. Airflow runs as child processes and is
reached by HTTP; this module never imports it. `make demo`, `make ui` and the end-to-end tests use it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import httpx

from tasks.demo.airflow_settings import ONE_PERSON, OUTLAST_OUTAGES, inherited
from tasks.demo.processes import end_with_parent, is_alive, process_family
from tasks.errors import TransientError

log = logging.getLogger(__name__)
PROJECT = Path(__file__).resolve().parents[2]
SERVICES = ("api-server", "scheduler", "dag-processor")
# Limits for a machine that is very busy. What has died is noticed at once (`check_alive`), not at a limit.
START_TIMEOUT_S = 900.0
REQUEST_TIMEOUT_S = 120.0  # one request of the REST API
CALL_TIMEOUT_S = 600.0  # one call with its repetitions while the server is busy
STOP_TIMEOUT_S = 10.0  # then SIGKILL
POOLS = {"fetch": 4, "cpu": 2, "gpu": 2}  # slots, on a machine of two cores (plugins/megapairs/wiring.py)
RESTARTS, RESTARTS_S = 5, 600.0  # a service that ends by itself is started again, at most so often in so many seconds
FINISHED = ("success", "failed", "skipped", "upstream_failed", "removed")


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def airflow_environment(root: Path, port: int) -> dict[str, str]:
    """Environment of Airflow, the DAG files and the stages: the caller's without Airflow's settings, and these.

    Args:
        root: folder of the deployment (.demo): airflow/, dataset/, runs/ lie below.
        port: TCP port of the web UI on 127.0.0.1.
    """
    root = root.resolve()
    base = f"http://127.0.0.1:{port}"
    return {
        **inherited(os.environ),
        **OUTLAST_OUTAGES,
        **ONE_PERSON,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "DVC_NO_ANALYTICS": "true",
        "AIRFLOW_HOME": str(root / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{base}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{root / 'airflow' / 'airflow.db'}?timeout=60",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": base,
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "TASKS_PYTHON": sys.executable,
        "MEGAPAIRS_DATASET": str(root / "dataset"),
        "MEGAPAIRS_RUNS": str(root / "runs"),
        "MEGAPAIRS_SOURCES_ROOT": str(PROJECT),
        "MEGAPAIRS_UI": base,
        "MEGAPAIRS_SCHEDULE": "",  # only by hand: a demo must not start a run of its own
        "MEGAPAIRS_MAINTENANCE_SCHEDULE": "",
        "MEGAPAIRS_PREFLIGHT": "off",  # everything was made a moment ago
        "MEGAPAIRS_RETRIES": "1",
        "MEGAPAIRS_RETRY_DELAY_S": "3",
    }


class LocalAirflow:
    """Airflow's processes and a client of its REST API. Use as a context manager, or call `stop`."""

    def __init__(self, root: Path, changes: Mapping[str, str] | None = None, port: int | None = None) -> None:
        self.root = root.resolve()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**airflow_environment(root, self.port), **(changes or {})}
        self.logs = self.root / "airflow" / "services"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts: dict[str, list[float]] = {}
        self._client = httpx.Client(base_url=self.url, timeout=REQUEST_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- processes ----------------------------------------------------------------------------------------------

    def _spawn(self, name: str, words: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", *words],
            env=self.environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._processes[name] = process
        return process

    def migrate(self) -> None:
        """Make or update the database.

        Raises:
            TransientError: the command failed; the message has its last lines.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.logs / "migrate.log", "wb") as output:
            process = self._spawn("migrate", ("db", "migrate"), output)
            code = process.wait()
        del self._processes["migrate"]
        if code != 0:
            raise TransientError(f"airflow db migrate ended with {code}:\n{self.last_lines('migrate')}")

    def start(self) -> None:
        """Start the three services; returns at once, see `wait_healthy`."""
        for service in SERVICES:
            self.start_service(service)

    def wait_for_api(self) -> None:
        """Return when the api-server answers.

        Raises:
            TransientError: it ended again and again, or it took more than START_TIMEOUT_S.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            self.check_alive()
            with contextlib.suppress(httpx.HTTPError):
                if self._client.get("/api/v2/monitor/health").status_code == 200:
                    return
            time.sleep(0.2)
        raise TransientError(f"airflow api-server does not answer after {START_TIMEOUT_S:.0f} s; its logs: {self.logs}")

    def start_service(self, service: str) -> None:
        """Start one of the three services; returns at once."""
        with open(self.logs / f"{service}.log", "ab") as output:
            self._spawn(service, (service,), output)

    def kill_service(self, service: str) -> None:
        """SIGKILL to a service and all its children; it stays down until `start_service`."""
        process = self._processes.pop(service)
        for pid in process_family({process.pid}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def migrate_and_start(self) -> None:
        """`migrate`, then `start`. Call it from a thread that stays: the services end with it.

        Where there was a database, it may hold a run that was stopped: the scheduler starts once the api-server
        answers, because the run's tasks report to it.
        """
        is_new = not (self.root / "airflow" / "airflow.db").exists()
        self.migrate()
        if is_new:
            self.start()
            return
        self.start_service("api-server")
        self.wait_for_api()
        for service in SERVICES[1:]:
            self.start_service(service)

    def wait_healthy(self, dag_ids: tuple[str, ...]) -> None:
        """Return when every service is healthy, the client is logged in and the DAGs are known.

        Raises:
            TransientError: a service ended again and again, or it took more than START_TIMEOUT_S.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            self.check_alive()
            with contextlib.suppress(httpx.HTTPError, KeyError, OSError, ValueError):
                health = self._client.get("/api/v2/monitor/health").json()
                if all(health[name]["status"] == "healthy" for name in ("metadatabase", "scheduler", "dag_processor")):
                    if "Authorization" not in self._client.headers:
                        self._log_in()
                    if all(self._client.get(f"/api/v2/dags/{dag_id}").status_code == 200 for dag_id in dag_ids):
                        return
            time.sleep(0.5)
        raise TransientError(
            f"Airflow is not healthy after {START_TIMEOUT_S:.0f} s; its logs: {self.logs}\n{self.import_errors()}"
        )

    def check_alive(self) -> None:
        """Start services again that have ended by themselves, as after a database that was away for seconds.

        Raises:
            TransientError: a service ended more than RESTARTS times within RESTARTS_S.
        """
        for service, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            now = time.monotonic()
            restarts = [t for t in self._restarts.get(service, []) if t > now - RESTARTS_S]
            if len(restarts) >= RESTARTS or service not in SERVICES:
                raise TransientError(f"airflow {service} ended with {process.returncode}:\n{self.last_lines(service)}")
            log.warning("airflow %s ended with %s and is started again", service, process.returncode)
            self._restarts[service] = [*restarts, now]
            self.start_service(service)

    def stop(self) -> None:
        """End everything that was started, with all child processes."""
        pids = process_family({p.pid for p in self._processes.values()})
        for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            end = time.monotonic() + patience_s
            while time.monotonic() < end:
                for process in self._processes.values():
                    process.poll()
                if not any(is_alive(pid) for pid in pids):
                    break
                time.sleep(0.1)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
        self._processes = {}
        self._client.close()

    def last_lines(self, service: str, count: int = 15) -> str:
        """The end of a service's log."""
        try:
            return "\n".join((self.logs / f"{service}.log").read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    # --- login --------------------------------------------------------------------------------------------------

    def credentials(self) -> tuple[str, str]:
        """User and generated password of the web UI."""
        path = Path(self.environment["AIRFLOW_HOME"]) / "simple_auth_manager_passwords.json.generated"
        return "admin", str(json.loads(path.read_text())["admin"])

    def _log_in(self) -> None:
        user, password = self.credentials()
        answer = self._client.post("/auth/token", json={"username": user, "password": password})
        answer.raise_for_status()
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    # --- REST ---------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One REST call below /api/v2; repeated for CALL_TIMEOUT_S while the server is busy.

        Raises:
            TransientError: refused (the message has the answer), no answer in time, or a service ended.
        """
        end = time.monotonic() + CALL_TIMEOUT_S
        while True:
            try:
                answer = self._client.request(method, f"/api/v2/{path}", json=body, params=query or None)
                if answer.status_code == 401:
                    self._log_in()
                    continue
                if answer.status_code < 500:
                    break
                problem = f"{answer.status_code} {answer.text[:300]}"
            except httpx.HTTPError as error:
                problem = repr(error)
            if time.monotonic() > end:
                raise TransientError(f"{method} {path}: {problem}")
            self.check_alive()
            time.sleep(0.5)
        if answer.status_code >= 400:
            raise TransientError(f"{method} {path}: refused with {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    def make_pools(self) -> None:
        """Create the pools, or set their slots."""
        known = {pool["name"] for pool in self.call("GET", "pools")["pools"]}
        for name, slots in POOLS.items():
            pool = {"name": name, "slots": slots, "include_deferred": False}
            if name in known:
                self.call("PATCH", f"pools/{name}", pool)
            else:
                self.call("POST", "pools", pool)

    def set_paused(self, dag_id: str, is_paused: bool) -> None:
        """Pause or unpause a DAG."""
        self.call("PATCH", f"dags/{dag_id}", {"is_paused": is_paused})

    def trigger(self, dag_id: str, conf: Mapping[str, Any], run_id: str | None = None) -> str:
        """Start a run by hand; returns its id."""
        body: dict[str, Any] = {"logical_date": None, "conf": dict(conf)}
        if run_id:
            body["dag_run_id"] = run_id
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """All runs of a DAG, oldest first."""
        answer = self.call("GET", f"dags/{dag_id}/dagRuns", order_by="run_after", limit=100)
        return list(answer["dag_runs"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """queued, running, success or failed."""
        return str(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances, mapped ones each."""
        answer = self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=200)
        return list(answer["task_instances"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """A task's report, else its return value; None when it has none.

        The return value of a task that another is mapped over is a list of parts; its report is the XCom `report`.
        """
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries"
        value: Any = None
        for key in ("return_value", "report"):
            try:
                value = self.call("GET", f"{path}/{key}", map_index=map_index, deserialize="true")["value"]
            except TransientError:
                return value
            value = json.loads(value) if isinstance(value, str) and value[:1] in "{[" else value
            if not isinstance(value, list):
                return value
        return value

    def task_log(self, dag_id: str, run_id: str, task: Mapping[str, Any]) -> list[str]:
        """The lines of a task's last try, as its log shows them."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task['task_id']}/logs/{max(1, task['try_number'])}"
        try:
            content = self.call("GET", path, map_index=task["map_index"], full_content="true")["content"]
        except TransientError as error:
            return [str(error)]
        lines: list[str] = []
        for entry in content if isinstance(content, list) else str(content).splitlines():
            event = str(entry.get("event", "")) if isinstance(entry, dict) else str(entry)
            lines += event.splitlines()
            for detail in (entry.get("error_detail") or []) if isinstance(entry, dict) else []:
                lines += f"{detail.get('exc_type')}: {detail.get('exc_value')}".splitlines()
        return lines

    def import_errors(self) -> str:
        """What kept DAG files from being parsed, as text; empty when nothing did."""
        with contextlib.suppress(TransientError, httpx.HTTPError):
            return "\n".join(e["stack_trace"] for e in self.call("GET", "importErrors")["import_errors"])
        return ""

    def watch(self, dag_id: str, run_id: str, poll_s: float = 1.0) -> Iterator[dict[str, Any]]:
        """Task instances as they finish, until the run ends.

        Raises:
            TransientError: a service ended.
        """
        seen: set[tuple[str, int]] = set()
        is_over = False
        while True:
            self.check_alive()
            for task in sorted(self.task_instances(dag_id, run_id), key=lambda t: t["end_date"] or ""):
                key = (task["task_id"], task["map_index"])
                if task["state"] in FINISHED and key not in seen:
                    seen.add(key)
                    yield task
            if is_over:
                return
            is_over = self.run_state(dag_id, run_id) in ("success", "failed")
            if not is_over:
                time.sleep(poll_s)
