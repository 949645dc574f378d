"""A further dataset of any size as a stream of examples: nothing but its index is held, and that by the kernel.

A pass visits every record once, in an order that follows from the seed and is computed, not stored: a Feistel network
over the record's number, with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). A
record that cannot be used is left out and counted when its turn comes; images are looked at when they are decoded
(tasks/train/loader.py). Before the first step a sample is looked at, so that a wrong folder ends the training at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from tasks.config import MixedDatasetConfig
from tasks.errors import ConfigError
from tasks.train.batches import Example
from tasks.train.record_files import Records
from tasks.train.record_images import DroppedRecords, RecordImages, checked_example, parse_record, with_ids

ROUNDS = 6
ORDER_BLOCK = 4096  # numbers of the order that are computed at once
SAMPLE_RECORDS = 200  # looked at before the first step


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """(n,) uint64 hash of (n,) uint64 values: splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        x = values + key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permuted(positions: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Where a random permutation of 0 ... count - 1 takes these positions.

    Args:
        positions: (n,) uint64, each below `count`.
        count: size of the permutation.
        keys: (ROUNDS,) uint64, which choose it.
    Returns:
        (n,) uint64.
    """
    half = np.uint64(max(1, (max(1, count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        return (left << half) | right

    out = once(positions)
    while (outside := out >= count).any():  # walk the cycle until it is back in the range
        out[outside] = once(out[outside])
    return out


def shuffled_numbers(count: int, rng: random.Random) -> Iterator[int]:
    """0 ... count - 1, each once, in an order that follows from `rng`; `ORDER_BLOCK` of them are held."""
    keys = np.array([rng.getrandbits(64) for _ in range(ROUNDS)], np.uint64)
    for start in range(0, count, ORDER_BLOCK):
        positions = np.arange(start, min(start + ORDER_BLOCK, count), dtype=np.uint64)
        yield from permuted(positions, count, keys).tolist()


class RecordStream:
    """Examples of a dataset, read as they are needed. Implements `ExampleStream`."""

    def __init__(self, config: MixedDatasetConfig, records: Records) -> None:
        """Nothing is read yet.

        Args:
            config: the dataset.
            records: of it.
        """
        self.config, self.records = config, records
        self.dropped = DroppedRecords()

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        """What the identity of a training is made of."""
        config = self.config
        return f"RecordStream({config.name!r}, {config.format!r}, {config.instruction!r}, {self.records.identity!r})"

    def require_usable(self, faulty_share_max: float) -> None:
        """Look at a sample of the records and of their images' files.

        Raises:
            DataError: too many cannot be used, or none can.
        """
        sample, images = DroppedRecords(), RecordImages(self.config)
        numbers = random.Random("sample").sample(range(len(self)), min(SAMPLE_RECORDS, len(self)))
        checked = [checked_example(self.records, n, self.config.format, images, sample) for n in numbers]
        sample.require_few(self.config.path, len(numbers), faulty_share_max)
        sample.require_some(self.config.path, sum(example is not None for example in checked))

    def shuffled(self, rng: random.Random) -> Iterator[Example]:
        """Examples without end, each pass in a new order that follows from `rng`.

        Raises:
            DataError: a whole pass without an example.
        """
        is_first_pass = True
        while True:
            found = 0
            for number in shuffled_numbers(len(self), rng):
                example = self._parse(number)
                if isinstance(example, Example):
                    found += 1
                    yield with_ids(example, self.config)
                elif is_first_pass:
                    self._drop(number, *example)
            self.dropped.require_some(self.config.path, found)
            is_first_pass = False

    def _parse(self, number: int) -> Example | tuple[str, str]:
        """As `parse_record`. The sample has shown that the columns are known: one record with others is damaged."""
        try:
            return parse_record(self.records[number], self.config.format)
        except ConfigError as error:
            return "damaged_record", str(error)

    def _drop(self, number: int, reason: str, detail: str) -> None:
        self.dropped.add(reason, lambda: self.records.where(number), detail)
