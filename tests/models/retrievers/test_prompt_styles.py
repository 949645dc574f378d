"""Released embedding models of other makers: recognised by name or config.json, by their own prompts and pooling."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.errors import ConfigError
from tasks.models.retrievers.load import load_retriever
from tasks.models.retrievers.mllm import MllmRetriever
from tasks.models.retrievers.published.bge_vl_prompts import (
    QWEN_IMAGE,
    bge_vl_screenshot_prompt,
    prompt_style,
    qwen3_vl_embedding_prompt,
)
from tests.support.tiny_mllm import images, save_tiny


def test_the_style_follows_from_config_then_name_then_architecture():
    assert prompt_style("Qwen/Qwen3-VL-Embedding-2B", "qwen3_vl") == "qwen3_vl_embedding"
    assert prompt_style("/models/qwen3-vl-embedding-8b/", "qwen3_vl") == "qwen3_vl_embedding"
    assert prompt_style("Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl") == "qwen_vl"
    assert prompt_style("BAAI/BGE-VL-Screenshot", "qwen2_5_vl") == "bge_vl_screenshot"
    assert prompt_style("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl") == "qwen_vl"
    assert prompt_style("BAAI/BGE-VL-v1.5-zs", "llava_next") == "llava_next"
    assert prompt_style("ours", "qwen3_vl", "qwen3_vl_embedding") == "qwen3_vl_embedding"
    with pytest.raises(ValueError, match="prompt_style is 'other'; expected one of"):
        prompt_style("ours", "qwen3_vl", "other")


def test_the_prompt_of_qwen3_vl_embedding():
    """As apply_chat_template(add_generation_prompt=True) renders format_model_input's messages."""
    head, tail = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    own = head.format("Represent the user's input.")
    assert qwen3_vl_embedding_prompt("a star", True, False, "ignored") == own + QWEN_IMAGE + "a star" + tail
    assert qwen3_vl_embedding_prompt("", False, False) == own + "NULL" + tail
    told = head.format("Find the image.")
    assert qwen3_vl_embedding_prompt("red", True, True, " Find the image ") == told + QWEN_IMAGE + "red" + tail
    assert (
        qwen3_vl_embedding_prompt("red", False, True, "Find the image:")
        == head.format("Find the image:") + "red" + tail
    )


def test_the_prompt_of_bge_vl_screenshot_has_the_text_first():
    told = "<|im_start|>system\nRepresent it.<|im_end|>\n<|im_start|>user\nred" + QWEN_IMAGE
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert bge_vl_screenshot_prompt("red", True, True, "Represent it.") == told + end
    assert bge_vl_screenshot_prompt("", True, False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + QWEN_IMAGE + end
    )


@pytest.mark.parametrize(
    ("architecture", "name", "style"),
    [
        ("qwen3_vl", "Qwen3-VL-Embedding-2B", "qwen3_vl_embedding"),
        ("qwen2_5_vl", "BGE-VL-Screenshot", "bge_vl_screenshot"),
        ("llava_next", "BGE-VL-v1.5-zs", "llava_next"),
    ],
)
def test_a_tiny_checkpoint_of_each_class_keeps_its_style_when_it_is_saved(
    tmp_path: Path, architecture: str, name: str, style: str
):
    retriever = load_retriever(str(save_tiny(architecture, tmp_path / name)), device="cpu")
    assert isinstance(retriever, MllmRetriever) and retriever.inputs.style == style
    (image,) = images(1)
    prepared = retriever.preprocess([image])[0]
    found = retriever.encode([image], ["make it blue"])
    batch = retriever.inputs.batch([(prepared, "make it blue")], is_query=True, instruction=retriever.instruction)
    with torch.no_grad():  # the last token of the prompt alone, unpadded
        alone = retriever.model(**batch, output_hidden_states=True).hidden_states[-1][0, -1]
    assert np.allclose(found[0], torch.nn.functional.normalize(alone, dim=0).numpy(), atol=1e-4)
    retriever.save(tmp_path / "saved")
    again = load_retriever(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again, MllmRetriever) and again.inputs.style == style
    assert np.allclose(again.encode([image], ["make it blue"]), found, atol=1e-5)


def test_other_multimodal_models_are_refused_with_what_is_supported(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a llava_onevision is no supported retriever; expected a CLIP.*qwen2_5_vl"):
        load_retriever(str(tmp_path), device="cpu")
