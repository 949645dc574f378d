"""The alert mail: what failed, on which dataset, with what a person needs to decide, sent by the SMTP provider's
notifier.

A gate's mail shows each failing expectation, observed against expected against the last version, and five example rows
with thumbnails; it reads reports/validation/<table>.json and the images table in the run's worktree. Any other mail
shows the error's last lines. Every value is HTML-escaped; images are small and inside the mail.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from megapairs.wiring import PROJECT, run_folder
from tasks.errors import DataError

log = logging.getLogger(__name__)

EXAMPLES = 5  # rows shown per failing expectation
THUMBNAIL_PX = 112
SHOWN_CHARS = 300  # longest cell


@dataclasses.dataclass(frozen=True)
class Failure:
    """What a mail tells.

    Attributes:
        dataset: the dataset's name.
        dag_id, run_id, task: what failed where; `task` as a person calls it, e.g. 'validate images'.
        error: the exception's text, last lines of the stage included.
        gate: the gate's report (reports/validation/<table>.json), None when no gate failed.
        thumbnails: image_id -> data URI, for the example rows.
        run_url, docs_url: links; empty when unknown.
        version: the published version, which stays as it was; empty when there is none.
    """

    dataset: str
    dag_id: str
    run_id: str
    task: str
    error: str
    gate: Mapping[str, Any] | None = None
    thumbnails: Mapping[str, str] = dataclasses.field(default_factory=dict)
    run_url: str = ""
    docs_url: str = ""
    version: str = ""


def subject(failure: Failure) -> str:
    """One line, fit for a mail header: the dataset and what failed."""
    if failure.gate:
        names = [str(f.get("column") or f.get("expectation", "")) for f in failure.gate.get("failures", [])]
        what = f"gate '{failure.gate.get('table')}' holds: {', '.join(dict.fromkeys(names)) or 'see the report'}"
    else:
        what = f"{failure.task} failed in {failure.dag_id}"
    return " ".join(f"[{failure.dataset}] {what}".split())[:180]


def shown(value: Any) -> str:
    """A value as text (not yet escaped): numbers short, nothing as a dash, long texts cut."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def details(example: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a row says of itself besides key and images, as (name, text): the reason first, a JSON detail taken apart,
    long hashes cut.
    """
    flat: dict[str, Any] = {}
    for name in sorted(example, key=lambda n: (n != "reason", n == "detail")):
        value = example[name]
        if name == "detail" and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if name not in ("key", "image_ids"):
            flat.update(value if isinstance(value, dict) else {name: value})
    cut = {
        k: v[:12] + "…" if isinstance(v, str) and re.fullmatch("[0-9a-f]{24,}", v) else v
        for k, v in flat.items()
        if v not in (None, "")
    }
    return [(k.replace("_", " "), shown(v)) for k, v in cut.items()]


def body(failure: Failure) -> str:
    """The mail as self-contained HTML, every value escaped."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=ChainableUndefined)
    pages.filters.update(shown=shown, details=details)
    page = pages.get_template("alert_mail.html.j2")
    return page.render(f=failure, subject=subject(failure), examples=EXAMPLES, thumbnail_px=THUMBNAIL_PX)


def thumbnails_of(folder: Path, image_ids: Sequence[str]) -> dict[str, str]:
    """image_id -> data URI of a small JPEG; images that the store does not hold are left out."""
    from tasks.store import Store

    store, found = Store(folder), {}
    for image_id in dict.fromkeys(image_ids):
        try:
            image = store.read_image(image_id)
        except (DataError, OSError):
            continue
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=80)
        found[image_id] = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's mapping, or None when there is no such file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def dataset_name(folder: Path) -> str:
    """The dataset's name: the run's parameters, else the deployed ones."""
    for path in (folder / "params.yaml", PROJECT / "params.yaml"):
        try:
            return str(yaml.safe_load(path.read_text())["open_run"]["dataset"])
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            continue
    return "megapairs"


def failure_of(context: Mapping[str, Any], ui: str) -> Failure:
    """Collect what a mail tells from Airflow's context and the run's worktree."""
    ti, run_id = context["ti"], str(context["run_id"])
    task = context.get("task") or getattr(ti, "task", None)
    stage, item = getattr(task, "stage", None), getattr(task, "item", None)
    folder = run_folder(run_id)
    gate = read_json(folder / "reports" / "validation" / f"{item}.json") if stage == "validate" else None
    if gate is not None and gate.get("is_valid"):
        gate = None  # an older report: the stage itself broke
    ids = [
        i
        for f in (gate or {}).get("failures", [])
        for e in list(f.get("examples") or [])[:EXAMPLES]
        for i in e.get("image_ids", [])
    ]
    run_url = f"{ui}/dags/{quote(ti.dag_id)}/runs/{quote(run_id)}" if ui else ""
    docs = folder / "reports" / "data_docs" / "index.html"
    version = read_json(folder / "version.json") or {}
    return Failure(
        dataset=dataset_name(folder),
        dag_id=ti.dag_id,
        run_id=run_id,
        task=" ".join(str(x) for x in (stage or ti.task_id, item, getattr(task, "part", None)) if x),
        error=str(context.get("exception") or "the task was ended from outside, or its worker died"),
        gate=gate,
        thumbnails=thumbnails_of(folder, ids) if ids else {},
        run_url=run_url,
        docs_url=(f"{ui}/megapairs/runs/{quote(folder.name)}/data_docs/index.html" if ui else docs.as_uri())
        if docs.exists()
        else "",
        version=str(version.get("version", "")),
    )


class AlertMail(SmtpNotifier):
    """SmtpNotifier whose subject and body are made from the failure itself."""

    def notify(self, context: Any) -> None:
        """Send the mail; called by Airflow when a task has failed for the last time."""
        failure = failure_of(context, os.environ.get("MEGAPAIRS_UI", "").rstrip("/"))
        self.subject = subject(failure)
        self.html_content = body(failure)
        super().notify(context)
        log.info("alert mail sent to %s: %s", self.to, self.subject)


def alert_mails() -> list[AlertMail]:
    """The failure callbacks of every task: one mail to MEGAPAIRS_MAIL_TO, or none when that is empty."""
    to = [a.strip() for a in os.environ.get("MEGAPAIRS_MAIL_TO", "").split(",") if a.strip()]
    return [AlertMail(to=to, from_email=os.environ.get("MEGAPAIRS_MAIL_FROM") or None)] if to else []
