"""Random checkpoints of the MLLM architectures, small enough for a step in milliseconds, in the layouts that the hub
has.
"""

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasks.sample.scenes import draw, family

FAMILIES = ("llava_next", "qwen2_vl", "qwen3_vl")
LLAVA_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
QWEN_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SENTENCES = [
    "retrieve the target image that best meets the combined criteria",
    "make it blue",
    "remove the star",
    "you are a helpful assistant system user",
]
TEXTS = ["make it blue", "remove the star, please", "what if it were red? and larger, and on a dark background"]


def images(count: int) -> list[Image.Image]:
    """Scenes of two shapes: Qwen-VL's processor gives them unequal numbers of tokens."""
    rng = random.Random(7)
    scenes = [Image.fromarray(draw(family(rng, "corpus", 1)[0])) for _ in range(count)]
    return [image if n % 2 else image.resize((96, 64)) for n, image in enumerate(scenes)]


def _tokenizer(special: list[str], start: str | None, pad: str, end: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if start:
        core.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, core.token_to_id(start))]
        )
    # Padded on the right, as many a tokenizer is saved: the retriever must see to it itself.
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        padding_side="right",
        model_max_length=4096,
    )


def save_tiny(family_name: str, folder: Path) -> Path:
    """A checkpoint of one architecture.

    Args:
        family_name: one of FAMILIES, or qwen2_5_vl.
        folder: where it goes.
    """
    torch.manual_seed(5)
    made = {"llava_next": _llava_next, "qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}
    return made[family_name](folder)


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Initialisation at 0.02 leaves a narrow random model nearly deaf to its input; this one hears it."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 / parameter[0].numel() ** 0.5)
    return model


def _llava_next(folder: Path) -> Path:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokens = _tokenizer(LLAVA_SPECIAL, "<s>", "<pad>", "</s>")
    grid = [[32, 64], [64, 32], [64, 64]]
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        "model_type": "mistral",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlavaNextConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8, "projection_dim": 32},
        text_config={
            **text,
            **ends,
            "vocab_size": len(tokens),
            "sliding_window": None,
            "max_position_embeddings": 4096,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=16,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        images, tokens, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    _spread(LlavaNextForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen(folder: Path, model: torch.nn.Module, tokens: PreTrainedTokenizerFast, patch: int) -> Path:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    _spread(model).save_pretrained(folder)
    tokens.save_pretrained(folder)
    size = {"shortest_edge": 4 * patch * patch, "longest_edge": 64 * patch * patch}
    Qwen2VLImageProcessorPil(size=size, patch_size=patch, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    return folder


def _qwen_text(tokens: PreTrainedTokenizerFast, rope: dict[str, Any]) -> dict[str, Any]:
    """The text model's configuration: two narrow layers."""
    return {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **_ends(tokens),
        "vocab_size": len(tokens),
        "rope_parameters": rope,
        "max_position_embeddings": 4096,
    }


def _named(tokens: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokens.convert_tokens_to_ids(token) for key, token in names.items()}


def _ends(tokens: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "bos_token_id": tokens.pad_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }


def _qwen2_vl(folder: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokens = _tokenizer(QWEN_SPECIAL, None, "<|endoftext|>", "<|im_end|>")
    rope = {"rope_type": "default", "mrope_section": [1, 2, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=_qwen_text(tokens, rope),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 48,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        **_named(tokens),
    )
    return _qwen(folder, Qwen2VLForConditionalGeneration(config), tokens, 14)


def _qwen2_5_vl(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokens = _tokenizer(QWEN_SPECIAL, None, "<|endoftext|>", "<|im_end|>")
    rope = {"rope_type": "default", "mrope_section": [1, 2, 3], "rope_theta": 10000.0}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14}
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(tokens, rope),
        vision_config={**vision, "out_hidden_size": 48, "fullatt_block_indexes": [1], "window_size": 112},
        **_named(tokens),
    )
    return _qwen(folder, Qwen2_5_VLForConditionalGeneration(config), tokens, 14)


def _qwen3_vl(folder: Path) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokens = _tokenizer(QWEN_SPECIAL, None, "<|endoftext|>", "<|im_end|>")
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 48,
    }
    config = Qwen3VLConfig(
        text_config=_qwen_text(tokens, rope) | {"head_dim": 12},
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **_named(tokens),
    )
    return _qwen(folder, Qwen3VLForConditionalGeneration(config), tokens, 16)
