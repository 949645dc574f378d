"""Mails about runs that did not fail, where a person would otherwise wonder: an empty week, quarantined rows, a refused
promotion, a takedown; and further notifiers (a webhook, Slack) beside the mail.

MEGAPAIRS_NOTIFIERS names notifiers of Airflow's providers that are called beside the alert mail, as a JSON list:

    [{"class": "airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier",
      "arguments": {"text": "{{ ti.task_id }} of {{ dag.dag_id }} failed: {{ exception }}"}}]
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from megapairs.alerts import Failure, read_dataset_name, read_json, receivers
from megapairs.mail_message import Mail
from megapairs.results import promotion_line
from megapairs.wiring import dataset_of, run_folder
from tasks.pages.render import html

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class News:
    """What a mail about a run that did not fail says: a headline, sentences, and what to do now, in three lines."""

    headline: str
    sentences: tuple[str, ...]
    steps: tuple[str, str, str]


NOTHING = re.compile(r"^(version: )?nothing to do[:.] *")  # how a skipped stage's words begin
DRY_RUN = "dry run:"  # how the word of a stage begins that publishes nothing because it was told so
EMPTY_WEEK = (
    "Nothing has to be done: the next run looks again, and the last version stays.",
    "Where new images were expected: the logs of the tasks count what each left out, by reason.",
    "Look first at the source: a folder that was not filled, a path or a limit in params.yaml.",
)
TAKEDOWN = (
    "Check it: `python -m tasks audit` looks through every version for what is on the list.",
    "Versions before this one still hold it: `python -m tasks purge` rewrites them.",
    "Tell those who hold copies: table data/withdrawn of the version names all that went.",
)
QUARANTINE = (
    "Look at the rows: the version's page names each, with the rule that it breaks.",
    "Mend them where they come from; the next run takes them in.",
    "Where the rule is too narrow: its number stands in section validate of params.yaml, its text in expectations/.",
)
NOT_PROMOTED = (
    "Nothing has to be done: the published model stays.",
    "Where the gain is within the noise: train longer (train.steps), or on more triplets.",
    "What a model must gain is promote.min_gain, beside the noise that `python -m tasks noise` measured.",
)


def news_of(stage: str, report: Mapping[str, Any] | None, skip_reason: str, version: Mapping[str, Any]) -> News | None:
    """What a task that did not fail should tell; None where there is nothing to tell.

    Args:
        stage: version or promote.
        report: of a stage that succeeded.
        skip_reason: of one that found nothing to do.
        version: version.json of the version that was made.
    """
    said = [skip_reason, *(str(note) for note in (report or {}).get("notes") or [])]
    if any(NOTHING.sub("", text).startswith(DRY_RUN) for text in said):
        return None  # a person started it, to look at what comes out
    if stage == "version" and report is None:
        return News("no new version this time", (NOTHING.sub("", skip_reason) or "Nothing new came in.",), EMPTY_WEEK)
    if stage == "promote" and report is not None and not (report.get("figures") or {}).get("is_promoted"):
        return News("the new model was not promoted", (promotion_line(report),), NOT_PROMOTED)
    if stage != "version":
        return None
    made = str((report or {}).get("notes", [""])[0])
    counts = quarantined_counts(version)
    where = ", ".join(f"{count:,} of table {table}" for table, count in counts.items())
    quarantined = f"{sum(counts.values()):,} rows were quarantined"
    if taken_down := withdrawn_words(version):
        also = (f"Besides, {quarantined}: {where}.",) if counts else ()
        return News(f"a takedown took effect: {taken_down}", (f"{made} leaves them out.", *also), TAKEDOWN)
    if counts:
        return News(quarantined, (f"{made} was published without them: {where}.",), QUARANTINE)
    return None


def withdrawn_words(version: Mapping[str, Any]) -> str:
    """What a version left out because of the takedown list: images that went, and new rows that did not come in."""
    images = int((version.get("withdrawn") or {}).get("new") or 0)
    drops = (version.get("new_drops") or {}).values()
    rows = sum(int(reasons.get("taken_down", 0)) for reasons in drops)
    words = [f"{images:,} {'image' if images == 1 else 'images'} withdrawn"] if images else []
    words += [f"{rows:,} {'row' if rows == 1 else 'rows'} left out"] if rows else []
    return ", ".join(words)


def quarantined_counts(version: Mapping[str, Any]) -> dict[str, int]:
    """Table -> new rows that its gate quarantined, where it did."""
    quality = version.get("quality") or {}
    figures = {
        name: value for stage, of in quality.items() if stage.startswith("validate") for name, value in of.items()
    }
    counts = {table: int(figures.get(f"{table}_quarantined_rows") or 0) for table in ("images", "pairs", "triplets")}
    return {table: count for table, count in counts.items() if count}


def page_url(ui: str, dag_id: str, version: Mapping[str, Any]) -> str:
    """Address of a version's page; empty without a web UI."""
    dataset = dataset_of(dag_id)
    below = f"d/{dataset}/" if dataset else ""
    return f"{ui}/megapairs/{below}versions/{version['version']}/" if ui and version.get("version") else ""


class NewsMail(Mail):
    """The mail of a Stage that did not fail; most of them have nothing to tell, and send none."""

    def notify(self, context: Any) -> None:
        """Send the mail where there is news."""
        task, ti, run_id = context["task"], context["ti"], str(context["run_id"])
        folder = run_folder(run_id, ti.dag_id)
        version = read_json(folder / "version.json") or {}
        news = news_of(task.stage, task.report, task.skip_reason, version)
        if news is None:
            return
        ui = os.environ.get("MEGAPAIRS_UI", "").rstrip("/")
        failure = Failure(
            dataset=read_dataset_name(folder),
            dag_id=ti.dag_id,
            run_id=run_id,
            task=ti.task_id,
            error="",
            run_url=f"{ui}/dags/{quote(ti.dag_id)}/runs/{quote(run_id)}" if ui else "",
            version=str(version.get("version", "")),
            page_url=page_url(ui, ti.dag_id, version) if task.stage == "version" and task.report is not None else "",
        )
        self.subject = " ".join(f"[{failure.dataset}] {news.headline}".split())[:180]
        self.html_content = html(
            "news_mail.html.j2",
            failure=failure,
            subject=self.subject,
            headline=news.headline,
            sentence=" ".join(news.sentences),
            steps=news.steps,
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
