"""Late runs and the weekly pruning, against a small REST API."""

import datetime
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from tests.support.inbox import Inbox, html_body, serving_inbox
from tests.support.markup import assert_harmless

NOW = datetime.datetime.now(datetime.UTC)
EVIL = "<script>alert(1)</script>"


def run(state: str, started_h: float, took_h: float | None = None, run_id: str = "r") -> dict[str, Any]:
    start = NOW - datetime.timedelta(hours=started_h)
    end = start + datetime.timedelta(hours=took_h) if took_h is not None else None
    return {
        "dag_id": "dataset_refresh",
        "dag_run_id": run_id,
        "state": state,
        "queued_at": start.isoformat().replace("+00:00", "Z"),
        "start_date": start.isoformat(),
        "end_date": end.isoformat() if end else None,
    }


@pytest.mark.parametrize(
    ("history_h", "running_h", "is_late"),
    [
        ([2, 3, 1], 5.9, False),
        ([2, 3, 1], 6.1, True),
        ([0.01], 0.9, False),  # an hour is never late
        ([0.01], 1.1, True),
        ([], 100, False),
        ([], 24 * 7.1, True),
        ([50] + [1] * 9 + [100], 101, True),  # the last ten alone
    ],
)
def test_a_run_is_late_that_takes_twice_as_long_as_the_longest_of_its_history(
    history_h: list[float], running_h: float, is_late: bool
):
    from megapairs.maintenance import find_late_runs

    runs = [run("running", running_h), run("failed", 500, 400), *(run("success", 400, h) for h in history_h)]
    assert bool(find_late_runs(runs, NOW)) == is_late


def test_a_run_that_has_been_queued_for_ever_is_late_too():
    from megapairs.maintenance import find_late_runs

    queued = {**run("queued", 30, run_id="q"), "start_date": None}
    assert [late.run_id for late in find_late_runs([queued, run("success", 400, 1)], NOW)] == ["q"]


class Api(BaseHTTPRequestHandler):
    """One running run, late by its history, whose task waits for a pool."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"access_token": "t"} if body == {"username": "admin", "password": "p"} else {})

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == "Bearer t"
        if "taskInstances" in self.path:
            task = {"task_id": f"embed {EVIL}", "state": "scheduled", "pool": "gpu", "queue": "gpu"}
            self.answer({"task_instances": [task, {**task, "task_id": "ingest", "state": "success"}]})
        elif "bge_vl_finetune" in self.path or "state=queued" in self.path:
            self.answer({"dag_runs": []})
        else:
            runs = [run("running", 9, run_id="late one")]
            self.answer({"dag_runs": runs if "state=running" in self.path else [*runs, run("success", 99, 1)]})

    def answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    login = {"conn_type": "http", "host": f"http://127.0.0.1:{server.server_port}", "login": "admin", "password": "p"}
    monkeypatch.setenv("AIRFLOW_CONN_MEGAPAIRS_API", json.dumps(login))
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with serving_inbox() as (inbox, connection):
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", connection)
        monkeypatch.setenv("MEGAPAIRS_MAIL_TO", "data@example.org")
        yield inbox


def test_a_late_run_is_told_once_with_what_it_waits_for(
    api: None, inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from megapairs.maintenance import LateRuns

    monkeypatch.setenv("MEGAPAIRS_RUNS", str(tmp_path))
    for _ in range(2):
        assert LateRuns(task_id="late_runs").execute({"run_id": "hourly"}) == ["late one"]
    (mail,) = inbox.mails
    assert re.search(r"dataset_refresh has run for \d+\.\d h, expected 2\.0 h$", mail["Subject"])
    text = assert_harmless(html_body(mail), links=True).text
    assert "scheduled (pool gpu, queue gpu)" in text and "python -m tasks doctor" in text and "ingest" not in text


def test_pruning_names_the_active_runs(api: None, fake_tasks: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    from megapairs import maintenance
    from megapairs.maintenance import PruneRuns

    folder = fake_tasks("""for a in "$@"; do echo "$a"; done > arguments; echo '{"stage": "runs", "freed": []}' """)
    monkeypatch.setattr(maintenance, "PROJECT", folder)
    assert PruneRuns(task_id="prune_runs").execute({"run_id": "weekly"})["stage"] == "runs"
    words = (folder / "arguments").read_text().splitlines()
    assert words[2:6] == ["runs", "--prune", "--yes", "--json"]
    assert words[-2:] == ["--active", "late one"]


@pytest.mark.parametrize("name", ["LateRuns", "PruneRuns"])
def test_without_the_rest_api_nothing_is_touched(name: str, monkeypatch: pytest.MonkeyPatch):
    from megapairs import maintenance

    monkeypatch.delenv("AIRFLOW_CONN_MEGAPAIRS_API", raising=False)
    with pytest.raises(AirflowSkipException, match="megapairs_api"):
        getattr(maintenance, name)(task_id="x").execute({"run_id": "r"})


def test_both_dags_parse(load_dag: Callable[[str], Any]):
    import maintenance_dag

    assert load_dag("maintenance").task_ids == ["prune_runs"]
    assert maintenance_dag.late_runs().task_ids == ["late_runs"]
