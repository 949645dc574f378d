"""The settings that we set are settings that the installed Airflow knows: a misspelt one would change nothing."""

from airflow.configuration import retrieve_configuration_description

from tasks.demo.airflow_settings import FIND_LOST_MESSAGES, OUTLAST_OUTAGES


def test_airflow_knows_each_setting():
    known = {
        f"AIRFLOW__{section}__{option}".upper()
        for section, content in retrieve_configuration_description().items()
        for option in content["options"]
    }
    # the scheduler reads it with a default of its own, so it has no description
    assert {*OUTLAST_OUTAGES, *FIND_LOST_MESSAGES} - known == {"AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES"}
