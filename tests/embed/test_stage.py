"""Embedding shard by shard: missing shards are embedded, finished ones are skipped."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.config import parse_params, read_raw, resolve
from tasks.embed import stage as embed
from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.store.shards import shard_path
from tests.support.toy_encoder import BATCH, ToyEncoder, fill, params_for


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[ToyEncoder]:
    ToyEncoder.calls = []
    monkeypatch.setattr(embed, "load_encoder", lambda *_: ToyEncoder())
    return ToyEncoder


def test_each_shard_is_embedded_once_in_fixed_batches(tmp_path: Path, toy: type[ToyEncoder]):
    store = Store(tmp_path)
    ids = fill(store, BATCH, [10, 60, 110, 160, 0], ["a"] * 5)
    report = embed.run(params_for(), store, "semantic")
    assert toy.calls == [2, 1, 2]
    assert (report.read, report.new, report.done, report.written, report.dropped) == (5, 5, 5, 4, {"bad_vector": 1})
    found, vectors, revision = store.read_embeddings("semantic")
    assert (found, vectors.dtype, vectors.shape, revision) == (ids[:4], np.float16, (4, 2), "r1")
    assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=1e-3)
    before = (tmp_path / f"data/embeddings/semantic/{BATCH}-00001.npy").read_bytes()
    (tmp_path / f"data/embeddings/semantic/{BATCH}-00001.parquet").unlink()  # killed before the marker
    again = embed.run(params_for(), store, "semantic")
    assert toy.calls == [2, 1, 2, 2]
    assert (again.new, again.done, again.dropped) == (5, 5, {"bad_vector": 1})
    assert (tmp_path / f"data/embeddings/semantic/{BATCH}-00001.npy").read_bytes() == before


def test_parts_share_the_shards(tmp_path: Path, toy: type[ToyEncoder]):
    store = Store(tmp_path)
    fill(store, BATCH, [10, 60, 110, 160, 210], ["a"] * 5, per_shard=1)
    assert [embed.run(params_for(), store, "semantic", part=(i, 2)).new for i in (1, 2)] == [3, 2]
    assert len(store.read_embeddings("semantic")[0]) == 5


def test_a_later_batch_embeds_its_new_images(tmp_path: Path, toy: type[ToyEncoder]):
    store = Store(tmp_path)
    fill(store, BATCH, [10, 60, 110], ["a"] * 3)
    embed.run(params_for(), store, "semantic")
    fill(store, "2026.01.11", [30], ["b"])
    report = embed.run(params_for("2026.01.11"), Store(tmp_path), "semantic")  # a run is a process of its own
    assert (report.new, report.done, report.reused, toy.calls[-1]) == (1, 1, 3, 1)
    fill(store, "2026.01.18", [], [])
    empty = embed.run(params_for("2026.01.18"), store, "semantic")
    assert (empty.new, empty.reused) == (0, 4)


def test_one_index_holds_one_revision(tmp_path: Path, toy: type[ToyEncoder], monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    fill(store, BATCH, [10], ["a"])
    embed.run(params_for(), store, "semantic")
    fill(store, "2026.01.11", [30], ["b"])
    monkeypatch.setattr(embed, "load_encoder", lambda *_: ToyEncoder("r2"))
    with pytest.raises(DataError, match="revision r1, the model is now r2"):
        embed.run(params_for("2026.01.11"), store, "semantic")


def test_the_text_encoder_encodes_captions_and_drops_images_without(tmp_path: Path, toy: type[ToyEncoder]):
    store = Store(tmp_path)
    ids = fill(store, BATCH, [10, 60, 110], ["one", None, None])
    store.write(
        store.table_path("captions", BATCH),
        [{"image_id": ids[2], "caption": "three", "caption_source": "m"}],
        "captions",
    )
    report = embed.run(params_for(), store, "caption")
    assert (report.new, report.dropped) == (2, {"no_caption": 1})
    assert store.read_embeddings("caption")[0] == [ids[0], ids[2]]


def test_an_image_whose_vector_has_another_width_is_dropped(
    tmp_path: Path, toy: type[ToyEncoder], monkeypatch: pytest.MonkeyPatch
):
    store = Store(tmp_path)
    ids = fill(store, BATCH, [10, 60, 110], ["a"] * 3)

    class Wider(ToyEncoder):
        def encode_images(self, images: Any) -> np.ndarray:
            rows = super().encode_images(images)
            return rows if len(images) == 2 else np.pad(rows, ((0, 0), (0, 1)))

    monkeypatch.setattr(embed, "load_encoder", lambda *_: Wider())
    report = embed.run(params_for(), store, "semantic")
    assert report.dropped == {"bad_vector": 1} and store.read_embeddings("semantic")[0] == ids[:2]
    assert store.read_dropped("embed-semantic").column("key").to_pylist() == ids[2:]
    later = fill(store, "2026.01.11", [30], ["b"])  # a batch of its own: still not as wide as what is stored
    assert embed.run(params_for("2026.01.11"), Store(tmp_path), "semantic").dropped == {"bad_vector": 1}
    assert later[0] not in store.read_embeddings("semantic")[0]


def test_vectors_made_in_different_ways_are_not_mixed_in_one_index(
    tmp_path: Path, toy: type[ToyEncoder], monkeypatch: pytest.MonkeyPatch
):
    class Prepared(ToyEncoder):
        class preparation:
            prepare = staticmethod(lambda content: Image.open(io.BytesIO(content)))

        encode_prepared = ToyEncoder.encode_images

    monkeypatch.setattr(embed, "load_encoder", lambda *_: Prepared())
    store = Store(tmp_path)
    fill(store, BATCH, [10], ["a"])
    embed.run(params_for(), store, "semantic")
    fill(store, "2026.01.11", [30], ["b"])
    fast = params_for("2026.01.11").model_copy(
        update={"embed": params_for().embed.model_copy(update={"preprocess": "fast"})}
    )
    with pytest.raises(DataError, match=r"revision r1, the model is now r1\+fast"):
        embed.run(fast, store, "semantic")


def test_vectors_are_memory_mapped(tmp_path: Path, toy: type[ToyEncoder]):
    store = Store(tmp_path)
    ids = fill(store, BATCH, [10, 60, 110], ["a"] * 3)
    embed.run(params_for(), store, "semantic")
    found, vectors, _ = store.read_embeddings("semantic")
    assert found == ids and isinstance(vectors, np.memmap) and vectors.dtype == np.float16


def test_fast_preprocessing_gives_nearly_the_stock_processors_vectors(tmp_path: Path):
    rng = np.random.default_rng(0)
    store, rows, content = Store(tmp_path), [], b""
    for n in range(6):
        cells = Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)).resize(
            (320 + 40 * n, 400), Image.Resampling.BICUBIC
        )
        out = io.BytesIO()
        cells.save(out, "JPEG", quality=95)
        rows.append(
            {
                "image_id": str(n),
                "batch": BATCH,
                "shard": f"{BATCH}-00000.tar",
                "offset_bytes": len(content),
                "size_bytes": out.tell(),
            }
        )
        content += out.getvalue()
    store.write_bytes(shard_path(store.root, f"{BATCH}-00000.tar"), content)
    store.write(store.table_path("images", BATCH), rows, "images")
    vectors = {}
    for way in ("stock", "fast"):
        changes = {"open_run": {"batch": BATCH}, "embed": {"preprocess": way}}
        embed.run(parse_params(resolve(read_raw(Path("params.yaml")), "test", changes)), store, "pattern")
        vectors[way] = store.read_embeddings("pattern")[1].astype(np.float64)
        store.folder("data", "embeddings", "pattern", f"{BATCH}-00000.parquet").unlink()
    assert (vectors["stock"] * vectors["fast"]).sum(axis=1).min() > 0.999
    assert not np.array_equal(vectors["stock"], vectors["fast"])


def test_an_unknown_encoder_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="no encoder 'pattern'|no encoder 'smell'"):
        embed.run(params_for(), Store(tmp_path), "smell")
