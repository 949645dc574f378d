"""Ids as integers: sorted as Arrow sorts the strings, whatever the chunks and dictionaries."""

import hashlib

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.store.id_order import encode_ids, id_order, index_in_ids


def test_codes_sort_like_the_strings_and_chunks_do_not_show():
    one = pa.chunked_array([pa.array(["d", "b"]), pa.array(["b", "a"])])
    two = pa.chunked_array([pa.array(["c", "d"])]).dictionary_encode()
    # a filter leaves unused entries in the dictionary
    ids, (first, second) = encode_ids([one, two.filter(pa.array([True, False]))])
    assert ids.to_pylist() == ["a", "b", "c", "d"] and first.tolist() == [3, 1, 1, 0] and second.tolist() == [2]
    assert index_in_ids(one, pa.array(["b", "c"])).tolist() == [-1, 0, 0, -1]
    assert [len(x) for x in (encode_ids([])[0], *encode_ids([one.slice(0, 0)])[1])] == [0, 0]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from(["same prefix", "same prefix a", "same pre", "same pre\0"])),
        max_size=60,
    ),
    st.integers(0, 3),
    st.booleans(),
)
def test_strings_are_ordered_by_their_bytes_as_arrow_orders_them(texts: list[str], cut: int, are_hashes: bool):
    strings = (
        [hashlib.sha256(s.encode("utf-8", "replace")).hexdigest() for s in texts] * 2
        if are_hashes
        else [s.encode("utf-8", "replace").decode() for s in texts]
    )
    strings += [f"{n:08d}" for n in range(100)]  # so that equal beginnings are few
    column = pa.array(strings, pa.string()).slice(cut)
    assert column.take(pa.array(id_order(column))).to_pylist() == sorted(column.to_pylist(), key=str.encode)
