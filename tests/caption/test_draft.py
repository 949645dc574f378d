"""What is drawn for a pair, and the reason for which a draft is dropped."""

from collections import Counter

from tasks.caption.draft import Draft, draw_language, draw_word_count


def test_languages_and_word_counts_are_drawn_by_seed_and_pair():
    languages = [draw_language(("en", "de", "ja"), 1, f"p{n}") for n in range(300)]
    assert languages == [draw_language(("en", "de", "ja"), 1, f"p{n}") for n in range(300)]
    assert min(Counter(languages).values()) > 60
    assert {draw_word_count((60, 100), 1, f"p{n}") for n in range(2000)} == set(range(60, 101))


def test_the_drop_reason_is_the_descriptions_or_the_most_frequent_one():
    draft = Draft("p")
    assert draft.drop_reason() == "too_few_instructions"
    for style, reason in (("keep", "too_long"), ("short", "refused"), ("question", "refused")):
        draft.reject(style, reason, "text")
    assert draft.drop_reason() == "refused"
    draft.reject("imperative", "too_long", "text")
    assert draft.drop_reason() == "refused"  # of equally frequent ones the first by name
    draft.reject("description", "not_json", "text")
    assert draft.drop_reason() == "not_json"
