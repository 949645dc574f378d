"""What a run will ask is said before it is paid; what was decided is shown with its reason."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tasks.caption import plan
from tasks.caption.plan import PairCost, measured, time_of
from tasks.config import load_params
from tasks.errors import ConfigError
from tasks.pages.verdicts import Text, build, spread, texts_of
from tasks.store import Store

RECKONED = PairCost(6, 1000, 30, 500, False)


def test_earlier_versions_are_believed_before_the_prompts(tmp_path: Path):
    params = load_params("params.yaml")
    columns = {"requests": [6, 8, None], "prompt_tokens": [300, 500, 10], "output_tokens": [100, 100, 10]}
    judged = {"requests": 100, "cached": 50, "prompt_tokens": 5000, "pairs": 10}
    assert measured(columns, params, judged, RECKONED) == PairCost(7, 500, 10, 100, True)
    assert (
        measured({"requests": [None], "prompt_tokens": [1], "output_tokens": [1]}, params, judged, RECKONED) == RECKONED
    )
    report = plan.run(params, Store(tmp_path), 1000)
    assert report.read == 1000 and report.figures["requests"] == 1000 * (6 + 5 * 7) and report.figures["hours"] == 0
    assert not list(tmp_path.iterdir())


def test_a_time_is_only_given_where_a_speed_was_measured():
    stage = {"prompt_tokens": 900, "output_tokens": 100, "cpu_s": 10.0, "gpu_s": 0.0}
    assert time_of({}, None, 1e6) == (0.0, "GPU")
    assert time_of({"caption": stage}, None, 5000) == (50.0, "CPU")
    assert time_of({"caption": {**stage, "gpu_s": 2.0}}, None, 5000) == (10.0, "GPU")
    assert time_of({"caption": stage}, 100.0, 5000) == (50.0, "GPU")


def test_a_budget_is_held_against_the_plan(tmp_path: Path):
    params = load_params("params.yaml")
    small = params.model_copy(update={"caption": params.caption.model_copy(update={"budget_tokens": 5000})})
    assert "will stop it after about" in plan.run(small, Store(tmp_path), 1000).notes[-1]
    boundless = params.model_copy(update={"select": params.select.model_copy(update={"pairs_per_batch": None})})
    with pytest.raises(ConfigError, match="say how many"):
        plan.run(boundless, Store(tmp_path))


def test_the_other_direction_is_planned_for_and_what_is_done_is_not(tmp_path: Path):
    params, store, batch = load_params("params.yaml"), Store(tmp_path), "2026.01.04"
    params = params.model_copy(update={"open_run": params.open_run.model_copy(update={"batch": batch})})
    store.write(store.table_path("pairs", batch), [{"pair_id": f"p{n}", "batch": batch} for n in range(10)], "pairs")
    store.write(
        store.table_path("captioned", batch, 0),
        [{"pair_id": p, "batch": batch} for p in ("p0", "p1", "the other direction of p1")],
        "captioned",
    )
    store.write(
        store.dropped_path("caption", batch, 0),
        [{"stage": "caption", "batch": batch, "key": "p2", "reason": "refused"}],
        "dropped",
    )
    one = plan.run(params, store)
    both = plan.run(params.model_copy(update={"caption": params.caption.model_copy(update={"reverse": True})}), store)
    assert one.read == both.read == 7
    assert both.figures["requests"] == pytest.approx(2 * one.figures["requests"]) and both.figures[
        "tokens"
    ] == pytest.approx(2 * one.figures["tokens"])
    formal = params.model_copy(
        update={"caption": params.caption.model_copy(update={"reverse": True, "prompts": "standard"})}
    )
    # a form is turned round, not asked for again
    assert plan.run(formal, store).figures["requests"] == both.figures["requests"] - 7


def test_demonstrations_are_paid_for_where_they_are_shown(tmp_path: Path):
    standard, plain = (Path("tasks/prompts") / name for name in ("standard", "plain"))
    assert 200 < plan.demonstration_chars(standard) < 800 and plan.demonstration_chars(plain) == 0
    params = load_params("params.yaml", "production")
    fewer = params.model_copy(update={"caption": params.caption.model_copy(update={"demonstrations": 0})})
    more, less = (plan.run(p, Store(tmp_path), 100).figures["tokens"] for p in (params, fewer))
    assert more - less == pytest.approx(100 * len(params.caption.styles) * 5 * plan.demonstration_chars(standard) / 4)


def test_rejected_rows_are_shown_over_all_reasons_in_turn():
    rows = [{"key": f"p{n}", "reason": "wrong_target" if n else "refused"} for n in range(20)]
    shown = spread(rows, 4, "x")
    assert sorted(r["reason"] for r in shown) == ["refused", "wrong_target", "wrong_target", "wrong_target"]
    assert spread(list(reversed(rows)), 4, "x") == shown


def test_a_text_stands_on_its_card_with_what_was_said_of_it():
    fits = {"instruction": "make it red", "style": "short", "reason": "query_fits", "p_yes": 0.9}
    wrong = {"instruction": "make it blue", "style": "keep", "reason": "wrong_instruction", "p_yes": 0.2}
    assert texts_of("query_fits", fits) == [Text("make it red", "short: the query itself meets it (0.90)", None, False)]
    assert texts_of("wrong_target", {"instructions": [wrong]}) == [
        Text("make it blue", "keep: does not lead to the target", 0.2, False)
    ]
    assert texts_of(
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
    store.write_bytes(store.folder("data", "images", f"{batch}-00000.tar"), content)
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
        and "A shortcut: the picture alone would find it first." in page
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
        "negative, 0.80" in page
        and "make it &lt;b&gt;red&lt;/b&gt;" in page
        and "<b>red" not in page
        and "<script" not in page
    )
    assert build(judged) == page


def test_the_page_says_what_the_judge_asked_for_where_the_parameters_are_there(judged: Store):
    assert "A text must reach" not in build(judged, 2)
    (judged.root / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    assert "A text must reach 0.885 for the target." in build(judged, 9)


def test_a_version_without_triplets_has_a_page_that_says_so(tmp_path: Path):
    assert build(Store(tmp_path)).count("None in this version.") == 3
