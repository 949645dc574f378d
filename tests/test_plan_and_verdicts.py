"""What a run will ask is said before it is paid; what was decided is shown with its reason."""

from pathlib import Path

import pytest

from tasks import plan
from tasks.config import load_params
from tasks.errors import ConfigError
from tasks.plan import PairCost, measured, time_of
from tasks.store import Store
from tasks.verdicts import spread, texts_of

RECKONED = PairCost(6, 1000, 30, 500, False)


def test_earlier_versions_are_believed_before_the_prompts(tmp_path: Path):
    params = load_params("params.yaml")
    columns = {"requests": [6, 8, None], "prompt_tokens": [300, 500, 10], "output_tokens": [100, 100, 10]}
    judged = {"requests": 100, "cached": 50, "prompt_tokens": 5000, "pairs": 10}
    assert measured(columns, params, judged, RECKONED) == PairCost(7, 500, 10, 100, True)
    assert measured({"requests": [None], "prompt_tokens": [1], "output_tokens": [1]}, params, judged, RECKONED) == RECKONED
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


def test_rejected_rows_are_shown_over_all_reasons_in_turn():
    rows = [{"key": f"p{n}", "reason": "wrong_target" if n else "refused"} for n in range(20)]
    shown = spread(rows, 4, "x")
    assert sorted(r["reason"] for r in shown) == ["refused", "wrong_target", "wrong_target", "wrong_target"]
    assert spread(list(reversed(rows)), 4, "x") == shown
    detail = {"instruction": "make it red", "style": "short", "reason": "query_fits", "p_yes": 0.9}
    assert texts_of("query_fits", detail) == [("make it red", "short, P(yes) 0.90")]
    assert texts_of("refused", {"problems": {"short": "refused"}, "replies": {"short": "I cannot"}, "kept": {"keep": "stays"}}) == [
        ("I cannot", "short: refused"),
        ("stays", "stood so far"),
    ]
