"""Captions as TF-IDF vectors: each by itself, near where captions share runs of words, weighted by their rarity."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from tasks.config.pairs import EncoderConfig
from tasks.errors import ConfigError
from tasks.models.encoders.load import load_encoder
from tasks.models.encoders.tfidf import DIMENSIONS, fit_idf

CAPTIONS = [
    "a small red star at the top left on a black background",
    "a small red star at the top left on a white background",
    "black background with a large blue circle in the middle",
    "two dogs run over a lawn",
]


def vectors(model: str, texts: list[str]) -> np.ndarray:
    encoder = load_encoder(EncoderConfig(model=model, kind="tfidf"))
    return encoder.encode_texts(texts)


def test_a_vector_depends_on_its_caption_alone_and_words_without_a_run_are_zero():
    rows = vectors("plain", CAPTIONS)
    assert rows.shape == (4, DIMENSIONS) and np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)
    assert all(np.array_equal(vectors("plain", [text])[0], row) for text, row in zip(CAPTIONS, rows, strict=True))
    assert not vectors("plain", ["...", "!"]).any()
    assert np.array_equal(vectors("plain", [CAPTIONS[0].upper()])[0], rows[0])


def test_cosines_are_those_of_scikit_learns_tfidf_up_to_the_folding(tmp_path: Path):
    np.save(tmp_path / "idf.npy", fit_idf([CAPTIONS[:2], CAPTIONS[2:]]))
    exact = TfidfVectorizer(ngram_range=(1, 6), sublinear_tf=True, token_pattern=r"\w+").fit_transform(CAPTIONS)
    rows = vectors(str(tmp_path), CAPTIONS)
    assert rows @ rows.T == pytest.approx((exact @ exact.T).toarray(), abs=4 / DIMENSIONS**0.5)
    assert (rows @ rows.T)[0].argsort().tolist()[-2:] == [1, 0]


def test_what_is_no_folder_of_frequencies_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"expected `plain`, or a folder with idf.npy of .*fit_words"):
        vectors(str(tmp_path), CAPTIONS)
    np.save(tmp_path / "idf.npy", np.ones(3, np.float32))
    with pytest.raises(ConfigError, match=r"shape \(3,\), expected"):
        vectors(str(tmp_path), CAPTIONS)
    with pytest.raises(ConfigError, match="captions, not images"):
        load_encoder(EncoderConfig(model="plain", kind="tfidf")).encode_images([])
