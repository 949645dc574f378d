"""ClipRetriever: a query is the normalised sum of raw features; any CLIP folder loads without running its code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.errors import ConfigError
from tasks.models.retrievers.clip import ClipRetriever

CLIP = "tasks/sample/checkpoints/clip"


@pytest.fixture(scope="module")
def retriever() -> ClipRetriever:
    return ClipRetriever(CLIP, device="cpu")


def images(n: int) -> list[Image.Image]:
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, (96, 96, 3)).astype(np.uint8)) for i in range(n)]


def test_a_query_is_the_normalised_sum_of_raw_features(retriever: ClipRetriever):
    batch, texts = images(3), ["make it blue", "remove the star", "what if it were red?"]
    both = retriever.encode(batch, texts, batch_size=2)
    with torch.inference_mode():
        values = retriever.processor(images=batch, text=texts, padding=True, return_tensors="pt")
        pooled = [
            getattr(out, "pooler_output", out)
            for out in (
                retriever.model.get_image_features(pixel_values=values["pixel_values"]),
                retriever.model.get_text_features(
                    input_ids=values["input_ids"], attention_mask=values["attention_mask"]
                ),
            )
        ]
    expected = torch.nn.functional.normalize(pooled[0] + pooled[1], dim=-1).numpy()
    assert np.allclose(both, expected, atol=1e-5) and both.dtype == np.float32
    for rows in (both, retriever.encode(batch), retriever.encode(texts=texts)):
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert retriever.encode(texts=["word " * 500]).shape == (1, both.shape[1])
    with pytest.raises(ConfigError, match="as many of both"):
        retriever.encode(batch, texts[:1])
    with pytest.raises(ConfigError, match="as many of both"):
        retriever.encode()


def test_many_texts_get_the_features_that_each_has_alone(retriever: ClipRetriever):
    texts = [" ".join(["remove the star"] * (1 + n * 7 % 12)) for n in range(100)]
    with torch.inference_mode():
        alone = torch.cat([retriever.text_features([text]) for text in texts])
        assert torch.allclose(retriever.text_features(texts), alone, atol=1e-5)


def test_the_layout_of_bge_vl_loads_without_running_its_code(tmp_path: Path, retriever: ClipRetriever):
    folder = tmp_path / "bge-vl"
    shutil.copytree(CLIP, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling_MMRet_CLIP.CLIPModel"}, "architectures": ["CLIPModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_MMRet_CLIP.py").write_text("raise SystemExit('code from the hub ran')")
    assert np.array_equal(ClipRetriever(str(folder), device="cpu").encode(images(2)), retriever.encode(images(2)))


def test_a_saved_model_loads_and_replaces_the_old_folder_as_a_whole(tmp_path: Path, retriever: ClipRetriever):
    folder = tmp_path / "candidate"
    folder.mkdir()
    (folder / "stale").write_text("")
    retriever.save(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["candidate"] and not (folder / "stale").exists()
    again = ClipRetriever(str(folder), device="cpu")
    assert np.allclose(again.encode(images(2), ["a", "b"]), retriever.encode(images(2), ["a", "b"]), atol=1e-6)
    assert len(again.revision) == 12


def test_a_model_without_text_features_is_refused():
    with pytest.raises(ConfigError):
        ClipRetriever("tasks/sample/checkpoints/dino", device="cpu")


def test_training_features_are_those_of_image_text_or_their_sum(retriever: ClipRetriever):
    pixels, texts = retriever.preprocess(images(2)), ["make it blue", "remove the star"]
    with torch.inference_mode():
        image_rows, text_rows = retriever.features(pixels=pixels), retriever.features(texts=texts)
        assert torch.equal(image_rows, retriever.image_features(pixels))
        assert torch.equal(text_rows, retriever.text_features(texts))
        assert torch.equal(retriever.features(pixels=pixels, texts=texts), image_rows + text_rows)
    with pytest.raises(ConfigError, match="found neither"):
        retriever.features()
    with pytest.raises(ConfigError, match="is a CLIP, which is trained as a whole"):
        retriever.add_adapters(rank=2, alpha=2)


def test_the_fast_preparation_is_the_processors_up_to_rounding(retriever: ClipRetriever):
    batch = [image.resize((330, 250)) for image in images(3)]
    exact = retriever.prepared_image_features([retriever.prepare_image(image) for image in batch])
    fast = retriever.prepared_image_features([retriever.prepare_image_fast(image) for image in batch])
    assert np.abs(exact - retriever.raw_image_features(batch)).max() < 1e-4
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (exact, fast)]
    assert 0 < np.abs(unit[0] - unit[1]).max() < 2e-3
