"""A classifier at ingest: what it scores high is refused, with its score; what it cannot load says so."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

from tasks.config import FilterConfig
from tasks.errors import ConfigError
from tasks.ingest import stage as ingest
from tasks.ingest.filters import ImageFilter
from tasks.ingest.normalize import NormalizedImage
from tasks.sample.tokens import CHECKPOINTS
from tasks.store import Store
from tests.ingest.test_copies_and_lists import image, params_for, saved, taken


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels, random weights, the processor of the sample world's DINO."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=96,
        patch_size=32,
        id2label={0: "fine", 1: "odd"},
    )
    model = Dinov2ForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)  # else every image scores about one half
    model.save_pretrained(folder)
    shutil.copy(CHECKPOINTS / "dino" / "preprocessor_config.json", folder)
    return folder


def test_scores_are_the_labels_probabilities(classifier: Path):
    images = []
    for seed in range(5):
        out = io.BytesIO()
        image(seed).save(out, "JPEG")
        images.append(NormalizedImage(content=out.getvalue(), width_px=192, height_px=192, phash=seed, thumbnail=b""))
    odd, fine = (
        ImageFilter("odd", FilterConfig(model=str(classifier), labels=(label,))).scores(images)
        for label in ("odd", "fine")
    )
    assert [o + f for o, f in zip(odd, fine, strict=True)] == pytest.approx([1.0] * 5, abs=1e-5)
    assert max(odd) - min(odd) > 0.01


@pytest.mark.parametrize("batch_images", [1, 3, 64])
def test_ingest_drops_what_reaches_the_threshold_whatever_the_batches(
    classifier: Path, tmp_path: Path, batch_images: int
):
    for n in range(7):
        saved(image(n), tmp_path / "source" / f"{n}.jpg")
    everything = {"model": str(classifier), "labels": ["fine", "odd"], "threshold": 0.5, "batch_images": batch_images}
    ingest.run(params_for(tmp_path / "source", filters={"any": everything}), Store(tmp_path / "all"))
    assert taken(Store(tmp_path / "all")) == (set(), {f"{n}.jpg": "filtered" for n in range(7)})
    ingest.run(params_for(tmp_path / "source"), Store(tmp_path / "none"))
    store, odd = Store(tmp_path / "none"), ImageFilter("odd", FilterConfig(model=str(classifier), labels=("odd",)))
    scores = {}
    for row in store.read_table("images").to_pylist():
        with open(store.root / "data" / "images" / row["shard"], "rb") as shard:
            shard.seek(row["offset_bytes"])
            stored = NormalizedImage(
                content=shard.read(row["size_bytes"]), width_px=192, height_px=192, phash=0, thumbnail=b""
            )
        scores[row["source_uri"].partition(":")[2]] = odd.scores([stored])[0]
    low, high = sorted(scores.values())[2:4]
    ingest.run(
        params_for(
            tmp_path / "source", filters={"odd": {**everything, "labels": ["odd"], "threshold": (low + high) / 2}}
        ),
        Store(tmp_path / "some"),
    )
    kept, dropped = taken(Store(tmp_path / "some"))
    assert kept == {name for name, score in scores.items() if score <= low} and len(kept) == 3
    assert dropped == {name: "filtered" for name, score in scores.items() if score >= high}


def test_a_label_that_it_does_not_know_and_a_model_that_is_not_there(classifier: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="it knows"):
        ImageFilter("odd", FilterConfig(model=str(classifier), labels=("nsfw",)))
    with pytest.raises(ConfigError, match="no image classifier that loads"):
        ImageFilter("odd", FilterConfig(model=str(tmp_path / "nowhere"), labels=("odd",)))
