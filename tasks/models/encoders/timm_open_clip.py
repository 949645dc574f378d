"""Towers of timm and open_clip: EVA-CLIP, SigLIP, DINOv3, MobileCLIP and whatever else is published in their form.

`timm:NAME` and `open_clip:NAME` (a hub's repository, `revision` pinned) or a folder, which its files tell:
`open_clip_config.json`, or timm's `config.json` with an `architecture`; a `config.json` with a `model_type` is
transformers' and stays there. Weights are safetensors only, loaded strictly. timm gives the pooled features in front of
its classifier, open_clip the towers' projections. Images are prepared by Pillow as the folder's
configuration says (timm's evaluation transform, open_clip's `image_transform`); padding forms are refused.

Both libraries import torchvision, of which they need nothing to run a tower, and whose index build does not import
beside a CPU torch. Where it is not installed a stand-in of empty names is put in its place while they are imported, and
taken away again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.models.encoders.preprocess import Preparation
from tasks.models.hub import load_errors, model_revision, pick_device

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.config import EncoderConfig

FILES = {  # of a hub's repository; the weights' names in order of preference
    "timm": ("config.json", ("model.safetensors",)),
    "open_clip": (
        "open_clip_config.json",
        ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    ),
}
FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
TORCHVISION = (
    "",
    ".ops",
    ".ops.misc",
    ".transforms",
    ".transforms.functional",
    ".datasets",
    ".models",
    ".models.feature_extraction",
    ".utils",
)


def form_of(model: str) -> tuple[str, str] | None:
    """('timm' or 'open_clip', name or folder); None for transformers' models."""
    prefix, _, rest = model.partition(":")
    if prefix in FILES and rest:
        return prefix, rest
    folder = Path(model)
    config = folder / "config.json"
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if "model_type" in known:
        return None
    if (folder / "open_clip_config.json").is_file():
        return "open_clip", model
    return ("timm", model) if "architecture" in known else None


class _Name(type):
    """A class whose missing attributes are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


@contextmanager
def _torchvision() -> Iterator[None]:
    """torchvision, or its stand-in for as long as this lasts."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # it keeps its answer: asked before there is a stand-in
    names = ["torchvision" + suffix for suffix in TORCHVISION]
    for name in names:
        module = _StandIn(name)
        module.__path__, module.__spec__ = [], ModuleSpec(name, None)
        sys.modules[name] = module
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def imported(library: str) -> Any:
    """timm or open_clip.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with _torchvision():
            return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"models of '{library}' need the extra 'towers' (pip install timm open-clip-torch): {error}"
        ) from error


def _files(form: str, name: str, pinned: str | None) -> tuple[dict[str, Any], Path, str]:
    """Configuration, weights, revision."""
    config_name, weights = FILES[form]
    folder, revision = Path(name), ""
    with load_errors(name, f"a {form} encoder"):
        if folder.is_dir():
            revision = model_revision(name)
        else:
            from huggingface_hub import snapshot_download

            texts = ["*.json", "*.txt", "*.model"]  # a tokenizer's among them
            folder = Path(snapshot_download(name, revision=pinned, allow_patterns=[*texts, *weights]))
            revision = folder.name  # the commit that a branch or tag led to
    found = [folder / w for w in weights if (folder / w).is_file()]
    if not found or not (folder / config_name).is_file():
        raise ConfigError(
            f"model '{name}': cannot be loaded as {form}'s; expected {config_name} and {' or '.join(weights)}"
        )
    return json.loads((folder / config_name).read_text(encoding="utf-8")), found[0], revision


def _preparation(name: str, side: tuple[int, int], mode: str, crop_share: float, config: dict[str, Any]) -> Preparation:
    """`side`: (height, width) px of the tower's input; `crop_share` of the resized image is kept."""
    scaled = math.floor(side[0] / crop_share), math.floor(side[1] / crop_share)
    resample = FILTERS.get(config["interpolation"])
    if resample is None or mode not in ("shortest", "squash") or (mode == "shortest" and side[0] != side[1]):
        raise ConfigError(
            f"model '{name}': images are prepared by '{mode}' and '{config['interpolation']}' to {side}; expected shortest (square) or squash"
        )
    return Preparation(
        scaled[0] if mode == "shortest" else None,
        None if mode == "shortest" else (scaled[1], scaled[0]),
        (side[1], side[0]),
        resample,
        tuple(config["mean"]),
        tuple(config["std"]),
        1 / 255,
        is_rounded=True,
    )


def _timm(name: str, config: dict[str, Any], weights: Path) -> tuple[Any, Preparation]:
    from safetensors.torch import load_file

    timm = imported("timm")
    with load_errors(name, "a timm encoder"):
        model = timm.create_model(
            config["architecture"], pretrained=False, num_classes=0, **(config.get("model_args") or {})
        )
    cfg = {**dict(model.pretrained_cfg), **(config.get("pretrained_cfg") or {})}
    missing, left = model.load_state_dict(load_file(weights), strict=False)
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    left = [key for key in left if not key.startswith(tuple(f"{h}." for h in heads))]
    if missing or left:
        raise ConfigError(
            f"model '{name}': its weights do not fit {config['architecture']}: missing {missing[:3]}, unknown {left[:3]}"
        )
    mode = {"center": "shortest", "squash": "squash"}.get(cfg.get("crop_mode", "center"), str(cfg.get("crop_mode")))
    return model, _preparation(name, tuple(cfg["input_size"][1:]), mode, float(cfg.get("crop_pct") or 0.875), cfg)


def _open_clip(name: str, config: dict[str, Any], weights: Path) -> tuple[Any, Preparation]:
    open_clip = imported("open_clip")
    with load_errors(name, "an open_clip encoder"):
        model = open_clip.create_model(f"local-dir:{weights.parent}", load_weights=False)
        try:
            open_clip.load_checkpoint(model, str(weights))
        except RuntimeError as error:
            raise ConfigError(
                f"model '{name}': its weights do not fit its configuration: {str(error)[:300]}"
            ) from error
    cfg = {
        "mode": "shortest",
        **dict(open_clip.get_model_preprocess_cfg(model)),
        **(config.get("preprocess_cfg") or {}),
    }
    size = cfg["size"]
    side = (size, size) if isinstance(size, int) else tuple(size)
    return model, _preparation(name, side, str(cfg.get("resize_mode") or "shortest"), 1.0, cfg)


class TowerEncoder:
    """A timm or open_clip model in this process."""

    def __init__(self, spec: EncoderConfig, device: str = "auto", threads: int = 1) -> None:
        import torch

        from tasks.models.encoders.cpu_precision import CpuArithmetic

        form = form_of(spec.model)
        assert form is not None
        library, name = form
        if spec.kind == "text" and library == "timm":
            raise ConfigError(
                f"encoder '{spec.model}': timm's models read no text; name an open_clip or transformers model"
            )
        torch.set_num_threads(threads)
        self.kind, self.name, self.library = spec.kind, spec.model, library
        self.device = pick_device(device)
        config, weights, revision = _files(library, name, spec.revision)
        self.model, self.preparation = (_timm if library == "timm" else _open_clip)(name, config, weights)
        self.dtype = getattr(torch, spec.dtype) if self.device.startswith("cuda") else torch.float32
        self.model.eval().to(self.device, self.dtype)
        self.arithmetic = CpuArithmetic(self.model, spec.cpu_dtype, self.device)
        self.revision = revision + self.arithmetic.suffix
        if spec.kind == "text":
            with load_errors(name, "an open_clip tokenizer"):
                self.tokenizer = imported("open_clip").get_tokenizer(f"local-dir:{weights.parent}")

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """(n, d) float32, rows of unit length.

        Raises:
            ConfigError: this is a text encoder.
        """
        if self.kind != "image":
            raise ConfigError(f"encoder '{self.name}': kind is 'text', images need kind 'image'")
        return self.encode_prepared([self.preparation.prepare_image(image) for image in images])

    def encode_prepared(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """(n, d) float32, rows of unit length, from what `preparation.prepare` made of stored images."""
        return self.arithmetic.checked(self._encode_pixels, pixels, self.name)

    def _encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        from tasks.knn.unit_rows import unit_rows

        batch = self.preparation.normalised(pixels, self.device).to(self.dtype)
        with self.arithmetic.mode():
            vectors = self.model(batch) if self.library == "timm" else self.model.encode_image(batch)
        return unit_rows(vectors.float().cpu().numpy())

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32, rows of unit length; texts longer than the model reads are cut.

        Raises:
            ConfigError: this is an image encoder.
        """
        if self.kind != "text":
            raise ConfigError(f"encoder '{self.name}': kind is 'image', texts need kind 'text'")
        return self.arithmetic.checked(self._encode_texts, list(texts), self.name)

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        from tasks.knn.unit_rows import unit_rows

        tokens = self.tokenizer(list(texts)).to(self.device)
        with self.arithmetic.mode():
            vectors = self.model.encode_text(tokens)
        return unit_rows(vectors.float().cpu().numpy())
