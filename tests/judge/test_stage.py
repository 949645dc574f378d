"""The judging stage: what becomes a triplet, what is dropped with which reason, and how it resumes."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.caption.stage import run as run_caption
from tasks.config import Params
from tasks.errors import DataError
from tasks.judge.questions import judge_pairs
from tasks.judge.stage import run
from tasks.models.llm.requests import Refusal
from tasks.names import stable_id
from tasks.store import Store
from tests.support.colour_pairs import (
    BATCH,
    COLOURS,
    by_colours,
    colour_params,
    table_bytes,
    use_models,
    with_batch,
    with_caption,
    with_judge,
    write_colour_store,
)


def test_instructions_that_fit_the_target_alone_are_kept(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    def yes(query: str, candidate: str, text: str) -> float:
        if (query, candidate) == ("red", "blue"):
            return 0.1 if "question" in text else 0.875
        if (query, candidate) == ("red", "white") and "imperative" in text:
            return 0.75  # a mined negative that fits as well
        return 0.25

    judge = by_colours(yes)
    use_models(monkeypatch, judge=judge)
    run_caption(params, store)
    report = run(params, store)
    [triplet] = store.read_table("triplets").to_pylist()
    assert (triplet["query_image_id"], triplet["target_image_id"]) == ("red", "blue")
    assert triplet["instructions"] == ["paint it, imperative", "paint it, short"]
    assert triplet["judge_target"] == [0.875, 0.875]
    assert triplet["negative_image_ids"] == ["red", "green"] and triplet["judge_negative"] == [0.25, 0.25]
    assert report.dropped == {"wrong_target": 4, "wrong_instruction": 1, "false_negative": 1}
    assert report.figures["yield"] == 0.2
    assert report.figures["negatives_mean"] == 1 and report.figures["false_negative_share"] == 0.5
    # negatives only for the two instructions that passed; white meets the first, so the other is not asked
    assert len(judge.requests) == 5 * 3 + 2 * 3 - 1
    detail = {d["reason"]: json.loads(d["detail"]) for d in store.read_dropped("judge").to_pylist()}
    assert detail["false_negative"] == {"image_id": "white", "p_yes": 0.75}
    assert detail["wrong_instruction"]["style"] == "question"


def test_a_pair_with_too_few_right_texts_costs_no_questions_about_negatives(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    judge = by_colours(lambda q, c, text: 0.9 if (q, c) == ("red", "blue") and "short" in text else 0.25)
    use_models(monkeypatch, judge=judge)
    run_caption(params, store)
    report = run(with_judge(params, instructions_min=2), store)
    assert report.dropped == {"wrong_target": 5} and len(judge.requests) == 5 * 3


def test_negatives_that_replace_false_ones_are_counted(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    """One mined negative a triplet is wanted of two candidates; the first, green, fits as well as the target."""
    scores = {"blue": 0.9, "green": 0.895}
    use_models(monkeypatch, judge=by_colours(lambda q, c, _: scores.get(c, 0.25) if q == "red" else 0.0))
    run_caption(params, store)
    report = run(with_judge(params, negative_threshold=1.0, negative_margin=0.01, negatives=1), store)
    row = next(t for t in store.read_table("triplets").to_pylist() if t["target_image_id"] == "blue")
    assert row["negative_image_ids"] == ["red", "white"] and row["judge_negative"] == [0.25, 0.25]
    assert row["judge_target"] == pytest.approx([0.9] * 3)
    assert report.figures["negatives_replaced"] > 0 and report.dropped["false_negative"] >= 1


def test_parts_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    use_models(monkeypatch, judge=by_colours(lambda q, c, _: 0.9 if c == "blue" else 0.25))
    run_caption(params, store)
    run(params, store)
    whole = table_bytes(store)
    for path in store.table_files("triplets"):
        path.unlink()
    run(params, store, (1, 2))
    run(params, store, (2, 2))
    assert table_bytes(store) == whole


def test_a_pair_of_an_earlier_batch_is_a_duplicate(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    use_models(monkeypatch, judge=by_colours(lambda q, c, _: 0.9 if c == "blue" else 0.25))
    run_caption(params, store)
    run(params, store)
    row = store.read_table("pairs").to_pylist()[0]
    store.write(store.table_path("pairs", "2026.01.12"), [{**row, "batch": "2026.01.12"}], "pairs")
    later = with_batch(params, "2026.01.12")
    run_caption(later, store)
    report = run(later, store)
    assert (report.new, report.done, report.reused, report.dropped) == (1, 1, 1, {"duplicate": 1})


def test_a_reversed_pair_becomes_a_triplet_of_its_own(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    both = (("red", "green"), ("green", "red"))
    use_models(monkeypatch, judge=by_colours(lambda q, c, _: 0.9 if (q, c) in both else 0.25))
    params = with_caption(params, reverse=True)
    run_caption(params, store)
    run(params, store)
    back, forward = sorted(store.read_table("triplets").to_pylist(), key=lambda t: t["query_image_id"])
    assert (back["query_image_id"], back["target_image_id"]) == ("green", "red")
    assert back["negative_image_ids"] == ["green", "blue", "white"]
    assert (forward["query_image_id"], forward["target_image_id"]) == ("red", "green")
    assert forward["negative_image_ids"] == ["red", "blue", "white"]
    assert back["pair_id"] == stable_id("green", "red") and back["triplet_id"] != forward["triplet_id"]
    assert back["judge_target"] == pytest.approx([0.9] * 3)


def test_every_short_style_is_partial_whatever_its_number(store: Store, params: Params):
    """White fits the second difference alone: that text is dropped. A whole text that white fits takes white out."""
    ends = {"query_image_id": "red", "target_image_id": "blue", "negative_image_ids": ["red", "white"]}
    rows = [{"instructions": ["a", "b"], "styles": ["keep", style], **ends} for style in ("short 2", "question")]
    images = {colour: store.read_image(colour) for colour in ("red", "blue", "white")}
    judge = by_colours(lambda _, c, text: 0.9 if c == "blue" else 0.8 if (c, text) == ("white", "b") else 0.0)
    partial, whole = judge_pairs(rows, images, judge, "{instruction}", params.judge)
    assert (partial.instructions, partial.negatives, partial.dropped) == ([0], [0, 1], {1: ("partial_fits", 0.8)})
    assert (whole.instructions, whole.negatives) == ([0, 1], [0])


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
    chunk_pairs=st.integers(1, 5),
    at_once=st.integers(1, 5),
    is_reversed=st.booleans(),
)
def test_part_i_needs_part_i_of_caption_alone_and_parts_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    parts: int,
    order: random.Random,
    chunk_pairs: int,
    at_once: int,
    is_reversed: bool,
):
    params = with_judge(colour_params(), chunk_pairs=at_once)
    params = with_caption(params, chunk_pairs=chunk_pairs, reverse=is_reversed)
    with pytest.MonkeyPatch.context() as patch:
        use_models(patch, judge=by_colours(lambda q, c, _: 0.9 if c == "blue" else 0.25))
        whole, parted = (write_colour_store(tmp_path_factory.mktemp("store")) for _ in range(2))
        run_caption(params, whole)
        report = run(params, whole)
        numbers = [(i + 1, parts) for i in range(parts)]
        order.shuffle(numbers)
        reports = []
        for part in numbers:  # each part of judge runs when its part of caption is done, whatever the others do
            run_caption(params, parted, part)
            reports.append(run(params, parted, part))
    assert table_bytes(parted) == table_bytes(whole)
    assert sum(r.done for r in reports) == report.done > 0
    assert {f.name for f in parted.table_files("triplets")} == {f.name for f in parted.table_files("captioned")}


def test_a_query_without_a_vector_leaves_its_own_triplet_unmeasured_and_no_other(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    use_models(
        monkeypatch, judge=by_colours(lambda q, c, _: 0.9 if (q, c) in (("red", "blue"), ("white", "black")) else 0)
    )
    ids = [colour for colour in COLOURS if colour != "white"]
    store.write_embeddings("semantic", f"{BATCH}-00000", "r", ids, np.eye(5, 8, dtype=np.float16))
    encoder = SimpleNamespace(
        model=SimpleNamespace(get_text_features=None),
        encode_texts=lambda texts: np.eye(8, dtype=np.float32)[[0] * len(texts)],
    )
    monkeypatch.setattr("tasks.models.encoders.load.load_encoder", lambda *_: encoder)
    run_caption(params, store)
    run(params, store)
    found = {t["query_image_id"]: t["found_by"] for t in store.read_table("triplets").to_pylist()}
    assert found["white"] is None and isinstance(found["red"], list)


def test_a_refused_question_leaves_out_its_negative_or_its_pair_with_the_words(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    def yes(query: str, candidate: str, text: str) -> float | Refusal:
        if (query, candidate) in (("red", "white"), ("red", "green")):
            return Refusal("request_refused", f"400 {candidate} is too wide")
        if (query, candidate, "question" in text) == ("blue", "red", True):
            return Refusal("bad_image", "too long")
        return 0.9 if (query, candidate) in (("red", "blue"), ("blue", "red")) else 0.25

    use_models(monkeypatch, judge=by_colours(yes))
    run_caption(params, store)
    report = run(params, store)
    rows = {t["pair_id"]: t for t in store.read_table("triplets").to_pylist()}
    assert rows["p0"]["negative_image_ids"] == ["red"] and len(rows["p0"]["instructions"]) == 3
    assert rows["p2"]["styles"] == ["imperative", "short"] and "p1" not in rows
    dropped = {d["key"]: (d["reason"], json.loads(d["detail"])) for d in store.read_dropped("judge").to_pylist()}
    assert dropped["p1"][0] == "request_refused"  # its target is the image that the server refuses
    assert {text["words"] for text in dropped["p1"][1]["instructions"]} == {"400 green is too wide"}
    assert dropped["p0:white"] == ("request_refused", {"image_id": "white", "words": "400 white is too wide"})
    assert dropped["p2:question"][0] == "bad_image" and report.dropped["request_refused"] == 3


def test_many_refused_questions_stop_the_part(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    use_models(monkeypatch, judge=by_colours(lambda *_: Refusal("request_refused", "400 context")))
    run_caption(params, store)
    with pytest.raises(DataError, match=r"judge.refused_share_max: 4 of 4 rows .*400 context"):
        run(params, store)
    assert len(store.table_files("triplets")) == 1  # what was judged before stays
