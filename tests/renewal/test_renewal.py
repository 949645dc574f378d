"""Renewal: old rows get what the models of now would have made, in slices or at once, and nothing goes uncounted."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.renewal.supersede
from tasks.caption.stage import run as run_caption
from tasks.config import Params, RenewConfig, RenewRows, parse_where
from tasks.errors import DataError
from tasks.judge.stage import run as run_judge
from tasks.publish.renew_run import forecast
from tasks.renewal.makers import (
    MadeRow,
    batch_order,
    batches_of,
    count_stale,
    is_stale,
    made_groups,
    made_rows,
    noted_maker,
)
from tasks.renewal.plan import Plan, Wish, choose, read_plan
from tasks.reviews.verdicts import Verdict, write_verdicts
from tasks.store import Store
from tests.support.colour_pairs import BATCH, colour_params, table_bytes, use_models, with_batch, with_caption
from tests.support.fake_llm import FakeLlm
from tests.support.renewal import NOW, SECOND, batches, content, make_weeks, models, renew

TEXTS = ("captioned", "dropped/caption")
VERDICTS = ("triplets", "dropped/judge")
OLD, NEW = {"model": "m", "revision": "1"}, {"model": "m", "revision": "2"}


@pytest.fixture
def params() -> Params:
    return colour_params()


some_rows = st.lists(
    st.builds(
        MadeRow,
        key=st.text("abcdef", min_size=1, max_size=2),
        batch=st.sampled_from(["2026.01.05", "2026.01.12", "2026.01.12.2", "2026.01.12.10"]),
        made=st.sampled_from([OLD, NEW, {}, {"model": "m", "revision": None}, {"model": "other", "revision": "2"}]),
    ),
    max_size=12,
    unique_by=lambda row: row.key,
)


@given(some_rows, st.none() | st.integers(1, 6))
def test_a_plan_takes_the_oldest_stale_rows_within_the_budget_and_counts_the_others(
    rows: list[MadeRow], budget: int | None
):
    plan = choose(rows, Wish((), budget, NEW), "caption")
    stale = {row.key: row for row in rows if is_stale(row.made, NEW)}
    assert set(plan.units) <= stale.keys() and len(plan.units) + plan.left == len(stale)
    assert len(plan.units) == min(len(stale), budget or len(stale))
    ages = [batch_order(stale[unit].batch) for unit in plan.units]
    others = [batch_order(row.batch) for key, row in stale.items() if key not in plan.units]
    assert ages == sorted(ages) and all(age <= other for age in ages[-1:] for other in others)
    counts = count_stale(rows, NEW)
    assert counts["stale"] == len(stale) == sum(counts["makers"].values()) and counts["rows"] == len(rows)


@given(some_rows, st.integers(1, 4))
def test_slices_take_what_one_plan_takes_in_the_same_order(rows: list[MadeRow], budget: int):
    whole, slices, rest = choose(rows, Wish((), None, NEW), "caption").units, [], rows
    while units := choose(rest, Wish((), budget, NEW), "caption").units:
        slices += units
        rest = [row for row in rest if row.key not in units]
    assert tuple(slices) == whole


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", {"a", "b", "c"}),
        ("made_before=2026-02-01", {"a"}),
        ("made_after=2026-01-31", {"b", "c"}),
        ("made_after=2026-01-31, model=llava", {"b"}),
        ("batch=2026.02.02.1", {"c"}),
        ("prompt=abc", {"a", "c"}),
        ("model=x' OR '1'='1", set()),
    ],
)
def test_conditions_all_hold(where: str, expected: set[str]):
    rows = [
        MadeRow("a", "2026.01.05", {"captioner": "blip", "prompt_sha256": "abcd"}),
        MadeRow("b", "2026.02.02", {"captioner": "llava", "prompt_sha256": "ffff"}),
        MadeRow("c", "2026.02.02.1", {"captioner": None, "prompt_sha256": "abce"}),
    ]
    maker = {"captioner": "qwen", "prompt_sha256": "0"}
    assert set(choose(rows, Wish(parse_where(where, "caption"), None, maker), "caption").units) == expected


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("captionr=llava", "unknown condition 'captionr'"),
        ("writer=x", "unknown condition 'writer'"),
        ("made_before=soon", "is no date"),
        ("made_before=2026-13-01", "is no date"),
        ("batch=latest", "is no batch"),
        ("1=1; drop table", "unknown condition"),
        ("model", "is no condition"),
        ("model=a,model=b", "given twice"),
    ],
)
def test_a_condition_that_is_not_understood_is_refused_by_name(where: str, named: str):
    with pytest.raises(ValueError, match=named):
        RenewConfig.of(judge=RenewRows(where=where))


def test_renewing_everything_gives_what_the_new_models_would_have_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params
):
    fresh = make_weeks(monkeypatch, tmp_path / "fresh", params, texts="new", judging="old")
    once = make_weeks(monkeypatch, tmp_path / "once", params)
    published = {triplet["triplet_id"] for triplet in once.read_table("triplets").to_pylist()}
    models(monkeypatch, texts="new")
    renew(once, params, caption={})
    assert content(once, *TEXTS, *VERDICTS) == content(fresh, *TEXTS, *VERDICTS)
    [lost] = [row for row in once.read_dropped("caption").to_pylist() if row["reason"] == "empty_reply"]
    assert (lost["key"], lost["batch"]) == ("p3", NOW)
    renewed = {row["key"] for row in once.read_dropped("judge").to_pylist() if row["reason"] == "renewed"}
    assert renewed == published  # each old id is accounted for

    slices = make_weeks(monkeypatch, tmp_path / "slices", params)
    models(monkeypatch, texts="new")
    for week, left in (("2026.01.19", 3), ("2026.01.26", 1), ("2026.02.02", 0)):
        renew(slices, params, week, caption={"budget": 2})
        assert len({r["pair_id"] for r in slices.read_table("captioned", batch=week).to_pylist()}) <= 2
        assert stale_of(slices, "caption")["stale"] == left
    assert content(slices, *TEXTS, *VERDICTS) == content(fresh, *TEXTS, *VERDICTS)


def test_a_row_bears_the_batch_of_the_run_that_made_it_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params
):
    """The law of `batch`, which the laws of content leave out: the oldest first goes by it."""
    store = make_weeks(monkeypatch, tmp_path, params)
    expected = {pair_id: {BATCH if pair_id in ("p0", "p1", "p2") else SECOND} for pair_id in batches(store)}
    assert batches(store) == expected and len(expected) == 5
    models(monkeypatch, texts="new")
    for week in (NOW, "2026.01.26", "2026.02.02"):
        renew(store, params, week, caption={"budget": 2})
        plan = read_plan(store, "caption")
        assert plan is not None and {plan.batches[unit] for unit in plan.units} <= {BATCH, SECOND}
        expected |= {unit: {week} for unit in plan.units}
        assert batches(store) == expected
    assert {batch for made in expected.values() for batch in made} == {NOW, "2026.01.26", "2026.02.02"}


def test_reversed_pairs_are_renewed_with_their_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params):
    both = with_caption(params, reverse=True)
    fresh = make_weeks(monkeypatch, tmp_path / "fresh", both, texts="new")
    once = make_weeks(monkeypatch, tmp_path / "once", both)
    models(monkeypatch, texts="new")
    renew(once, both, caption={})
    assert content(once, *TEXTS, *VERDICTS) == content(fresh, *TEXTS, *VERDICTS)
    assert len(content(once, "captioned")["captioned"]) > 5


def test_another_judge_decides_anew_about_the_same_texts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params
):
    fresh = make_weeks(monkeypatch, tmp_path / "fresh", params, judging="strict")
    for name, parts in (("whole", 1), ("parts", 3)):
        store = make_weeks(monkeypatch, tmp_path / name, params)
        texts = table_bytes(store)
        models(monkeypatch, judging="strict")
        renew(store, params, parts=parts, judge={"where": "made_before=2026-01-10"})
        assert {t["judge_revision"] for t in store.read_table("triplets", batch=NOW).to_pylist()} == {"strict"}
        assert {t["judge_revision"] for t in store.read_table("triplets", batch=SECOND).to_pylist()} == {"old"}
        assert stale_of(store, "judge") == {
            "rows": 5, "stale": 2, "oldest": SECOND, "makers": {"fake / old / " + _prompt(store): 2},
        }  # fmt: skip
        renew(store, params, "2026.01.26", parts=parts, judge={})
        assert content(store, *TEXTS, *VERDICTS) == content(fresh, *TEXTS, *VERDICTS)
        captioned = {path: data for path, data in texts.items() if "/captioned/" in path}
        assert captioned.items() <= table_bytes(store).items()
        assert [r["key"] for r in store.read_dropped("judge").to_pylist() if r["reason"] == "wrong_target"] == ["p4"]


def stale_of(store: Store, stage: str) -> dict[str, Any]:
    """What is stale by the models that the last run loaded."""
    maker, batches = noted_maker(store, stage), batches_of(store, stage)
    assert maker is not None
    by_row = count_stale((row for batch in batches for row in made_rows(store, stage, batch)), maker)
    grouped = count_stale((row for batch in batches for row in made_groups(store, stage, batch)), maker)
    assert grouped == by_row
    return grouped


def _prompt(store: Store) -> str:
    return str(store.read_table("triplets", ["judge_prompt_sha256"]).column(0)[0].as_py())[:12]


@pytest.mark.parametrize("killed_in", ["captioned", "triplets", "dropped"])
def test_a_killed_renewal_ends_as_an_undisturbed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params, killed_in: str
):
    undisturbed = make_weeks(monkeypatch, tmp_path / "undisturbed", params)
    store = make_weeks(monkeypatch, tmp_path / "killed", params)
    models(monkeypatch, texts="new", judging="strict")
    renew(undisturbed, params, caption={}, judge={})
    remove, count = tasks.renewal.supersede._remove, 0

    def remove_once(s: Store, path: Path, schema: str, *rest: object) -> int:
        nonlocal count
        if schema == killed_in and (count := count + 1) == 2:
            raise KeyboardInterrupt
        return remove(s, path, schema, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks.renewal.supersede, "_remove", remove_once)
    with pytest.raises(KeyboardInterrupt):
        renew(store, params, caption={}, judge={})
    config = RenewConfig.of(caption=RenewRows(), judge=RenewRows())
    again = with_batch(params, NOW).model_copy(update={"renew": config})
    run_caption(again, store)
    run_judge(again, store)
    assert table_bytes(store) == table_bytes(undisturbed)


def test_a_token_budget_that_ends_early_leaves_old_rows_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params
):
    store = make_weeks(monkeypatch, tmp_path, params)
    models(monkeypatch, texts="new")
    tight = params.model_copy(update={"caption": params.caption.model_copy(update={"budget_tokens": 1})})
    renew(store, tight, caption={})
    revisions = {row["pair_id"]: row["captioner_revision"] for row in store.read_table("captioned").to_pylist()}
    assert revisions == {"p0": "new", "p1": "new", "p2": "old", "p3": "old", "p4": "old"}
    assert len(store.read_table("triplets").to_pylist()) == 5


@pytest.mark.parametrize("stage", ["caption", "judge"])
def test_makers_that_reject_most_of_what_was_accepted_take_nothing_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params, stage: str
):
    store = make_weeks(monkeypatch, tmp_path, params)
    before = content(store, "captioned", "triplets")
    use_models(monkeypatch, FakeLlm(lambda _: ""), judge=FakeLlm(yes=lambda _: 0.0))  # of another revision, too
    with pytest.raises(DataError, match=rf"renew\.{stage}\.lost_share_max: the makers of now reject 5 of 5 rows"):
        renew(store, params, **{stage: {}})
    assert content(store, "captioned", "triplets") == before
    renew(store, params, "2026.01.26", **{stage: {"lost_share_max": 1}})
    assert content(store, "triplets")["triplets"] == []


def test_what_people_decided_is_not_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params):
    store = make_weeks(monkeypatch, tmp_path, params)
    text = "old paint it, imperative"
    wrong = Verdict("blue", "red", text, 0, 2)
    mended = Verdict("red", "blue", text, 2, 0, text="make it deep blue")
    write_verdicts(store.root, [wrong, mended])
    models(monkeypatch, texts="new", judging="strict")
    renew(store, params, caption={}, judge={})
    triplets = {row["pair_id"]: row for row in store.read_table("triplets").to_pylist()}
    assert "p2" not in triplets and "make it deep blue" in triplets["p0"]["instructions"]
    assert triplets["p0"]["batch"] == BATCH and triplets["p1"]["batch"] == NOW


def test_a_pair_stays_whose_reversed_triplet_people_mended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params
):
    both = with_caption(params, reverse=True)
    store = make_weeks(monkeypatch, tmp_path, both, judging="all")
    [back] = [t for t in store.read_table("triplets").to_pylist() if t["query_image_id"] == "white"
              and t["target_image_id"] == "green"]  # fmt: skip
    text = next(text for text in back["instructions"] if "imperative" in text)
    write_verdicts(store.root, [Verdict("white", "green", text, 2, 0, text="make it green again")])
    models(monkeypatch, texts="new", judging="all")
    renew(store, both, caption={})
    texts = {t["pair_id"]: t["instructions"] for t in store.read_table("triplets").to_pylist()}
    assert "make it green again" in texts[back["pair_id"]]
    assert {r["captioner_revision"] for r in store.read_table("captioned", batch=SECOND).to_pylist()
            if r["pair_id"] in ("p3", back["pair_id"])} == {"old"}  # fmt: skip


@pytest.mark.parametrize("stages", [["caption"], ["judge"], ["caption", "judge"]])
@pytest.mark.parametrize("budget", [None, 2])
def test_a_dry_run_says_what_the_run_then_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params, stages: list[str], budget: int | None
):
    """Reversed pairs go with their pairs, and what people decided stays: both counted once too often before."""
    both = with_caption(params, reverse=True)
    store = make_weeks(monkeypatch, tmp_path, both, judging="all")
    write_verdicts(store.root, [Verdict("red", "blue", "old paint it, imperative", 0, 2)])
    config = RenewConfig.of(**{stage: RenewRows(budget=budget) for stage in stages})
    said = forecast(with_batch(both, NOW).model_copy(update={"renew": config}), store)
    models(monkeypatch, texts="new", judging="strict")
    renew(store, both, **{stage: {"budget": budget, "lost_share_max": 1} for stage in stages})
    plans = [read_plan(store, stage) or Plan(stage) for stage in stages]
    expected = [f"{p.stage}: {len(p.units) + p.left} stale rows, {len(p.units)} would be renewed" for p in plans]
    assert [note.partition(", the oldest")[0] for note in said] == expected
    assert len(plans[0].units) == (2 if budget else {"caption": 4, "judge": 7}[stages[0]])


def test_without_renewal_no_row_is_touched_and_no_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: Params
):
    store = make_weeks(monkeypatch, tmp_path, params)
    before = table_bytes(store)
    models(monkeypatch, texts="new", judging="strict")
    renew(store, params)
    assert before.items() <= table_bytes(store).items()
    takedown = params.model_copy(update={"open_run": params.open_run.model_copy(update={"takedown": ("00" * 32,)})})
    renew(store, takedown, "2026.01.26", caption={}, judge={})  # it asks no model
    assert before.items() <= table_bytes(store).items() and not list(store.folder(".run", "makers").glob("*"))


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["made_before=2026-01-01", "batch=2026.01.05", "model=a", "prompt=ff"]), unique=True))
def test_conditions_are_read_as_they_are_written(parts: list[str]):
    assert [f"{c.name}={c.value}" for c in parse_where(" , ".join(parts), "judge")] == parts
