"""An index over a version's triplets: text search and filters over a million rows within a fraction of a second.

Built once for a version, in memory: columns of small integers for what is filtered, and for each word of the
instructions the rows that have it. A search intersects sets of rows; only the rows of one page become Python objects.
Rows that the judge rejected as a whole stand beside the accepted ones, with the reason.

Measured: `python -m benchmarks.pages`. Memory: 1.3 KB a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.browse.selection import ACCEPTED, Selection, split_words

if TYPE_CHECKING:
    import pyarrow as pa

ENDS_A_PAIR = ("wrong_target", "ambiguous", "duplicate", "shortcut")  # the judge's reasons that end a whole pair
TRIPLET_COLUMNS = (
    *("triplet_id", "pair_id", "batch", "query_image_id", "target_image_id", "instructions", "styles"),
    *("judge_target", "judge_negative", "negative_image_ids", "mined_by", "captioner", "captioner_revision"),
    *("prompt_sha256", "judge", "judge_revision"),
)
SPLIT = r"[^\p{L}\p{N}]+"


@dataclass
class _Codes:
    """A column of one value a row, as small integers."""

    names: list[str]
    codes: np.ndarray  # (n,) int32, -1 for none

    def rows(self, name: str) -> np.ndarray:
        """Which rows have this value, (n,) bool."""
        return self.codes == self.names.index(name) if name in self.names else np.zeros(len(self.codes), bool)


@dataclass
class _Sets:
    """A column of several values a row, as one bit for each value; the first 63 values count."""

    names: list[str]
    bits: np.ndarray  # (n,) int64

    def rows(self, name: str) -> np.ndarray:
        """Which rows have this value, (n,) bool."""
        if name not in self.names:
            return np.zeros(len(self.bits), bool)
        return (self.bits >> self.names.index(name) & 1).astype(bool)


@dataclass
class TripletIndex:
    """See the module's docstring.

    Attributes:
        table: the rows, accepted ones first, in the order of their ids.
        status: accepted, or the judge's reason.
    """

    table: pa.Table
    status: _Codes
    encoders: _Sets
    styles: _Sets
    sources: _Codes
    licences: _Codes
    score: np.ndarray
    vocabulary: list[str]
    starts: np.ndarray = field(repr=False)  # of each word in `postings`
    postings: np.ndarray = field(repr=False)  # rows, by word

    @classmethod
    def build(cls, triplets: pa.Table, images: pa.Table, rejected: pa.Table | None = None) -> TripletIndex:
        """Index a version.

        Args:
            triplets: with TRIPLET_COLUMNS.
            images: image_id, source_uri, license_code.
            rejected: of `rejected_rows`.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        table = triplets.select([name for name in TRIPLET_COLUMNS if name in triplets.column_names])
        table = table.append_column("reason", pa.array([ACCEPTED] * len(table), pa.string()))
        table = table.append_column("detail", pa.nulls(len(table), pa.string()))
        if rejected is not None and len(rejected):
            table = pa.concat_tables([table, rejected], promote_options="permissive")
        table = table.combine_chunks()
        places = pc.index_in(table["query_image_id"], value_set=images["image_id"])
        names = pc.extract_regex(images["source_uri"], r"^(?P<name>[^:]*):").combine_chunks().field("name")
        vocabulary, starts, postings = _words(table["instructions"])
        return cls(
            table=table,
            status=_codes(table["reason"]),
            encoders=_sets(table["mined_by"]),
            styles=_sets(table["styles"]),
            sources=_codes(names.take(places.combine_chunks())),
            licences=_codes(images["license_code"].take(places)),
            score=_lowest(table["judge_target"]),
            vocabulary=vocabulary,
            starts=starts,
            postings=postings,
        )

    def __len__(self) -> int:
        return len(self.table)

    def find(self, wanted: Selection) -> np.ndarray:
        """Numbers of the rows that are wanted, ascending, (m,) int64."""
        is_found = np.ones(len(self), bool)
        if wanted.status == "rejected":
            is_found &= ~self.status.rows(ACCEPTED)
        elif wanted.status:
            is_found &= self.status.rows(wanted.status)
        for column, name in ((self.encoders, wanted.encoder), (self.styles, wanted.style)):
            if name:
                is_found &= column.rows(name)
        for codes, name in ((self.sources, wanted.source), (self.licences, wanted.licence)):
            if name:
                is_found &= codes.rows(name)
        if wanted.low > 0 or wanted.high < 1:
            is_found &= (self.score >= wanted.low) & (self.score <= wanted.high)
        for word in split_words(wanted.text):
            is_found &= self._with_word(word)
        return np.flatnonzero(is_found)

    def _with_word(self, beginning: str) -> np.ndarray:
        """Which rows have a word that begins so, (n,) bool."""
        first = int(np.searchsorted(self._sorted_words, beginning))
        has_word = np.zeros(len(self), bool)
        for n in range(first, len(self.vocabulary)):
            if not self.vocabulary[n].startswith(beginning):
                break
            has_word[self.postings[self.starts[n] : self.starts[n + 1]]] = True
        return has_word

    @property
    def _sorted_words(self) -> np.ndarray:
        words = self.__dict__.get("_words_array")
        if words is None:
            words = self.__dict__["_words_array"] = np.array(self.vocabulary, dtype=object)
        return words

    @property
    def row_ids(self) -> list[str]:
        """Id of each row: of the triplet, or of the pair that was rejected."""
        import pyarrow.compute as pc

        return [str(i) for i in pc.coalesce(self.table["triplet_id"], self.table["pair_id"]).to_pylist()]

    def rows(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Rows by number, as mappings."""
        return list(self.table.take(numbers).to_pylist())

    def lines(self, numbers: np.ndarray, at_once: int = 500) -> Iterator[bytes]:
        """The rows as lines of JSON, for a download."""
        for start in range(0, len(numbers), at_once):
            rows = self.rows(numbers[start : start + at_once])
            yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

    def choices(self) -> dict[str, list[str]]:
        """The values that each filter offers."""
        reasons = [name for name in self.status.names if name != ACCEPTED]
        return {
            "encoder": sorted(self.encoders.names),
            "style": sorted(self.styles.names),
            "source": sorted(self.sources.names),
            "licence": sorted(self.licences.names),
            "status": [ACCEPTED, *(["rejected", *sorted(reasons)] if reasons else [])],
        }


def rejected_rows(captioned: pa.Table, pairs: pa.Table, dropped: pa.Table) -> pa.Table:
    """The pairs that the judge rejected as a whole, with their texts and the reason, in the columns of triplets.

    Args:
        captioned, pairs: of the version.
        dropped: data/dropped/judge.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ended = dropped.filter(pc.is_in(dropped["reason"], value_set=pa.array(ENDS_A_PAIR, pa.string())))
    ended = ended.select(["key", "reason", "detail"]).rename_columns(["pair_id", "reason", "detail"])
    names = ["pair_id", "batch", "instructions", "styles", "captioner", "captioner_revision", "prompt_sha256"]
    texts = captioned.select(names)
    ends = pairs.select(["pair_id", "query_image_id", "target_image_id", "mined_by", "negative_image_ids"])
    # Arrow's join takes no list columns: rows are found by their place
    for other in (texts, ends):
        places = pc.index_in(ended["pair_id"], value_set=other["pair_id"])
        found = other.take(places)
        for name in (n for n in other.column_names if n != "pair_id"):
            ended = ended.append_column(name, found[name])
    return ended.filter(pc.is_valid(ended["query_image_id"]))


def _codes(column: Any) -> _Codes:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return _Codes([str(name) for name in encoded.dictionary.to_pylist()], codes)


def _sets(column: Any) -> _Sets:
    import pyarrow.compute as pc

    lists = column.combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    encoded = pc.list_flatten(lists).dictionary_encode()
    codes, bits = encoded.indices.to_numpy(zero_copy_only=False), np.zeros(len(lists), np.int64)
    names = [str(name) for name in encoded.dictionary.to_pylist()][:63]
    for n in range(len(names)):
        bits[parents[codes == n]] |= np.int64(1) << n
    return _Sets(names, bits)


def _lowest(column: Any) -> np.ndarray:
    """The lowest score of each row; NaN-free: 0 for a row without scores."""
    import pyarrow.compute as pc

    lists = column.combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    lowest = np.full(len(lists), np.inf, np.float32)
    np.minimum.at(lowest, parents, values.astype(np.float32))
    return np.where(np.isfinite(lowest), lowest, np.float32(0))


def _words(column: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Words of all texts in order, the first place of each in the postings, and these: rows, each once a word."""
    import pyarrow.compute as pc

    lists = column.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    split = pc.split_pattern_regex(pc.utf8_lower(pc.list_flatten(lists)), SPLIT)
    rows = rows[pc.list_parent_indices(split).to_numpy(zero_copy_only=False)]
    encoded = pc.list_flatten(split).dictionary_encode()
    words = np.array([str(word) for word in encoded.dictionary.to_pylist()], dtype=object)
    order = np.argsort(words) if len(words) else np.zeros(0, np.int64)
    place = np.empty(len(words), np.int64)
    place[order] = np.arange(len(words))
    codes = place[encoded.indices.to_numpy(zero_copy_only=False)] if len(words) else np.zeros(0, np.int64)
    keys = np.unique(codes * max(len(lists), 1) + rows)
    counts = np.bincount(keys // max(len(lists), 1), minlength=len(words))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return words[order].tolist(), starts, (keys % max(len(lists), 1)).astype(np.int32)
