"""A data engineer's week: a run from the form, two poisoned batches and a wrong value, each with its mail."""

import re

from tasks.demo.watch import DATASET_DAG
from tasks.sample.world import poison_captions, poison_copies
from tests.support.browser import open_page
from tests.support.inbox import html_body

from .conftest import IMAGES, Factory

LIMIT = 150


def test_a_run_from_the_form_is_green_and_its_log_ends_in_counts(factory: Factory, chromium: str):
    from playwright.sync_api import expect

    user, password = factory.airflow.credentials()
    with open_page(chromium) as page:
        page.goto(f"{factory.airflow.url}/dags/{DATASET_DAG}")
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        page.wait_for_url(f"**/dags/{DATASET_DAG}")

        page.get_by_role("button", name="Trigger").first.click()
        dialog = page.get_by_role("dialog")
        limit = dialog.locator("input[name=element_limit]")
        expect(limit).to_be_visible()
        limit.fill(str(LIMIT))
        limit.press("Tab")
        dialog.get_by_role("button", name="Trigger", exact=True).click()
        expect(dialog).not_to_be_visible()
        (run,) = factory.airflow.runs(DATASET_DAG)
        assert run["conf"]["limit"] == str(LIMIT)  # a text box; open_run makes a number of it

        page.goto("about:blank")  # an open grid of Airflow polls, and takes a third of a core
        state, states = factory.follow(run["dag_run_id"])
        assert state == "success", states
        page.goto(f"{factory.airflow.url}/dags/{DATASET_DAG}/runs/{run['dag_run_id']}")
        expect(page.get_by_text("success", exact=False).first).to_be_visible()
        page.goto(f"{factory.airflow.url}/dags/{DATASET_DAG}/runs/{run['dag_run_id']}/tasks/ingest")
        expect(page.get_by_text(re.compile(r"ingest\s*: read \d+, written \d+, dropped: ")).first).to_be_visible()

        page.get_by_role("button", name="Browse").first.click()
        page.get_by_role("menuitem", name="MegaPairs versions").click()
        pages, name = page.frame_locator("iframe"), factory.versions()[-1].removeprefix("dataset/")
        pages.get_by_role("link", name=name).click()
        expect(pages.locator("article.card img").first).to_be_visible()
        pages.get_by_role("link", name="Gates and dropped rows").click()
        expect(pages.get_by_text("expectations hold").first).to_be_visible()
        pages.get_by_role("link", name="wrong target").click()
        expect(pages.get_by_role("heading", name="judge: wrong target")).to_be_visible()
        expect(pages.locator("ul.drops li figure img").first).to_be_visible()
        pages.get_by_role("link", name=f"Version {name}").click()
        pages.get_by_role("link", name="Triplets").click()
        expect(pages.locator("article.card img").first).to_be_visible()

        pages.get_by_role("link", name=f"Version {name}").click()
        pages.get_by_role("link", name="Review").click()
        for answered in range(10):
            expect(pages.get_by_text(f"you have answered {answered}.")).to_be_visible()
            expect(pages.locator("#row")).to_be_focused()
            page.keyboard.press("1")
        expect(pages.get_by_text("you have answered 10.")).to_be_visible()
    assert len((factory.root / "reviews.jsonl").read_text().splitlines()) == 10
    (factory.root / "reviews.jsonl").unlink()  # verdicts would change the next runs of these stories
    report = factory.airflow.xcom(DATASET_DAG, run["dag_run_id"], "ingest")
    assert 0 < report["written"] <= LIMIT < IMAGES


def test_a_flood_of_copies_stops_at_the_images_gate(factory: Factory, first_version: str):
    source = factory.source_copy("copies")
    poison_copies(source, seed=1, images=200, truth=factory.root / "copies.jsonl")
    before, seen = factory.published(), len(factory.inbox.mails)
    sources = [{"name": "sample", "path": str(source)}]
    state, states = factory.run({"sources": sources, "ingest": {"part_files": 80}})
    assert state == "failed" and states["ingest_fetch"] == "success"
    assert (states["ingest"], states["validate_images"], states["recaption"]) == (
        "success",
        "failed",
        "upstream_failed",
    )
    assert factory.published() == before
    mail = factory.inbox.wait_for_one(seen)
    assert (
        "sample-world" in mail["Subject"]
        and "gate 'images'" in mail["Subject"]
        and "duplicate_share" in mail["Subject"]
    )
    page = html_body(mail)
    assert "at most 0.25" in page and first_version.removeprefix("dataset/") in page
    assert len(re.findall(r"reason</span> (?:near_)?duplicate", page)) == 5
    assert f"{factory.airflow.url}/dags/{DATASET_DAG}/runs/" in page and "data_docs/index.html" in page


def test_shuffled_captions_stop_at_the_pairs_gate(factory: Factory, first_version: str):
    source = factory.source_copy("captions")
    poison_captions(source, seed=3, images=60, offset=IMAGES, truth=factory.root / "captions.jsonl")
    before, seen = factory.published(), len(factory.inbox.mails)
    sources = [{"name": "sample", "path": str(source)}]
    in_parts = {stage: {"part_images": 25} for stage in ("recaption", "embed", "mine")}
    state, states = factory.run({"sources": sources, "ingest": {"shard_images": 20}, **in_parts})
    assert state == "failed" and states["ingest_fetch"] == "skipped" and states["mine_part"] == "success"
    assert (states["validate_images"], states["validate_pairs"], states["version"]) == (
        "success",
        "failed",
        "upstream_failed",
    )
    assert factory.published() == before
    mail = factory.inbox.wait_for_one(seen)
    assert "gate 'pairs'" in mail["Subject"] and "median_caption_cosine_drop" in mail["Subject"]
    page = html_body(mail)
    assert len(re.findall(r'<img src="cid:image-', page)) == 5


def test_a_wrong_value_fails_within_seconds_without_a_retry(factory: Factory):
    seen = len(factory.inbox.mails)
    state, states = factory.run({"lmit": 5})
    assert state == "failed" and states["open_run"] == "failed"
    mail = factory.inbox.wait_for_one(seen)
    assert "open_run failed" in mail["Subject"] and "lmit" in html_body(mail)
