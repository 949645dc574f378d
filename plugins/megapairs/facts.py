"""What Airflow knows and a stage does not: pools and their slots, workers on each queue, the mail server.

    python -m megapairs.facts          prints it as JSON, for `python -m tasks doctor`

Inside a task Airflow's database is out of reach. Pools are then read over the REST API, with the login of connection
MEGAPAIRS_API_CONNECTION (default megapairs_api); without it they are left out. Nothing here raises.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

import httpx
from airflow.configuration import conf

from megapairs.wiring import POOLS

log = logging.getLogger(__name__)
INSPECT_S = 3.0  # how long a worker may take to answer
REQUEST_S = 10.0


def connection(name: str) -> Any:
    """An Airflow connection, in a task or outside of one; None when there is none."""
    from airflow.exceptions import AirflowException
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowException as SdkException

    with contextlib.suppress(AirflowException, SdkException, RuntimeError, ImportError):
        return Connection.get(name)
    return None


class ApiClient:
    """Airflow's REST API, read with a login.

    Args:
        base: address of the api-server.
        user, password: of the login.
    """

    def __init__(self, base: str, user: str, password: str) -> None:
        self._client = httpx.Client(base_url=base.rstrip("/"), timeout=REQUEST_S, trust_env=False)
        answer = self._client.post("/auth/token", json={"username": user, "password": password})
        answer.raise_for_status()
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET below /api/v2.

        Raises:
            httpx.HTTPError: no answer, or not a good one.
        """
        answer = self._client.get(f"/api/v2/{path}", params=query)
        answer.raise_for_status()
        return answer.json()


def api_client() -> ApiClient | None:
    """A client with the login of connection MEGAPAIRS_API_CONNECTION; None without it, or without an answer."""
    login = connection(os.environ.get("MEGAPAIRS_API_CONNECTION", "megapairs_api"))
    if login is None or not login.host:
        return None
    base = login.host if "://" in login.host else f"http://{login.host}:{login.port or 8080}"
    try:
        return ApiClient(base, login.login, login.password)
    except (httpx.HTTPError, KeyError, ValueError) as error:
        log.warning("the REST API at %s lets nobody in (%s)", base, type(error).__name__)
        return None


def pools_by_api() -> dict[str, int] | None:
    """Pools and their slots over the REST API; None without the connection or an answer."""
    client = api_client()
    if client is None:
        return None
    try:
        return {pool["name"]: int(pool["slots"]) for pool in client.get("pools", limit=100)["pools"]}
    except (httpx.HTTPError, KeyError, ValueError) as error:
        log.warning("pools: the REST API did not tell them (%s)", type(error).__name__)
        return None


def pools_by_database() -> dict[str, int] | None:
    """Pools and their slots from Airflow's database; None where it is out of reach, as in a task."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        from airflow.models.pool import Pool
        from airflow.utils.session import create_session

        with create_session() as session:
            return {str(pool.pool): int(pool.slots) for pool in session.query(Pool).all()}
    except (SQLAlchemyError, RuntimeError, AttributeError, ImportError, TypeError):
        return None


def queues_of_celery() -> dict[str, int] | None:
    """Queue -> processes of the live workers that consume it; None where the executor is not Celery's."""
    if "Celery" not in conf.get("core", "executor"):
        return None
    from airflow.providers.celery.executors.celery_executor_utils import app
    from kombu.exceptions import OperationalError

    try:
        inspect = app.control.inspect(timeout=INSPECT_S)
        consumed, stats = inspect.active_queues() or {}, inspect.stats() or {}
    except (OperationalError, OSError) as error:
        log.warning("queues: the broker does not answer (%s)", error)
        return {}
    processes: dict[str, int] = {}
    for worker, queues in consumed.items():
        count = int(((stats.get(worker) or {}).get("pool") or {}).get("max-concurrency") or 1)
        for queue in queues:
            processes[queue["name"]] = processes.get(queue["name"], 0) + count
    return processes


def smtp_server() -> dict[str, Any] | None:
    """Host and port of connection smtp_default; None when there is none."""
    found = connection("smtp_default")
    if found is None:
        return None
    uses_ssl = not (found.extra_dejson or {}).get("disable_ssl", False)
    return {"host": found.host, "port": found.port, "ssl": uses_ssl}


def gather_facts() -> dict[str, Any]:
    """Everything, as JSON values: `pools`, `queues`, `smtp`, `wanted` (pool -> queue of its tasks)."""
    pools = pools_by_api()
    return {
        "pools": pools_by_database() if pools is None else pools,
        "queues": queues_of_celery(),
        "smtp": smtp_server(),
        "mail_to": os.environ.get("MEGAPAIRS_MAIL_TO", ""),
        "wanted": {
            name: os.environ.get("MEGAPAIRS_GPU_QUEUE", "gpu") if name == "gpu" else "default" for name in POOLS
        },
    }


if __name__ == "__main__":
    print(json.dumps(gather_facts()), flush=True)
