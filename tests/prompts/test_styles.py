"""Styles with a number, and partial styles."""

from tasks.prompts.styles import is_partial, split_style


def test_a_number_at_the_end_is_not_part_of_the_name():
    assert [split_style(s) for s in ("short", "short 2", "noun phrase", "2", "short x")] == [
        ("short", 1),
        ("short", 2),
        ("noun phrase", 1),
        ("2", 1),
        ("short x", 1),
    ]


def test_short_texts_are_partial_whatever_their_number():
    assert [is_partial(s) for s in ("short", "short 2", "keep")] == [True, True, False]
