"""Promoted only when better than the promoted model, beyond the noise, and than half of the query alone."""

import pytest

from tasks.promote.decision import Noise, PromotionRule, decide

RULE = PromotionRule("map_at_5", min_gain=0.005)


def scores(composed: float, image: float = 0.0, text: float = 0.0) -> dict[str, dict[str, float]]:
    return {
        name: {"map_at_5": value}
        for name, value in (("composed", composed), ("image_only", image), ("text_only", text))
    }


@pytest.mark.parametrize(
    ("candidate", "promoted", "is_promoted", "why"),
    [
        (scores(0.30), None, True, "base model"),
        (scores(0.30), scores(0.25), True, "promoted model"),
        (scores(0.30), scores(0.30), False, "more than 0.005"),
        (scores(0.104), None, False, "more than 0.005"),
        (scores(0.30, image=0.31), None, False, "image-only"),
        (scores(0.30, text=0.30), None, False, "text-only"),
        (scores(float("nan")), None, False, "nan"),
    ],
)
def test_the_rule(candidate: dict, promoted: dict | None, is_promoted: bool, why: str):
    decision = decide(candidate, promoted, scores(0.10), RULE)
    assert decision.is_promoted is is_promoted and why in decision.why


def several(**composed: float) -> dict[str, dict[str, float]]:
    return {"composed": composed, "image_only": {"map_at_5": 0.1}, "text_only": {"map_at_5": 0.1}}


NOISE = Noise(3, {"map_at_5": 0.004, "recall_at_10": 0.01, "cirr:recall_at_1": 0.002})  # margins 0.0165, 0.0413, 0.0083


@pytest.mark.parametrize(
    ("candidate", "is_promoted", "why"),
    [
        (several(map_at_5=0.27, recall_at_10=0.5), True, "noise 0.0165"),
        (several(map_at_5=0.26, recall_at_10=0.9), False, "more than 0.0165, the noise of 3 seeds"),
        (several(map_at_5=0.27, recall_at_10=0.46), True, "noise"),  # worse, but within its noise
        (
            several(map_at_5=0.27, recall_at_10=0.45),
            False,
            "its recall_at_10 is 0.4500 against 0.5000, worse by more than 0.0413",
        ),
        # a further benchmark
        (several(**{"map_at_5": 0.30, "cirr:recall_at_1": 0.20}), False, "its cirr:recall_at_1 is 0.2000"),
        (several(map_at_5=0.30, recall_at_1=0.0), True, "noise"),  # its noise was not measured
    ],
)
def test_noise_decides_where_it_was_measured(candidate: dict, is_promoted: bool, why: str):
    promoted = several(**{"map_at_5": 0.25, "recall_at_10": 0.5, "recall_at_1": 0.4, "cirr:recall_at_1": 0.3})
    decision = decide(candidate, promoted, scores(0.1), PromotionRule("map_at_5", 0.005, NOISE))
    assert decision.is_promoted is is_promoted and why in decision.why


def test_without_noise_the_main_metric_alone_decides_by_min_gain():
    better, promoted = several(map_at_5=0.26, recall_at_10=0.1), several(map_at_5=0.25, recall_at_10=0.5)
    assert decide(better, promoted, scores(0.1), RULE).is_promoted
    quiet = PromotionRule("map_at_5", 0.005, Noise(3, {"map_at_5": 0.0001}))
    decision = decide(several(map_at_5=0.254), several(map_at_5=0.25), scores(0.1), quiet)
    assert not decision.is_promoted, "min_gain still holds"


def test_a_contaminated_model_is_refused_whatever_it_scores():
    rule = PromotionRule("map_at_5", 0.005, seen_share_max=0.01)
    decision = decide(scores(0.9), None, scores(0.1), rule, seen_share=0.02)
    assert not decision.is_promoted and decision.why.startswith("contaminated: it was trained on 2.0% of the images")
    assert decide(scores(0.9), None, scores(0.1), rule, seen_share=0.005).is_promoted


def test_more_seeds_give_a_smaller_margin():
    margins = [Noise(n, {"m": 0.01}).margin("m") or 0 for n in range(2, 30)]
    assert margins == sorted(margins, reverse=True) and margins[1] == pytest.approx(2.920 * 2**0.5 * 0.01)
    assert Noise(1, {"m": 0.01}).margin("m") is None and Noise(3, {}).margin("m") is None
