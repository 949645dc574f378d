"""The plan says what a run will ask of the models before it is paid."""

from pathlib import Path

import pytest

from tasks.caption import plan
from tasks.caption.plan import PairCost, measured, time_of
from tasks.config import load_params
from tasks.errors import ConfigError
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
