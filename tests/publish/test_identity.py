"""The parameters that make two versions different, and those that do not."""

import pyarrow as pa
import pytest

from tasks.publish.identity import hash_rows, identity_params
from tests.support.parameters import params_with


class RecordingDigest:
    """Keeps what is hashed."""

    def __init__(self) -> None:
        self.content = b""

    def update(self, content: bytes) -> None:
        self.content += content


def test_dates_places_and_shares_of_work_are_no_identity():
    one = identity_params(params_with(open_run={"date": "2026-11-16", "batch": "2026.11.16"}).model_dump(by_alias=True))
    other = identity_params(
        params_with(
            open_run={"date": "2026-11-23", "batch": "2026.11.23"},
            caption={"part_pairs": 4, "budget_tokens": 5},
            ingest={"part_files": 5},
            **{name: {"part_images": 6} for name in ("recaption", "embed", "mine")},
            train={"steps": 7},
        ).model_dump(by_alias=True)
    )
    assert one == other and "train" not in one


def test_a_model_folder_counts_by_its_last_two_names():
    assert identity_params({"model": "/models/hub/clip-vit"}) == {"model": "hub/clip-vit"}
    assert identity_params({"model": "openai/clip-vit"}) == {"model": "openai/clip-vit"}


@pytest.mark.parametrize("change", [{"neighbours": 3}, {"backend": "faiss-flat"}])
def test_how_pairs_are_mined_is_identity(change: dict[str, object]):
    assert identity_params(params_with(mine=change).model_dump()) != identity_params(params_with().model_dump())


def test_a_parameter_that_came_later_is_identity_once_it_is_set():
    """A version of before, whose parameters lack it, is the version that leaves it off."""
    off = params_with().model_dump(by_alias=True)
    before = {**off, "select": {k: v for k, v in off["select"].items() if k != "same_content_min"}}
    on = params_with(select={"same_content_min": {"semantic": 0.99}}).model_dump(by_alias=True)
    assert identity_params(off) == identity_params(before) != identity_params(on)


def test_rows_are_hashed_as_canonical_json_without_batch_and_cost():
    rows = pa.table({"pair_id": ["a"], "batch": ["2026.11.16"], "tokens": [7], "thumbnail": [b"\x01\xff"]})
    rows = rows.append_column("similarity_words", pa.array([None], pa.float32()))  # as of a run without that encoder
    digest = RecordingDigest()
    hash_rows(digest, "pairs", rows.num_rows, [rows])  # type: ignore[arg-type]
    assert digest.content == b'pairs 1\n{"pair_id": "a", "thumbnail": "01ff"}\n'
