"""The pages in Airflow's UI, on two published versions: every link leads on, nothing runs, nothing opens a window."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urljoin

import pytest

from tests.support.fake_run import HOSTILE, publish_version
from tests.support.markup import assert_accessible, assert_harmless
from tests.support.rendered import ORIGIN, assert_rendered_well, page_of

READING = {"GET", "HEAD", "OPTIONS"}


class Person:
    """A user of Airflow's."""

    def __init__(self, name: str = "ann") -> None:
        self.name = name

    def get_name(self) -> str:
        """As Airflow knows them."""
        return self.name


@pytest.fixture(scope="module")
def client(deployment: Path) -> Iterator[object]:
    """Logged in, on a deployment with two versions."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    publish_version(deployment, "first", "2026-11-16", range(0, 8), mark=HOSTILE)
    publish_version(deployment, "second", "2026-11-23", range(8, 16), mark=HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGAPAIRS_DATASET", str(deployment / "dataset"))
        patch.setenv("MEGAPAIRS_RUNS", str(deployment / "runs"))
        patch.setenv("MEGAPAIRS_DATASETS", f"shop={deployment}")
        import reports_plugin
        from megapairs import review_pages

        reports_plugin.app.dependency_overrides[get_user] = lambda: Person()
        answering = TestClient(reports_plugin.app)
        answering.may_answer = review_pages.may_answer  # type: ignore[attr-defined]
        patch.setattr(review_pages, "may_answer", lambda user: True)
        yield answering
        reports_plugin.app.dependency_overrides.clear()


def test_every_page_is_reached_by_links_from_the_home_page(client):
    seen: dict[str, int] = {}
    waiting = ["/", "/compare?first=2026.11.16&second=2026.11.23"]
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        answer = client.get(address)
        seen[address] = answer.status_code
        assert answer.headers["content-security-policy"] and answer.headers["x-content-type-options"] == "nosniff"
        if "text/html" not in answer.headers["content-type"] or "gallery" in address:
            continue
        assert_accessible(answer.text)
        # forms lead to another page, and the explorer's images come from the version
        page = re.sub(r"</?form[^>]*>", "", answer.text)
        pictures = re.findall(r'src="(images/[^"]+)"', page)
        assert any(name in address for name in ("triplets", "review", "drops")) or not pictures
        if "review" in address:  # the one page with a script, for its keys
            page, scripts = re.subn(r'<script src="(\.\./)*review.js"></script>', "", page)
            assert scripts == 1
        waiting += [urljoin(f"http://t{address}", source).removeprefix("http://t") for source in pictures[:2]]
        parsed = assert_harmless(re.sub(r'src="images/[^"]+"', "", page), links=True)
        assert not [a for a in parsed.attributes if a[1] == "target"], "Airflow's frame lets no link open a window"
        links = [value for _, name, value in parsed.attributes if name == "href" and not value.startswith("#")]
        waiting += [urljoin(f"http://t{address}", link).removeprefix("http://t") for link in links]
    assert set(seen.values()) == {200}, {address: code for address, code in seen.items() if code != 200}
    reached = {re.sub(r"\d{4}\.\d\d\.\d\d", "V", address.partition("?")[0]) for address in seen}
    assert reached >= {"/", "/versions/V/", "/versions/V/gallery.html", "/versions/V/card", "/compare", "/d/shop/"}
    assert {"/versions/V/triplets", "/versions/V/triplets.jsonl"} <= reached
    assert any(address.startswith("/versions/V/images/") for address in reached)


@pytest.mark.slow
def test_every_page_keeps_to_wcag_and_to_the_screen_with_hostile_texts(client, chromium: str):
    """Axe-core, light and dark, at 1280 and 390 px."""
    version = "/versions/2026.11.23"
    addresses = ["/", "/compare?first=2026.11.16&second=2026.11.23", "/gates/2026.11.23/pairs", "/versions/2026.11.24/"]
    pages = ("", "gallery.html", "card", "triplets", "triplets?text=nosuchword", "review", "quarantine?table=images")
    addresses += [f"{version}/{page}" for page in (*pages, "drops?stage=judge&reason=wrong_target")]
    assert_rendered_well(chromium, client.request, addresses)


@pytest.mark.slow
def test_two_people_answer_ten_rows_by_keys_and_the_page_says_how_far_they_agree(
    client, chromium: str, deployment: Path, monkeypatch: pytest.MonkeyPatch
):
    """From the home page by clicks: the version, its queue, a key a row; then two weeks compared.

    Ann calls eight right and two wrong, Bob another two wrong among ten: 6 of 10 agree, by chance 0.8 x 0.8 + 0.2 x 0.2
    = 0.68 would, so kappa is (0.6 - 0.68) / 0.32 = -0.25.
    """
    import reports_plugin
    from airflow.api_fastapi.core_api.security import get_user
    from playwright.sync_api import expect

    (deployment / "reviews.jsonl").unlink(missing_ok=True)
    for name, wrong in (("ann", (1, 2)), ("bob", (8, 9))):
        person = Person(name)
        monkeypatch.setitem(reports_plugin.app.dependency_overrides, get_user, lambda person=person: person)
        with page_of(chromium, client.request) as (page, problems):
            page.goto(f"{ORIGIN}/")
            page.get_by_role("link", name="details").first.click()
            page.get_by_role("link", name="Review").click()
            for row in range(10):
                expect(page.get_by_text(f"you have answered {row}.")).to_be_visible()
                expect(page.locator("#row")).to_be_focused()
                page.keyboard.press("2" if row in wrong else "1")
            expect(page.get_by_text("you have answered 10.")).to_be_visible()
            said = page.locator("p.lead").first.inner_text()
            page.get_by_role("link", name="Version 2026.11.23").click()
            page.get_by_role("link", name="Compare with 2026.11.16").click()
            expect(page.get_by_role("heading", name="2026.11.16 and 2026.11.23")).to_be_visible()
            assert problems == []
    assert "Two people agree on 6 of 10 rows, kappa -0.25." in said
    rows = [json.loads(line)["row_id"] for line in (deployment / "reviews.jsonl").read_text().splitlines()]
    assert rows[:10] == rows[10:] and len(set(rows)) == 10, "the same ten, in the same order"
    (deployment / "reviews.jsonl").unlink()


def test_what_failed_last_is_known_by_its_end_and_not_by_when_it_was_due():
    from megapairs.airflow_state import last_failure

    def run(name: str, state: str, due: int, end: int | None) -> SimpleNamespace:
        return SimpleNamespace(name=name, state=state, run_after=due, start_date=due, end_date=end)

    runs = [run("good", "success", 30, 40), run("by hand", "failed", 20, 25), run("scheduled late", "failed", 10, 28)]
    assert last_failure(runs).name == "scheduled late" and last_failure(runs[:1]) is None


def test_a_page_that_is_not_there_says_why_and_leads_back(client):
    browser = {"accept": "text/html,*/*;q=0.8"}
    gone = client.get("/versions/2026.11.24/", headers=browser)
    assert gone.status_code == 404 and assert_harmless(gone.text, links=True).text.count("No such version.") == 1
    assert 'href="/"' in gone.text and "frame-ancestors 'self'" in gone.headers["content-security-policy"]
    wrong = client.get("/versions/2026.11.23/triplets?page=<b>", headers=browser)
    assert wrong.status_code == 422 and "page: Input should be a valid integer" in wrong.text
    assert client.get("/versions/2026.11.24/").json() == {"detail": "no such version"}, "a program gets JSON"
    where = {"stage": "judge", "reason": "<script>alert(1)</script>"}
    hostile = client.get("/versions/2026.11.23/drops", params=where, headers=browser)
    assert hostile.status_code == 404 and "<script" not in hostile.text


def test_a_row_that_was_left_out_shows_its_images_and_why(client):
    page = client.get("/versions/2026.11.23/drops?stage=judge&reason=wrong_target").text
    images = re.findall(r'src="(images/[0-9a-f]{64}\.jpg)" alt="(query|target)"', page)
    assert [label for _, label in images[:2]] == ["query", "target"]
    assert client.get(f"/versions/2026.11.23/{images[0][0]}").headers["content-type"] == "image/jpeg"
    refused = client.get("/versions/2026.11.23/drops?stage=judge&reason=nothing")
    assert refused.status_code == 404 and "frame-ancestors 'self'" in refused.headers["content-security-policy"]


def test_triplets_are_found_by_words_and_filters_and_downloaded(client):
    everything = client.get("/versions/2026.11.23/triplets").text
    assert re.search(r">\s*10 rows", everything), "five of each version"
    assert re.search(r">\s*0 rows", client.get("/versions/2026.11.23/triplets?text=nosuchword").text)
    rejected = client.get("/versions/2026.11.23/triplets?status=rejected").text
    assert "wrong target" in rejected
    lines = client.get("/versions/2026.11.23/triplets.jsonl?encoder=semantic").text.splitlines()
    assert len(lines) == 10 and all(json.loads(line)["judge_target"] for line in lines)
    hostile = client.get("/versions/2026.11.23/triplets", params={"text": "<script>alert(1)</script>", "low": "x"})
    assert hostile.status_code == 200 and "<script>" not in hostile.text


def test_a_version_shows_each_gate_with_what_was_observed_and_expected(client):
    page = client.get("/versions/2026.11.23/").text
    text = assert_harmless(page, links=True).text
    assert all(f'id="gate-{table}"' in page for table in ("images", "pairs", "triplets"))
    assert "18 of 18 expectations hold" in text and "0%, 0 of " in text and "at most 1" in text
    assert "18 of 18" in client.get("/gates/2026.11.23/images?run=gone").text


def test_the_home_page_has_gate_figures_costs_and_why_a_model_run_promoted_nothing(client, deployment: Path):
    from tasks.browse import promotions

    refused = {
        "notes": ["not promoted: composed map_at_5 0.2000 against 0.3000 of <b>the base model</b>"],
        "figures": {"is_promoted": 0.0, "base_map_at_5": 0.3, "finetuned_map_at_5": 0.2},
    }
    run = deployment / "model-run"
    (run / "reports").mkdir(parents=True)
    (run / "version.json").write_text(json.dumps({"version": "2026.11.23"}))
    intervals = {"finetuned": {"composed": {"map_at_5": [0.15, 0.25]}}}
    (run / "reports" / "evaluation.json").write_text(json.dumps({"intervals": intervals}))
    promotions.keep(deployment / "dataset", run, "model 1", refused)
    with (deployment / promotions.FILE).open("a") as file:
        file.write('{"at": "half a li')
    page = client.get("/").text
    text = assert_harmless(re.sub(r"</?form[^>]*>", "", page), links=True).text
    assert "Quarantined rows" in text and "Median caption cosine" in text and "0 of 19" in text
    assert "finetuned 20.0 (15.0 to 25.0)" in text and "of <b>the base model</b>" in text
    assert page.count('href="#refused"') == 1, "in the row of the version that the candidate was trained on"


def test_a_version_names_the_rows_that_a_gate_quarantined(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deployment: Path
):
    from tasks.browse.published import PublishedVersion
    from tasks.store import Store
    from tests.support.fake_run import image_row

    store, output = Store(deployment), "data/quarantine/images"
    rule = {"table": "images", "key": "ab" * 32, "column": "source_uri", "observed": "<i>no place</i>"}
    rules = [
        {**rule, "batch": batch, "expectation": "expect_column_values_to_match_regex"}
        for batch in ("2026.11.16", "2026.11.23")
    ]
    store.write(tmp_path / "rules.parquet", rules, "quarantine")
    row = image_row(1, "ab" * 32, "2026.11.23", "s.tar", 0, 1, "2026-11-23")
    store.write(tmp_path / "rows.parquet", [{**row, "source_uri": "<i>no place</i>"}], "images")
    kept = {"2026.11.23.parquet": tmp_path / "rules.parquet", "rows/2026.11.23.parquet": tmp_path / "rows.parquet"}
    monkeypatch.setattr(PublishedVersion, "files", lambda self, name, suffix="": kept if name == output else {})
    page = client.get("/versions/2026.11.23/quarantine?table=images").text
    assert_accessible(page)
    text = assert_harmless(page, links=True).text
    assert text.count("<i>no place</i>") == 4 and text.count("ab" * 32) == 2, "the file's name and what was observed"
    assert text.index("2026.11.23", text.index("Observed")) < text.index("2026.11.16"), "the newest first"
    assert "0 broken rules" in client.get("/versions/2026.11.23/quarantine?table=pairs").text
    assert client.get("/versions/2026.11.23/quarantine?table=secrets").status_code == 404


def test_a_gate_says_how_many_rows_break_a_rule_as_a_percentage_and_a_count():
    from megapairs.gate_pages import shown_gate

    rule = {"column": "caption", "table_half": "rows", "observed": "3 of 400 rows break it", "is_held": False}
    report = {"table": "images", "is_valid": True, "rows": 400, "quarantined": 3, "checks": [rule], "figures": {}}
    report["broken_rules"] = [
        {"column": "caption", "examples": [{"key": "ab", "image_ids": ["ab"], "caption": "a cup"}]}
    ]
    gate = shown_gate(report)
    assert gate["rows"] == "400 new rows looked at, 3 quarantined (0.8%)"
    assert gate["checks"][0]["observed"] == "0.8%, 3 of 400 rows break it"
    assert gate["verdict"] == "passed; 0 of 1 expectations hold"
    assert gate["examples"] == [{"column": "caption", "key": "ab", "details": [("caption", "a cup")]}]
    old = shown_gate({"is_valid": False, "expectations": 18, "failures": [{"column": "rows", "observed": 2}]})
    assert old["rows"] == "" and old["quarantined"] == 0, "a report of an older version"
    assert old["verdict"].startswith("stopped the run; 1 of 18 expectations broken")
    assert shown_gate({"is_valid": True, "expectations": 18})["verdict"].startswith(
        "passed; 0 of 18 expectations broken"
    )


def test_a_gallery_leads_back_and_runs_no_script(client):
    answer = client.get("/versions/2026.11.23/gallery.html")
    assert '<nav><a href="../../">All versions</a>' in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "address",
    ["/versions/2030.01.01/", "/versions/..%2f..%2fetc/", "/gates/2026.11.23/secrets", "/d/nobody/",
     "/versions/2026.11.23/drops?stage=ingest&reason=%3Cscript%3E", "/runs/first/../../dataset/params.yaml"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(client, address: str):
    assert client.get(address).status_code == 404


def test_a_review_is_kept_with_its_name_and_no_other_site_or_viewer_can_send_one(
    client, deployment: Path, monkeypatch: pytest.MonkeyPatch
):
    from megapairs import review_pages

    may = {"answer": True}
    monkeypatch.setattr(review_pages, "may_answer", lambda user: may["answer"])
    address = "/versions/2026.11.23/review"
    page = client.get(address).text
    assert "12 rows wait for you" in page
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    assert {"token", "row_id", "query", "target"} <= set(form)
    assert client.post(address, data={**form, "token": "0", "answer": "right"}).status_code == 403
    assert client.post(address, data={**form, "answer": "perhaps"}).status_code == 400
    may["answer"] = False
    assert client.post(address, data={**form, "answer": "right"}).status_code == 403
    assert "your role cannot start runs" in client.get(address).text
    may["answer"] = True
    answered = client.post(address, data={**form, "answer": "right"}, follow_redirects=False)
    assert (answered.status_code, answered.headers["location"]) == (303, "review?")
    line = json.loads((deployment / "reviews.jsonl").read_text())
    assert (line["name"], line["answer"], line["row_id"], line["text"]) == ("ann", "right", form["row_id"], "")
    assert "you have answered 1" in client.get(address).text
    assert client.get("/review.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(("role", "may"), [("viewer", False), ("user", True), ("op", True), ("admin", True)])
def test_airflows_roles_decide_who_may_write_and_a_viewer_may_write_nothing(
    role: str, may: bool, client, deployment: Path, monkeypatch: pytest.MonkeyPatch
):
    import reports_plugin
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user
    from megapairs import review_pages

    monkeypatch.setattr(review_pages, "get_auth_manager", SimpleAuthManager)
    monkeypatch.setattr(review_pages, "may_answer", client.may_answer)  # Airflow's own word, not the fixture's
    person = SimpleAuthManagerUser(username=role, role=role)
    monkeypatch.setitem(reports_plugin.app.dependency_overrides, get_user, lambda: person)
    assert review_pages.may_answer(person) is may
    paths = {route.path for route in reports_plugin.app.routes if set(getattr(route, "methods", None) or ()) - READING}
    assert paths == {"/versions/{name}/review", "/d/{dataset}/versions/{name}/review"}, "all that writes"
    before = (deployment / "reviews.jsonl").read_bytes() if (deployment / "reviews.jsonl").exists() else b""
    for path in paths:
        answer = client.post(path.format(name="2026.11.23", dataset="shop"), data={"token": "0", "answer": "right"})
        assert answer.status_code == 403 and ("a viewer cannot review" in answer.text) is not may
    after = (deployment / "reviews.jsonl").read_bytes() if (deployment / "reviews.jsonl").exists() else b""
    assert after == before


def test_what_somebody_wanted_first_in_composed_search_waits_in_the_queue(client, deployment: Path):
    """Stored by composed search, beside the clone: shown first with its upload, and answered."""
    from tasks.reviews.searches import FEEDBACK, REASON
    from tasks.studio.answers import Feedback, Query

    class Images:
        captions: dict[str, str]

        def content(self, key: str) -> bytes:
            return b"uploaded jpeg"

    address, upload = "/versions/2026.11.23/review", "upload-" + "a" * 64
    target = re.search(r'name="target" value="(\w+)"', client.get(address).text)[1]
    images = Images()
    images.captions = {target: "", "gone" * 16: ""}
    feedback = Feedback(deployment / "studio" / ".run" / FEEDBACK, "2026.11.23")
    for wanted in ("gone" * 16, target):  # the first is in no version any more
        feedback.add(Query(upload, "a <b>red</b> one"), wanted, "Ada", images, {"base": "x"})  # type: ignore[arg-type]
    page = client.get(address).text
    assert (
        "a &lt;b&gt;red&lt;/b&gt; one" in page and "<bdi>Ada</bdi>, 20" in page and f'<option value="{REASON}"' in page
    )
    assert client.get(f"/versions/2026.11.23/images/{upload}.jpg").content == b"uploaded jpeg"
    assert client.get("/versions/2026.11.23/images/upload-..%2Fx.jpg").status_code == 404
    assert f'value="{upload}"' not in client.get(f"{address}?skip=1").text, "the next is a row of the judge's"
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    form |= {"instruction": "a <b>red</b> one", "text": "a <b>red</b> one", "answer": "right"}
    assert client.post(address, data=form, follow_redirects=False).status_code == 303
    line = json.loads((deployment / "reviews.jsonl").read_text().splitlines()[-1])
    assert (line["name"], line["answer"], line["query"], line["target"]) == ("ann", "right", upload, target)
    assert line["row_id"].startswith("search-") and line["instruction"] == "a <b>red</b> one" and not line["text"]
    alone = client.get(f"{address}?reason={REASON}").text
    assert "Nothing waits for you here." in alone and "right 1" in alone
    assert f'value="{upload}"' not in client.get(address).text
    feedback.path.unlink()
