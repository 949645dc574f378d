"""timm's and open_clip's towers from a folder, with random weights of a few thousand numbers; skipped where the
libraries are not installed.
"""

import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tasks.config import EncoderConfig
from tasks.errors import ConfigError
from tasks.knn.unit_rows import are_unit_rows, unit_rows
from tasks.models.encoders.load import load_encoder
from tasks.models.encoders.timm_open_clip import find_library, import_library

needs = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("open_clip") is None,
    reason="timm and open_clip are not installed (extra 'towers')",
)


def images(n: int) -> list[Image.Image]:
    cells = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)
    return [Image.fromarray(c).resize((60 + 9 * i, 50), Image.Resampling.BICUBIC) for i, c in enumerate(cells)]


def timm_folder(folder: Path, architecture: str, args: dict[str, Any], **changes: Any) -> Any:
    """As push_to_hf_hub saves a model, its classifier of ten classes among the weights."""
    torch.manual_seed(0)
    model = import_library("timm").create_model(architecture, pretrained=False, num_classes=10, **args).eval()
    side = args.get("img_size", 64)
    cfg = {
        "input_size": [3, side, side],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "classifier": model.pretrained_cfg["classifier"],
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"architecture": architecture, "num_classes": 10, "model_args": args, "pretrained_cfg": {**cfg, **changes}}
        )
    )
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return model


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@needs
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_timm_models_give_the_pooled_features(architecture: str, tmp_path: Path):
    model = timm_folder(tmp_path / "m", architecture, VIT)
    encoder = load_encoder(EncoderConfig(model=str(tmp_path / "m"), kind="image"), "cpu")
    vectors = encoder.encode_images(images(3))
    assert vectors.shape == (3, 32) and are_unit_rows(vectors).all() and len(encoder.revision) == 12
    pixels = []
    for image in images(3):  # timm's evaluation transform, in words: the shorter side to 32 / 0.9, the centre, scaled
        width, height = image.size
        small = image.resize(
            (int(35 * width / height), 35) if width > height else (35, int(35 * height / width)),
            Image.Resampling.BICUBIC,
        )
        left, top = round((small.width - 32) / 2), round((small.height - 32) / 2)
        pixels.append(
            (np.asarray(small.crop((left, top, left + 32, top + 32))) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
        )
    with torch.inference_mode():
        batch = torch.tensor(np.stack(pixels).transpose(0, 3, 1, 2), dtype=torch.float32)
        expected = model.forward_head(model.forward_features(batch), pre_logits=True).numpy()
    assert np.allclose(vectors, unit_rows(expected), atol=1e-4)
    contents = []
    for image in images(3):
        out = io.BytesIO()
        image.save(out, "PNG")
        contents.append(out.getvalue())
    fast = encoder.encode_prepared([encoder.preparation.prepare(c) for c in contents])
    assert (fast * vectors).sum(axis=1).min() > 0.9999


@needs
def test_a_timm_tower_in_8_bits(tmp_path: Path):
    timm_folder(tmp_path / "m", "vit_tiny_patch16_224", VIT)
    exact, fewer = (
        load_encoder(EncoderConfig(model=str(tmp_path / "m"), kind="image", cpu_dtype=n), "cpu")
        for n in ("float32", "int8")
    )
    assert (exact.encode_images(images(4)) * fewer.encode_images(images(4))).sum(axis=1).min() >= 0.999
    assert fewer.revision == exact.revision + "+int8"


@needs
def test_timm_weights_that_do_not_fit_are_refused(tmp_path: Path):
    timm_folder(tmp_path, "vit_tiny_patch16_224", VIT)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("blocks.1.")}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="do not fit vit_tiny_patch16_224: missing"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="image"), "cpu")
    timm_folder(tmp_path, "vit_tiny_patch16_224", VIT, crop_mode="border")
    with pytest.raises(ConfigError, match="'border'.*expected shortest"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="image"), "cpu")
    with pytest.raises(ConfigError, match="read no text"):
        load_encoder(EncoderConfig(model=f"timm:{tmp_path}", kind="text"), "cpu")


def clip_folder(folder: Path, vision: dict[str, Any], **preprocess: Any) -> Any:
    open_clip = import_library("open_clip")
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": vision,
        "text_cfg": text,
        **({"custom_text": True} if "timm_model_name" in vision else {}),
    }
    cfg = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        **preprocess,
    }
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": cfg}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


PLAIN = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
EVA = {
    "image_size": 224,
    "timm_model_name": "eva02_tiny_patch14_224",
    "timm_model_pretrained": False,
    "timm_pool": "token",
    "timm_proj": "linear",
}


@needs
@pytest.mark.parametrize("vision", [PLAIN, EVA], ids=["clip", "eva"])
def test_both_towers_of_open_clip_models_are_loaded(vision: dict[str, Any], tmp_path: Path):
    model = clip_folder(tmp_path / "m", vision)
    encoder = load_encoder(EncoderConfig(model=str(tmp_path / "m"), kind="image"), "cpu")
    vectors = encoder.encode_images(images(3))
    assert vectors.shape == (3, 24) and are_unit_rows(vectors).all()
    with torch.inference_mode():
        batch = encoder.preparation.normalize([encoder.preparation.prepare_image(p) for p in images(3)], "cpu")
        assert batch.shape == (3, 3, vision["image_size"], vision["image_size"])
        assert np.allclose(vectors, unit_rows(model.encode_image(batch).numpy()), atol=1e-5)
    reader = load_encoder(EncoderConfig(model=f"open_clip:{tmp_path / 'm'}", kind="text"), "cpu")
    texts = ["a red circle", "a small blue star on a white background " * 9]
    words = reader.encode_texts(texts)
    assert words.shape == (2, 24) and reader.revision == encoder.revision
    with torch.inference_mode():
        tokens = import_library("open_clip").get_tokenizer(f"local-dir:{tmp_path / 'm'}")(texts)
        assert tokens.shape == (2, 16) and np.allclose(words, unit_rows(model.encode_text(tokens).numpy()), atol=1e-5)
    with pytest.raises(ConfigError, match="images need kind 'image'"):
        reader.encode_images(images(1))
    with pytest.raises(ConfigError, match="texts need kind 'text'"):
        encoder.encode_texts(texts)


@needs
def test_pickled_weights_are_never_read(tmp_path: Path):
    model = clip_folder(tmp_path, PLAIN)
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "model.safetensors")
    # open_clip itself would take this one
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x04not weights")
    encoder = load_encoder(EncoderConfig(model=str(tmp_path), kind="image"), "cpu")
    assert torch.equal(encoder.model.visual.conv1.weight, model.visual.conv1.weight)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no \\*.safetensors"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="image"), "cpu")


@needs
def test_the_placeholder_of_torchvision_is_removed():
    import_library("timm"), import_library("open_clip")
    assert find_spec("torchvision") is None or hasattr(__import__("torchvision"), "__file__")
    from transformers.utils import is_torchvision_available

    assert is_torchvision_available() == (find_spec("torchvision") is not None)


def test_a_model_is_identified_by_its_prefix_or_its_files(tmp_path: Path):
    assert find_library("timm:timm/vit_base_patch16_dinov3.lvd1689m") == (
        "timm",
        "timm/vit_base_patch16_dinov3.lvd1689m",
    )
    assert (
        find_library("open_clip:org/EVA") == ("open_clip", "org/EVA")
        and find_library("openai/clip-vit-base-patch32") is None
    )
    assert find_library(str(tmp_path)) is None and find_library("tasks/sample/checkpoints/clip") is None
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert find_library(str(tmp_path)) == ("timm", str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert find_library(str(tmp_path)) == ("open_clip", str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # as the hub has both: transformers' comes first
    assert find_library(str(tmp_path)) is None


def test_the_error_of_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="extra 'towers'"):
        load_encoder(EncoderConfig(model=str(tmp_path), kind="image"), "cpu")
