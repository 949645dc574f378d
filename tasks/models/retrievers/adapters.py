"""Adapters of an MLLM: the number format of the frozen base under them, and how they are saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError
from tasks.models.hub import is_hub_name
from tasks.models.retrievers.base import BasePrecision


def weight_format(base_precision: BasePrecision, device: str) -> dict[str, Any]:
    """Keyword arguments of from_pretrained for a number format of the weights.

    Raises:
        ConfigError: 4bit without bitsandbytes.
    """
    import importlib.util

    import torch

    if base_precision != "4bit":
        return {"dtype": getattr(torch, base_precision)}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "'train.base_precision' is 4bit, which needs bitsandbytes 0.50 or newer (`pip install bitsandbytes`); take "
            "bfloat16 instead"
        )
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return {"dtype": torch.bfloat16, "quantization_config": quantization, "device_map": {"": device}}


def bfloat16_with_adapter(model: str, source: Mapping[str, Any], adapter: Path) -> Any:
    """The base in bfloat16 with a saved adapter: merging into 4-bit weights would round its change away."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16, use_safetensors=True, **source)
    return PeftModel.from_pretrained(base, str(adapter))


def save_adapter(model: Any, folder: Path, base: str, revision: str | None = None) -> None:
    """Save a peft model's adapter alone, reproducibly: no timestamp, no set order, no path of this machine.

    Args:
        model: of peft.
        folder: of the adapter.
        base: what the base was loaded from. Only a name on the Hub is noted: a folder means nothing elsewhere, and
            peft then needs the base to be loaded first (`PeftModel.from_pretrained(base, folder)`).
        revision: pinned revision of a name.
    """
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    is_name = is_hub_name(base)
    config["base_model_name_or_path"] = base if is_name else None
    config["revision"] = revision if is_name else None
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
