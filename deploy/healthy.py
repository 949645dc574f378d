"""Health check of one service of docker-compose.yaml: ends with 0 when it is healthy, with 1 and a line when it is not.

    python deploy/healthy.py scheduler|dag_processor|triggerer|metadatabase      as the api-server sees it
    python deploy/healthy.py worker                                             this host's Celery worker answers a ping

Light, because it runs every half minute: it imports no Airflow. Reads AIRFLOW__CORE__EXECUTION_API_SERVER_URL and
AIRFLOW__CELERY__BROKER_URL; NODE_NAME is the worker's name where it is not celery@<host>.
"""

import json
import os
import socket
import sys
import urllib.request

TIMEOUT_S = 8.0


def component_problem(name: str) -> str:
    """Why a component of Airflow is not healthy; empty when it is."""
    base = os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].removesuffix("/").removesuffix("/execution")
    with urllib.request.urlopen(f"{base}/api/v2/monitor/health", timeout=TIMEOUT_S) as answer:
        status = json.load(answer)[name]["status"]
    return "" if status == "healthy" else f"{name} is {status}"


def worker_problem() -> str:
    """Why this host's worker is not healthy; empty when it is."""
    from celery import Celery

    node = os.environ.get("NODE_NAME") or f"celery@{socket.gethostname()}"
    with Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]) as app:
        answers = app.control.ping(destination=[node], timeout=TIMEOUT_S)
    return "" if any(node in answer for answer in answers or []) else f"worker {node} does not answer"


def main(name: str) -> int:
    """Check; the exit code."""
    try:
        problem = worker_problem() if name == "worker" else component_problem(name)
    except (OSError, KeyError, ValueError) as error:  # nobody listens, or the answer has another form
        problem = f"{name}: {error!r}"
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
