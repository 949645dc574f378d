"""Default arguments of every task: retries, the pause between them, and the alert mail."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from megapairs.alerts import alert_mails


def default_args() -> dict[str, Any]:
    """`default_args` of both DAGs, from the environment (megapairs/wiring.py lists the variables).

    A failed task is retried with a pause that doubles up to an hour; the last failure sends the alert mail.
    """
    return {
        "owner": "megapairs",
        "retries": int(os.environ.get("MEGAPAIRS_RETRIES", "2")),
        "retry_delay": timedelta(seconds=float(os.environ.get("MEGAPAIRS_RETRY_DELAY_S", "60"))),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
        "on_failure_callback": alert_mails(),
    }
