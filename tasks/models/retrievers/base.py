"""What every retriever shares: contents, roles, unit vectors, and how a model is saved and replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image


Role = Literal["query", "candidate"]  # what is asked with, or what is searched; the MLLM type prompts them differently
Content = tuple[str | None, str]  # image key or None, text or ""


def count_of(images: Sequence[Image] | None, texts: Sequence[str] | None) -> int:
    """How many rows images, texts, or both together ask for.

    Raises:
        ConfigError: neither is given, or both in different numbers.
    """
    counts = [len(x) for x in (images, texts) if x is not None]
    if not counts or len(set(counts)) > 1:
        raise ConfigError(f"encode: expected images, texts, or as many of both; found {counts}")
    return counts[0]


def publish(folder: Path, files: Sequence[str], remote_class: str) -> None:
    """Put into a saved folder what sentence-transformers and the released models' interface need; plain transformers
    needs none of it.

    Args:
        folder: a saved model.
        files: of models/published/, copied into the folder itself.
        remote_class: <module>.<class> that AutoModel takes where remote code is trusted.
    """
    here = Path(__file__).parent / "published"
    for name in files:
        shutil.copyfile(here / name, folder / Path(name).name)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": remote_class}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
