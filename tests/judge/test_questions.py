"""Which questions the judge is asked: what decides nothing is not asked, and the verdict is that of all answers."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tasks.judge.questions import PairAnswers, judge_pairs, verdict_rules
from tasks.models.llm.requests import Refusal, Request
from tasks.prompts.styles import is_partial
from tests.support.colour_pairs import colour_params, with_judge
from tests.support.fake_llm import FakeLlm

STYLES = ("keep", "short", "question", "short 2")
Answers = dict[tuple[str, str], float]  # (candidate, text) -> P(yes)


def row_of(texts: int, negatives: int, styles: list[str]) -> dict[str, Any]:
    """A pair of a query `q` and a target `t`, whose instructions are named by their numbers."""
    mined = [f"n{k}" for k in range(1, negatives + 1)]
    ends = {"query_image_id": "q", "target_image_id": "t", "negative_image_ids": ["q", *mined]}
    return {"instructions": [str(n) for n in range(texts)], "styles": styles[:texts], **ends}


def asked_of(row: dict[str, Any], yes: Answers, config: Any) -> tuple[FakeLlm, Any]:
    """The judge, with what it was asked, and its verdict; images stand for themselves."""
    judge = FakeLlm(yes=lambda request: yes[str(request.images[1]), request.text])
    images = {name: name for name in (row["target_image_id"], *row["negative_image_ids"])}
    [verdict] = judge_pairs([row], images, judge, "{instruction}", config)
    return judge, verdict


def places(requests: list[Request]) -> Counter[tuple[str, str]]:
    return Counter((str(request.images[1]), request.text) for request in requests)


@given(
    texts=st.integers(1, 5),
    negatives=st.integers(0, 4),
    styles=st.lists(st.sampled_from(STYLES), min_size=5, max_size=5),
    most=st.none() | st.integers(1, 3),
    margin=st.none() | st.sampled_from([0.1, 0.6]),
    least=st.integers(1, 3),
    data=st.data(),
)
def test_the_verdict_is_that_of_all_answers(
    texts: int, negatives: int, styles: list[str], most: int | None, margin: float | None, least: int, data: Any
):
    row = row_of(texts, negatives, styles)
    score = st.sampled_from([0.0, 0.2, 0.45, 0.55, 0.8, 0.95])
    candidates = ["t", *row["negative_image_ids"]]
    yes = {(c, text): data.draw(score) for c in candidates for text in row["instructions"]}
    changes = {"threshold": 0.5, "negative_threshold": 0.5, "negative_margin": margin, "negatives": most}
    config = with_judge(colour_params(), instructions_min=least, **changes).judge
    judge, verdict = asked_of(row, yes, config)
    whole = PairAnswers()
    for n, text in enumerate(row["instructions"]):
        whole.target_yes[n] = whole.target_fits[n] = yes["t", text]
        whole.negative_yes[n] = {k: yes[c, text] for k, c in enumerate(row["negative_image_ids"])}
    expected = whole.verdict([is_partial(s) for s in row["styles"]], row, verdict_rules(config))
    if expected.reason is None:
        for name in ("instructions", "negatives", "judge_target", "judge_negative", "dropped"):
            assert getattr(verdict, name) == getattr(expected, name)
        assert verdict.false_negatives.keys() == expected.false_negatives.keys()
        assert all(0.5 <= p <= expected.false_negatives[k] or margin for k, p in verdict.false_negatives.items())
    assert verdict.reason == expected.reason
    assert set(places(judge.requests).values()) == {1}  # nothing is asked twice


def test_a_negative_that_meets_one_whole_instruction_is_not_asked_about_again():
    row = row_of(3, 2, ["short", "keep", "question"])
    yes = {(c, text): 0.1 for c in ("q", "n1", "n2") for text in "012"} | {("t", text): 0.9 for text in "012"}
    yes |= {("n1", "1"): 0.8, ("n1", "0"): 0.9}
    judge, verdict = asked_of(row, yes, with_judge(colour_params(), negative_threshold=0.5).judge)
    assert (verdict.negatives, verdict.instructions, verdict.false_negatives) == ([0, 2], [0, 1, 2], {1: 0.8})
    asked = places(judge.requests)
    assert [text for candidate, text in asked if candidate == "n1"] == ["1"]
    assert sorted(text for candidate, text in asked if candidate == "n2") == ["0", "1", "2"]


def test_what_the_query_image_excludes_costs_no_questions_about_mined_negatives():
    row = row_of(2, 3, ["keep", "question"])
    yes = {(c, text): 0.1 for c in row["negative_image_ids"] for text in "01"} | {("t", text): 0.9 for text in "01"}
    yes["q", "0"] = 0.9
    judge, verdict = asked_of(row, yes, with_judge(colour_params(), negative_threshold=0.5, instructions_min=2).judge)
    assert verdict.reason == "ambiguous" and len(judge.requests) == 4
    judge, verdict = asked_of(row, yes, with_judge(colour_params(), negative_threshold=0.5, instructions_min=1).judge)
    assert verdict.instructions == [1] and {text for c, text in places(judge.requests) if c == "n1"} == {"1"}


def test_a_refused_negative_is_left_out_and_asked_about_once():
    row = row_of(2, 2, ["keep", "question"])
    yes: dict[tuple[str, str], Any] = {(c, t): 0.1 for c in ("q", "n1", "n2") for t in "01"}
    yes |= {("t", text): 0.9 for text in "01"} | {("n1", "0"): Refusal("request_refused", "no")}
    judge, verdict = asked_of(row, yes, with_judge(colour_params(), negative_threshold=0.5).judge)
    assert (verdict.negatives, set(verdict.refused_negatives)) == ([0, 2], {1})
    assert places(judge.requests)["n1", "1"] == 0
