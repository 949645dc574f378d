"""A person's approval before a version is published or a model promoted: Airflow's own human-in-the-loop operator.

The task waits in state `awaiting_input`, without a worker; people answer under Browse -> Required Actions, where the
question says what came out and leads to its page. Who is in MEGAPAIRS_MAIL_TO gets a mail that something waits. A
rejection fails the task at once, because a retry would ask again. Nobody is asked where nothing would be published.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from megapairs.alerts import FINAL, REJECTED, Failure, read_dataset_name, receivers
from megapairs.links import page_link
from megapairs.mail_message import Mail
from megapairs.results import gate_lines
from megapairs.wiring import run_folder
from tasks.browse.overview import model_row
from tasks.config import load_params
from tasks.errors import NothingToDo, TasksError
from tasks.pages.render import html

SHOWS = {"version": ("validate", "triplets"), "promote": ("evaluate", None)}  # stage -> stage, item of the page to read
PAGES = {"version": "What came out", "promote": "Models before this one"}
NAMES = {"version": "a new version", "promote": "a fine-tuned model"}


def nothing_to_publish(stage: str, folder: Path) -> str:
    """Why a stage would publish nothing, so that nobody has to be asked; empty where it would.

    Args:
        stage: version or promote.
        folder: the run's worktree.
    """
    from tasks.store import Store  # pyarrow: no parse of a DAG file needs it

    try:
        params = load_params(folder / "params.yaml")
        if params.open_run.dry_run:
            return "a dry run publishes nothing"
        if stage == "version":
            importlib.import_module("tasks.publish.outcome").require_triplets(params, Store(folder))
    except NothingToDo as nothing:
        return str(nothing)
    except (TasksError, OSError):
        pass  # the stage itself says what is wrong; a person may see it before
    return ""


def what_came_out(stage: str, folder: Path) -> str:
    """What a person decides on, in a sentence; empty where the worktree does not tell.

    Args:
        stage: version or promote.
        folder: the run's worktree.
    """
    try:
        if stage == "version":
            report = json.loads((folder / "reports" / "validation" / "triplets.json").read_text())
            rows = int((report.get("figures") or {})["rows"])
            return f"{rows:,} new triplets; {gate_lines(report)[0]}."
        row = model_row(
            {"name": "", "message": "", "evaluation": json.loads((folder / "reports" / "evaluation.json").read_text())}
        )
        scores = ", ".join(f"{name} {modes['composed']}" for name, modes in row["scores"])
        return f"{row['metric']} of image and text, in percent: {scores}."
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class Approval(ApprovalOperator):
    """The question whether a stage may run.

    Args:
        before: the stage, version or promote.
        arguments: of ApprovalOperator.
    """

    def __init__(self, *, before: str = "version", **arguments: Any) -> None:
        super().__init__(fail_on_reject=True, **arguments)
        self.before = before  # no attribute `stage`: the mail of a failed stage is another one (alerts.py)
        self.came_out = ""

    def execute(self, context: Context) -> Any:
        """Ask, with what came out and a link to its page, and wait; not where nothing would be published."""
        dag_id, run_id = context["ti"].dag_id, str(context["ti"].run_id)
        folder = run_folder(run_id, dag_id)
        if reason := nothing_to_publish(self.before, folder):
            self.log.info("nobody is asked: %s", reason)
            return None
        self.came_out = what_came_out(self.before, folder)
        stage, item = SHOWS[self.before]
        link = page_link(stage, item, dag_id, run_id)
        said = (self.body, self.came_out, f"[{PAGES[self.before]}]({link})" if link else "")
        self.body: str | None = "\n\n".join(text for text in said if text)
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
                f"{name} {REJECTED} {NAMES[self.before]}: nothing is published, and {FINAL}; clear this task with its "
                "downstream tasks to ask again, or start a new run"
            ) from error


class QuestionMail(Mail):
    """The mail that a run waits for a person: what came out, where to answer, and what waits meanwhile."""

    def notify(self, context: Any) -> None:
        """Send it; called by the operator when it asks."""
        task, ti, run_id = context["task"], context["ti"], str(context["ti"].run_id)
        ui = os.environ.get("MEGAPAIRS_UI", "").rstrip("/")
        run_url = f"{ui}/dags/{quote(ti.dag_id)}/runs/{quote(run_id)}" if ui else ""
        page = page_link(*SHOWS[task.before], ti.dag_id, run_id) if ui else ""
        answer = f"{run_url}/tasks/{task.task_id}/required_actions" if ui else ""
        failure = Failure(
            dataset=read_dataset_name(run_folder(run_id, ti.dag_id)),
            dag_id=ti.dag_id,
            run_id=run_id,
            task=task.task_id,
            error="",
            more_links=(("Answer", answer), (PAGES[task.before], page)),
        )
        headline = f"{NAMES[task.before]} waits for your approval"
        self.subject = f"[{failure.dataset}] {headline}"
        steps = (
            "Read what came out: the gate's expectations and rows, or the scores.",
            "Answer with Approve or Reject on the task's page; in Airflow also under Browse, Required Actions.",
            f"Until then nothing is published, and the next run of {ti.dag_id} waits, the weekly one too.",
        )
        values = {"failure": failure, "subject": self.subject, "headline": headline, "steps": steps}
        self.html_content = html("news_mail.html.j2", **values, sentence=task.came_out)
        super().notify(context)


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
    mails = (
        [QuestionMail(to=to, from_email=os.environ.get("MEGAPAIRS_MAIL_FROM") or None)] if (to := receivers()) else []
    )
    body = "Approve, and the run goes on; reject, and it ends as failed, and nothing is published."
    task_id = f"approve_{stage}"
    return [Approval(before=stage, task_id=task_id, subject=question, body=body, notifiers=mails, **arguments)]
