"""The stage operator, with a shell script as its interpreter: what each exit code leads to."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from tasks.demo.local_airflow import is_alive
from tests.support.waiting import wait_until

Fake = Callable[[str], Path]
REPORT = (
    """echo '{"stage": "ingest", "read": 5, "written": 3, "dropped": {"duplicate": 2}, """
    """"notes": ["dataset/2026.11.24"]}'"""
)


def stage(**arguments: Any) -> Any:
    from megapairs.stage import Stage

    return Stage(task_id="a_stage", **{"stage": "ingest", **arguments})


def context(**more: Any) -> dict[str, Any]:
    return {"run_id": "run 1", "params": {}, "dag_run": SimpleNamespace(conf={}), **more}


def test_the_last_line_becomes_the_report(fake_tasks: Fake):
    fake_tasks(REPORT)
    assert stage().execute(context())["written"] == 3


def test_the_line_is_the_one_of_a_terminal_and_runs_in_the_runs_worktree(fake_tasks: Fake):
    folder = fake_tasks(
        'echo "$*" > line; pwd > folder; echo "${PYTHONPATH-none} ${MEGAPAIRS_PROFILE-none} $OMP_NUM_THREADS" > env;'
        + REPORT
    )
    os.environ["MEGAPAIRS_PROFILE"] = "production"
    try:
        stage(stage="caption", part="1/4").execute(context())
    finally:
        del os.environ["MEGAPAIRS_PROFILE"]
    assert (folder / "line").read_text().strip() == "-m tasks caption --part 1/4"
    assert (folder / "folder").read_text().strip() == str(folder)
    assert (folder / "env").read_text().split()[:2] == ["none", "none"]
    stage(stage="validate", item="images").execute(context())
    assert (folder / "line").read_text().strip() == "-m tasks validate images"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (65, AirflowFailException),
        (78, AirflowFailException),
        (99, AirflowSkipException),
        (75, AirflowException),
        (1, AirflowException),
    ],
)
def test_an_exit_code_says_whether_a_retry_can_help(fake_tasks: Fake, code: int, error: type[Exception]):
    fake_tasks(f"echo 'ConfigError: mine.neighbors is unknown' >&2; exit {code}")
    with pytest.raises(error) as caught:
        stage().execute(context())
    assert type(caught.value) is error
    assert "mine.neighbors is unknown" in str(caught.value)


def test_a_killed_stage_is_retried_and_says_by_what(fake_tasks: Fake):
    fake_tasks("kill -9 $$")
    with pytest.raises(AirflowException, match="signal 9"):
        stage().execute(context())


def test_a_stage_that_prints_no_report_fails(fake_tasks: Fake):
    fake_tasks("echo done")
    with pytest.raises(AirflowException, match="no StageReport"):
        stage().execute(context())


def test_a_missing_worktree_fails_with_the_next_step(fake_tasks: Fake):
    fake_tasks(REPORT)
    with pytest.raises(AirflowFailException, match="clear open_run"):
        stage().execute(context(run_id="another run"))


def test_marked_failed_in_the_ui_the_stage_and_its_children_end(fake_tasks: Fake):
    folder = fake_tasks("sleep 1000 & echo $! > child; wait")
    task = stage()
    ended: list[BaseException] = []

    def work() -> None:
        try:
            task.execute(context())
        except AirflowException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    child = folder / "child"
    wait_until(lambda: child.exists() and bool(child.read_text().strip()), "the stage has started its child")
    task.on_kill()
    thread.join(timeout=600)
    assert len(ended) == 1 and "signal 15" in str(ended[0])
    wait_until(lambda: not is_alive(int(child.read_text())), "the child has ended")


def test_promotes_decision_is_kept_beside_the_clone_and_no_fault_of_the_file_fails_the_task(fake_tasks: Fake):
    from tasks.browse import promotions

    note = "not promoted: composed map_at_5 0.2000 against 0.3000 of the base model"
    folder = fake_tasks(f"""echo '{{"stage": "promote", "read": 1, "written": 0, "notes": ["{note}"]}}'""")
    clone = Path(os.environ["MEGAPAIRS_DATASET"])
    stage(stage="promote").execute(context())
    (decision,) = promotions.read(clone)
    assert (decision.run_id, decision.why) == ("run 1", note)
    (folder / "version.json").write_text("no JSON")
    assert stage(stage="promote").execute(context())["notes"] == [note]
    assert len(promotions.read(clone)) == 1
    stage(stage="judge").execute(context())
    assert len((clone.parent / promotions.FILE).read_text().splitlines()) == 1, "of promote alone"


def test_the_asset_event_carries_the_version_and_what_training_takes_over(fake_tasks: Fake):
    from megapairs.wiring import TRIPLETS

    fake_tasks(REPORT)
    events = {TRIPLETS: SimpleNamespace(extra={})}
    conf = {"limit": 5, "date": "2026-11-24", "evaluate": {"benchmark": "/b"}}
    stage(stage="version", outlets=[TRIPLETS]).execute(
        context(outlet_events=events, params={"profile": "test"}, dag_run=SimpleNamespace(conf=conf))
    )
    assert events[TRIPLETS].extra == {
        "version": "dataset/2026.11.24",
        "changes": {"profile": "test", "evaluate": {"benchmark": "/b"}, "open_run": {"date": "2026-11-24"}},
    }


def test_open_run_passes_what_was_filled_in(fake_tasks: Fake, tmp_path: Path):
    from megapairs.stage import OpenRun

    fake_tasks('for a in "$@"; do echo "$a"; done > arguments;' + REPORT)
    presets = {"profile": "demo", "limit": None, "dry_run": False}
    OpenRun(kind="dataset").execute(context(params=presets, dag_run=SimpleNamespace(conf={"limit": 60, "lmit": 5})))
    lines = (tmp_path / "dataset" / "arguments").read_text().splitlines()
    assert lines == [
        "-m",
        "tasks",
        "open_run",
        "--run-id",
        "run 1",
        "--kind",
        "dataset",
        "--conf",
        '{"profile": "demo", "open_run": {"limit": 60}, "lmit": 5}',
    ]


def test_training_takes_the_newest_events_version_and_values(fake_tasks: Fake, tmp_path: Path):
    from megapairs.stage import OpenRun
    from megapairs.wiring import TRIPLETS

    fake_tasks('for a in "$@"; do echo "$a"; done > arguments;' + REPORT)
    events = {
        TRIPLETS: [
            SimpleNamespace(timestamp=n, extra={"version": f"dataset/2026.11.0{n}", "changes": {"profile": "test"}})
            for n in (1, 2)
        ]
    }
    OpenRun(kind="model").execute(
        context(params={"profile": "demo", "dataset_version": None}, triggering_asset_events=events)
    )
    lines = (tmp_path / "dataset" / "arguments").read_text().splitlines()
    assert lines[6:] == ["model", "--dataset-version", "dataset/2026.11.02", "--conf", '{"profile": "test"}']


class InletEvents(list[Any]):
    """As Airflow's accessor of an asset's events: oldest first unless told otherwise, all unless limited."""

    def ascending(self, is_ascending: bool) -> "InletEvents":
        return InletEvents(sorted(self, key=lambda e: e.timestamp, reverse=not is_ascending))

    def limit(self, count: int) -> "InletEvents":
        return InletEvents(self[:count])


@pytest.mark.parametrize("pending", [1, 2, 3])
def test_training_takes_the_newest_version_when_it_opens_not_the_one_that_started_it(
    fake_tasks: Fake, tmp_path: Path, pending: int
):
    """Versions published while a run trains: Airflow starts one run, with the event of the oldest of them."""
    from megapairs.stage import OpenRun
    from megapairs.wiring import TRIPLETS

    fake_tasks('for a in "$@"; do echo "$a"; done > arguments;' + REPORT)
    events = [
        SimpleNamespace(
            timestamp=n,
            extra={"version": f"dataset/2026.11.0{n}", "changes": {"profile": "test", "train": {"steps": n}}},
        )
        for n in range(1, 2 + pending)
    ]
    run = OpenRun(kind="model")
    assert run.inlets == [TRIPLETS]
    started = {"triggering_asset_events": {TRIPLETS: [events[1]]}, "inlet_events": {TRIPLETS: InletEvents(events)}}
    run.execute(context(params={"profile": "demo", "dataset_version": None}, **started))
    lines = (tmp_path / "dataset" / "arguments").read_text().splitlines()
    newest = 1 + pending
    assert lines[7:9] == ["--dataset-version", f"dataset/2026.11.0{newest}"]
    assert json.loads(lines[10]) == {"profile": "test", "train": {"steps": newest}}
    # what a person names is taken; a run that a person starts reads no event
    run.execute(context(params={}, dag_run=SimpleNamespace(conf={"dataset_version": "2026.11.01"}), **started))
    assert (tmp_path / "dataset" / "arguments").read_text().splitlines()[7:9] == ["--dataset-version", "2026.11.01"]
    run.execute(context(inlet_events=started["inlet_events"]))
    assert "--dataset-version" not in (tmp_path / "dataset" / "arguments").read_text()


class RecordingInstance:
    """A task instance that keeps what is pushed."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


PARTS_REPORT = """echo '{"stage": "validate", "read": 5, "parts": {"embed": 3, "mine": 1}}'"""


def test_a_stage_before_parts_returns_their_names_and_keeps_its_report(fake_tasks: Fake):
    fake_tasks(PARTS_REPORT)
    instance = RecordingInstance()
    task = stage(stage="validate", item="images", then="embed")
    assert task.execute(context(ti=instance)) == ["1/3", "2/3", "3/3"]
    assert instance.pushed["report"]["read"] == 5


def test_one_part_of_a_stage_whose_parts_are_merged_maps_nothing(fake_tasks: Fake):
    from megapairs.stage import parts_from

    fake_tasks(PARTS_REPORT)
    task = stage(stage="validate", item="images", then="mine")
    assert task.execute(context(ti=RecordingInstance())) == []
    assert parts_from({"parts": {"mine": 1}}, "mine") == []
    assert parts_from({"parts": {"mine": 2}}, "mine") == ["1/2", "2/2"]


def test_the_one_part_of_a_stage_is_the_whole(fake_tasks: Fake):
    folder = fake_tasks('echo "$*" > line;' + REPORT)
    stage(stage="embed", item="semantic", part="1/1").execute(context())
    assert (folder / "line").read_text().strip() == "-m tasks embed semantic"


def test_the_stage_that_reads_buckets_gets_airflows_aws_connection_and_no_other(
    fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch
):
    folder = fake_tasks(
        'echo "${AWS_ACCESS_KEY_ID-none} ${AWS_SECRET_ACCESS_KEY-none} ${AWS_DEFAULT_REGION-none} '
        '${AWS_ENDPOINT_URL_S3-none}" > env;' + REPORT
    )
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    connection = {
        "conn_type": "aws",
        "login": "key",
        "password": "s/e+c",
        "extra": {"region_name": "eu-1", "endpoint_url": "http://store:9000"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    stage().execute(context())
    assert (folder / "env").read_text().split() == ["key", "s/e+c", "eu-1", "http://store:9000"]
    stage(stage="select").execute(context())
    assert (folder / "env").read_text().split() == ["none"] * 4
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the worker's own")
    stage().execute(context())
    assert (folder / "env").read_text().split()[:3] == ["the", "worker's", "own"] and "s/e+c" not in (
        folder / "env"
    ).read_text()


def test_the_stages_that_ask_models_get_the_keys_of_the_connection_and_no_other_does(
    fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch
):
    folder = fake_tasks(
        'echo "${MEGAPAIRS_MODEL_API_KEY-none} ${MEGAPAIRS_MODEL_API_KEY_JUDGE-none} '
        '${MEGAPAIRS_MODELS_CONNECTION-none}" > env;' + REPORT
    )
    masked: list[str] = []
    monkeypatch.setattr("megapairs.model_keys.mask_secret", masked.append)
    connection = {"conn_type": "generic", "password": "sk-all", "extra": {"judge": "sk-judge"}}
    monkeypatch.setenv("AIRFLOW_CONN_MODELS_OF_SITE", json.dumps(connection))
    monkeypatch.setenv("MEGAPAIRS_MODELS_CONNECTION", "models_of_site")
    for name in ("caption", "judge", "recaption"):
        stage(stage=name).execute(context())
        assert (folder / "env").read_text().split() == ["sk-all", "sk-judge", "none"]
    assert set(masked) == {"sk-all", "sk-judge"}
    monkeypatch.setenv("MEGAPAIRS_MODEL_API_KEY", "sk-own")
    stage(stage="caption").execute(context())
    assert (folder / "env").read_text().split()[:2] == ["sk-own", "sk-judge"] and "sk-own" in masked
    stage(stage="select").execute(context())
    assert (folder / "env").read_text().split() == ["none"] * 3


def test_no_connection_of_models_is_no_error(fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch):
    fake_tasks(REPORT)
    monkeypatch.setenv("MEGAPAIRS_MODELS_CONNECTION", "nobody_made_this")
    assert stage(stage="caption").execute(context())["written"] == 3


def test_no_aws_connection_is_no_error(fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch):
    fake_tasks(REPORT)
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT", raising=False)
    monkeypatch.setenv("MEGAPAIRS_AWS_CONNECTION", "nobody_made_this")
    assert stage().execute(context())["written"] == 3
