"""A person's approval before a version is published or a model promoted: Airflow's own human-in-the-loop operator.

The task waits in state `awaiting_input`, without a worker; people answer under Browse -> Required Actions, where the
question leads to the page of what came out. A rejection fails the task at once, because a retry would ask again.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from megapairs.alerts import FINAL, REJECTED
from megapairs.links import page_link

SHOWS = {"version": ("validate", "triplets"), "promote": ("evaluate", None)}  # stage -> stage, item of the page to read


class Approval(ApprovalOperator):
    """The question whether a stage may run.

    Args:
        before: the stage, version or promote.
        arguments: of ApprovalOperator.
    """

    def __init__(self, *, before: str = "version", **arguments: Any) -> None:
        super().__init__(fail_on_reject=True, **arguments)
        self.before = before  # no attribute `stage`: the mail of a failed stage is another one (alerts.py)

    def execute(self, context: Context) -> Any:
        """Ask, with a link to the page of what came out, and wait."""
        stage, item = SHOWS[self.before]
        if link := page_link(stage, item, context["ti"].dag_id, str(context["ti"].run_id)):
            self.body: str | None = f"{self.body} [What came out]({link})"
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on where a person approved.

        Raises:
            AirflowFailException: a person rejected it; says who.
        """
        try:
            return super().execute_complete(context, event)
        except HITLRejectException as error:
            name = (event.get("responded_by_user") or {}).get("name") or "somebody"
            raise AirflowFailException(
                f"{name} {REJECTED} {self.before}: nothing is published, and {FINAL}; clear this task with its "
                "downstream tasks to ask again, or start a new run"
            ) from error


def approval_before(stage: str, question: str, **arguments: Any) -> list[Any]:
    """The task that asks a person before a stage runs, where MEGAPAIRS_APPROVAL names the stage; else none.

    A rejection ends the run as failed: nothing is published, and clearing the task asks again.

    Args:
        stage: version or promote.
        question: what is asked, shown under Browse -> Required Actions.
        arguments: of the operator.
    Raises:
        ValueError: MEGAPAIRS_APPROVAL names something else; Airflow shows it as the DAG's import error.
    """
    wanted = {name.strip() for name in os.environ.get("MEGAPAIRS_APPROVAL", "").split(",")} - {""}
    if wanted - set(SHOWS):
        raise ValueError(
            f"MEGAPAIRS_APPROVAL: {sorted(wanted)}; expected version, promote or both, separated by commas; change it "
            "for all Airflow processes"
        )
    if stage not in wanted:
        return []
    body = f"The gates' pages and the run's log say what came out. {question}"
    return [Approval(before=stage, task_id=f"approve_{stage}", subject=question, body=body, **arguments)]
