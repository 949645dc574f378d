"""Mails about runs that did not fail, where a person would otherwise wonder: an empty week, a refused promotion, a
takedown; and further notifiers (a webhook, Slack) beside the mail.

MEGAPAIRS_NOTIFIERS names notifiers of Airflow's providers that are called beside the alert mail, as a JSON list:

    [{"class": "airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier",
      "arguments": {"text": "{{ ti.task_id }} of {{ dag.dag_id }} failed: {{ exception }}"}}]
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from megapairs.alerts import Failure, read_dataset_name, read_json, receivers
from megapairs.mail_message import Mail
from megapairs.results import promotion_line
from megapairs.wiring import run_folder
from tasks.pages.render import html

log = logging.getLogger(__name__)


def news_of(stage: str, report: Mapping[str, Any] | None, skip_reason: str, taken_down: int) -> tuple[str, str] | None:
    """(headline, sentence) of what a task that did not fail should tell; None where there is nothing to tell.

    Args:
        stage: version or promote.
        report: of a stage that succeeded.
        skip_reason: of one that found nothing to do.
        taken_down: new rows that this version left out because of the takedown list, a count.
    """
    if stage == "version" and report is None:
        return "no new version this time", skip_reason or "Nothing new came in."
    if stage == "version" and taken_down:
        return (
            f"a takedown took effect: {taken_down:,} rows",
            f"{(report or {}).get('notes', [''])[0]} leaves them out.",
        )
    if stage == "promote" and report is not None and not (report.get("figures") or {}).get("is_promoted"):
        return "the new model was not promoted", promotion_line(report)
    return None


class NewsMail(Mail):
    """The mail of a Stage that did not fail; most of them have nothing to tell, and send none."""

    def notify(self, context: Any) -> None:
        """Send the mail where there is news."""
        task, ti, run_id = context["task"], context["ti"], str(context["run_id"])
        folder = run_folder(run_id, ti.dag_id)
        version = read_json(folder / "version.json") or {}
        drops = (version.get("new_drops") or {}).values()
        taken_down = sum(int(reasons.get("taken_down", 0)) for reasons in drops)
        news = news_of(task.stage, task.report, task.skip_reason, taken_down)
        if news is None:
            return
        ui = os.environ.get("MEGAPAIRS_UI", "").rstrip("/")
        failure = Failure(
            dataset=read_dataset_name(folder),
            dag_id=ti.dag_id,
            run_id=run_id,
            task=ti.task_id,
            error="",
            run_url=f"{ui}/dags/{ti.dag_id}/runs/{run_id}" if ui else "",
            version=str(version.get("version", "")),
        )
        headline, sentence = news
        self.subject = " ".join(f"[{failure.dataset}] {headline}".split())[:180]
        self.html_content = html(
            "news_mail.html.j2", failure=failure, subject=self.subject, headline=headline, sentence=sentence
        )
        super().notify(context)
        log.info("mail sent to %s: %s", self.to, self.subject)


def news_mails() -> list[NewsMail]:
    """The callbacks of tasks whose good end may be news; none where nobody is to be written to."""
    to = receivers()
    return [NewsMail(to=to, from_email=os.environ.get("MEGAPAIRS_MAIL_FROM") or None)] if to else []


def further_notifiers() -> list[Any]:
    """The notifiers of MEGAPAIRS_NOTIFIERS.

    Raises:
        ValueError: not such a list, or a class that is not installed; Airflow shows it as the DAG's import error.
    """
    text = os.environ.get("MEGAPAIRS_NOTIFIERS", "").strip()
    if not text:
        return []
    try:
        entries = [(str(entry["class"]), dict(entry.get("arguments") or {})) for entry in json.loads(text)]
        loaded = []
        for dotted, arguments in entries:
            module, _, name = dotted.rpartition(".")
            loaded.append(getattr(importlib.import_module(module), name)(**arguments))
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ValueError(
            f"MEGAPAIRS_NOTIFIERS: {error}; expected a JSON list of {{'class': a notifier of an installed Airflow "
            "provider, 'arguments': {...}}; change it for all Airflow processes"
        ) from error
    return loaded
