"""Fail fast: a missing image, a broken shard and a wrong base revision are errors before the first step."""

import os
from pathlib import Path

import pytest

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tasks.store.shards import shard_path
from tasks.train.checks import check_revision
from tasks.train.stage import run
from tests.support.tiny import BATCH
from tests.support.training import with_train


def test_a_missing_image_is_an_error_before_any_step(params: Params, store: Store, promoted_file: Path):
    images = store.read_table("images").to_pylist()
    store.write(store.table_path("images", BATCH), [r for r in images if r["image_id"] != "03c"], "images")
    with pytest.raises(DataError, match="1 images of the triplets are not in the images table, the first is 03c"):
        run(params, Store(store.root))
    assert promoted_file.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


@pytest.mark.parametrize(
    ("size_bytes", "message"), [(None, "is missing; run `dvc pull --force`"), (100, "has 100 bytes")]
)
def test_a_missing_or_truncated_shard_is_an_error_before_any_step(
    params: Params, store: Store, promoted_file: Path, size_bytes: int | None, message: str
):
    shard = shard_path(store.root, f"{BATCH}-00000.tar")
    if size_bytes is None:
        shard.unlink()
    else:
        os.truncate(shard, size_bytes)
    expected = rf"24 images are not in their shards, the first is 00a: data/shards/{BATCH}-00000.tar {message}"
    with pytest.raises(DataError, match=expected):
        run(params, store)
    assert promoted_file.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def test_a_wrong_base_revision_is_refused(params: Params, store: Store, promoted_file: Path):
    with pytest.raises(ConfigError, match="'train.revision' pins 0123456789ab"):
        run(with_train(params, revision="0123456789ab"), store)
    revision = ClipRetriever(params.train.base_model, device="cpu").revision
    check_revision(revision, revision, "x")
    check_revision(revision + "0" * 28, revision, "x")
    check_revision("main", revision, "x")
    assert promoted_file.read_bytes() == b"promoted"


def test_a_model_that_cannot_be_exported_as_asked_is_refused_before_any_step(
    params: Params, store: Store, promoted_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ClipRetriever, "preparation", None, raising=False)
    monkeypatch.setattr(ClipRetriever, "__setattr__", keep_no_preparation)
    exported = params.model_copy(update={"promote": params.promote.model_copy(update={"onnx": True})})
    with pytest.raises(ConfigError, match="its image processor does more than to resize, crop and normalise"):
        run(exported, store)
    assert promoted_file.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def keep_no_preparation(retriever: ClipRetriever, name: str, value: object) -> None:
    """As of a CLIP whose processor the reader cannot follow."""
    object.__setattr__(retriever, name, None if name == "preparation" else value)
