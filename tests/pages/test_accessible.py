"""The two searches, explorer and composed search: one look, labels for all, and hostile captions stay text in both."""

from typing import Any

import pytest

from tasks.browse.selection import Selection
from tasks.pages.render import html
from tests.support.fake_run import HOSTILE as MARK
from tests.support.markup import assert_accessible, elements
from tests.support.rendered import answers_from, assert_rendered_well

HOSTILE = (
    '"><script>alert(1)</script><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)' x='",
    "</style></title></textarea><svg onload=alert(4)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(5)",
    "\u202eevil\u0000 " + "W" * 300,
)


def explorer_page(text: str) -> str:
    """The triplets explorer, with `text` wherever a stranger's text can stand."""
    row: dict[str, Any] = {
        "id": "t" * 20,
        "query": text,
        "target": "b" * 64,
        "query_source": text,
        "target_source": text,
        "texts": [{"text": text, "style": text, "score": "0.951"}],
        "negatives": [(text, "0.10"), ("c" * 64, "0.20")],
        "provenance": [("written by", text)],
        "is_accepted": False,
        "reason": "wrong_target",
        "why": text,
        "details": [(text, text)],
    }
    choices = {field: [text] for field in ("status", "encoder", "style", "source", "licence")}
    page = {"total": 1234, "rows": [row], "first": 1, "number": 2, "has_more": True, "address": "text=a"}
    wanted = vars(Selection(text=text, source=text))
    return html("triplets.html.j2", name="2026.11.28", wanted=wanted, choices=choices, page=page)


def studio_page(text: str) -> str:
    """Composed search with results, with `text` wherever a stranger's text can stand."""
    results = [
        {"image_id": "b" * 64, "caption": text, "rank": n, "is_target": n == 2, "is_query": n == 1, "similarity": 0.5}
        for n in range(1, 6)
    ]
    modes = ("composed", "image_only", "text_only")
    return html(
        "studio.html.j2",
        version="2026.11.28",
        count=1000,
        query={"image": "a" * 64, "text": text},
        error=text,
        thanks=True,
        name=text,
        name_length=100,
        result={"target": "b" * 64, "models": [{"model": text, "modes": dict.fromkeys(modes, results)}]},
        modes=modes,
        token="t",
        seed=0,
        examples=[{"image": "a" * 64, "text": text, "href": "/search?image=a"}],
    )


def home_page(text: str) -> str:
    """The home page, with `text` wherever a stranger's text can stand."""
    row = dict.fromkeys(("images", "pairs", "triplets", "total", "yield", "dropped"), "1,234")
    row |= {"name": "2026.11.28", "fingerprint": "ab" * 6, "model": "", "not_promoted": text}
    scores = [(name, {"composed": "26.7 (23.5 to 29.8)", "image_only": "8.0", "text_only": "–"}) for name in "ab"]
    refused = {"date": "2026-11-28", "data_version": text, "why": text, "metric": "map_at_5"}
    return html(
        "versions.html.j2",
        names=["2026.11.28", "2026.11.21"],
        rows=[row],
        quality=(["version", "true texts", "CPU s a triplet"], [["2026.11.28", "96%", "1.9"]]),
        sparks=[("Yield", "2.0,22.0 118.0,2.0", "35%", "lowest 33%, highest 35%")],
        status=[("runs under way", "1"), ("next run", "Mon 30 Nov 00:00 UTC")],
        problem=text,
        dataset=text,
        datasets=[],
        models=[{"name": text, "message": text, "metric": "map_at_5", "scores": scores, "more": [("a", [("r", "1")])]}],
        refused=[{**refused, "scores": [("finetuned", "20.0 (15.0 to 25.0)")]}],
    )


def version_page(text: str) -> str:
    """A version's page, with `text` wherever a stranger's text can stand."""
    check = {"column": "caption", "expectation": "be between", "why": text, "expected": "at most 1", "last": "–"}
    gate = {"table": "images", "verdict": "passed", "rows": "400 new rows", "last_version": text, "quarantined": 3}
    gate |= {"checks": [{**check, "observed": text, "is_held": False}], "figures": [("rows", "400", "300")]}
    gate["unbroken"] = [{**check, "observed": text, "is_held": True}]
    gate["examples"] = [{"column": text, "key": text, "details": [("caption", text)]}]
    drop = {"stage": "ingest", "reason": "duplicate", "why": text, "new": 1, "all": 2}
    tiles = [("new images", "243"), ("new pairs", "948")]
    return html("version.html.j2", name="2026.11.28", tiles=tiles, gates=[gate], drops=[drop], before="2026.11.21")


def drops_page(text: str) -> str:
    """The rows that were left out for a reason, with `text` wherever a stranger's text can stand."""
    images = [(label, text, text) for label in ("query", "target")]
    row = {"key": text, "batch": "2026.11.28", "images": images, "details": [(text, text), (text, [(text, text)])]}
    rows = [row, {**row, "images": []}]
    values = {"stage": "judge", "reason": "wrong_target", "why": text, "total": 1234, "rows": rows}
    return html("drops.html.j2", name="2026.11.28", **values, page=2, first=51, has_more=True)


def queue_page(text: str, changed: dict[str, Any] | None = None, **more: Any) -> str:
    """The review queue, with `text` wherever a stranger's text can stand."""
    row = {"id": text, "query": text, "target": "b" * 64, "query_source": text, "target_source": text}
    row |= {"lowest": {"text": text, "score": "0.51"}, "is_accepted": False, "reason": "ambiguous"}
    row |= {"negatives": [(text, "0.10"), ("c" * 64, "0.20")]} | (changed or {})
    agreement = {"rows": 10, "agreed": 9, "kappa": 0.71}
    values = {"waiting": 1234, "answered": 9, "threshold": "0.8", "reason": text, "skip": 0, "token": "t"}
    values |= {"agreement": agreement, "reasons": [text, "rejected"], "up": "../../"}
    values |= {"may_answer": True, "searches": [], **more}
    page = html("triplet_review.html.j2", name="2026.11.28", row=row, **values)
    return page.replace('<script src="../../review.js"></script>', "")  # the one script, for its keys


def queue_of_searches(text: str) -> str:
    """The queue's item of composed search, with `text` wherever a stranger's text can stand."""
    answered = {"query": text, "target": "b" * 64, "text": text, "answers": [("right", 2), ("unsure", 1)]}
    said = {"said": [(text, "2026-11-28T10:00:00+00:00")], "version": text, "negatives": []}
    return queue_page(text, said, searches=[answered])


PAGES = {
    "home": home_page,
    "version": version_page,
    "drops": drops_page,
    "review": queue_page,
    "review of searches": queue_of_searches,
    "explorer": explorer_page,
    "studio": studio_page,
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_text_and_every_field_has_a_name(name: str, text: str):
    page = PAGES[name](text)
    assert_accessible(page)
    parsed, plain = elements(page), elements(PAGES[name]("plain"))
    assert parsed.tags == plain.tags, "it brings no element of its own"
    assert [a[:2] for a in parsed.attributes] == [a[:2] for a in plain.attributes], "nor an attribute"
    assert not [v for _, n, v in parsed.attributes if n in ("href", "src", "action") and v.startswith("javascript:")]
    assert "49" not in parsed.text or "49" in plain.text, "nor is it a template"


def test_both_searches_share_one_form_and_one_stylesheet():
    for parsed in (elements(explorer_page("red")), elements(studio_page("red"))):
        assert ("form", "class", "panel search") in parsed.attributes
        assert ("form", "role", "search") in parsed.attributes
        assert ("label", "class", "wide") in parsed.attributes, "the text has the widest field"
    styles = [make("red").partition("<style>")[2].partition("</style>")[0] for make in PAGES.values()]
    assert len(set(styles)) == 1


@pytest.mark.slow
def test_what_few_deployments_show_keeps_to_wcag_and_to_the_screen_too(chromium: str):
    """Models and refused ones on the home page, an item of composed search in the queue, with what people said.

    The other pages are looked at in tests/airflow/test_pages.py and tests/studio/test_studio.py, from a deployment.
    """
    pages = {f"/versions/{name.replace(' ', '-')}": PAGES[name](MARK) for name in ("home", "review of searches")}
    assert_rendered_well(chromium, answers_from(pages), pages)
