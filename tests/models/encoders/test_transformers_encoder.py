"""One call for every kind of encoder; rows of unit length, the same whatever the batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.config import EncoderConfig
from tasks.errors import ConfigError
from tasks.knn.unit_rows import are_unit_rows, unit_rows
from tasks.models.encoders.load import load_encoder

CHECKPOINTS = Path("tasks/sample/checkpoints")


def images(n: int) -> list[Image.Image]:
    cells = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)
    return [Image.fromarray(c).resize((96 + 8 * i, 96), Image.Resampling.NEAREST) for i, c in enumerate(cells)]


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_an_image_encoder_gives_unit_rows(name: str):
    encoder = load_encoder(EncoderConfig(model=str(CHECKPOINTS / name), kind="image"))
    vectors = encoder.encode_images(images(5))
    assert vectors.dtype == np.float32 and vectors.shape[0] == 5 and are_unit_rows(vectors).all()
    assert np.allclose(encoder.encode_images(images(5)[3:]), vectors[3:], atol=1e-4)
    assert len(encoder.revision) == 12
    with pytest.raises(ConfigError, match="kind 'text'"):
        encoder.encode_texts(["a"])


def test_the_text_tower_of_a_clip_encodes_captions():
    encoder = load_encoder(EncoderConfig(model=str(CHECKPOINTS / "clip"), kind="text"))
    texts = ["a large red circle at the top left on a white background", "a small blue star", "word " * 500]
    vectors = encoder.encode_texts(texts)
    assert vectors.shape == (
        3,
        load_encoder(EncoderConfig(model=str(CHECKPOINTS / "clip"), kind="image")).encode_images(images(1)).shape[1],
    )
    assert are_unit_rows(vectors).all()
    assert np.allclose(encoder.encode_texts(texts[1:2]), vectors[1:2], atol=1e-4)  # padding does not show
    with pytest.raises(ConfigError, match="kind 'image'"):
        encoder.encode_images(images(1))


def bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "circle"])
    )
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(
        BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(folder)


def test_a_bert_is_pooled_over_its_tokens(tmp_path: Path):
    bert(tmp_path)
    encoder = load_encoder(EncoderConfig(model=str(tmp_path), kind="text"))
    both = encoder.encode_texts(["red", "red circle blue circle"])
    assert both.shape == (2, 16) and are_unit_rows(both).all()
    assert np.allclose(encoder.encode_texts(["red"])[0], both[0], atol=1e-4)


def test_a_sentence_transformers_folder_is_pooled_as_its_configuration_states(tmp_path: Path):
    bert(tmp_path)
    texts = ["red", "red circle blue circle"]
    mean = load_encoder(EncoderConfig(model=str(tmp_path), kind="text")).encode_texts(texts)
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    # as BGE's
    pooling.write_text(
        '{"word_embedding_dimension": 16, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    encoder = load_encoder(EncoderConfig(model=str(tmp_path), kind="text"))
    first = encoder.encode_texts(texts)
    assert encoder.pooling == "cls" and not np.allclose(first, mean, atol=1e-2)
    tokens = encoder.processor(texts, padding=True, return_tensors="pt")
    assert np.allclose(first, unit_rows(encoder.model(**tokens).last_hidden_state[:, 0].detach().numpy()), atol=1e-5)
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigError, match="max_tokens"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="text"))
    pooling.unlink()
    types = ("models.Transformer", "models.Pooling", "models.Dense")
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": n, "type": f"sentence_transformers.{t}"} for n, t in enumerate(types)])
    )
    with pytest.raises(ConfigError, match="Dense"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="text"))


def tower(name: str, folder: Path) -> None:
    """A random model of few weights, with its processor, as the hub has them."""
    import transformers

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = {**small, "image_size": 32, "patch_size": 8}
    transformers.set_seed(0)
    if name == "siglip":
        words = transformers.BertTokenizerFast(vocab_file=str(_vocabulary(folder)), model_input_names=["input_ids"])
        words.save_pretrained(folder)
        text = {
            **small,
            "vocab_size": 8,
            "max_position_embeddings": 12,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "projection_size": 16,
        }
        transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=seen)).save_pretrained(
            folder
        )
    elif name == "dinov2":
        small.pop("intermediate_size")
        transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=32, patch_size=8)).save_pretrained(
            folder
        )
    else:
        transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**seen)).save_pretrained(folder)
    transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )


def _vocabulary(folder: Path) -> Path:
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "circle"])
    )
    return folder / "vocab.txt"


@pytest.mark.parametrize("name", ["siglip", "dinov2", "dinov3"])
def test_other_vision_towers_load_by_their_folder_alone(name: str, tmp_path: Path):
    tower(name, tmp_path)
    encoder = load_encoder(EncoderConfig(model=str(tmp_path), kind="image"))
    vectors = encoder.encode_images(images(3))
    assert vectors.shape == (3, 16) and are_unit_rows(vectors).all()
    with torch_mode():
        pixels = encoder.processor(images=images(3), return_tensors="pt")["pixel_values"]
        out = (
            encoder.model.get_image_features(pixel_values=pixels)
            if name == "siglip"
            else encoder.model(pixel_values=pixels).last_hidden_state[:, 0]
        )
    assert np.allclose(vectors, unit_rows(getattr(out, "pooler_output", out).numpy()), atol=1e-5)


def test_texts_of_siglip_are_padded_to_its_full_length(tmp_path: Path):
    tower("siglip", tmp_path)
    encoder = load_encoder(EncoderConfig(model=str(tmp_path), kind="text"))
    lone, both = encoder.encode_texts(["red"]), encoder.encode_texts(["red", "red circle blue circle red"])
    assert both.shape == (2, 16) and np.allclose(lone[0], both[0], atol=1e-5)
    with torch_mode():
        tokens = encoder.processor(["red"], padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
        out = encoder.model.get_text_features(input_ids=tokens)
    assert tokens.shape == (1, 12) and np.allclose(
        lone, unit_rows(getattr(out, "pooler_output", out).numpy()), atol=1e-5
    )


def torch_mode():
    import torch

    return torch.inference_mode()


def test_a_folder_without_a_model_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="image"))
