"""One call for every kind of encoder; rows of unit length, the same whatever the batch."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.config import EncoderConfig
from tasks.errors import ConfigError
from tasks.models.encoders import good_rows, load_encoder, unit_rows

CHECKPOINTS = Path("tasks/sample/checkpoints")


def pictures(n: int) -> list[Image.Image]:
    cells = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)
    return [Image.fromarray(c).resize((96 + 8 * i, 96), Image.Resampling.NEAREST) for i, c in enumerate(cells)]


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_an_image_encoder_gives_unit_rows(name: str):
    encoder = load_encoder(EncoderConfig(model=str(CHECKPOINTS / name), kind="image"))
    vectors = encoder.encode_images(pictures(5))
    assert vectors.dtype == np.float32 and vectors.shape[0] == 5 and good_rows(vectors).all()
    assert np.allclose(encoder.encode_images(pictures(5)[3:]), vectors[3:], atol=1e-4)
    assert len(encoder.revision) == 12
    with pytest.raises(ConfigError, match="kind 'text'"):
        encoder.encode_texts(["a"])


def test_a_clips_text_tower_reads_captions():
    encoder = load_encoder(EncoderConfig(model=str(CHECKPOINTS / "clip"), kind="text"))
    texts = ["a large red circle at the top left on a white background", "a small blue star", "word " * 500]
    vectors = encoder.encode_texts(texts)
    assert vectors.shape == (3, load_encoder(EncoderConfig(model=str(CHECKPOINTS / "clip"), kind="image")).encode_images(pictures(1)).shape[1])
    assert good_rows(vectors).all()
    assert np.allclose(encoder.encode_texts(texts[1:2]), vectors[1:2], atol=1e-4)  # padding does not show
    with pytest.raises(ConfigError, match="kind 'image'"):
        encoder.encode_images(pictures(1))


def test_a_text_encoder_of_berts_kin_is_pooled_over_its_tokens(tmp_path: Path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "circle"]))
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    BertModel(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(tmp_path)
    encoder = load_encoder(EncoderConfig(model=str(tmp_path), kind="text"))
    both = encoder.encode_texts(["red", "red circle blue circle"])
    assert both.shape == (2, 16) and good_rows(both).all()
    assert np.allclose(encoder.encode_texts(["red"])[0], both[0], atol=1e-4)


def test_rows_that_cannot_be_scaled_are_told_from_good_ones():
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e-30, 0]])
    assert np.allclose(unit_rows(rows)[0], [0.6, 0.8])
    assert good_rows(unit_rows(rows)).tolist() == [True, False, False, False, True]


def test_a_folder_without_a_model_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="image"))
