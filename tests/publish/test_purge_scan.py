"""Codes of vectors hold an image where the vectors beside them do, in both indexes of an encoder."""

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
