"""The interface of a composed-image retriever, and what its implementations share.

A retriever turns images, texts, or an image with a modification text into vectors of one space; a query of both should
lie near the image that the text describes. Two types exist: CLIP (tasks/models/retrievers/clip.py), where a query is
the sum of the image's and the text's features, and MLLM (tasks/models/retrievers/mllm.py), where one decoder reads both
together. `load_retriever` (tasks/models/retrievers/load.py) picks the type from a model's config.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from tasks.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from tasks.models.retrievers.kept_rows import EncodeOptions

Role = Literal[
    "query", "candidate"
]  # a query searches, a candidate is searched; the MLLM type prompts them differently
BasePrecision: TypeAlias = Literal["float32", "bfloat16", "4bit"]  # of weights under adapters
Content: TypeAlias = tuple[str | None, str]  # image key or None, text or ""


class ContentEncoder(Protocol):
    """Encodes a benchmark's contents by image key and text, each image and text once."""

    def prepare(self, image_keys: Sequence[str], texts: Sequence[str]) -> None:
        """Encode ahead, in large batches, what can be encoded without its counterpart."""

    def encode(self, contents: Sequence[Content], role: Role) -> np.ndarray:
        """(n, d) float32 unit rows of n contents; a row of zeros for a content without image and text."""


class Retriever(Protocol):
    """What training and evaluation need of a retriever.

    Attributes:
        name: Hugging Face name or folder it was loaded from.
        device: device of the weights.
        revision: of the weights (tasks/models/hub.py).
        model: the torch module; training changes it in place.
        is_joint: image and text of a query are encoded together; their features cannot be computed apart.
    """

    name: str
    device: str
    revision: str
    model: Any
    is_joint: bool

    def preprocess(self, images: Sequence[Image]) -> Any:
        """The model's inputs: (n, 3, height, width) float32, or a list of n inputs where images differ in size."""

    def features(
        self,
        *,
        pixels: Any = None,
        texts: Sequence[str] | None = None,
        role: Role = "query",
        task: str | None = None,
    ) -> torch.Tensor:
        """(n, d) raw features, with gradients: of n preprocessed images as candidates, of n texts, or of n contents of
        both (an MLLM's image may be None) in a role; `task` is the task instruction of an MLLM's queries, its own where
        None.
        """

    def encode(
        self, images: Sequence[Image] | None = None, texts: Sequence[str] | None = None, batch_size: int = 8
    ) -> np.ndarray:
        """(n, d) float32 unit rows of n images, of n texts, or of n queries of both.

        Raises:
            ConfigError: neither is given, or both in different numbers.
        """

    def content_encoder(
        self,
        read_image: Callable[[str], Image],
        batch_size: int,
        image_features: Mapping[str, np.ndarray] | None = None,
        options: EncodeOptions | None = None,
    ) -> ContentEncoder:
        """An encoder of a benchmark's contents.

        Args:
            read_image: image key -> image.
            batch_size: images, texts or both together in one pass of the model, a count.
            image_features: image key -> (d,) raw features that are known already.
            options: how images are read, and where vectors are kept.
        Raises:
            ConfigError: features of images alone are given and the model cannot use them.
        """

    def add_adapters(
        self, *, rank: int, alpha: int, dropout: float = 0.0, targets: str = "all-linear", seed: int = 0
    ) -> None:
        """Insert LoRA adapters; from here on only they are trained.

        Raises:
            ConfigError: the model's type is trained as a whole, peft is missing, or the targets do not fit.
        """

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write model, processor and what other libraries need to load them, atomically.

        Args:
            folder: an old one is replaced as a whole.
            weights: the full state dict where this process holds only a shard of it; the model's own where None.
        """


def count_rows(images: Sequence[Image] | None, texts: Sequence[str] | None) -> int:
    """How many rows `encode` returns for images, texts, or both together.

    Raises:
        ConfigError: neither is given, or both in different numbers.
    """
    counts = [len(x) for x in (images, texts) if x is not None]
    if not counts or len(set(counts)) > 1:
        raise ConfigError(f"encode: expected images, texts, or as many of both; found {counts}")
    return counts[0]


def add_remote_code(folder: Path, files: Sequence[str], remote_class: str) -> None:
    """Copy into a saved folder what sentence-transformers and the released models' interface need.

    Plain transformers needs none of it.

    Args:
        folder: a saved model.
        files: paths below tasks/models/retrievers/published, each copied into the folder itself.
        remote_class: <module>.<class> that AutoModel takes where remote code is trusted.
    """
    published = Path(__file__).parent / "published"
    for name in files:
        shutil.copyfile(published / name, folder / Path(name).name)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": remote_class}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
