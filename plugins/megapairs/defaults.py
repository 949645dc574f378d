"""Default arguments of every task: retries, the pause between them, and the alert mail."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import Context, RetryDecision, RetryPolicy

from megapairs.alerts import alert_mails
from megapairs.news import further_notifiers

LONGEST_DELAY = timedelta(hours=1)


class DoublingPause(RetryPolicy):
    """A pause that doubles with each try since the task was last cleared.

    Airflow's own backoff counts all tries of a task, so that a cleared task, though its cause is mended, would wait for
    the pause of its fourth try. A task whose process was killed asks no policy: it waits for the first pause.

    Args:
        retries: of the task, a count.
        first: pause before the first retry.
        longest: the pause never exceeds it.
    """

    def __init__(self, retries: int, first: timedelta, longest: timedelta = LONGEST_DELAY) -> None:
        self.retries, self.first, self.longest = retries, first, longest

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Retry after the pause; which errors are not retried is decided where they are raised (stage.py).

        Args:
            exception: what the task raised.
            try_number: of the task since it was made, 1-based.
            max_tries: try_number of the last try before the last clear, plus the retries; 0 tries where none was.
            context: not read.
        """
        before_clear = max(0, max_tries - self.retries)
        doublings = max(0, try_number - before_clear - 1)
        seconds = min(self.first.total_seconds() * 2.0 ** min(doublings, 32), self.longest.total_seconds())
        return RetryDecision.retry(delay=timedelta(seconds=seconds))

    def serialize(self) -> dict[str, Any]:
        """Values of the policy, for the DAG's serialized form."""
        return {
            "retries": self.retries,
            "first_s": self.first.total_seconds(),
            "longest_s": self.longest.total_seconds(),
        }


def default_args() -> dict[str, Any]:
    """`default_args` of all DAGs, from the environment (megapairs/wiring.py lists the variables).

    A failed task is retried with a pause that doubles up to an hour; the last failure sends the alert mail.
    """
    retries = int(os.environ.get("MEGAPAIRS_RETRIES", "2"))
    delay = timedelta(seconds=float(os.environ.get("MEGAPAIRS_RETRY_DELAY_S", "60")))
    return {
        "owner": "megapairs",
        "retries": retries,
        "retry_delay": delay,
        "retry_policy": DoublingPause(retries, delay),
        "on_failure_callback": [*alert_mails(), *further_notifiers()],
    }
