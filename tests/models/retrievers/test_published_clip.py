"""A saved CLIP model loads in plain transformers, in sentence-transformers and through BGE-VL's released interface,
with equal vectors.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.errors import ConfigError
from tasks.models.retrievers.clip import ClipRetriever

CLIP = "tasks/sample/checkpoints/clip"
TEXTS = ["make it blue", "remove the star, please", "what if it were red?"]


@pytest.fixture(scope="module")
def retriever() -> ClipRetriever:
    return ClipRetriever(CLIP, device="cpu")


@pytest.fixture(scope="module")
def saved(retriever: ClipRetriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "candidate"
    retriever.save(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for n in range(3):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (80, 110, 3)).astype(np.uint8)).save(
            folder / f"{n}.png"
        )
    return sorted(folder.iterdir())


def open_images(images: list[Path]) -> list[Image.Image]:
    return [Image.open(p).convert("RGB") for p in images]


def test_plain_transformers_needs_no_code_from_the_folder(retriever: ClipRetriever, saved: Path, images: list[Path]):
    from transformers import AutoModel, AutoProcessor, CLIPModel

    model = AutoModel.from_pretrained(saved, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(saved, backend="pil")  # as the card says, where torchvision is installed
    assert type(model) is CLIPModel
    values = processor(images=open_images(images), text=TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        features = [
            getattr(x, "pooler_output", x)
            for x in (
                model.get_image_features(pixel_values=values["pixel_values"]),
                model.get_text_features(input_ids=values["input_ids"], attention_mask=values["attention_mask"]),
            )
        ]
    composed = torch.nn.functional.normalize(features[0] + features[1], dim=-1).numpy()
    assert np.allclose(composed, retriever.encode(open_images(images), TEXTS), atol=1e-5)


def test_sentence_transformers_takes_images_texts_and_queries_of_both(
    retriever: ClipRetriever, saved: Path, images: list[Path]
):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")
    queries = [{"image": str(p), "text": t} for p, t in zip(images, TEXTS, strict=True)]
    assert np.allclose(model.encode(queries), retriever.encode(open_images(images), TEXTS), atol=1e-5)
    assert np.allclose(
        model.encode([{"text": t, "image": p} for p, t in zip(open_images(images), TEXTS, strict=True)]),
        model.encode(queries),
        atol=1e-6,
    )
    assert np.allclose(model.encode(open_images(images)), retriever.encode(open_images(images)), atol=1e-5)
    assert np.allclose(model.encode(TEXTS), retriever.encode(texts=TEXTS), atol=1e-5)


def test_pillow_resizes_also_where_torchvision_is_installed(saved: Path):
    """torchvision's resizing moves a vector's numbers by up to 0.002."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    module = SentenceTransformer(str(saved), trust_remote_code=True, device="cpu")[0]
    model = AutoModel.from_pretrained(str(saved), trust_remote_code=True)
    model.set_processor(str(saved))
    for processor in (module.processor, model.processor):
        assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"


def test_without_trust_sentence_transformers_still_takes_images_and_texts_alone(retriever: ClipRetriever, saved: Path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(saved), device="cpu")
    assert np.allclose(model.encode(TEXTS), retriever.encode(texts=TEXTS), atol=1e-5)


def test_the_released_interface(retriever: ClipRetriever, saved: Path, images: list[Path]):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(saved), trust_remote_code=True)
    model.set_processor(str(saved))
    model.eval()
    paths = [str(p) for p in images]
    with torch.no_grad():
        assert torch.allclose(
            model.encode(images=paths, text=TEXTS),
            torch.tensor(retriever.encode(open_images(images), TEXTS)),
            atol=1e-5,
        )
        assert torch.allclose(
            model.encode(images=paths), torch.tensor(retriever.encode(open_images(images))), atol=1e-5
        )
        assert torch.allclose(model.encode(text=TEXTS), torch.tensor(retriever.encode(texts=TEXTS)), atol=1e-5)
        one = model.encode(images=paths[0], text=TEXTS[0])
    assert one.shape == (1, 128) and float(one.norm()) == pytest.approx(1, abs=1e-5)
    assert [model.data_process(*given)[2] for given in ((paths, None), (None, TEXTS), (paths, TEXTS))] == [
        "images",
        "text",
        "multimodal",
    ]
    with pytest.raises(ValueError, match="both be lists"):
        model.encode(images=paths, text="make it blue")
    with pytest.raises(ValueError, match="3 images for 2 texts"):
        model.encode(images=paths, text=TEXTS[:2])
    with pytest.raises(ValueError, match="neither"):
        model.encode()


def test_a_saved_folder_is_loaded_and_saved_again_without_running_its_code(
    retriever: ClipRetriever, saved: Path, images: list[Path], tmp_path: Path
):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "modeling_bge_vl.py").write_text("raise SystemExit('code from the folder ran')")
    again = ClipRetriever(str(folder), device="cpu")
    assert np.array_equal(
        again.encode(open_images(images), TEXTS),
        ClipRetriever(str(saved), device="cpu").encode(open_images(images), TEXTS),
    )
    again.save(folder)
    assert (folder / "modeling_bge_vl.py").read_bytes() == (saved / "modeling_bge_vl.py").read_bytes()
    assert (folder / "config.json").read_bytes() == (saved / "config.json").read_bytes()


def test_the_layout_of_the_released_checkpoints_loads(retriever: ClipRetriever, images: list[Path], tmp_path: Path):
    """BAAI/BGE-VL-base and -large: auto_map to code, preprocessor_config.json instead of processor_config.json,
    torch_dtype, no modules.json.
    """
    folder = tmp_path / "BGE-VL-base"
    folder.mkdir()
    shutil.copyfile(f"{CLIP}/model.safetensors", folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(f"{CLIP}/{name}", folder / name)
    config = json.loads(Path(CLIP, "config.json").read_text())
    config |= {
        "auto_map": {"AutoModel": "modeling_MMRet_CLIP.CLIPModel"},
        "torch_dtype": config.pop("dtype"),
        "transformers_version": "4.45.2",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_MMRet_CLIP.py").write_text("raise SystemExit('code from the folder ran')")
    processor = json.loads(Path(CLIP, "processor_config.json").read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(
        json.dumps(processor | {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"})
    )
    loaded = ClipRetriever(str(folder), device="cpu")
    assert np.allclose(
        loaded.encode(open_images(images), TEXTS), retriever.encode(open_images(images), TEXTS), atol=1e-5
    )
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        ClipRetriever(str(folder), device="cpu")
