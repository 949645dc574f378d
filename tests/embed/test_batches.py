"""Batches are encoded in order, while others are read ahead."""

import time
from typing import Any

import numpy as np
import pytest

from tasks.embed.batches import encode_in_batches
from tasks.errors import DataError


def test_the_next_batch_is_read_while_this_one_is_encoded():
    read, encoded = [], []

    class Items(list[int]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index.start)
            return super().__getitem__(index)

    def encode(some: Any) -> np.ndarray:
        deadline = time.monotonic() + 120
        while len(read) < min(len(encoded) + 2, 3) and time.monotonic() < deadline:
            time.sleep(0.001)
        encoded.append((list(some), list(read)))
        return np.eye(8, dtype=np.float32)[list(some)]

    vectors, is_usable = encode_in_batches(Items(range(5)), encode, 2)
    assert encoded == [([0, 1], [0, 2]), ([2, 3], [0, 2, 4]), ([4], [0, 2, 4])]
    assert np.array_equal(vectors, np.eye(8)[:5]) and is_usable.all()


@pytest.mark.parametrize("readers", [1, 2, 3, 20])
def test_each_reader_reads_one_batch_ahead_and_the_order_stays(readers: int):
    read: list[int] = []

    class Items(list[int]):
        def __getitem__(self, index: Any) -> Any:
            time.sleep(0.002 * (index.start % 3))  # the first to start is not the first to end
            read.append(index.start)
            return super().__getitem__(index)

    def encode(some: Any) -> np.ndarray:
        assert len(read) <= some[0] // 2 + 1 + readers  # no more than that is in memory
        return np.eye(16, dtype=np.float32)[list(some)]

    vectors, is_usable = encode_in_batches(Items(range(13)), encode, 2, readers=readers)
    assert np.array_equal(vectors, np.eye(16)[:13]) and is_usable.all() and sorted(read) == list(range(0, 13, 2))


def test_an_error_of_a_reader_ends_the_call():
    class Items(list[int]):
        def __getitem__(self, index: Any) -> Any:
            if index.start >= 4:
                raise DataError("the shard is cut short")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="cut short"):
        encode_in_batches(Items(range(9)), lambda some: np.eye(16, dtype=np.float32)[list(some)], 2, readers=2)
