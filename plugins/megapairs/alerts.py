"""The alert mail: what failed, on which dataset, with what a person needs to decide; sent through Airflow's SMTP
provider.

A gate's mail shows each failing check, observed against expected against the last version, five example rows with
thumbnails, and at the triplets' gate the figures of each week; it reads reports/validation/<table>.json and the images
table in the run's worktree. Any other mail shows the error's last lines. The words are in tasks/pages/templates (mail,
gate_mail, failure_mail); every value is HTML-escaped; images are small and inside the mail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from megapairs.dropped_images import read_dropped_files
from megapairs.mail_message import Mail
from megapairs.wiring import PROJECT, run_folder
from tasks.errors import DataError
from tasks.pages.gate_words import observed_words, remedy, value_words
from tasks.pages.images import thumbnail_uri
from tasks.pages.render import html, words
from tasks.pages.week_table import week_table

log = logging.getLogger(__name__)

EXAMPLES = 5  # rows shown per failing check
THUMBNAIL_PX, QUALITY = 112, 80
CELL_CHARS = 300  # longest cell
NOTES, NOTE_CHARS = 5, 800  # sentences of the stage before a gate, e.g. on captions that match no file
WEEKS = 6  # weekly batches shown, a count
ERROR_CHARS = 4_000  # of the error's end
FINAL = "a retry cannot help"  # in the errors of plugins/megapairs/stage.py that are not retried
REJECTED = "rejected"  # in the error of plugins/megapairs/approval.py
HASH = re.compile("[0-9a-f]{24,}")


@dataclasses.dataclass(frozen=True)
class Failure:
    """What a mail says.

    Attributes:
        dataset: the dataset's name.
        dag_id, run_id, task: what failed where; `task` as a person calls it, e.g. 'validate images'.
        error: the exception's text, last lines of the stage included.
        gate: the gate's report (reports/validation/<table>.json), None when no gate failed.
        thumbnails: image_id -> data URI, for the example rows.
        run_url, docs_url: links; empty when unknown.
        version: the published version, which stays as it was; empty when there is none.
        warnings: what open_run warned of.
        names: image_id -> the file that it came from, for the example rows; of a dropped file's image its key.
        page_url: link to the version's page; empty for what failed.
        more_links: further (text, address); one without an address is left out.
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
    warnings: tuple[str, ...] = ()
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    page_url: str = ""
    more_links: tuple[tuple[str, str], ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether the error is one that no retry can help, so that none was made."""
        return FINAL in self.error

    @property
    def rejection(self) -> str:
        """Who rejected what, where a person did (approval.py); else empty."""
        said = self.error.partition(":")[0]
        return said if self.task.startswith("approve") and REJECTED in said else ""

    @property
    def steps(self) -> tuple[str, ...]:
        """What to do now, in three lines."""
        return next_steps(self)


# --- the text: pure --------------------------------------------------------------------------------------------------


def subject(failure: Failure) -> str:
    """One line, fit for a mail header: the dataset and what failed."""
    if failure.gate:
        names = [str(f.get("column") or f.get("expectation", "")) for f in failure.gate.get("failures", [])]
        checks = ", ".join(dict.fromkeys(names)) or "its report names no check"
        event = f"gate '{failure.gate.get('table')}' stopped the run: {checks}"
    else:
        event = failure.rejection or f"{failure.task} failed in {failure.dag_id}"
    return " ".join(f"[{failure.dataset}] {event}".split())[:180]


def next_steps(failure: Failure) -> tuple[str, ...]:
    """What to do now: what to mend, which parameter to loosen instead, which task to clear."""
    task = f"{failure.dag_id}'s form" if failure.task.startswith("open_run") else "the form"
    if failure.gate and failure.gate.get("failures"):
        table, check = str(failure.gate.get("table")), failure.gate["failures"][0]
        mend, key = remedy(table, check)
        loosen = f"Or allow it: {key} in params.yaml, or for one run as Configuration JSON of the form"
        return (
            f"Mend {mend}.",
            f"{loosen} (expected {cell(check.get('expected'))})."
            if key
            else "Such rows leave the table by themselves.",
            "Then start a new run: a run's files and parameters are fixed when it opens. "
            f"Clearing validate_{table} alone checks the same rows again.",
        )
    if "ConfigError" in failure.error:
        return (
            "Mend the parameter that the error names, in params.yaml or in the form.",
            "The error says what was expected; docs/troubleshooting.md has it by its text.",
            f"Then start a new run from {task}: clearing the task reads the same parameters again.",
        )
    if failure.rejection:
        return (
            "Read the gates' pages and the log of the tasks before: nothing was published, and nothing is lost.",
            f"To be asked again, clear {failure.task.partition(' ')[0]} with its downstream tasks.",
            "Else mend what made the rejection necessary and start a new run; this one's worktree can be closed "
            "(docs/operations.md, Run).",
        )
    if failure.is_final:
        return (
            "Mend the file or the rows that the error names.",
            "Rows that may be left out: the reason's limit stands in section validate of params.yaml.",
            f"Then clear {failure.task.partition(' ')[0]} with its downstream tasks, or start a new run.",
        )
    return (
        "Look whether what the error names (a server, a disk, a bucket) is there again.",
        "Where it is slow rather than away, give it longer: the section of the stage in params.yaml has its limits.",
        f"Then clear {failure.task.partition(' ')[0]} with its downstream tasks: the run continues where it stopped.",
    )


def cell(value: Any) -> str:
    """A value as text (not yet escaped): numbers short, nothing as a dash, long texts cut."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= CELL_CHARS else text[: CELL_CHARS - 1] + "…"


def details(example: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row's values besides key and images, as (name, text): the reason first, a JSON detail taken apart, long hashes
    cut.
    """
    values: dict[str, Any] = {}
    for name in sorted(example, key=lambda n: (n != "reason", n == "detail")):
        value = example[name]
        if name == "detail" and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        if name not in ("key", "image_ids"):
            values.update(value if isinstance(value, dict) else {name: value})
    out = []
    for name, value in values.items():
        if value not in (None, "") and name != "sha256":
            is_hash = isinstance(value, str) and HASH.fullmatch(value)
            out.append((words(name), value[:12] + "…" if is_hash else cell(value)))
    return out


def check_context(failed: Mapping[str, Any], failure: Failure) -> dict[str, Any]:
    """One failing check of a gate's report, whatever its report leaves out."""
    thumbnails, figures = failure.thumbnails, (failure.gate or {}).get("figures") or {}
    column = str(failed.get("column"))
    examples = [
        {
            "key": cell(example.get("key")),
            "images": [
                {"uri": thumbnails[i], "name": failure.names.get(i, "")}
                for i in dict.fromkeys([str(example.get("key")), *(example.get("image_ids") or [])])
                if i in thumbnails
            ],
            "details": details(example),
        }
        for example in list(failed.get("examples") or [])[:EXAMPLES]
    ]
    return {
        "column": cell(failed.get("column") or failed.get("expectation")),
        "why": cell(failed.get("why") or failed.get("expectation")),
        "observed": cell(observed_words(failed, figures)),
        "expected": cell(failed.get("expected")),
        "last": cell(value_words(column, failed.get("last"))),
        "examples": examples,
        "has_images": any(example["images"] for example in examples),
    }


def weeks_table(weeks: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """(head, rows) of the newest WEEKS weekly batches, this run's last; None where the report has none."""
    known = {batch: week for batch, week in weeks.items() if isinstance(week, Mapping)}
    return week_table(dict(list(known.items())[-WEEKS:])) if known else None


def body(failure: Failure) -> str:
    """The mail as self-contained HTML, every value escaped."""
    checks = [check_context(f, failure) for f in (failure.gate or {}).get("failures") or []]
    shortened = dataclasses.replace(failure, error=failure.error[-ERROR_CHARS:])
    if failure.gate is None or not checks:
        return html("failure_mail.html.j2", failure=shortened, subject=subject(failure))
    gate = {
        "table": cell(failure.gate.get("table")),
        "batch": cell(failure.gate.get("batch")),
        "checks": checks,
        "weeks": weeks_table(failure.gate.get("weeks") or {}),
        "notes": [str(note)[:NOTE_CHARS] for note in list(failure.gate.get("notes") or [])[:NOTES]],
    }
    return html("gate_mail.html.j2", failure=shortened, subject=subject(failure), gate=gate, thumbnail_px=THUMBNAIL_PX)


# --- what the mail reads ---------------------------------------------------------------------------------------------


def read_thumbnails(folder: Path, image_ids: Sequence[str]) -> dict[str, str]:
    """image_id -> data URI of a small JPEG; images that the store does not hold are left out."""
    from tasks.store import Store  # pyarrow: only a mail with images loads it, not every parse of a DAG file

    store, thumbnails = Store(folder), {}
    for image_id in dict.fromkeys(image_ids):
        with contextlib.suppress(DataError, OSError):
            thumbnails[image_id] = thumbnail_uri(store, image_id, THUMBNAIL_PX, QUALITY)
    return thumbnails


def read_names(folder: Path, image_ids: Sequence[str]) -> dict[str, str]:
    """image_id -> source and path of the file that it came from; images that the table lacks are left out."""
    from tasks.store import Store

    wanted, names = set(image_ids), {}
    with contextlib.suppress(DataError, OSError):
        rows = Store(folder).read_table("images", ["image_id", "source_uri"])
        for block in rows.to_batches():
            for image_id, uri in zip(*(block.column(n).to_pylist() for n in (0, 1)), strict=True):
                if image_id in wanted:
                    names[image_id] = uri
    return names


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's mapping, or None when there is no such file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_dataset_name(folder: Path) -> str:
    """The dataset's name: the run's parameters, else the deployed ones."""
    for path in (folder / "params.yaml", PROJECT / "params.yaml"):
        try:
            return str(yaml.safe_load(path.read_text())["open_run"]["dataset"])
        except (OSError, KeyError, TypeError, yaml.YAMLError):
            continue
    return "megapairs"


def read_gate(folder: Path, table: str | None) -> dict[str, Any] | None:
    """The report of the gate that failed; None where it passed (the stage itself broke) or left none."""
    report = read_json(folder / "reports" / "validation" / f"{table}.json")
    return None if report is None or report.get("is_valid") else report


def docs_url(folder: Path, ui: str) -> str:
    """Where the run's Data Docs open: in the UI, else from disk; empty where there are none."""
    index = folder / "reports" / "data_docs" / "index.html"
    if not index.exists():
        return ""
    return f"{ui}/megapairs/runs/{quote(folder.name)}/data_docs/index.html" if ui else index.as_uri()


def read_failure(context: Mapping[str, Any], ui: str) -> Failure:
    """Collect what a mail says from Airflow's context and the run's worktree.

    Args:
        context: of the failed task.
        ui: base URL of the web UI, for links; empty when unknown.
    """
    ti, run_id = context["ti"], str(context["run_id"])
    task = context.get("task") or getattr(ti, "task", None)
    stage, item, part = (getattr(task, name, None) for name in ("stage", "item", "part"))
    folder = run_folder(run_id, ti.dag_id)
    gate = read_gate(folder, item) if stage == "validate" else None
    image_ids = [
        image_id
        for failed in (gate or {}).get("failures") or []
        for example in list(failed.get("examples") or [])[:EXAMPLES]
        for image_id in example.get("image_ids") or []
    ]
    keys = [
        str(example.get("key"))
        for failed in (gate or {}).get("failures") or []
        for example in list(failed.get("examples") or [])[:EXAMPLES]
        if example.get("reason")
    ]
    files = read_dropped_files(folder, keys, THUMBNAIL_PX, QUALITY) if keys else {}
    version = read_json(folder / "version.json") or {}
    return Failure(
        dataset=read_dataset_name(folder),
        dag_id=ti.dag_id,
        run_id=run_id,
        task=" ".join(str(name) for name in (stage or ti.task_id, item, part) if name),
        error=str(context.get("exception") or "the task was ended from outside, or its worker died"),
        gate=gate,
        thumbnails={**files, **(read_thumbnails(folder, image_ids) if image_ids else {})},
        names={**{key: f"left out: {key}" for key in files}, **(read_names(folder, image_ids) if image_ids else {})},
        run_url=f"{ui}/dags/{quote(ti.dag_id)}/runs/{quote(run_id)}" if ui else "",
        docs_url=docs_url(folder, ui),
        version=str(version.get("version", "")),
        warnings=tuple((read_json(folder / ".run" / "opened.json") or {}).get("warnings") or ()),
    )


def error_cause(error: str) -> str:
    """What tells one cause from another, of an error that no retry can help: its last line without its numbers, such as
    those of a part. Empty for any other error: a server that is away may be away for several reasons.
    """
    lines = [line for line in error.strip().splitlines() if line.strip() and FINAL in error]
    return re.sub(r"\d+", "n", lines[-1].strip()) if lines else ""


def mail_markers(context: Mapping[str, Any]) -> list[Path]:
    """The files that say that a mail about this run's task, or about the same cause, was sent since the run was last
    cleared; none where the run has no worktree (open_run failed). All parts of a stage are one task.
    """
    folder = run_folder(str(context["run_id"]), context["ti"].dag_id)
    if not folder.is_dir():
        return []
    clears = getattr(context.get("dag_run"), "clear_number", None) or 0
    names = [context["ti"].task_id]
    if cause := error_cause(str(context.get("exception") or "")):
        names.append("cause-" + hashlib.sha256(cause.encode()).hexdigest()[:16])
    return [folder / ".run" / "mails" / f"{name}-{clears}" for name in names]


class AlertMail(Mail):
    """A mail whose subject and body are made from the failure itself; one a run and cause, not one a part."""

    def notify(self, context: Any) -> None:
        """Send the mail, unless another part of the stage has, or another stage for the same cause; called by Airflow
        when a task has failed for the last time.
        """
        made: list[Path] = []
        for marker in mail_markers(context):
            marker.parent.mkdir(parents=True, exist_ok=True)
            try:
                marker.touch(exist_ok=False)
                made.append(marker)
            except FileExistsError:
                log.info("no further mail: one about this stage or cause was sent (%s)", marker)
                return
        is_sent = False
        try:
            failure = read_failure(context, os.environ.get("MEGAPAIRS_UI", "").rstrip("/"))
            self.subject = subject(failure)
            self.html_content = body(failure)
            super().notify(context)
            is_sent = True
        finally:
            if not is_sent:
                for marker in made:
                    marker.unlink(missing_ok=True)  # the next part's failure tries again
        log.info("alert mail sent to %s: %s", self.to, self.subject)


def receivers() -> list[str]:
    """The addresses of MEGAPAIRS_MAIL_TO."""
    return [a.strip() for a in os.environ.get("MEGAPAIRS_MAIL_TO", "").split(",") if a.strip()]


def alert_mails() -> list[AlertMail]:
    """The failure callbacks of every task: one mail to MEGAPAIRS_MAIL_TO, or none when that is empty."""
    to = receivers()
    return [AlertMail(to=to, from_email=os.environ.get("MEGAPAIRS_MAIL_FROM") or None)] if to else []
