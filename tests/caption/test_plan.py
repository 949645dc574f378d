"""The plan: what a run will ask of the models, estimated before anything is paid."""

from pathlib import Path

import pytest

from tasks.caption import plan
from tasks.caption.plan import PairCost, demonstration_chars, estimate_time, measured_cost
from tasks.config import load_params
from tasks.errors import ConfigError
from tasks.prompts.prompt_set import read_prompt_set
from tasks.store import Store

ESTIMATED = PairCost(6, 1000, 30, 500, False)


def test_a_measurement_of_earlier_versions_replaces_the_estimate(tmp_path: Path):
    params = load_params("params.yaml")
    columns = {"requests": [6, 8, None], "prompt_tokens": [300, 500, 10], "output_tokens": [100, 100, 10]}
    judged = {"requests": 100, "cached": 50, "prompt_tokens": 5000, "pairs": 10}
    assert measured_cost(columns, judged, ESTIMATED) == PairCost(7, 500, 10, 100, True)
    unknown = {"requests": [None], "prompt_tokens": [1], "output_tokens": [1]}
    assert measured_cost(unknown, judged, ESTIMATED) == ESTIMATED
    report = plan.run(params, Store(tmp_path), 1000)
    assert report.read == 1000 and report.figures["requests"] == 1000 * (6 + 5 * 7) and report.figures["hours"] == 0
    assert not list(tmp_path.iterdir())


def test_a_time_is_only_given_where_a_speed_was_measured():
    stage = {"prompt_tokens": 900, "output_tokens": 100, "cpu_s": 10.0, "gpu_s": 0.0}
    assert estimate_time({}, None, 1e6) == (0.0, "GPU")
    assert estimate_time({"caption": stage}, None, 5000) == (50.0, "CPU")
    assert estimate_time({"caption": {**stage, "gpu_s": 2.0}}, None, 5000) == (10.0, "GPU")
    assert estimate_time({"caption": stage}, 100.0, 5000) == (50.0, "GPU")


def test_the_plan_says_where_the_budget_ends(tmp_path: Path):
    params = load_params("params.yaml")
    small = params.model_copy(update={"caption": params.caption.model_copy(update={"budget_tokens": 5000})})
    assert "will stop it after about" in plan.run(small, Store(tmp_path), 1000).notes[-1]
    unlimited = params.model_copy(update={"select": params.select.model_copy(update={"pairs_per_batch": None})})
    with pytest.raises(ConfigError, match="say how many"):
        plan.run(unlimited, Store(tmp_path))


def test_reversed_pairs_are_planned_and_finished_pairs_are_not(tmp_path: Path):
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
    structured = params.model_copy(
        update={"caption": params.caption.model_copy(update={"reverse": True, "prompts": "standard"})}
    )
    # a structured description is reversed, not requested again
    assert plan.run(structured, store).figures["requests"] == both.figures["requests"] - 7


def test_demonstrations_cost_tokens_where_requests_show_them(tmp_path: Path):
    standard, plain = (demonstration_chars(read_prompt_set(name)) for name in ("standard", "plain"))
    assert 200 < standard < 800 and plain == 0
    params = load_params("params.yaml", "production")
    fewer = params.model_copy(update={"caption": params.caption.model_copy(update={"demonstrations": 0})})
    more, less = (plan.run(p, Store(tmp_path), 100).figures["tokens"] for p in (params, fewer))
    assert more - less == pytest.approx(100 * len(params.caption.styles) * 5 * standard / 4)
