"""A run that the schedule starts. It stops the Airflow that the stories share: by its name it comes after them."""

from tasks.demo.local_airflow import LocalAirflow
from tasks.demo.watch import DATASET_DAG, MODEL_DAG
from tests.support.waiting import wait_until

from .conftest import Factory


def test_a_scheduled_run_happens_and_with_nothing_new_it_is_green(factory: Factory, first_version: str):
    before = factory.published()
    (factory.root / "quiet" / ".demo" / "source").mkdir(parents=True)
    factory.airflow.stop()
    changes = {
        "MEGAPAIRS_DEFAULT_PROFILE": "test",
        "MEGAPAIRS_SOURCES_ROOT": str(factory.root / "quiet"),
        "MEGAPAIRS_SCHEDULE": "* * * * *",
    }
    with LocalAirflow(factory.root, changes) as airflow:
        airflow.migrate_and_start()
        airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
        airflow.set_paused(MODEL_DAG, False)

        def scheduled_runs() -> list[str]:
            airflow.check_alive()
            return [run["dag_run_id"] for run in airflow.runs(DATASET_DAG) if run["run_type"] == "scheduled"]

        wait_until(lambda: bool(scheduled_runs()), "the scheduler has started a run", poll_s=1)
        run_id = scheduled_runs()[0]
        states = {task["task_id"]: task["state"] for task in airflow.watch(DATASET_DAG, run_id)}
        airflow.set_paused(DATASET_DAG, True)
        assert airflow.run_state(DATASET_DAG, run_id) == "success"
        assert states["version"] == "skipped" and states["close_run"] == "success"
        assert airflow.runs(MODEL_DAG) == []
    assert factory.published() == before
