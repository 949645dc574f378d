"""The weekly digest: what the last seven days published, in one mail; off unless MEGAPAIRS_DIGEST is set."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowSkipException

from megapairs.alerts import Failure, read_dataset_name, receivers, weeks_table
from megapairs.mail_message import Mail
from megapairs.stage import deployment
from megapairs.wiring import DATASET_DAG, dag_id_for, further_datasets
from tasks.browse.overview import count_text, home_row
from tasks.browse.published import models, versions
from tasks.errors import TasksError
from tasks.pages.render import html

DAYS = 7


def digest_lines(records: Sequence[Mapping[str, Any]], promoted: Sequence[Mapping[str, Any]], since: str) -> list[str]:
    """A line a version of the last days, and one a model that was promoted on one of them.

    Args:
        records: version.json of the versions, the newest first.
        promoted: of tasks.browse.published.models.
        since: the first date that counts, YYYY-MM-DD.
    """
    lines = []
    for record in records:
        if str(record.get("date", "")) < since:
            continue
        row = home_row(record, promoted)
        lines.append(
            f"dataset/{row['name']}: {row['images']} new images, {row['triplets']} new triplets ({row['yield']} of the "
            f"captioned pairs), {row['total']} triplets in all; {row['dropped']} rows left out{most_dropped(record)}"
        )
        if row["stale"] != count_text(0) or row["renewed"] != count_text(0):
            lines.append(
                f"dataset/{row['name']}: {row['renewed']} rows renewed, {row['stale']} rows of earlier models or "
                "prompts are left (`python -m tasks renew`)"
            )
        if row["model"]:
            lines.append(f"model/{row['model']} was trained on it and promoted")
    return lines


def most_dropped(record: Mapping[str, Any]) -> str:
    """Why most rows of a version were left out, as the end of a sentence; empty where none was."""
    counts = {
        (stage, reason): count
        for stage, reasons in (record.get("new_drops") or {}).items()
        for reason, count in reasons.items()
    }
    if not counts:
        return ""
    (stage, reason), count = max(counts.items(), key=lambda item: item[1])
    return f", {count_text(count)} of them by {stage} ({reason})"


def digest_count(lines: Sequence[str]) -> str:
    """How much the lines of `digest_lines` tell of."""
    counts = {name: sum(line.startswith(f"{name}/") for line in lines) for name in ("dataset", "model")}
    words = [(counts["dataset"], "version", "versions"), (counts["model"], "promoted model", "promoted models")]
    told = ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in words if count)
    return told or ("its versions cannot be read" if lines else "nothing was published")


class Digest(BaseOperator):
    """Send the digest of every dataset to MEGAPAIRS_MAIL_TO."""

    def execute(self, context: Context) -> list[str]:
        """Send one mail a dataset; returns its lines.

        Raises:
            AirflowSkipException: nobody is to be written to.
        """
        to = receivers()
        if not to:
            raise AirflowSkipException("MEGAPAIRS_MAIL_TO is empty: nobody gets the digest")
        since = (datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=DAYS)).isoformat()
        told: list[str] = []
        for dataset in ("", *further_datasets()):
            told += self.tell(dataset, since, to, context)
        return told

    def tell(self, dataset: str, since: str, to: list[str], context: Context) -> list[str]:
        """Send one dataset's mail; '' is the dataset of MEGAPAIRS_DATASET."""
        clone = deployment(dag_id_for(DATASET_DAG, dataset))
        try:
            records = [version.record for version in versions(clone)]
            lines = digest_lines(records, models(clone), since)
        except TasksError as error:
            records, lines = [], [f"The versions cannot be read: {error}"]
        ui = os.environ.get("MEGAPAIRS_UI", "").rstrip("/")
        failure = Failure(
            dataset=read_dataset_name(clone),
            dag_id="weekly_digest",
            run_id=str(context["run_id"]),
            task="digest",
            error="",
            page_url=f"{ui}/megapairs/{f'd/{dataset}/' if dataset else ''}" if ui else "",
        )
        headline = f"since {since}: {digest_count(lines)}"
        values = {"failure": failure, "subject": f"[{failure.dataset}] the week {headline}", "headline": headline}
        weeks = weeks_table(records[0].get("weeks") or {}) if records else None
        body = html("news_mail.html.j2", **values, sentence="", lines=lines, weeks=weeks)
        sender = os.environ.get("MEGAPAIRS_MAIL_FROM") or None
        Mail(to=to, from_email=sender, subject=values["subject"], html_content=body).notify(context)
        return lines
