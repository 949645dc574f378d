"""Promoted only when better than what is in place and than half a query."""

import pytest

from tasks.decision import decide


def scores(composed: float, image: float = 0.0, text: float = 0.0) -> dict[str, dict[str, float]]:
    return {name: {"map_at_5": value} for name, value in (("composed", composed), ("image_only", image), ("text_only", text))}


@pytest.mark.parametrize(
    ("candidate", "in_place", "is_promoted", "why"),
    [
        (scores(0.30), None, True, "base model"),
        (scores(0.30), scores(0.25), True, "model in place"),
        (scores(0.30), scores(0.30), False, "more than 0.005"),
        (scores(0.104), None, False, "more than 0.005"),
        (scores(0.30, image=0.31), None, False, "image-only"),
        (scores(0.30, text=0.30), None, False, "text-only"),
        (scores(float("nan")), None, False, "nan"),
    ],
)
def test_the_rule(candidate: dict, in_place: dict | None, is_promoted: bool, why: str):
    decision = decide(candidate, in_place, scores(0.10), "map_at_5", 0.005)
    assert decision.is_promoted is is_promoted and why in decision.why
