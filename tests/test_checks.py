"""Each way in which a reply can be of no use, and that what is of use passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.checks import EXPLAINED, cleaned, plain, problem

GOOD = "make the small red star blue and remove the large green cross"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("  \n", "empty_reply"),
        ("word " * 200, "too_long"),
        ("I'm sorry, but I cannot see the pictures.", "refused"),
        ("As an AI language model I look at text", "refused"),
        ('{"instruction": "make it blue"}', "not_text"),
        ("<|im_end|> blue", "not_text"),
        ("... !!! ///", "not_text"),
        ("blue blue blue blue blue blue blue blue blue", "not_text"),
        ("change: make the make make make make square red", "not_text"),
        ("a large a large a large a large striped square", "not_text"),
        (",,,,, the square is red", "not_text"),
        ("a large red square, a large red star, a large red circle, a large red dot, a large red ring", None),
        ("very, very, very dark; no, really...", None),
        ("make it like IMG_0042.jpg", "names_a_file"),
        ("see https://example.org", "names_a_file"),
        ("Write one text that leads from the source to the target", "copy_of_prompt"),
        ("Make the star   BLUE.", "same_as_another"),
        ("change it to a dog on a green lawn at noon", "leaks_target"),
        (GOOD, None),
        ("what if the background were teal?", None),
    ],
)
def test_a_reply_is_refused_for_its_first_reason(text: str, reason: str | None):
    found = problem(
        text,
        max_chars=120,
        prompt="style: short\nWrite one text that leads from the source to the target",
        others=["make the star blue"],
        target_caption="A dog on a green lawn",
    )
    assert found == reason
    assert found is None or found in EXPLAINED


def test_a_caption_of_few_words_leaks_nothing():
    assert problem("with a red star", max_chars=99, target_caption="a red star") is None


@pytest.mark.parametrize("text", [f'"{GOOD}"', f"1. {GOOD}", f"Answer: {GOOD}", f"- “{GOOD}”", f"  {GOOD}\n"])
def test_wrapping_is_taken_off(text: str):
    assert cleaned(text) == GOOD


@given(st.text(max_size=80))
def test_cleaning_ends_and_a_text_is_always_the_same_as_itself(text: str):
    assert problem(text, max_chars=100, others=[text]) is not None
    assert plain(plain(text)) == plain(text)
    assert len(cleaned(text)) <= len(text)
