"""The fourth miner: done beside `caption`, and mined week by week as in one batch of everything."""

import random
from pathlib import Path

import pytest
import yaml

from tasks.__main__ import run_stage
from tasks.config import parse_params, read_raw, resolve
from tasks.store import Store

WEEKS = ("2026.01.04", "2026.01.11")


def prepare(root: Path, batch: str, captions: dict[str, str]) -> Store:
    """A root whose run of a batch took in images with captions; both text encoders are without a model."""
    store, encoder = Store(root), {"model": "plain", "kind": "tfidf"}
    layers = {
        "open_run": {"batch": batch},
        "embed": {"encoders": {"caption": encoder, "words": encoder}},
        "mine": {"neighbours": 100, "windows": {"words": {"low": 0.2, "high": 1.01}}},
    }
    params = parse_params(resolve(read_raw(Path("params.yaml")), "test", layers))
    values = params.model_dump(mode="json", by_alias=True)
    store.write_bytes(root / "params.yaml", yaml.safe_dump(values).encode())
    rows = [
        {"image_id": i, "batch": batch, "shard": f"{batch}-00000.tar", "source_uri": f"s:{i}", "caption": caption}
        for i, caption in captions.items()
    ]
    store.write(store.table_path("images", batch), rows, "images")
    return store


def mined(store: Store) -> list[tuple[str, str, float]]:
    files = sorted(store.folder("data", "neighbours", "words").glob("*.parquet"))
    table = store.read(files, "neighbours").to_pydict()
    return sorted(zip(table["query_image_id"], table["target_image_id"], table["similarity"], strict=True))


@pytest.fixture
def captions() -> dict[str, str]:
    draw = random.Random(0).choice
    sizes, colours, shapes, places = ("small", "large"), ("red", "blue"), ("star", "cross"), ("top", "bottom")
    return {
        f"{n:02d}": f"a {draw(sizes)} {draw(colours)} {draw(shapes)} at the {draw(places)} of image" for n in range(30)
    }


def test_words_are_embedded_and_mined_beside_captions_and_weeks_give_what_one_batch_gives(
    tmp_path: Path, captions: dict[str, str]
):
    whole = prepare(tmp_path / "whole", WEEKS[0], captions)
    for stage in ("embed", "mine"):
        report = run_stage(stage, "caption", None, whole.root)
        assert any("encoder words beside it" in note for note in report.notes)
    names = sorted(captions)
    for week, ids in zip(WEEKS, (names[:18], names[18:]), strict=True):
        weekly = prepare(tmp_path / "weekly", week, {i: captions[i] for i in ids})
        for stage in ("embed", "mine"):
            run_stage(stage, "caption", None, weekly.root)
    assert len(mined(whole)) > 100 and mined(weekly) == mined(whole)
    assert run_stage("embed", "words", None, weekly.root).written == 0, "nothing is left to do"


def test_an_image_without_a_caption_is_counted_once(tmp_path: Path, captions: dict[str, str]):
    store = prepare(tmp_path, WEEKS[0], {**captions, "98": "", "99": ""})
    report = run_stage("embed", "caption", None, store.root)
    assert (report.read, report.done, report.dropped) == (32, 30, {"no_caption": 2})
    assert "encoder words beside it: 30 rows written, 2 no_caption" in report.notes


def test_without_the_encoder_nothing_is_done_beside_captions(tmp_path: Path, captions: dict[str, str]):
    store = prepare(tmp_path, WEEKS[0], captions)
    raw = yaml.safe_load((tmp_path / "params.yaml").read_text())
    del raw["embed"]["encoders"]["words"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    assert run_stage("embed", "caption", None, tmp_path).notes == [] and not store.embedded_shards("words")
