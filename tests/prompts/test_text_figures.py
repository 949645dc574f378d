"""How varied texts are, in figures that do not depend on how many there are."""

import pytest

from tasks.prompts.text_figures import SAMPLE, distinct_ngrams, text_figures


def triplet(number: int, *texts: str) -> dict[str, object]:
    return {"triplet_id": f"t{number}", "instructions": list(texts), "styles": ["keep", "short"][: len(texts)]}


def test_distinct_ngrams_count_words_not_case_or_punctuation():
    assert distinct_ngrams(["Make it red.", "make it RED"], 3) == 0.5
    assert distinct_ngrams(["make it red", "make it blue"], 2) == 0.75
    assert distinct_ngrams(["red"], 2) is None and distinct_ngrams([], 1) is None


def test_a_week_of_one_template_has_few_ngrams_and_a_longer_week_is_measured_on_as_many_texts():
    colours = ["red", "blue", "green", "black"]
    dull = [triplet(n, f"make it {colours[n % 4]}") for n in range(SAMPLE)]
    lively = [triplet(n, f"turn item {n} into {n + 1} of {n * n}") for n in range(SAMPLE)]
    assert text_figures(dull)["distinct_3"] < 0.01 < 0.5 < text_figures(lively)["distinct_3"]
    longer = [*dull, *(triplet(n, f"make it {colours[n % 4]}") for n in range(SAMPLE, 3 * SAMPLE))]
    assert text_figures(longer)["distinct_3"] == pytest.approx(text_figures(dull)["distinct_3"])


def test_lengths_and_styles():
    figures = text_figures([triplet(0, "the same in a deep red", "in red"), triplet(1, "now blue")])
    assert (figures["texts"], figures["words_mean"], figures["words_low"], figures["words_high"]) == (3, 10 / 3, 2, 2)
    assert figures["styles"] == {"keep": 2 / 3, "short": 1 / 3} and text_figures([]) == {}
