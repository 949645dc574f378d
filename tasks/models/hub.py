"""Shared by all model loaders: the revision that is stored with results, the device, and errors with a next step.

The revision of a local folder is the hash of its weights, so that a table says which weights wrote it, wherever the
folder was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, TransientError

OFFLINE = "HF_HUB_OFFLINE"
HUB_TIMEOUT_S = 5.0  # for the answer about one small file


@cache
def _folder_revision(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in stamp:
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def model_revision(model: str, revision: str | None = None, config: Any = None) -> str:
    """The revision to store beside what a model wrote.

    Args:
        model: Hugging Face name or local folder.
        revision: the pinned revision of a name, if any; not used for a folder.
        config: the loaded model's config, which has the commit that a name was resolved to.
    Returns:
        For a folder the first 12 hex digits of the sha256 of its safetensors files, in order of name; for a name the
        commit, else the pinned revision, else 'main'.
    Raises:
        ConfigError: the folder holds no safetensors weights.
    """
    folder = Path(model)
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ConfigError(
                f"model '{model}': the folder holds no *.safetensors; save the weights with "
                "save_pretrained(..., safe_serialization=True)"
            )
        return _folder_revision(
            folder.resolve(), tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
        )
    return str(getattr(config, "_commit_hash", None) or revision or "main")


def is_hub_off() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub, as huggingface_hub reads it."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


def is_hub_name(model: str) -> bool:
    """Whether a model's name means one on the hub: no folder of that name, and at most one slash inside."""
    path = Path(model)
    return not path.exists() and not path.is_absolute() and not model.startswith((".", "~")) and model.count("/") <= 1


def known_model_type(model: str, revision: str | None = None) -> str | None:
    """The model_type of a model's config.json, within seconds and without transformers; None where it is unknown here.

    A name is looked up among what is on this machine, then on the hub, which has `HUB_TIMEOUT_S` to answer.

    Args:
        model: Hugging Face name or local folder.
        revision: pinned revision of a name.
    """
    if not is_hub_name(model):
        path = Path(model) / "config.json"
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        unknown = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
        try:
            path = Path(hf_hub_download(model, "config.json", revision=revision, etag_timeout=HUB_TIMEOUT_S))
        except unknown:
            return None
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # loading it says what is wrong
    return kind if isinstance(kind, str) else None


@contextmanager
def load_errors(model: str, parameter: str) -> Iterator[None]:
    """Turn what the hub or a folder raises while loading into an error that names the parameter and the next step.

    Args:
        model: Hugging Face name or local folder.
        parameter: which parameter names it.
    Raises:
        TransientError: the hub cannot be reached.
        ConfigError: nothing loadable under that name, or HF_HUB_OFFLINE keeps the hub out.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a task's log is for counts
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        if is_hub_off() and is_hub_name(model) and isinstance(error, OSError):
            raise ConfigError(
                f"model '{model}' ({parameter}): it is not on this machine, and HF_HUB_OFFLINE={os.environ[OFFLINE]} "
                "keeps the hub out; expected a local folder, or HF_HUB_OFFLINE=0 for all processes "
                "(`HF_HUB_OFFLINE=0 make ui`); set it and clear the task, or name a local folder"
            ) from error
        if "couldn't connect" in text.lower() or "timed out" in text.lower():
            raise TransientError(
                f"model '{model}' ({parameter}): the hub cannot be reached ({text}); try again, or name a local folder"
            ) from error
        raise ConfigError(
            f"model '{model}' ({parameter}): cannot be loaded ({text}); expected a local folder or a Hugging Face name "
            "with safetensors"
        ) from error
