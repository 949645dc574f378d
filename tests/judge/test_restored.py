"""What people judge right wins over the judge's rejection: the pair is a triplet of the next version, and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

import tasks.judge.stage
from tasks.caption.stage import run as run_caption
from tasks.config import Params
from tasks.errors import TransientError
from tasks.judge.stage import run
from tasks.models.llm.requests import Refusal
from tasks.pages.week_figures import week_figures
from tasks.records import StageReport
from tasks.reviews.verdicts import Verdict, write_verdicts
from tasks.store import Store
from tasks.validate.rows import Context, triplet_rows
from tests.support.colour_pairs import BATCH, by_colours, table_bytes, use_models, with_batch, write_colour_store

NEXT, LATER = "2026.01.12", "2026.01.19"
TEXTS = ["paint it, imperative", "paint it, question", "paint it, short"]
ENDS = ("green", "white")  # of the pair p3, whose negatives are green itself, red and blue


def judge_yes(query: str, candidate: str, text: str) -> float | Refusal:
    """Rejects all targets; of p3's negatives red meets every text, and so does the query image."""
    if (query, candidate) in (("green", "red"), ("green", "green")):
        return 0.9
    return 0.8 if (query, candidate) == ENDS and "question" in text else 0.2


def write_rejected(store: Store, params: Params) -> Store:
    """A week whose pairs are captioned; the judge accepted none of them."""
    run_caption(params, store)
    same = {"stage": "judge", "batch": BATCH, "reason": "wrong_target", "detail": "{}"}
    lost = [{**same, "key": key} for key in ("p3", "p4")]
    store.write(store.dropped_path("judge", BATCH, 0), lost, "dropped")
    store.write(store.table_path("triplets", BATCH, 0), [], "triplets")
    return store


@pytest.fixture
def rejected(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params) -> Store:
    use_models(monkeypatch, judge=by_colours(judge_yes))
    return write_rejected(store, params)


def follow(store: Store, params: Params, *verdicts: Verdict, **more: Any) -> StageReport:
    write_verdicts(store.root, verdicts)
    return run(with_batch(params, more.pop("batch", NEXT)), store, **more)


def right(said: str = TEXTS[0], **more: Any) -> Verdict:
    return Verdict(*ENDS, said, **{"right": 2, "wrong": 1, "row_ids": ("p3",), **more})


def test_it_becomes_a_triplet_with_its_text_and_its_judged_negatives(rejected: Store, params: Params):
    report = follow(rejected, params, right())
    [row] = rejected.read(rejected.reviewed_path(NEXT), "triplets").to_pylist()
    assert (row["pair_id"], row["batch"], row["query_image_id"], row["target_image_id"]) == ("p3", NEXT, *ENDS)
    # the text that people judged right stays though the query image meets it; the one that the judge passes does not
    assert row["instructions"] == [TEXTS[0]] and row["judge_target"] == pytest.approx([0.2])
    assert row["negative_image_ids"] == ["green", "blue"] and row["judge_negative"] == pytest.approx([0.9, 0.2])
    assert row["found_by"] is None and row["query_license"] == ""
    assert "accepted because people judged them right: 1 pairs" in " ".join(report.notes)
    assert report.figures["reviewed_right"] == 1
    # it is no longer among what was left out; the other rejected pair is
    assert rejected.read_dropped("judge", BATCH).column("key").to_pylist() == ["p4"]


def test_a_takedown_asks_no_judge_and_leaves_it_to_the_next_run(
    rejected: Store, params: Params, monkeypatch: pytest.MonkeyPatch
):
    """A judge that cannot be reached must not keep an image published."""

    def unreachable(*_: object) -> None:
        raise TransientError("no answer")

    open_run = params.open_run.model_copy(update={"takedown": ("source:shop",)})
    with monkeypatch.context() as patch:
        patch.setattr(tasks.judge.stage, "load_judge", unreachable)
        report = follow(rejected, params.model_copy(update={"open_run": open_run}), right())
    assert not rejected.reviewed_path(NEXT).exists() and "judged" not in " ".join(report.notes)
    assert "p3" in rejected.read_dropped("judge", BATCH).column("key").to_pylist()
    follow(rejected, params, right(), batch=LATER)
    assert rejected.read_table("triplets", batch=LATER).num_rows == 1


def test_the_judges_thresholds_do_not_bind_it_and_the_figures_about_models_leave_it_out(
    rejected: Store, params: Params
):
    follow(rejected, params, right())
    rows = rejected.read_table("triplets", batch=NEXT).to_pylist()
    [checked] = triplet_rows(rows, Context(reviewed_ids=frozenset({rows[0]["triplet_id"]})))
    assert checked["is_reviewed"] and checked["instructions_count"] is None
    assert checked["lowest_judge_target"] != checked["lowest_judge_target"]  # NaN: no expectation complains about it
    assert week_figures(rejected, NEXT)["triplets"] == 0


def test_a_text_that_people_wrote_is_the_one_that_counts(rejected: Store, params: Params):
    follow(rejected, params, right(wrong=3, text="make it white", fits=("blue",)))
    [row] = rejected.read(rejected.reviewed_path(NEXT), "triplets").to_pylist()
    assert row["instructions"] == ["make it white"] and row["negative_image_ids"] == ["green"]
    [note] = rejected.read_dropped("judge", NEXT).to_pylist()
    assert (note["reason"], note["key"]) == ("reviewed_negative", f"{row['triplet_id']}:blue")


@pytest.mark.parametrize(
    "verdicts",
    [
        (right(wrong=2),),  # a tie
        (right(), right(TEXTS[1], right=0)),  # another text of the pair is wrong
        (Verdict("red", "yellow", TEXTS[0], 1, 0, row_ids=("p9",)),),  # no such pair
    ],
)
def test_what_people_do_not_agree_on_stays_out(rejected: Store, params: Params, verdicts: tuple[Verdict, ...]):
    before = table_bytes(rejected)
    follow(rejected, params, *verdicts)
    assert not rejected.reviewed_path(NEXT).exists()
    assert {path: content for path, content in table_bytes(rejected).items() if path in before} == before


def test_what_the_judge_cannot_be_asked_about_stays_out_and_is_counted(
    rejected: Store, params: Params, monkeypatch: pytest.MonkeyPatch
):
    refusal = Refusal("request_refused", "too long")
    use_models(monkeypatch, judge=by_colours(lambda query, candidate, text: refusal))
    report = follow(rejected, params, right())
    assert rejected.read(rejected.reviewed_path(NEXT), "triplets").num_rows == 0
    assert "judged right by people, but still left out" in " ".join(report.notes)
    assert rejected.read_dropped("judge", BATCH).column("key").to_pylist() == ["p3", "p4"]


def test_a_triplet_that_people_withdrew_comes_back_when_more_judge_it_right(rejected: Store, params: Params):
    follow(rejected, params, right())
    follow(rejected, params, right(wrong=3), batch=LATER)
    assert rejected.read_table("triplets").num_rows == 0
    [gone] = rejected.read_dropped("judge", LATER).to_pylist()
    assert gone["reason"] == "reviewed_wrong" and json.loads(gone["detail"])["query"] == "green"
    follow(rejected, params, right(right=4, wrong=3), batch="2026.01.26")
    [row] = rejected.read_table("triplets").to_pylist()
    assert (row["pair_id"], row["batch"]) == ("p3", "2026.01.26")
    assert rejected.read_dropped("judge", LATER).num_rows == 0


def test_parts_a_second_call_and_a_kill_give_the_same_bytes(
    rejected: Store, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = write_rejected(write_colour_store(tmp_path / "other"), params)
    follow(rejected, params, right())
    whole = table_bytes(rejected)
    assert follow(rejected, params, right()).figures["reviewed_right"] == 1 and table_bytes(rejected) == whole

    write = other.write

    def stop_before_the_marker(path: Path, rows: Any, schema: str) -> int:
        if path == other.reviewed_path(NEXT):
            raise KeyboardInterrupt
        return write(path, rows, schema)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(other, "write", stop_before_the_marker)
        follow(other, params, right(), part=(1, 2))
    for part in ((2, 2), (1, 2)):
        follow(other, params, right(), part=part)
    assert table_bytes(other) == whole
