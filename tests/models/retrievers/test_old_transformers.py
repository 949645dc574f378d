"""Saved models open in transformers 4.45.2, which the released models recommend, with the vectors that they have here.

The old version lives in an environment of its own, `make old-transformers`; without it these tests are skipped.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.mllm import MllmRetriever
from tasks.models.retrievers.published.bge_vl_prompts import CIR_INSTRUCTION
from tests.support.tiny_mllm import TEXTS, images, save_tiny

OLD = Path(".venv-old-transformers/bin/python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OLD.exists(), reason="transformers 4.45.2 is not here; `make old-transformers` installs it"),
]
SCRIPT = """
import sys
import numpy as np, torch, transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

assert transformers.__version__ == "4.45.2", transformers.__version__
clip, mllm, pictures, instruction, out, *texts = sys.argv[1:]
paths = [f"{pictures}/{n}.png" for n in range(3)]
images = [Image.open(p).convert("RGB") for p in paths]
unit = torch.nn.functional.normalize
found = {}
with torch.no_grad():
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    one = model.get_image_features(pixel_values=inputs["pixel_values"])
    other = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    found["clip_plain"] = unit(one + other, dim=-1)
    auto, tokenizer = AutoImageProcessor.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    pixels = auto(images=images, return_tensors="pt")["pixel_values"]
    found["clip_images"] = unit(model.get_image_features(pixel_values=pixels), dim=-1)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    tokens = {k: tokens[k] for k in ("input_ids", "attention_mask")}
    found["clip_texts"] = unit(AutoModel.from_pretrained(clip).get_text_features(**tokens), dim=-1)
    released = AutoModel.from_pretrained(clip, trust_remote_code=True).eval()
    released.set_processor(clip)
    found["clip_released"] = released.encode(images=paths, text=texts)
    released = AutoModel.from_pretrained(mllm, trust_remote_code=True).eval()
    released.set_processor(mllm)
    asked = released.data_process(images=paths, text=texts, q_or_c="q", task_instruction=instruction)
    shown = released.data_process(images=paths, q_or_c="c")
    said = released.data_process(text=texts, q_or_c="c")
    for name, inputs in (("mllm_queries", asked), ("mllm_images", shown), ("mllm_texts", said)):
        found[name] = unit(released(**inputs, output_hidden_states=True)[:, -1, :], dim=-1)
    AutoProcessor.from_pretrained(mllm)
np.savez(out, **{name: rows.numpy() for name, rows in found.items()})
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the old version computes from the saved folders, and what is computed here."""
    folder = tmp_path_factory.mktemp("old")
    clip = ClipRetriever("tasks/sample/checkpoints/clip", device="cpu")
    mllm = MllmRetriever(str(save_tiny("llava_next", folder / "base")), device="cpu")
    clip.save(folder / "clip")
    mllm.save(folder / "mllm")
    shown = images(3)
    for n, image in enumerate(shown):
        image.save(folder / f"{n}.png")
    out = folder / "found.npz"
    words = [str(folder / "clip"), str(folder / "mllm"), str(folder), CIR_INSTRUCTION, str(out), *TEXTS]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(
        [OLD, "-c", SCRIPT, *words], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both = clip.encode(shown, TEXTS)
    here = {
        "clip_plain": both,
        "clip_released": both,
        "clip_images": clip.encode(shown),
        "clip_texts": clip.encode(texts=TEXTS),
        "mllm_queries": mllm.encode(shown, TEXTS),
        "mllm_images": mllm.encode(shown),
        "mllm_texts": mllm.encode(texts=TEXTS),
    }
    with np.load(out) as content:
        return {name: content[name] for name in content.files}, here


@pytest.mark.parametrize("kind", ["clip", "mllm"])
def test_the_vectors_are_equal(kind: str, found: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]):
    there, here = found
    names = [name for name in here if name.startswith(kind)]
    assert set(there) == set(here) and len(names) >= 3
    assert {name: float(np.abs(there[name] - here[name]).max()) < 1e-6 for name in names} == dict.fromkeys(names, True)
