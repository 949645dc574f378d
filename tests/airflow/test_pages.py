"""The pages in Airflow's UI, on two published versions: every link leads on, nothing runs, nothing opens a window."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.support.fake_run import publish_version
from tests.support.markup import assert_harmless


class Person:
    """A user of Airflow's."""

    def get_name(self) -> str:
        """As Airflow knows them."""
        return "ann"


@pytest.fixture(scope="module")
def client(deployment: Path) -> Iterator[object]:
    """Logged in, on a deployment with two versions."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    publish_version(deployment, "first", "2026-11-16", range(0, 6))
    publish_version(deployment, "second", "2026-11-23", range(6, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGAPAIRS_DATASET", str(deployment / "dataset"))
        patch.setenv("MEGAPAIRS_RUNS", str(deployment / "runs"))
        patch.setenv("MEGAPAIRS_DATASETS", f"shop={deployment}")
        import reports_plugin
        from megapairs import review_pages

        reports_plugin.app.dependency_overrides[get_user] = Person
        patch.setattr(review_pages, "may_answer", lambda user: True)
        yield TestClient(reports_plugin.app)
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
        if "text/html" not in answer.headers["content-type"] or "gallery" in address:
            continue
        # forms lead to another page, and the explorer's images come from the version
        page = re.sub(r"</?form[^>]*>", "", answer.text)
        pictures = re.findall(r'src="(images/[^"]+)"', page)
        assert "triplets" in address or "review" in address or not pictures
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


def test_triplets_are_found_by_words_and_filters_and_downloaded(client):
    everything = client.get("/versions/2026.11.23/triplets").text
    assert re.search(r">\s*6 rows", everything), "three of each version"
    assert re.search(r">\s*0 rows", client.get("/versions/2026.11.23/triplets?text=nosuchword").text)
    rejected = client.get("/versions/2026.11.23/triplets?status=rejected").text
    assert "wrong target" in rejected
    lines = client.get("/versions/2026.11.23/triplets.jsonl?encoder=semantic").text.splitlines()
    assert len(lines) == 6 and all(json.loads(line)["judge_target"] for line in lines)
    hostile = client.get("/versions/2026.11.23/triplets", params={"text": "<script>alert(1)</script>", "low": "x"})
    assert hostile.status_code == 200 and "<script>" not in hostile.text


def test_a_version_shows_each_gate_with_what_was_observed_and_expected(client):
    page = client.get("/versions/2026.11.23/").text
    text = assert_harmless(page, links=True).text
    assert all(f'id="gate-{table}"' in page for table in ("images", "pairs", "triplets"))
    assert "18 of 18 expectations hold" in text and "0%, 0 of " in text and "at most 1" in text
    assert "18 of 18" in client.get("/gates/2026.11.23/images?run=gone").text


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
    assert "8 rows wait for you" in page
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
