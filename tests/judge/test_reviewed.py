"""People overrule the judge: in the week after, what they decided about a triplet is what the table says."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.caption.stage import run as run_caption
from tasks.config import Params
from tasks.judge.reviewed import review_row
from tasks.judge.stage import run
from tasks.names import stable_id
from tasks.records import StageReport
from tasks.reviews.verdicts import Verdict, write_verdicts
from tasks.store import Store
from tests.support.colour_pairs import BATCH, table_bytes, use_models, with_batch, write_colour_store

NEXT = "2026.01.12"


def verdict(query: str, target: str, instruction: str, *, right: int = 0, wrong: int = 0, **more: Any) -> Verdict:
    return Verdict(query, target, instruction, right, wrong, **more)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params) -> Store:
    """A week with the triplets of p0 to p2 and the rejected p3, and the week after, with the images of p0 once more."""
    use_models(monkeypatch)
    _accept(store, params)
    return store


def _accept(store: Store, params: Params) -> None:
    """Triplets as the judge would have written them, without its questions about negatives."""
    texts = {"instructions": ["paint it", "make it dark", "what if"], "styles": ["imperative", "short", "question"]}
    rows = []
    for pair in store.read_table("pairs").to_pylist()[:3]:
        scores = {"judge_target": [0.9, 0.7, 0.8], "judge_negative": [0.1, 0.2, 0.3], "found_by": ["composed"]}
        ids = {name: pair[name] for name in ("pair_id", "batch", "query_image_id", "target_image_id")}
        negatives = {"negative_image_ids": pair["negative_image_ids"]}
        rows.append({**ids, **negatives, **texts, **scores, "triplet_id": stable_id(pair["pair_id"], "first")})
    store.write(store.table_path("triplets", BATCH, 0), rows, "triplets")
    lost = {"stage": "judge", "batch": BATCH, "key": "p3", "reason": "wrong_target", "detail": "{}"}
    store.write(store.dropped_path("judge", BATCH, 0), [lost], "dropped")
    later = {**store.read_table("pairs").to_pylist()[0], "batch": NEXT}  # the images of p0 once more
    store.write(store.table_path("pairs", NEXT), [later], "pairs")
    run_caption(with_batch(params, NEXT), store)


def follow(store: Store, params: Params, *verdicts: Verdict, part: tuple[int, int] | None = None) -> StageReport:
    write_verdicts(store.root, verdicts)
    return run(with_batch(params, NEXT), store, part)


def triplets(store: Store) -> dict[str, dict[str, Any]]:
    return {row["pair_id"]: row for row in store.read_table("triplets", batch=BATCH).to_pylist()}


def test_a_triplet_judged_wrong_goes_and_does_not_come_back(judged: Store, params: Params):
    before = triplets(judged)
    report = follow(judged, params, verdict("red", "blue", "make it dark", wrong=2, right=1))
    assert triplets(judged) == {name: before[name] for name in ("p1", "p2")}
    [row] = judged.read(judged.dropped_path("judge", NEXT), "dropped").to_pylist()
    assert (row["batch"], row["key"], row["reason"]) == (NEXT, before["p0"]["triplet_id"], "reviewed_wrong")
    assert json.loads(row["detail"]) == {
        "query": "red",
        "target": "blue",
        "instruction": "make it dark",
        "right": 1,
        "wrong": 2,
    }
    # the pair of the new week has the same images
    assert report.dropped == {"duplicate": 1, "reviewed_wrong": 1}
    assert "withdrawn because people judged them wrong: 1 triplets" in report.notes


def test_a_text_that_people_wrote_takes_the_place_of_the_one_they_saw(judged: Store, params: Params):
    before = triplets(judged)["p1"]
    report = follow(judged, params, verdict("red", "green", "make it dark", wrong=1, text="paint it green"))
    after = triplets(judged)["p1"]
    assert after["instructions"] == ["paint it", "paint it green", "what if"]
    assert after["triplet_id"] == stable_id("p1", *after["instructions"]) != before["triplet_id"]
    changed = {"triplet_id", "instructions", "found_by"}
    assert {n: v for n, v in after.items() if n not in changed} == {n: before[n] for n in before if n not in changed}
    assert after["found_by"] is None
    [row] = judged.read(judged.dropped_path("judge", NEXT), "dropped").to_pylist()
    assert row["key"] == f"{before['triplet_id']}:{after['triplet_id']}:short"
    assert json.loads(row["detail"])["after"] == "paint it green" and report.dropped["reviewed_text"] == 1


def test_a_negative_that_fits_better_is_taken_out_and_the_query_never(judged: Store, params: Params):
    said = verdict("blue", "red", "paint it", right=2, fits=("blue", "white"))
    before = triplets(judged)["p2"]
    assert before["negative_image_ids"] == ["blue", "green", "white"]
    report = follow(judged, params, said)
    after = triplets(judged)["p2"]
    assert after["negative_image_ids"] == ["blue", "green"]
    assert after["judge_negative"] == pytest.approx([0.1, 0.2]) and after["triplet_id"] == before["triplet_id"]
    assert report.dropped["reviewed_negative"] == 1


def test_parts_a_second_call_and_a_kill_in_between_give_the_same_bytes(
    judged: Store, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = write_colour_store(tmp_path / "other")
    _accept(other, params)
    said = [
        verdict("red", "blue", "paint it", wrong=1),
        verdict("red", "green", "what if", right=1, text="what if it were green?"),
        verdict("blue", "red", "paint it", right=2, fits=("white",)),
    ]
    first = follow(judged, params, *said)
    whole = table_bytes(judged)
    assert follow(judged, params, *said).dropped == first.dropped and table_bytes(judged) == whole

    write, killed = other.write, []

    def write_dropped_alone(path: Path, rows: Any, schema: str) -> int:
        if schema == "triplets":
            killed.append(path)
            raise KeyboardInterrupt
        return write(path, rows, schema)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(other, "write", write_dropped_alone)
        follow(other, params, *said, part=(1, 2))
    assert killed and triplets(other).keys() == {"p0", "p1", "p2"}
    follow(other, params, *said, part=(2, 2))
    follow(other, params, *said, part=(1, 2))
    assert table_bytes(other) == whole


def test_without_answers_no_earlier_file_is_touched(judged: Store, params: Params):
    before = table_bytes(judged)
    report = follow(judged, params)
    after = table_bytes(judged)
    new = {path for path in after if path not in before}
    assert {path: after[path] for path in before} == before and all(f"{NEXT}-00000" in path for path in new)
    assert report.dropped == {"duplicate": 1} and not any("people" in note for note in report.notes)


def test_texts_are_followed_to_the_last_one_and_circles_change_nothing():
    row = {
        "pair_id": "p",
        "triplet_id": "t",
        "query_image_id": "q",
        "target_image_id": "i",
        "instructions": ["a", "x", "c"],
        "styles": ["s1", "s2", "s3"],
        "negative_image_ids": ["q"],
        "judge_negative": [0.1],
    }

    def texts(**mended: str) -> dict[str, Verdict]:
        return {old: verdict("q", "i", old, right=1, text=new) for old, new in mended.items()}

    def after(said: dict[str, Verdict]) -> list[str] | None:
        out, _ = review_row(row, said, NEXT)
        return out and out["instructions"]

    assert after(texts(a="b", b="d")) == ["d", "x", "c"]
    assert after(texts(x="y", y="x")) == ["a", "x", "c"]
    assert after(texts(a="C")) == ["a", "x", "c"]  # the row has this text already
    assert after(texts(a="b") | {"b": verdict("q", "i", "b", wrong=1)}) is None
    assert after({"a": verdict("q", "i", "a", wrong=1, text="C")}) is None
