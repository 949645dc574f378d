"""P(yes) from log-probabilities."""

import math

import pytest

from tasks.models.llm.yes_no import yes_probability


def test_every_spelling_of_yes_and_no_counts():
    top = [("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("no", math.log(0.2)), ("maybe", math.log(0.2))]
    assert yes_probability(top) == pytest.approx(0.75)


def test_without_yes_and_no_it_is_zero():
    assert yes_probability([("maybe", -0.1)]) == yes_probability([]) == 0.0
