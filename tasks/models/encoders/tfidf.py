"""TF-IDF of a caption's runs of 1 to 6 words, as a dense unit vector: a miner of text pairs that needs no model.

`model` is `plain`, where every run counts alike, or a folder with `idf.npy`, which `python -m tasks fit_words` wrote:
inverse document frequencies of a fixed set of captions. A vector depends on its caption and that file alone, so that no
later caption changes an earlier vector: mining week by week gives the pairs of one batch. Frequencies of the growing
corpus itself would break that law.

Runs are hashed into RUNS buckets (scikit-learn's HashingVectorizer), counted as 1 + ln(count), weighted, and the
buckets are summed into DIMENSIONS with signs (feature hashing, arXiv:0902.2206): cosines keep within about
1 / sqrt(DIMENSIONS).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.config import EncoderConfig

PLAIN = "plain"
FILE = "idf.npy"
LONGEST_RUN = 6  # words
RUNS = 1 << 16  # buckets of runs
DIMENSIONS = 1024  # of a vector


def count_runs(texts: Sequence[str]) -> Any:
    """(n, RUNS) sparse float64 counts of the runs of 1 to LONGEST_RUN words of each text."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        ngram_range=(1, LONGEST_RUN), n_features=RUNS, alternate_sign=False, norm=None, token_pattern=r"\w+"
    )
    return vectorizer.transform(texts)


def fit_idf(batches: Iterable[Sequence[str]]) -> np.ndarray:
    """(RUNS,) float32, ln((1 + texts) / (1 + texts with the run)) + 1, as scikit-learn's TfidfTransformer smooths it.

    Args:
        batches: of texts.
    """
    texts, with_run = 0, np.zeros(RUNS)
    for batch in batches:
        counts = count_runs(batch)
        texts += counts.shape[0]
        with_run += np.bincount(counts.indices, minlength=RUNS)
    return (np.log((1 + texts) / (1 + with_run)) + 1).astype(np.float32)


def fold(weighted: Any) -> np.ndarray:
    """(n, DIMENSIONS) float32 of (n, RUNS) sparse weights: bucket j goes to j modulo DIMENSIONS, with a sign."""
    entries = weighted.tocoo()
    signs = np.where((entries.col // DIMENSIONS) % 2, -1.0, 1.0)
    out = np.zeros((weighted.shape[0], DIMENSIONS))
    np.add.at(out, (entries.row, entries.col % DIMENSIONS), entries.data * signs)
    return out.astype(np.float32)


class TfidfEncoder:
    """Captions as TF-IDF vectors. Implements `Encoder`."""

    kind: Literal["image", "text", "tfidf"] = "tfidf"

    def __init__(self, spec: EncoderConfig) -> None:
        """Read the frequencies.

        Raises:
            ConfigError: `model` is neither `plain` nor a folder that `fit_words` wrote.
        """
        self.name = spec.model
        self.idf: np.ndarray | None = None
        settings = f"tfidf-{LONGEST_RUN}-{RUNS}-{DIMENSIONS}"
        if spec.model == PLAIN:
            self.revision = f"{settings}-{PLAIN}"
            return
        path = Path(spec.model) / FILE
        try:
            content = path.read_bytes()
            self.idf = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"embed.encoders: kind tfidf with model {spec.model!r}: {error}; expected `{PLAIN}`, or a folder with "
                f"{FILE} of `python -m tasks fit_words --out FOLDER`"
            ) from error
        if self.idf.shape != (RUNS,):
            raise ConfigError(f"{path}: shape {self.idf.shape}, expected {(RUNS,)}; run `python -m tasks fit_words`")
        self.revision = f"{settings}-{hashlib.sha256(content).hexdigest()[:12]}"

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """Refuses.

        Raises:
            ConfigError: always: it encodes texts.
        """
        raise ConfigError("embed.encoders: kind tfidf encodes captions, not images; give it the role words or caption")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, DIMENSIONS) float32, rows of unit length; a text without a word is zero."""
        counts = count_runs(texts)
        counts.data = 1 + np.log(counts.data)
        return unit_rows(fold(counts if self.idf is None else counts.multiply(self.idf)))
