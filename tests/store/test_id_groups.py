"""Connected ids against a naive form: repeated merging of sets that share an id."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.store.id_groups import connected_ids


def naive(pairs: list[tuple[str, str]]) -> dict[str, str]:
    groups: list[set[str]] = []
    for pair in pairs:
        touched = [g for g in groups if g & set(pair)]
        groups = [g for g in groups if not g & set(pair)] + [set(pair).union(*touched)]
    return {i: min(group) for group in groups for i in group}


def test_ids_connected_through_others_share_the_smallest_ids_name():
    assert connected_ids([("d", "c"), ("b", "a"), ("c", "e"), ("f", "f")]) == {
        "a": "a",
        "b": "a",
        "c": "c",
        "d": "c",
        "e": "c",
        "f": "f",
    }
    assert connected_ids([]) == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("abcdefghij")), max_size=12), st.randoms())
def test_components_equal_the_naive_form_whatever_the_order(pairs, random):
    expected = naive(pairs)
    assert connected_ids(pairs) == expected
    turned = [pair if random.random() < 0.5 else pair[::-1] for pair in random.sample(pairs, len(pairs))]
    assert connected_ids(turned) == expected
