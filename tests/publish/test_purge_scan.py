"""What holds an image without naming it: codes of vectors, and rows that quote its caption."""

from typing import Any

import pyarrow as pa
import pytest

from tasks.publish.purge_scan import holds
from tasks.store.tables import to_parquet


class FakeObjects:
    """Objects by name."""

    def __init__(self, **contents: bytes) -> None:
        self.contents = contents

    def read(self, name: str) -> bytes:
        return self.contents[name]


@pytest.mark.parametrize(("index", "expected"), [("semantic", False), ("semantic/next", True)])
def test_codes_belong_to_the_vectors_of_their_own_index(index: str, expected: bool):
    objects: Any = FakeObjects(
        old=to_parquet(pa.table({"image_id": ["other"]})), new=to_parquet(pa.table({"image_id": ["gone"]}))
    )
    files = {"data/embeddings/semantic/w-00000.parquet": "old", "data/embeddings/semantic/next/w-00000.parquet": "new"}
    codes = f"data/neighbours/{index}/codes/model 1-0.2000/w-00000.npy"
    assert holds(codes, "codes", files, objects, {"gone"}) is expected


@pytest.mark.parametrize(("batch", "expected"), [("2026.01.04", False), ("2026.01.11", True)])
def test_rows_quote_the_captions_of_their_triplets_images(batch: str, expected: bool):
    row = {"query_image_ids": ["other"], "target_text": "a hat", "negative_texts": ["a red scarf"]}
    contents = {
        "rows": to_parquet(pa.Table.from_pylist([row])),
        "without": to_parquet(pa.table({"query_image_id": ["other"], "target_image_id": ["third"]})),
        "with": to_parquet(pa.table({"query_image_id": ["other"], "target_image_id": ["gone"]})),
    }
    path = f"data/rows/image_to_caption/{batch}.parquet"
    files = {
        path: "rows",
        "data/triplets/2026.01.04-00000.parquet": "without",
        "data/triplets/2026.01.11-00000.parquet": "with",
    }
    objects: Any = FakeObjects(**contents)
    assert holds(path, "rows", files, objects, {"gone"}) is expected
