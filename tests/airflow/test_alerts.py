"""The alert mail: what it says, that every value is escaped, and that it arrives at a real SMTP server."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tasks.names import slug
from tasks.pages.week_table import NUMBERS, SHARES
from tasks.store import Store
from tests.support.images import without_palette
from tests.support.inbox import Inbox, html_body, serving_inbox
from tests.support.markup import assert_harmless
from tests.support.rendered import ORIGIN, answers_from, assert_rendered_well, page_of

EVIL = "<script>alert(1)</script>"
IMAGE_ID = "a" * 64
MADE = {"notes": ["dataset/2026.11.28"]}  # the report of stage version
GATE = {
    "table": "images",
    "batch": "2026.11.24",
    "is_valid": False,
    "failures": [
        {
            "expectation": "be between",
            "why": "a flood of copies stops here",
            "column": "duplicate_share",
            "observed": 0.61234567,
            "expected": "at most 0.25",
            "last": 0.07,
            "examples": [
                {"key": f"sample:{EVIL}{n}.jpg", "image_ids": [IMAGE_ID] if n == 0 else [], "reason": "duplicate"}
                for n in range(9)
            ],
        }
    ],
}


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    with serving_inbox() as (inbox, connection):
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", connection)
        yield inbox


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worktree of run 'r1': its parameters, one stored image, a gate's report and Data Docs."""
    monkeypatch.setenv("MEGAPAIRS_RUNS", str(tmp_path))
    monkeypatch.setenv("MEGAPAIRS_UI", "http://airflow.test/")
    folder = tmp_path / slug("r1")
    (folder / "reports" / "validation").mkdir(parents=True)
    (folder / "params.yaml").write_text("open_run: {dataset: 'cats & dogs'}\n")
    (folder / "version.json").write_text('{"version": "2026.11.17"}')
    (folder / "reports" / "validation" / "images.json").write_text(json.dumps(GATE))
    (folder / "reports" / "data_docs").mkdir()
    (folder / "reports" / "data_docs" / "index.html").write_text("docs")
    shard = folder / "data" / "images" / "b-00000.tar"
    shard.parent.mkdir(parents=True)
    Image.new("RGB", (300, 200), "red").save(shard, "JPEG")
    row = {"image_id": IMAGE_ID, "shard": shard.name, "offset_bytes": 0, "size_bytes": shard.stat().st_size}
    Store(folder).write(folder / "data" / "images" / "b.parquet", [row], "images")
    return folder


def context(stage: str, item: str | None, error: str) -> dict[str, Any]:
    task = SimpleNamespace(stage=stage, item=item, part=None)
    return {
        "run_id": "r1",
        "task": task,
        "ti": SimpleNamespace(dag_id="dataset_refresh", task_id=f"{stage}_x"),
        "exception": RuntimeError(error),
    }


def send(what: dict[str, Any]) -> None:
    from megapairs.alerts import AlertMail

    AlertMail(to=["data@example.org"]).notify(what)


def test_a_gates_mail_shows_observed_expected_last_and_five_rows_with_thumbnails(run: Path, inbox: Inbox):
    send(context("validate", "images", "DataError: gate 'images' holds"))
    (mail,) = inbox.mails
    assert mail["Subject"] == "[cats & dogs] gate 'images' stopped the run: duplicate_share"
    assert mail["To"] == "data@example.org" and mail["From"] == "factory@example.org"
    page = html_body(mail)
    assert_harmless(page, links=True)
    for text in (
        "cats &amp; dogs",
        "The new batch 2026.11.24 fails 1 check. The published version",
        "61% (0.6123)",
        "at most 0.25",
        "0.07",
        "a flood of copies stops here",
        "The published version 2026.11.17 is untouched",
    ):
        assert text in page
    assert page.count("&lt;script&gt;") == 5 and "<script" not in page
    assert len(re.findall(r'<img src="cid:image-', page)) == 1
    assert "http://airflow.test/dags/dataset_refresh/runs/r1" in page
    assert f"http://airflow.test/megapairs/runs/{run.name}/data_docs/index.html" in page


def test_a_dropped_file_over_which_the_decoder_fails_costs_its_own_image_alone(tmp_path: Path):
    from megapairs.dropped_images import read_dropped_files

    source = tmp_path / "shop"
    source.mkdir()
    (source / "broken.png").write_bytes(without_palette())
    (source / "loop.png").symlink_to("loop.png")
    Image.new("RGB", (300, 200), "blue").save(source / "whole.jpg")
    (tmp_path / "params.yaml").write_text(json.dumps({"ingest": {"sources": [{"name": "shop", "path": str(source)}]}}))
    keys = ["shop:broken.png", "shop:loop.png", "shop:a\0.png", "shop:whole.jpg"]
    assert list(read_dropped_files(tmp_path, keys, 64, 60)) == ["shop:whole.jpg"]


def test_a_dropped_copy_is_shown_beside_the_image_that_it_is_a_copy_of(run: Path, inbox: Inbox, tmp_path: Path):
    source = tmp_path / "shop"
    source.mkdir()
    Image.new("RGB", (300, 200), "blue").save(source / "copy.jpg")
    (tmp_path / "secret.jpg").write_bytes((source / "copy.jpg").read_bytes())
    (source / "fax.tif").write_bytes(b"II*\0")
    sources = [{"name": "shop", "path": str(source)}, {"name": "bucket", "path": "s3://images/week"}]
    (run / "params.yaml").write_text(json.dumps({"open_run": {"dataset": "shop"}, "ingest": {"sources": sources}}))
    keys = ("shop:copy.jpg", "shop:../secret.jpg", "shop:fax.tif", "bucket:a.jpg", "nobody:copy.jpg")
    examples = [{"key": key, "image_ids": [IMAGE_ID], "reason": "duplicate"} for key in keys]
    report = {**GATE, "failures": [{**GATE["failures"][0], "examples": examples}]}  # type: ignore[index,dict-item]
    (run / "reports" / "validation" / "images.json").write_text(json.dumps(report))
    send(context("validate", "images", "gate"))
    (mail,) = inbox.mails
    page = html_body(mail)
    assert page.count('src="cid:image-0"') == 1 and page.count('src="cid:image-1"') == 5, "the copy, and the kept image"
    assert "left out: shop:copy.jpg" in page and "left out: shop:fax" not in page
    assert len([part for part in mail.walk() if part.get_content_type() == "image/jpeg"]) == 2


def test_an_image_that_is_the_rows_own_key_is_shown_once(run: Path, inbox: Inbox):
    examples = [{"key": IMAGE_ID, "image_ids": [IMAGE_ID], "caption": "a cat"}]
    report = {**GATE, "failures": [{**GATE["failures"][0], "examples": examples}]}  # type: ignore[index,dict-item]
    (run / "reports" / "validation" / "images.json").write_text(json.dumps(report))
    send(context("validate", "images", "gate"))
    assert html_body(inbox.mails[0]).count('src="cid:image-') == 1


def test_the_triplets_gates_mail_shows_every_week_by_itself(run: Path, inbox: Inbox):
    weeks = {
        "2026.11.17": {"pairs": 1800, "triplets": 953, "yield": 0.529},
        "2026.11.24": {"pairs": 948, "yield": 0.232},
    }
    report = {**GATE, "table": "triplets", "weeks": {**weeks, EVIL: {"shortcut_share": 0.1}}}
    (run / "reports" / "validation" / "triplets.json").write_text(json.dumps(report))
    send(context("validate", "triplets", "gate"))
    page = html_body(inbox.mails[0])
    assert all(text in page for text in ("Week by week", "2026.11.17", "52.9%", "23.2%", "10.0%", "1,800"))
    assert_harmless(page, links=True)


def test_six_weeks_fit_a_mail_which_reads_well_on_a_phone_too(
    run: Path, inbox: Inbox, chromium: str, monkeypatch: pytest.MonkeyPatch
):
    from megapairs import digest

    week = {"pairs": 18000, "triplets": 9530, **dict.fromkeys((*SHARES, *NUMBERS), 0.123)}
    weeks = {f"2026.11.{day:02d}": week for day in range(1, 8)}
    (run / "reports" / "validation" / "triplets.json").write_text(
        json.dumps({**GATE, "table": "triplets", "weeks": weeks})
    )
    send(context("validate", "triplets", "gate"))
    send(context("ingest", None, f"ingest: ended with exit code 1. Its last lines:\nOSError: {'disk full ' * 40}"))
    monkeypatch.setattr(
        digest, "versions", lambda _: [SimpleNamespace(record={"version": "2026.11.07", "weeks": weeks})]
    )
    monkeypatch.setattr(digest, "models", lambda _: [])
    monkeypatch.setenv("MEGAPAIRS_MAIL_TO", "data@example.org")
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(run))
    digest.Digest(task_id="digest").execute({"run_id": "w"})
    mails = {f"/{n}": html_body(mail).replace("cid:", "/") for n, mail in enumerate(inbox.mails)}
    assert len(mails) == 3
    assert_rendered_well(chromium, answers_from(mails), mails)
    with page_of(chromium, answers_from(mails)) as (page, _):
        page.set_viewport_size({"width": 768, "height": 900})
        for address in ("/0", "/2"):
            page.goto(f"{ORIGIN}{address}")
            table, room = page.eval_on_selector("[aria-label='Week by week']", "e => [e.scrollWidth, e.clientWidth]")
            assert table <= room, f"mail {address}: the weeks take {table} px of {room}"
            shown = page.inner_text("[aria-label='Week by week']")
            assert "2026.11.02" in shown and "2026.11.07" in shown and "2026.11.01" not in shown, "the newest six"


def test_any_other_mail_shows_the_stage_and_its_last_lines_escaped(run: Path, inbox: Inbox):
    send(context("ingest", None, f"ingest: ended with exit code 1. Its last lines:\nOSError: disk full {EVIL}"))
    (mail,) = inbox.mails
    assert mail["Subject"] == "[cats & dogs] ingest failed in dataset_refresh"
    page = html_body(mail)
    assert "OSError: disk full &lt;script&gt;" in page and "<script" not in page


def failed_part(part: str, clears: int = 0, stage: str = "caption") -> dict[str, Any]:
    failed = context(stage, None, f"part {part} broke")
    failed["task"].part = part
    return {**failed, "dag_run": SimpleNamespace(clear_number=clears)}


def test_many_parts_that_fail_send_one_mail_and_a_cleared_run_another(run: Path, inbox: Inbox):
    for part in ("1/3", "2/3", "3/3"):
        send(failed_part(part))
    assert [m["Subject"] for m in inbox.mails] == ["[cats & dogs] caption 1/3 failed in dataset_refresh"]
    send(failed_part("1/3", stage="judge"))
    assert len(inbox.mails) == 2, "another stage"
    send(failed_part("2/3", clears=1))
    send(failed_part("3/3", clears=1))
    assert [m["Subject"] for m in inbox.mails[2:]] == ["[cats & dogs] caption 2/3 failed in dataset_refresh"]


def test_a_mail_that_could_not_be_sent_is_sent_by_the_next_part(
    run: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
):
    working = os.environ["AIRFLOW_CONN_SMTP_DEFAULT"]
    broken = json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": 1, "extra": {"retry_limit": 1}})
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", broken)
    with pytest.raises(OSError, match="."):
        send(failed_part("1/3"))
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", working)
    send(failed_part("2/3"))
    assert len(inbox.mails) == 1


def test_a_gates_report_that_lacks_values_still_makes_a_mail(run: Path, inbox: Inbox):
    report = {"table": EVIL, "is_valid": False, "failures": [{"expectation": EVIL, "examples": [{"key": EVIL}, {}]}]}
    report["notes"] = [f"captions of the sources: 7 read, 2 matched a file, 5 matched none ({EVIL})"]
    (run / "reports" / "validation" / "images.json").write_text(json.dumps(report))
    send(context("validate", "images", EVIL))
    text = assert_harmless(html_body(inbox.mails[0]), links=True).text
    assert f"Rows that fail {EVIL}" in text and "fails 1 check." in text and "batch –" in text
    assert f"captions of the sources: 7 read, 2 matched a file, 5 matched none ({EVIL})" in text


def test_a_gate_that_fails_without_saying_where_sends_the_error(run: Path, inbox: Inbox):
    (run / "reports" / "validation" / "images.json").write_text('{"table": "images", "is_valid": false}')
    send(context("validate", "images", f"DataError: {EVIL}"))
    (mail,) = inbox.mails
    assert mail["Subject"] == "[cats & dogs] gate 'images' stopped the run: its report names no check"
    assert f"DataError: {EVIL}" in assert_harmless(html_body(mail), links=True).text


def test_a_failure_before_the_worktree_exists_still_writes_a_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inbox: Inbox
):
    monkeypatch.setenv("MEGAPAIRS_RUNS", str(tmp_path))
    send(context("open_run", None, "ConfigError: conf: unknown key 'lmit'"))
    (mail,) = inbox.mails
    assert mail["Subject"] == "[sample-world] open_run failed in dataset_refresh"
    assert "unknown key" in html_body(mail)


def test_a_line_break_in_a_name_cannot_add_a_header():
    from megapairs.alerts import Failure, subject

    assert "\n" not in subject(Failure(dataset="x\nBcc: y@example.org", dag_id="d", run_id="r", task="t", error=""))


def test_nobody_to_write_to_means_no_callback(monkeypatch: pytest.MonkeyPatch):
    from megapairs.alerts import alert_mails

    monkeypatch.setenv("MEGAPAIRS_MAIL_TO", "")
    assert alert_mails() == []
    monkeypatch.setenv("MEGAPAIRS_MAIL_TO", "a@example.org, b@example.org")
    assert [m.to for m in alert_mails()] == [["a@example.org", "b@example.org"]]


def test_a_row_says_its_reason_first_and_takes_its_detail_apart():
    from megapairs.alerts import details

    row = {
        "key": "a.jpg",
        "detail": json.dumps({"copy_of": "3a" * 32, "why": ""}),
        "reason": "near_duplicate",
        "image_ids": ["x"],
    }
    assert details(row) == [("reason", "near_duplicate"), ("copy of", "3a3a3a3a3a3a…")]
    assert details({"detail": "<b>not JSON"}) == [("detail", "<b>not JSON")]


def test_a_mail_has_a_text_part_and_its_images_are_attached(run: Path, inbox: Inbox):
    send(context("validate", "images", "DataError: gate 'images' stopped"))
    (mail,) = inbox.mails
    assert [part.get_content_type() for part in mail.walk() if not part.is_multipart()] == [
        "text/plain",
        "text/html",
        "image/jpeg",
    ]
    text = mail.get_body(preferencelist=("plain",)).get_content()
    assert "The gate for images stopped the run" in text and "What to do now" in text and "<td" not in text
    assert 'src="cid:image-0"' in html_body(mail) and list(mail.walk())[-1]["Content-ID"] == "<image-0>"


def test_a_gates_mail_counts_and_says_what_to_do(run: Path, inbox: Inbox):
    failures = [
        {"column": "duplicate_share", "observed": 0.35, "expected": "at most 0.25", "last": 0.07, "examples": []},
        {"column": "median_caption_cosine_drop", "observed": 0.12, "expected": "at most 0.1", "last": 0.24},
    ]
    figures = {"looked_at": 200.0, "duplicate_share": 0.35, "median_caption_cosine_new": 0.12}
    gate = {**GATE, "failures": failures, "figures": figures}
    (run / "reports" / "validation" / "images.json").write_text(json.dumps(gate))
    send(context("validate", "images", "DataError"))
    page = html_body(inbox.mails[0])
    assert "35%, 70 of 200" in page and "0.12 against 0.24 in the last version, a drop of 0.12" in page
    assert "validate.images.duplicate_share_max" in page and "take the repeated files below out" in page
    assert page.count("<li") == 3


def test_one_cause_that_no_retry_can_help_is_one_mail_whatever_it_stops(run: Path, inbox: Inbox):
    why = "embed {}: ended with ConfigError (exit code 78), a retry cannot help. Its last lines:\nConfigError: no model"
    send(context("embed", "semantic", why.format("semantic")))
    send(context("mine", "pattern", why.format("pattern")))
    (mail,) = inbox.mails
    assert "No retry can help, so none was made" in html_body(mail)


@pytest.mark.parametrize(
    ("stage", "report", "skip_reason", "version", "headline"),
    [
        ("version", None, "version: nothing to do. no new triplet", {}, "no new version this time"),
        ("version", MADE, "", {"new_drops": {"ingest": {"taken_down": 3}}}, "a takedown took effect: 3 rows left out"),
        ("version", MADE, "", {"withdrawn": {"new": 2}}, "a takedown took effect: 2 images withdrawn"),
        (
            "version",
            MADE,
            "",
            {"quality": {"validate@images": {"images_quarantined_rows": 4.0}}},
            "4 rows were quarant",
        ),
        ("version", MADE, "", {}, None),
        ("promote", {"figures": {"is_promoted": 0.0}, "notes": ["not promoted: worse"]}, "", {}, "was not promoted"),
        ("promote", {"figures": {"is_promoted": 1.0}, "notes": ["promoted: better"]}, "", {}, None),
    ],
)
def test_a_run_that_did_not_fail_tells_what_one_would_wonder_about(
    stage: str,
    report: dict[str, Any] | None,
    skip_reason: str,
    version: dict[str, Any],
    headline: str | None,
    run: Path,
    inbox: Inbox,
):
    from megapairs.news import NewsMail

    (run / "version.json").write_text(json.dumps({"version": "2026.11.28", **version}))
    task = SimpleNamespace(stage=stage, report=report, skip_reason=skip_reason)
    ti = SimpleNamespace(dag_id="dataset_refresh", task_id=stage)
    NewsMail(to=["data@example.org"]).notify({"run_id": "r1", "task": task, "ti": ti})
    assert len(inbox.mails) == (headline is not None)
    if headline:
        page = html_body(inbox.mails[0])
        assert headline in inbox.mails[0]["Subject"] and "What to do now" in page and page.count("<li ") == 3
        assert "is untouched" not in page and "Nothing was published" not in page, "words about a failure"
        assert ("/megapairs/versions/2026.11.28/" in page) == (stage == "version" and report is not None)


def test_a_takedown_does_not_hide_that_rows_were_quarantined():
    from megapairs.news import news_of

    version = {"withdrawn": {"new": 2}, "quality": {"validate@pairs": {"pairs_quarantined_rows": 4.0}}}
    news = news_of("version", MADE, "", version)
    assert news is not None and "2 images withdrawn" in news.headline
    assert "Besides, 4 rows were quarantined: 4 of table pairs." in news.sentences


def test_further_notifiers_are_airflows_own(monkeypatch: pytest.MonkeyPatch):
    from megapairs.news import further_notifiers

    name = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
    monkeypatch.setenv("MEGAPAIRS_NOTIFIERS", json.dumps([{"class": name, "arguments": {"to": "a@example.org"}}]))
    assert [type(notifier).__name__ for notifier in further_notifiers()] == ["SmtpNotifier"]
    monkeypatch.setenv("MEGAPAIRS_NOTIFIERS", '[{"class": "no.such.Notifier"}]')
    with pytest.raises(ValueError, match="MEGAPAIRS_NOTIFIERS: No module named 'no'"):
        further_notifiers()


def test_a_dry_run_is_no_news():
    from megapairs.news import news_of

    assert news_of("version", None, "version: nothing to do. dry run: 34 triplets made, nothing published", {}) is None
    assert news_of("promote", {"notes": ["dry run: not promoted, though better"], "figures": {}}, "", {}) is None
    assert news_of("version", None, "version: nothing to do. no new triplet in 2026.11.28", {}) is not None


def test_the_weekly_digest_tells_what_the_week_published(inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from megapairs import digest

    records = [
        {"version": "2026.11.28", "date": "2026-11-28", "new_rows": {"images": 60, "captioned": 20, "triplets": 7}},
        {"version": "2026.11.01", "date": "2026-11-01", "new_rows": {"images": 9}},
    ]
    promoted = [{"name": "2026.11.29", "message": "Model 2026.11.29, trained on 2026.11.28: better"}]
    lines = digest.digest_lines(records, promoted, "2026-11-21")
    assert lines[0].startswith("dataset/2026.11.28: 60 new images, 7 new triplets (35% of the captioned pairs)")
    assert lines[1:] == ["model/2026.11.29 was trained on it and promoted"]
    assert digest.digest_count(lines) == "1 version, 1 promoted model"
    dropped = {"new_drops": {"ingest": {"duplicate": 3}, "select": {"over_quota": 2000, "too_different": 1}}}
    (line,) = digest.digest_lines([{**records[0], **dropped}], [], "2026-11-21")
    assert line.endswith("2,004 rows left out, 2,000 of them by select (over_quota)")
    monkeypatch.setattr(digest, "versions", lambda clone: [])
    monkeypatch.setattr(digest, "models", lambda clone: [])
    monkeypatch.setenv("MEGAPAIRS_MAIL_TO", "data@example.org")
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(tmp_path))
    monkeypatch.setenv("MEGAPAIRS_DATASETS", f"shop={tmp_path}")
    monkeypatch.setenv("MEGAPAIRS_UI", "http://airflow.test/")
    assert digest.Digest(task_id="digest").execute({"run_id": "w"}) == []
    assert "nothing was published" in inbox.mails[0]["Subject"]
    pages = [re.findall(r'href="([^"]+)"', html_body(mail)) for mail in inbox.mails]
    assert pages == [["http://airflow.test/megapairs/"], ["http://airflow.test/megapairs/d/shop/"]], "its own pages"
    weeks = {"2026.11.21": {"pairs": 1800, "yield": 0.53}, "2026.11.28": {"pairs": 948, "yield": 0.23, EVIL: EVIL}}
    monkeypatch.setattr(digest, "versions", lambda clone: [SimpleNamespace(record={**records[0], "weeks": weeks})])
    digest.Digest(task_id="digest").execute({"run_id": "w"})
    page = html_body(inbox.mails[-1])
    assert all(text in page for text in ("Week by week", "2026.11.21", "53.0%", "23.0%", "1,800"))
    assert_harmless(page, links=True)
