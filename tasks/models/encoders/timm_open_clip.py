"""Encoders of timm and open_clip: EVA-CLIP, SigLIP, DINOv3, MobileCLIP and all others published in their formats.

A model is `timm:NAME` or `open_clip:NAME` (a repository of the hub, `revision` pinned), or a folder, which its files
identify: `open_clip_config.json`, or timm's `config.json` with an `architecture`; a `config.json` with a `model_type`
belongs to transformers (tasks/models/encoders/transformers_encoder.py). Weights are safetensors only, loaded strictly.
timm gives the pooled features before its classifier, open_clip the towers' projections. Images are prepared by Pillow
as the folder's configuration says (timm's evaluation transform, open_clip's `image_transform`); configurations that pad
are refused.

Both libraries import torchvision, of which they need nothing to run a tower, and whose index build does not import
beside a CPU torch. Where it is not installed, a placeholder module of empty classes takes its place while they are
imported, and is removed again.
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

from tasks.devices import pick_device
from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows
from tasks.models.encoders.preprocess import Preparation
from tasks.models.hub import load_errors, model_revision

if TYPE_CHECKING:
    from PIL.Image import Image

    from tasks.config import EncoderConfig

FILES = {  # of a model: its configuration, and names of its weights in order of preference
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


def find_library(model: str) -> tuple[str, str] | None:
    """The library of a model and its name or folder: ('timm' or 'open_clip', name); None for transformers' models."""
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


class _PlaceholderClass(type):
    """A class of which every missing attribute is its own name, a string."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _PlaceholderModule(types.ModuleType):
    """A module of which every missing attribute is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _PlaceholderClass(name, (), {})


@contextmanager
def _placeholder_torchvision() -> Iterator[None]:
    """Let `import torchvision` work while the context lasts, by a placeholder where it is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # caches its answer, which must not be about the placeholder
    names = ["torchvision" + suffix for suffix in TORCHVISION]
    for name in names:
        module = _PlaceholderModule(name)
        module.__path__, module.__spec__ = [], ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def import_library(library: str) -> Any:
    """Import timm or open_clip.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with _placeholder_torchvision():
            return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"models of '{library}': {error}; expected the extra 'towers'; pip install timm open-clip-torch"
        ) from error


def _find_files(library: str, name: str, pinned: str | None) -> tuple[dict[str, Any], Path, str]:
    """A model's configuration, the path of its weights, and its revision; downloaded where it is no folder."""
    config_name, weights = FILES[library]
    folder, revision = Path(name), ""
    with load_errors(name, f"a {library} encoder"):
        if folder.is_dir():
            revision = model_revision(name)
        else:
            from huggingface_hub import snapshot_download

            texts = ["*.json", "*.txt", "*.model"]  # the configuration and a tokenizer
            folder = Path(snapshot_download(name, revision=pinned, allow_patterns=[*texts, *weights]))
            revision = folder.name  # the commit of the branch or tag
    weight_files = [folder / w for w in weights if (folder / w).is_file()]
    if not weight_files or not (folder / config_name).is_file():
        raise ConfigError(
            f"model '{name}': cannot be loaded by {library}; expected {config_name} and {' or '.join(weights)}; "
            "name another model or folder"
        )
    return json.loads((folder / config_name).read_text(encoding="utf-8")), weight_files[0], revision


def _preparation(name: str, side: tuple[int, int], mode: str, crop_share: float, config: dict[str, Any]) -> Preparation:
    """The preparation of a model's images.

    Args:
        name: of the model, for the error.
        side: (height, width) px of the model's input.
        mode: shortest (resize the shorter side, crop the centre) or squash (resize both sides).
        crop_share: share of the resized image that the crop takes.
        config: mean, std and interpolation.
    Raises:
        ConfigError: images are prepared in another way.
    """
    scaled = math.floor(side[0] / crop_share), math.floor(side[1] / crop_share)
    resample = FILTERS.get(config["interpolation"])
    if resample is None or mode not in ("shortest", "squash") or (mode == "shortest" and side[0] != side[1]):
        raise ConfigError(
            f"model '{name}': images are prepared by '{mode}' and '{config['interpolation']}' to {side}; "
            f"expected shortest (square) or squash, and one of {sorted(FILTERS)}; name another model"
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


def _load_timm(name: str, config: dict[str, Any], weights: Path) -> tuple[Any, Preparation]:
    """A timm model without its classifier, and the preparation of its images."""
    from safetensors.torch import load_file

    timm = import_library("timm")
    with load_errors(name, "a timm encoder"):
        model = timm.create_model(
            config["architecture"], pretrained=False, num_classes=0, **(config.get("model_args") or {})
        )
    cfg = {**dict(model.pretrained_cfg), **(config.get("pretrained_cfg") or {})}
    missing, unknown = model.load_state_dict(load_file(weights), strict=False)
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    unknown = [key for key in unknown if not key.startswith(tuple(f"{h}." for h in heads))]
    if missing or unknown:
        raise ConfigError(
            f"model '{name}': its weights do not fit {config['architecture']}: missing {missing[:3]}, "
            f"unknown {unknown[:3]}; expected all and no others; name another model"
        )
    mode = {"center": "shortest", "squash": "squash"}.get(cfg.get("crop_mode", "center"), str(cfg.get("crop_mode")))
    return model, _preparation(name, tuple(cfg["input_size"][1:]), mode, float(cfg.get("crop_pct") or 0.875), cfg)


def _load_open_clip(name: str, config: dict[str, Any], weights: Path) -> tuple[Any, Preparation]:
    """An open_clip model, and the preparation of its images."""
    open_clip = import_library("open_clip")
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
        """As `load_encoder`."""
        import torch

        from tasks.models.encoders.cpu_precision import CpuPrecision

        library_and_name = find_library(spec.model)
        assert library_and_name is not None
        library, name = library_and_name
        if spec.kind == "text" and library == "timm":
            raise ConfigError(
                f"encoder '{spec.model}': timm's models read no text; name an open_clip or transformers model"
            )
        torch.set_num_threads(threads)
        self.kind, self.name, self.library = spec.kind, spec.model, library
        self.device = pick_device(device)
        config, weights, revision = _find_files(library, name, spec.revision)
        self.model, self.preparation = (_load_timm if library == "timm" else _load_open_clip)(name, config, weights)
        self.dtype = getattr(torch, spec.dtype) if self.device.startswith("cuda") else torch.float32
        self.model.eval().to(self.device, self.dtype)
        self.precision = CpuPrecision(self.model, spec.cpu_dtype, self.device)
        self.revision = revision + self.precision.suffix
        if spec.kind == "text":
            with load_errors(name, "an open_clip tokenizer"):
                self.tokenizer = import_library("open_clip").get_tokenizer(f"local-dir:{weights.parent}")

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
        return self.precision.encode_checked(self._encode_pixels, pixels, self.name)

    def _encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        batch = self.preparation.normalize(pixels, self.device).to(self.dtype)
        with self.precision.inference():
            vectors = self.model(batch) if self.library == "timm" else self.model.encode_image(batch)
        return unit_rows(vectors.float().cpu().numpy())

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32, rows of unit length; texts longer than the model reads are cut.

        Raises:
            ConfigError: this is an image encoder.
        """
        if self.kind != "text":
            raise ConfigError(f"encoder '{self.name}': kind is 'image', texts need kind 'text'")
        return self.precision.encode_checked(self._encode_texts, list(texts), self.name)

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        tokens = self.tokenizer(list(texts)).to(self.device)
        with self.precision.inference():
            vectors = self.model.encode_text(tokens)
        return unit_rows(vectors.float().cpu().numpy())
