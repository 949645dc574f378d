"""Composed search as a person and as a stranger meet it: pages, uploads, answers for review, and no internal errors."""

import io
import json
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.config import overlay, read_raw, resolve
from tasks.errors import ConfigError
from tasks.reviews.searches import read_searches
from tasks.store import Store
from tasks.studio import serve
from tasks.studio.app import Studio, make_app
from tests.support.fake_run import HOSTILE, fill
from tests.support.markup import LOADS, elements
from tests.support.rendered import ORIGIN, assert_rendered_well, page_of


def jpeg(side: int = 96) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def assert_own_page(page: str) -> None:
    """Forms of our own, and nothing that runs or comes from elsewhere."""
    parsed = elements(page)
    assert not (LOADS - {"form"}) & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1].startswith("on")]
    targets = [value for _, name, value in parsed.attributes if name in ("href", "src", "action")]
    assert all(t.startswith(("/search", "/images/", "/feedback", "/?seed=")) for t in targets), targets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """Tables and images of a fake version, without git."""
    folder = tmp_path_factory.mktemp("version")
    changes = {"open_run": {"date": "2026-11-16", "batch": "2026.11.16"}}
    (folder / "params.yaml").write_text(
        yaml.safe_dump(overlay(resolve(read_raw(project / "params.yaml"), "test"), changes))
    )
    fill(folder, range(0, 8), mark=HOSTILE)
    return folder


@pytest.fixture(scope="module")
def studio(root: Path, project: Path) -> Iterator[Studio]:
    parser = ArgumentParser()
    serve.add_arguments(parser)
    base = project / "tasks/sample/checkpoints/clip"
    made = serve.make_studio(parser.parse_args(["--root", str(root), "--model", f"base={base}"]))
    yield made
    made.images.uploads.close()


@pytest.fixture(scope="module")
def client(studio: Studio) -> TestClient:
    return TestClient(make_app(studio, ["testserver"]), follow_redirects=False)


def a_triplet(root: Path) -> dict:
    return Store(root).read_table("triplets").to_pylist()[0]


def test_a_triplets_own_query_shows_its_target_in_all_modes(client: TestClient, root: Path):
    triplet = a_triplet(root)
    form = {"image": triplet["query_image_id"], "text": triplet["instructions"][0], "top_k": 8}
    answer = client.post("/api/search", data=form).json()
    assert answer["target"] == triplet["target_image_id"]
    modes = answer["models"][0]["modes"]
    assert list(modes) == ["composed", "image_only", "text_only"]
    for results in modes.values():
        assert [r["rank"] for r in results] == list(range(1, 9))
        assert sum(r["is_target"] for r in results) == 1
        assert sorted((r["similarity"] for r in results), reverse=True) == [r["similarity"] for r in results]
    assert modes["image_only"][0]["is_query"] and modes["image_only"][0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_an_uploaded_image_is_searched_like_a_stored_one(client: TestClient, root: Path):
    triplet = a_triplet(root)
    out = io.BytesIO()
    small = Store(root).read_image(triplet["query_image_id"])
    small.resize((small.width * 2, small.height * 2)).save(out, "PNG")  # above ingest's shortest side
    stored = out.getvalue()
    sent = client.post("/search", data={"text": "make it red"}, files={"file": ("mine.png", stored)})
    assert sent.status_code == 303 and "image=upload-" in sent.headers["location"]
    page = client.get(sent.headers["location"])
    assert page.status_code == 200 and "should be first" in page.text
    assert_own_page(page.text)
    answer = client.post("/api/search", data={"text": "make it red"}, files={"file": ("mine.png", stored)}).json()
    assert answer["models"][0]["modes"]["image_only"][0]["image_id"] == triplet["query_image_id"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"GIF89a not an image", "undecodable"), (jpeg()[:400], "undecodable"), (jpeg(side=8), "too_small")],
)
def test_a_file_that_ingest_would_refuse_is_refused_by_name(client: TestClient, content: bytes, reason: str):
    answer = client.post("/api/search", data={"text": "red"}, files={"file": ("x.jpg", content)})
    assert answer.status_code == 400 and reason in answer.json()["error"]


def test_a_body_that_is_too_long_is_refused_before_it_is_read(client: TestClient, studio: Studio):
    content = b"x" * (studio.max_bytes + 200_000)
    assert client.post("/api/search", files={"file": ("x.jpg", content)}).status_code == 413

    def chunks() -> Iterator[bytes]:  # no length is stated
        for _ in range(studio.max_bytes // 2**20 + 2):
            yield b"x" * 2**20

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/api/search", content=chunks(), headers=form).status_code in (400, 413)


def test_an_answer_is_stored_only_from_our_own_form_with_its_name(client: TestClient, studio: Studio, root: Path):
    triplet = a_triplet(root)
    form = {"image": triplet["query_image_id"], "text": "make it red", "should_be_first": triplet["target_image_id"]}
    own = {**form, "token": studio.token, "name": " Ada\u202e "}  # a mark that turns the direction
    assert client.post("/feedback", data={**form, "token": "guessed"}).status_code == 403
    assert not studio.feedback.path.exists()
    for wrong in (
        {"should_be_first": "../../etc/passwd"},
        {"should_be_first": form["image"]},
        {"name": " "},
        {"text": ""},
    ):
        assert client.post("/feedback", data={**own, **wrong}).status_code == 400
    assert not studio.feedback.path.exists()
    stored = client.post("/feedback", data=own)
    assert stored.status_code == 303
    line = json.loads(studio.feedback.path.read_text())
    assert (line["name"], line["should_be_first"]) == ("Ada", triplet["target_image_id"])
    assert line["at"] and line["version"] == studio.version
    (item,) = read_searches([studio.feedback.path])  # as the review queue reads it
    assert (item.query, item.text, item.target) == (form["image"], "make it red", form["should_be_first"])
    page = client.get(stored.headers["location"]).text
    assert "Stored for review" in page and 'name="name" value="Ada"' in page, "the name is kept for the next one"


def test_other_host_names_and_paths_get_nothing(client: TestClient):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    for key in ("..%2F..%2Fparams.yaml", "%2Fetc%2Fpasswd", "upload-0", "x" * 500):
        assert client.get(f"/images/{key}.jpg").status_code in (400, 404)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/", "/search", "/api/search", "/feedback"]),
    image=st.one_of(st.just(""), st.text(max_size=30), st.binary(max_size=20)),
    text=st.one_of(st.text(max_size=40), st.just("<script>alert(1)</script>"), st.just("x" * 2000)),
    number=st.one_of(st.integers(-5, 200), st.text(max_size=5)),
)
def test_no_request_is_an_internal_error(client: TestClient, studio: Studio, path: str, image, text: str, number):
    form = {"image": image, "text": text, "top_k": str(number), "token": studio.token, "should_be_first": "a"}
    for method in ("GET", "POST"):
        answer = (
            client.request(method, path, params={"image": image, "text": text, "top_k": number, "seed": number})
            if method == "GET"
            else client.post(path, data=form)
        )
        assert answer.status_code < 500
        if "html" in answer.headers.get("content-type", ""):
            assert_own_page(answer.text)
            assert "script" not in answer.headers["content-security-policy"]


def test_a_person_searches_and_says_what_should_be_first_by_clicks(client: TestClient, studio: Studio, chromium: str):
    studio.feedback.path.unlink(missing_ok=True)
    with page_of(chromium, client.request) as (page, problems):
        page.goto(f"{ORIGIN}/")
        page.locator(".examples a").first.click()
        page.get_by_label("Change").fill("make it green")
        page.get_by_role("button", name="Search").click()
        page.get_by_label("Your name").fill("Ada")
        page.get_by_role("button", name="Should be first: rank 2 of base, composed").click()
        page.get_by_text("Stored for review").wait_for()
        assert problems == []
    (line,) = studio.feedback.path.read_text().splitlines()
    studio.feedback.path.unlink()
    assert (json.loads(line)["text"], json.loads(line)["name"]) == ("make it green", "Ada")


@pytest.mark.slow
def test_its_pages_keep_to_wcag_and_to_the_screen_with_hostile_captions(client: TestClient, root: Path, chromium: str):
    """Axe-core, light and dark, at 1280 and 390 px."""
    triplet = a_triplet(root)
    query = urlencode({"image": triplet["query_image_id"], "text": triplet["instructions"][0], "top_k": 8})
    addresses = ["/", f"/search?{query}&thanks=true", f"/search?{urlencode({'text': 'x' * 2000})}", "/nosuchpage"]
    assert_rendered_well(chromium, client.request, addresses)


def test_vectors_are_encoded_once(root: Path, studio: Studio, project: Path, monkeypatch: pytest.MonkeyPatch):
    from tasks.studio.galleries import Gallery

    monkeypatch.setattr(Gallery, "_encode", lambda *_: pytest.fail("encoded again"))
    again = Gallery("base", studio.models["base"], studio.images, root / ".run" / "studio")
    assert (again.vectors == studio.galleries[0].vectors).all()


def test_a_folder_that_is_no_clone_is_named(tmp_path: Path):
    parser = ArgumentParser()
    serve.add_arguments(parser)
    with pytest.raises(ConfigError, match=r"params\.yaml: missing"):
        serve.make_studio(parser.parse_args(["--root", str(tmp_path)]))
    with pytest.raises(ConfigError, match="make demo"):
        serve.bring_clone(str(tmp_path / "origin.git"), tmp_path / "clone")
