"""Airflow's settings that a deployment of the factory needs, whatever its executor: the demo's Airflow uses them,
docker-compose.yaml states the same (a test compares them), and docs/operations.md says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

# Beginnings of the variables that a person sets for their own machine: what runs may read and ask, the mails and who
# gets them. All others of Airflow and of the factory are those of another deployment, and are left out.
PASSED_ON = (
    *("MEGAPAIRS_SOURCE_ROOTS", "MEGAPAIRS_MODEL_HOSTS", "MEGAPAIRS_MODEL_API_KEY", "MEGAPAIRS_DATASETS"),
    *(
        "MEGAPAIRS_MAIL_TO",
        "MEGAPAIRS_MAIL_FROM",
        "MEGAPAIRS_NOTIFIERS",
        "AIRFLOW_CONN_SMTP_DEFAULT",
        "AIRFLOW__SMTP__",
        "AIRFLOW__EMAIL__",
    ),
)


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an embedded Airflow takes over from whoever starts it."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PASSED_ON) or not name.startswith(("AIRFLOW_", "MEGAPAIRS_"))
    }


# Five minutes without an api-server, a database or a network cost nothing (decision 0077). A task's supervisor repeats
# a call that found no server, or one that answers 5xx, and lets its stage run on. Airflow's own values end a stage
# after 34 s, and may throw a finished stage's result away after 5 s.
OUTLAST_OUTAGES = {
    # 90 tries with pauses of 1 to 10 s, drawn: 7 to 10 minutes.
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "90",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MIN": "1",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "10",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",  # of one call, s
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "10",  # each of them after all those tries
    # The scheduler must not give a task up while its heartbeats find no server. The price: a task whose worker was
    # killed is noticed after these seconds.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "420",
    # A task's token is renewed in the last fifth of its life: this fifth is longer than the outage.
    "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": "3600",
}

# Of Celery: how often a message is tried, and the pauses between, s.
PUBLISH_PATIENTLY = {"max_retries": 100, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.5}

# With Celery: a message that the broker lost is sent again within a minute. A task that merely waits for a free worker
# is sent again too, and never failed for it.
FIND_LOST_MESSAGES = {
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "1000",
    # The queued timeout is also the life of a waiting task's token; it must not end before the message is sent again.
    "AIRFLOW__API_AUTH__JWT_LEEWAY": "60",
    # After a day, by default, Celery gives a task that still works to another worker and ends the first: 30 days.
    "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "2592000",
    # A broker that is away: the scheduler repeats a message whose sending took longer than a second (Airflow's
    # operation_timeout), so often. A refused connection is an error at once, which spends one of the task's own tries;
    # Celery therefore asks for longer than that second.
    "AIRFLOW__CELERY__TASK_PUBLISH_MAX_RETRIES": "1000",
    "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG": json.dumps({"task_publish_retry_policy": PUBLISH_PATIENTLY}),
}

# Of an Airflow for one person on a machine that does much else.
ONE_PERSON = {
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    # the files do not change while it runs, and parsing costs CPU
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
    # Airflow's own limit of 30 s for a DAG file is too short for a busy machine: what is slow here is not ill
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "600",
    "AIRFLOW__DAG_PROCESSOR__HEALTH_CHECK_THRESHOLD": "120",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "120",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}
