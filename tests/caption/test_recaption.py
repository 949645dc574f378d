"""Recaption: images that came without a caption get one, once."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tasks.caption import recaption
from tasks.config import Params, load_params
from tasks.models.llm.requests import Reply, Request
from tasks.store import Store
from tests.support.colour_pairs import with_batch

BATCH = "2026.01.04"


class ToyCaptioner:
    """Writes the shade of a plain grey image, and nothing for a dark one."""

    revision = "m1"

    def chat(self, requests: list[Request]) -> list[Reply]:
        shades = [request.images[0].getpixel((0, 0))[0] for request in requests]  # type: ignore[index]
        return [Reply("" if shade < 50 else f'"shade\n{shade}"', 5, 2) for shade in shades]


@pytest.fixture
def params() -> Params:
    return with_batch(load_params("params.yaml", "test"), BATCH)


def write_images(store: Store, shades: list[int], captions: list[str | None]) -> list[str]:
    """Plain grey images in one shard; their ids."""
    rows, shard = [], b""
    for n, (shade, caption) in enumerate(zip(shades, captions, strict=True)):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(file, "PNG")
        place = {"shard": f"{BATCH}-00000.tar", "offset_bytes": len(shard), "size_bytes": len(file.getvalue())}
        rows.append({"image_id": f"i{n}", "batch": BATCH, "caption": caption, **place})
        shard += file.getvalue()
    store.write_bytes(store.folder("data", "images", f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), rows, "images")
    return [str(row["image_id"]) for row in rows]


def test_images_without_a_caption_get_one(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    ids = write_images(store, [10, 60, 110, 20], ["its own", None, None, None])
    monkeypatch.setattr(recaption, "load_captioner", lambda _: ToyCaptioner())
    report = recaption.run(params, store)
    assert (report.new, report.done, report.written, report.dropped, report.tokens) == (3, 3, 2, {"empty_reply": 1}, 21)
    assert store.captions() == {ids[0]: "its own", ids[1]: "shade 60", ids[2]: "shade 110"}
    # the tokens are counted from the tables, also for a run that was killed after writing them
    assert recaption.run(params, store).tokens == 21
    before = store.table_path("captions", BATCH).read_bytes()
    store.table_path("captions", BATCH).unlink()
    recaption.run(params, store)
    assert store.table_path("captions", BATCH).read_bytes() == before


def test_with_nothing_to_caption_no_model_is_loaded(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    write_images(store, [10], ["its own"])
    monkeypatch.setattr(recaption, "load_captioner", lambda _: pytest.fail("a model was loaded"))
    assert recaption.run(params, store).new == 0
    assert store.table_path("captions", BATCH).exists()


def test_a_caption_is_one_line_without_control_characters_and_quotes():
    assert recaption.clean_caption(' "a red\u202e\tdoor\n" ') == "a red door"
    assert len(recaption.clean_caption("a" * 3000)) == recaption.CAPTION_CHARS
