"""A row that was left out, as a person looks at it: which images it is about, and its details in words."""

from tasks.browse.drops import detail_values, image_fields, pair_of, shown_details

PAIR, IMAGE = "0f" * 16, "ab" * 32


def test_the_key_of_a_pair_names_it_and_the_key_of_a_file_does_not():
    assert pair_of(PAIR) == pair_of(f"{PAIR}:short") == pair_of(f"{PAIR}:{IMAGE}") == PAIR
    assert pair_of("shop:a/b.jpg") == pair_of(IMAGE) == pair_of(f"shop:{PAIR}") == ""


def test_the_images_of_a_row_are_named_each_once():
    assert image_fields({"image_id": "n"}, ("q", "t")) == [("query", "q"), ("target", "t"), ("negative", "n")]
    assert image_fields({"query": "q", "target": "t"}, ("q", "t")) == [("query", "q"), ("target", "t")]
    assert image_fields({"copy_of": "c", "why": ""}, None) == [("copy of", "c")]


def test_texts_stand_with_what_is_said_of_each_and_empty_values_are_left_out():
    values = {"instructions": [{"instruction": "in <b>blue</b>", "p_yes": 0.4, "style": "short"}], "why": "", "n": 3}
    assert shown_details(values) == [("instructions", [("in <b>blue</b>", "P(yes) 0.4, style short")]), ("n", "3")]
    assert shown_details({"found_by": ["text", "image"], "problems": {"short": "leaks_target"}}) == [
        ("found_by", "text, image"),
        ("problems", [("leaks_target", "short")]),
    ]


def test_a_detail_that_is_no_json_object_is_shown_as_it_is():
    assert shown_details(detail_values("<i>half a")) == [("", "<i>half a")]
    assert shown_details(detail_values("[1, 2]")) == [("", "1, 2")] and shown_details(detail_values(None)) == []
