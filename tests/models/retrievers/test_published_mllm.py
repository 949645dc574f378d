"""A saved model of the MLLM type loads in plain transformers, in sentence-transformers and through BGE-VL's released
interface.

sentence-transformers takes Qwen-VL's whole processor, which wants torchvision: that test runs where torchvision is
(`make test-vllm`), elsewhere it is skipped with one line.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.models.retrievers.mllm import MllmRetriever
from tasks.models.retrievers.published.bge_vl_prompts import CIR_INSTRUCTION
from tests.support.tiny_mllm import FAMILIES, TEXTS, images, save_tiny

NO_TORCHVISION = importlib.util.find_spec("torchvision") is None
NEEDS_TORCHVISION = (
    "sentence-transformers takes Qwen-VL's whole processor, which needs torchvision; `make test-vllm` makes an "
    "environment that has it"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each architecture what `save` wrote."""
    folder = tmp_path_factory.mktemp("saved")
    for name in FAMILIES:
        MllmRetriever(str(save_tiny(name, folder / f"{name}-base")), device="cpu").save(folder / name)
    return {name: folder / name for name in FAMILIES}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of 512 x 512: the size that BGE-VL wants and that sentence-transformers does not bring about."""
    folder = tmp_path_factory.mktemp("images")
    for n, image in enumerate(images(3)):
        image.resize((512, 512)).save(folder / f"{n}.png")
    return sorted(folder.iterdir())


def open_images(paths: list[Path]) -> list[Image.Image]:
    return [Image.open(p).convert("RGB") for p in paths]


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_transformers_needs_no_code_from_the_folder(saved: dict[str, Path], name: str):
    from transformers import AutoModel, AutoModelForImageTextToText, AutoTokenizer

    whole, info = AutoModelForImageTextToText.from_pretrained(
        saved[name], output_loading_info=True, trust_remote_code=False
    )
    assert (
        type(whole).__module__.startswith("transformers.") and not info["missing_keys"] and not info["unexpected_keys"]
    )
    base, info = AutoModel.from_pretrained(saved[name], output_loading_info=True, trust_remote_code=False)
    assert not info["missing_keys"] and {k.rpartition("lm_head")[1] for k in info["unexpected_keys"]} <= {"lm_head"}
    tokenizer = AutoTokenizer.from_pretrained(saved[name])
    assert tokenizer.padding_side == "left"
    messages = [{"role": "system", "content": CIR_INSTRUCTION}, {"role": "user", "content": TEXTS[0]}]
    asked = tokenizer([tokenizer.apply_chat_template(messages, tokenize=False)], return_tensors="pt")
    ours = MllmRetriever(str(saved[name]), device="cpu")
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(base.eval()(**asked).last_hidden_state[:, -1], dim=-1).numpy()
    assert np.allclose(rows, ours.encode(texts=TEXTS[:1], role="query"), atol=1e-5)


def test_the_processor_of_llava_next_makes_the_same_inputs(saved: dict[str, Path], paths: list[Path]):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(saved["llava_next"])
    content = [{"type": "image", "image": open_images(paths)[0]}, {"type": "text", "text": TEXTS[0]}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": CIR_INSTRUCTION}]},
        {"role": "user", "content": content},
    ]
    made = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    ours = MllmRetriever(str(saved["llava_next"]), device="cpu")
    expected = ours.inputs.batch(
        [(ours.preprocess(open_images(paths))[0], TEXTS[0])], is_query=True, instruction=CIR_INSTRUCTION
    )
    assert set(expected) <= set(made)
    assert all(torch.equal(made[key], expected[key]) for key in expected if key != "pixel_values")
    # it resizes by torchvision where that is
    assert torch.allclose(made["pixel_values"], expected["pixel_values"], atol=0 if NO_TORCHVISION else 0.1)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        n if n == "llava_next" else pytest.param(n, marks=pytest.mark.skipif(NO_TORCHVISION, reason=NEEDS_TORCHVISION))
        for n in FAMILIES
    ],
)
def test_sentence_transformers_takes_images_texts_and_queries_of_both(
    saved: dict[str, Path], paths: list[Path], name: str, trusted: bool
):
    from sentence_transformers import SentenceTransformer

    ours, images = MllmRetriever(str(saved[name]), device="cpu"), open_images(paths)
    model = SentenceTransformer(str(saved[name]), trust_remote_code=trusted, device="cpu")
    # Qwen-VL's whole processor resizes by torchvision; of the others the folder asks for Pillow's resizing
    near = {"atol": 1e-5 if name == "llava_next" else 1e-3}
    # transformers reads files by torchvision's extension, which a CUDA build lacks here
    shown = [str(p) for p in paths] if NO_TORCHVISION else images
    queries = [{"image": p, "text": t} for p, t in zip(shown, TEXTS, strict=True)]
    assert np.allclose(model.encode_query(queries), ours.encode(images, TEXTS), **near)
    assert np.allclose(model.encode_document(images), ours.encode(images), **near)
    assert np.allclose(model.encode_document(TEXTS), ours.encode(texts=TEXTS), **near)
    assert np.allclose(model.encode_query(TEXTS), ours.encode(texts=TEXTS, role="query"), **near)


def test_sentence_transformers_resizes_as_the_released_models_do(saved: dict[str, Path], tmp_path: Path):
    """LLaVA-NeXT's images of any size become 512 x 512 where the folder's code is trusted."""
    from sentence_transformers import SentenceTransformer

    ours, shown = MllmRetriever(str(saved["llava_next"]), device="cpu"), [i.resize((300, 90)) for i in images(2)]
    for n, image in enumerate(shown):
        image.save(tmp_path / f"{n}.png")
    model = SentenceTransformer(str(saved["llava_next"]), trust_remote_code=True, device="cpu")
    near = {"atol": 1e-5}
    for given in (shown, [str(tmp_path / f"{n}.png") for n in range(2)]):
        queries = [{"image": image, "text": text} for image, text in zip(given, TEXTS, strict=False)]
        assert np.allclose(model.encode_query(queries), ours.encode(shown, TEXTS[:2]), **near)
        assert np.allclose(model.encode_document([{"image": image} for image in given]), ours.encode(shown), **near)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_released_interface(saved: dict[str, Path], paths: list[Path], name: str):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(saved[name]), trust_remote_code=True).eval()
    model.set_processor(str(saved[name]))
    ours = MllmRetriever(str(saved[name]), device="cpu")
    asked = [str(p) for p in paths]

    def rows(**said: object) -> np.ndarray:
        with torch.no_grad():
            hidden = model(**model.data_process(**said), output_hidden_states=True)
        return torch.nn.functional.normalize(hidden[:, -1, :], dim=-1).numpy()

    queries = rows(images=asked, text=TEXTS, q_or_c="q", task_instruction=CIR_INSTRUCTION)
    assert np.allclose(queries, ours.encode(open_images(paths), TEXTS), atol=1e-5)
    assert np.allclose(rows(images=asked, q_or_c="c"), ours.encode(open_images(paths)), atol=1e-5)
    assert np.allclose(rows(text=TEXTS, q_or_c="candidate"), ours.encode(texts=TEXTS), atol=1e-5)
    assert np.allclose(
        rows(images=asked[0], text=TEXTS[0], q_or_c="query", task_instruction=CIR_INSTRUCTION), queries[:1], atol=1e-5
    )
    with pytest.warns(UserWarning, match="task_instruction"):
        model.data_process(images=asked[0], text=TEXTS[0], q_or_c="q")
    for wrong, said in (
        ({"q_or_c": "x", "text": "a"}, "q_or_c is 'x'"),
        ({}, "neither"),
        ({"images": asked, "text": TEXTS[:1]}, "3 images for 1 texts"),
    ):
        with pytest.raises(ValueError, match=said):
            model.data_process(**wrong)


def test_a_saved_folder_is_loaded_without_running_its_code(saved: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(saved["qwen3_vl"], folder)
    for path in folder.glob("*.py"):
        path.write_text("raise SystemExit('code from the folder ran')")
    again, ours = (MllmRetriever(str(f), device="cpu") for f in (folder, saved["qwen3_vl"]))
    assert np.array_equal(again.encode(texts=TEXTS), ours.encode(texts=TEXTS))
