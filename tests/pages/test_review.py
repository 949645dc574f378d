"""The review page: what was accepted and what was rejected, each with its reason."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tasks.pages.review import Text, build, draw_by_reason, dropped_texts
from tasks.store import Store
from tasks.store.shards import shard_path
from tests.support.markup import assert_harmless


def test_rejected_rows_are_shown_over_all_reasons_in_turn():
    rows = [{"key": f"p{n}", "reason": "wrong_target" if n else "refused"} for n in range(20)]
    drawn = draw_by_reason(rows, 4, "x")
    assert sorted(r["reason"] for r in drawn) == ["refused", "wrong_target", "wrong_target", "wrong_target"]
    assert draw_by_reason(list(reversed(rows)), 4, "x") == drawn


def test_a_text_stands_on_its_card_with_what_was_said_of_it():
    fits = {"instruction": "make it red", "style": "short", "reason": "query_fits", "p_yes": 0.9}
    wrong = {"instruction": "make it blue", "style": "keep", "reason": "wrong_instruction", "p_yes": 0.2}
    assert dropped_texts("query_fits", fits) == [
        Text("make it red", "short: the query itself meets it (0.90)", None, False)
    ]
    assert dropped_texts("wrong_target", {"instructions": [wrong]}) == [
        Text("make it blue", "keep: does not lead to the target", 0.2, False)
    ]
    assert dropped_texts(
        "refused", {"problems": {"short": "refused"}, "replies": {"short": "I cannot"}, "kept": {"keep": "stays"}}
    ) == [
        Text("I cannot", "short: refused", None, False),
        Text("stays", "keep: could be used"),
    ]


@pytest.fixture
def judged(tmp_path: Path) -> Store:
    """Forty pairs of plain images: four of five became triplets, the rest were left out by caption or judge, and
    negatives went.
    """
    store, batch, content, images = Store(tmp_path), "2026.01.04", b"", []
    for n in range(3):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (80 * n, 0, 0)).save(file, "PNG")
        images.append(
            {
                "image_id": f"i{n}",
                "batch": batch,
                "shard": f"{batch}-00000.tar",
                "offset_bytes": len(content),
                "size_bytes": file.tell(),
            }
        )
        content += file.getvalue()
    store.write_bytes(shard_path(store.root, f"{batch}-00000.tar"), content)
    store.write(store.table_path("images", batch), images, "images")
    ends = {"query_image_id": "i0", "target_image_id": "i1", "batch": batch}
    ids = [f"p{n:02d}" for n in range(40)]
    store.write(
        store.table_path("pairs", batch),
        [{"pair_id": i, **ends, "negative_image_ids": ["i0", "i2"]} for i in ids],
        "pairs",
    )
    texts = {"instructions": ["make it <b>red</b>"], "styles": ["short"], "description": "one & another"}
    store.write(
        store.table_path("captioned", batch, 0), [{"pair_id": i, "batch": batch, **texts} for i in ids], "captioned"
    )
    kept = [i for n, i in enumerate(ids) if n % 5]
    scores = {"negative_image_ids": ["i0"], "judge_target": [0.9], "judge_negative": [0.1]}
    rows = [
        {"triplet_id": f"t{i}", "pair_id": i, **ends, **texts, **scores, "found_by": ["image", "composed"]}
        for i in kept
    ]
    store.write(store.table_path("triplets", batch, 0), rows, "triplets")
    lost = {
        "caption": [
            (
                "p00",
                "empty_reply",
                {"problems": {"description": "empty_reply"}, "replies": {"description": ""}, "kept": {}},
            )
        ],
        "judge": [
            (
                "p05",
                "wrong_target",
                {
                    "instructions": [
                        {"instruction": "make it red", "style": "short", "reason": "wrong_instruction", "p_yes": 0.2}
                    ]
                },
            ),
            ("p10", "shortcut", {"found_by": ["text"], "texts": ["a red one"]}),
            ("p15", "duplicate", {"query": "i0", "target": "i1"}),
            ("p01:i2", "false_negative", {"image_id": "i2", "p_yes": 0.8}),
        ],
    }
    for stage, dropped in lost.items():
        table = [
            {"stage": stage, "batch": batch, "key": key, "reason": reason, "detail": json.dumps(detail)}
            for key, reason, detail in dropped
        ]
        store.write(store.dropped_path(stage, batch, 0), table, "dropped")
    return store


def test_the_page_shows_thirty_of_either_kind_each_with_its_reason(judged: Store):
    page = build(judged)
    good, bad, taken = (part.count("<article") for part in re.split("<h2", page)[1:])
    assert (good, bad, taken) == (30, 4, 1)
    assert (
        "Accepted: 30 of 32" in page
        and "Rejected: 4 of 4" in page
        and "A shortcut: the image alone would find it first." in page
    )
    for reason in (
        "caption: empty reply",
        "judge: wrong target",
        "judge: shortcut",
        "judge: duplicate",
        "judge: false negative",
    ):
        assert reason in page
    assert (
        "leads to the negative (0.80) as well as to the target" in page
        and "make it &lt;b&gt;red&lt;/b&gt;" in page
        and "<b>red" not in page
        and "<script" not in page
    )
    assert_harmless(page)
    assert build(judged) == page


def test_the_page_says_what_the_judge_asked_for_where_the_parameters_are_there(judged: Store):
    assert "A text must reach" not in build(judged, 2)
    (judged.root / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    assert "A text must reach 0.8571 for the target." in build(judged, 9)


def test_a_version_without_triplets_has_a_page_that_says_so(tmp_path: Path):
    assert build(Store(tmp_path)).count("None in this version.") == 3
