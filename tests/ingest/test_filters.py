"""Classifiers at ingest: images with a high score are dropped; a model that cannot be loaded is an error."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

from tasks.config import FilterConfig
from tasks.errors import ConfigError
from tasks.ingest import stage as ingest
from tasks.ingest.filters import ImageFilter
from tasks.ingest.rules import NormalizedImage
from tasks.sample.tokens import CHECKPOINTS
from tasks.store import Store
from tasks.store.shards import shard_path
from tests.support.images import encode, save_jpeg, smooth_image
from tests.support.ingest import folder_params, read_drop_reasons, read_kept


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
        content = encode(smooth_image(seed), "JPEG")
        images.append(NormalizedImage(content=content, width_px=192, height_px=192, phash=seed, thumbnail=b""))
    odd, fine = (
        ImageFilter("odd", FilterConfig(model=str(classifier), labels=(label,))).scores(images)
        for label in ("odd", "fine")
    )
    assert [o + f for o, f in zip(odd, fine, strict=True)] == pytest.approx([1.0] * 5, abs=1e-5)
    assert max(odd) - min(odd) > 0.01


@pytest.mark.parametrize("batch_images", [1, 3, 64])
def test_ingest_drops_images_from_the_threshold_on_whatever_the_batch_size(
    classifier: Path, tmp_path: Path, batch_images: int
):
    for n in range(7):
        save_jpeg(smooth_image(n), tmp_path / "source" / f"{n}.jpg")
    everything = {"model": str(classifier), "labels": ["fine", "odd"], "threshold": 0.5, "batch_images": batch_images}
    ingest.run(folder_params(tmp_path / "source", filters={"any": everything}), Store(tmp_path / "all"))
    assert not read_kept(Store(tmp_path / "all"))
    assert read_drop_reasons(Store(tmp_path / "all")) == {f"{n}.jpg": "filtered" for n in range(7)}
    ingest.run(folder_params(tmp_path / "source"), Store(tmp_path / "none"))
    store, odd = Store(tmp_path / "none"), ImageFilter("odd", FilterConfig(model=str(classifier), labels=("odd",)))
    scores = {}
    for row in store.read_table("images").to_pylist():
        with open(shard_path(store.root, row["shard"]), "rb") as shard:
            shard.seek(row["offset_bytes"])
            stored = NormalizedImage(
                content=shard.read(row["size_bytes"]), width_px=192, height_px=192, phash=0, thumbnail=b""
            )
        scores[row["source_uri"].partition(":")[2]] = odd.scores([stored])[0]
    low, high = sorted(scores.values())[2:4]
    ingest.run(
        folder_params(
            tmp_path / "source", filters={"odd": {**everything, "labels": ["odd"], "threshold": (low + high) / 2}}
        ),
        Store(tmp_path / "some"),
    )
    kept, dropped = set(read_kept(Store(tmp_path / "some"))), read_drop_reasons(Store(tmp_path / "some"))
    assert kept == {name for name, score in scores.items() if score <= low} and len(kept) == 3
    assert dropped == {name: "filtered" for name, score in scores.items() if score >= high}


def test_an_unknown_label_and_a_missing_model_are_configuration_errors(classifier: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="expected some of"):
        ImageFilter("odd", FilterConfig(model=str(classifier), labels=("nsfw",)))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ImageFilter("odd", FilterConfig(model=str(tmp_path / "nowhere"), labels=("odd",)))
