"""How varied texts are, in figures that do not depend on how many there are."""

import pytest

from tasks.prompts.text_figures import SAMPLE, distinct_ngrams, same_content_share, text_figures


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


def test_texts_of_another_form_alone_are_counted_and_those_that_say_more_or_else_are_not():
    same = triplet(0, "change the background to dark grey", "what if there were a background of dark grey?")
    more = triplet(1, "remove the red cross", "keep the blue star but remove the red cross")
    other = triplet(2, "remove the red cross", "add a red cross")
    assert same_content_share([same]) == 0.5
    assert same_content_share([same, more, other]) == 1 / 6 and same_content_share([]) is None
    assert text_figures([more])["same_content"] == 0.0
