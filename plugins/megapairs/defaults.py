"""Default arguments of every task: retries, back-off, alerts."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


def default_args() -> dict[str, Any]:
    """Arguments of every task: retries with backoff, and the alert mail at the last failure."""
    from megapairs.alerts import alert_mails

    return {
        "owner": "megapairs",
        "retries": int(os.environ.get("MEGAPAIRS_RETRIES", "2")),
        "retry_delay": timedelta(seconds=float(os.environ.get("MEGAPAIRS_RETRY_DELAY_S", "60"))),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
        "on_failure_callback": alert_mails(),
    }
