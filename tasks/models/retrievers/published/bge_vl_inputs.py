"""Model inputs of BGE-VL of the MLLM type; also copied beside the weights, so that both places prepare them alike.

Built from the tokenizer and the image part of the processor. Qwen-VL's whole processor needs torchvision, for video
only; its image part runs on Pillow. Images are prepared one by one, so that a trainer may cache them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from transformers import AutoImageProcessor, AutoTokenizer, LlavaNextProcessor

from .bge_vl_prompts import FAMILIES, IMAGE_TOKENS, PROMPTS, prompt_style

LLAVA_SIDE_PX = 512  # height and width that BGE-VL-MLLM was trained with
# fewest and most pixels of an image of Qwen3-VL-Embedding: 4 and 1800 squares of 32 px
QWEN3_EMBEDDING_SIZE = {"shortest_edge": 4 * 32**2, "longest_edge": 1800 * 32**2}
NOT_IN_TEXTS = (*IMAGE_TOKENS.values(), "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")


@dataclass(frozen=True)
class ImageInput:
    """The model's input of one image.

    Attributes:
        pixels: LLaVA-NeXT (crops, 3, height, width), Qwen-VL (patches, values of a patch); float32.
        shape: LLaVA-NeXT (2,) height and width in pixels, Qwen-VL (3,) frames, rows and columns of patches; int64.
        tokens: image tokens that it occupies in the prompt, a count.
    """

    pixels: torch.Tensor
    shape: torch.Tensor
    tokens: int

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return int(self.pixels.nbytes)


class Inputs:
    """Prepares model inputs; batches are padded on the left, so that the last position is each row's last token."""

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any, style: str | None = None) -> None:
        """Combine the parts of a processor.

        Args:
            tokenizer: its padding side is set to the left.
            image_processor: image part of the processor.
            config: of the model.
            style: form of its prompts; that of the architecture where None.
        """
        self.tokenizer, self.image_processor, self.config = tokenizer, image_processor, config
        self.family = FAMILIES[config.model_type]
        self.style = style or self.family
        self.image_token = IMAGE_TOKENS[self.family]
        if self.style == "qwen3_vl_embedding":
            self.image_processor.size = QWEN3_EMBEDDING_SIZE
        if self.style != self.family:
            config.prompt_style = self.style  # so that a saved model states it
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @classmethod
    def load(cls, model: str, config: Any, **kept: Any) -> Inputs:
        """Load from a folder or by name; `kept` is passed to from_pretrained (revision, ...)."""
        tokenizer = AutoTokenizer.from_pretrained(model, **kept)
        # transformers 4 names Pillow's processors by use_fast, 5 by the backend
        slow = {"backend": "pil"} if int(transformers.__version__.partition(".")[0]) >= 5 else {"use_fast": False}
        style = prompt_style(str(model), config.model_type, getattr(config, "prompt_style", None))
        return cls(tokenizer, AutoImageProcessor.from_pretrained(model, **slow, **kept), config, style)

    def image(self, image: Image) -> ImageInput:
        """Prepare one image."""
        if self.family == "llava_next":
            image = image.resize((LLAVA_SIDE_PX, LLAVA_SIDE_PX))
        made = self.image_processor(images=[image.convert("RGB")], return_tensors="pt")
        if self.family == "qwen_vl":
            grid = made["image_grid_thw"][0]
            return ImageInput(made["pixel_values"], grid, int(grid.prod()) // self.image_processor.merge_size**2)
        return ImageInput(made["pixel_values"][0], made["image_sizes"][0], self._llava_tokens(made))

    def _llava_tokens(self, made: Any) -> int:
        """How many tokens LLaVA-NeXT makes of an image; counted by the processor, whatever its version."""
        processor = self.llava_processor()
        if hasattr(processor, "replace_image_token"):
            return int(processor.replace_image_token(made, 0).count(self.image_token))
        sides = (*made["image_sizes"][0].tolist(), *made["pixel_values"][0][0].shape[-2:])
        is_cut = processor.vision_feature_select_strategy == "default"  # the class token is left out
        return int(processor._get_number_of_features(*sides)) - is_cut

    def llava_processor(self, chat_template: str | None = None) -> Any:
        """The processor, counting image tokens as the model's config says: the released folders leave that out of the
        processor's own config.
        """
        vision = self.config.vision_config
        return LlavaNextProcessor(
            self.image_processor,
            self.tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            num_additional_image_tokens=1 if vision.model_type == "clip_vision_model" else 0,  # its class token
            chat_template=chat_template,
        )

    def prompt(self, image: ImageInput | None, text: str, is_query: bool, instruction: str) -> str:
        """The prompt with as many image tokens as the image occupies; tokens spelled out in the text are removed."""
        for token in NOT_IN_TEXTS:
            text = text.replace(token, " ")
        made = PROMPTS[self.style](text, image is not None, is_query, instruction)
        return made if image is None else made.replace(self.image_token, self.image_token * image.tokens)

    def batch(
        self, contents: Sequence[tuple[ImageInput | None, str]], *, is_query: bool, instruction: str
    ) -> dict[str, torch.Tensor]:
        """The keyword arguments of the model's forward.

        Args:
            contents: n images, texts, or both together.
            is_query: whether all are queries or all are candidates.
            instruction: of queries.
        Returns:
            `input_ids` and `attention_mask` (n, longest), and the tensors of the images.
        """
        prompts = [self.prompt(image, text, is_query, instruction) for image, text in contents]
        made = self.tokenizer(prompts, padding=True, return_tensors="pt")
        out: dict[str, torch.Tensor] = {key: made[key] for key in ("input_ids", "attention_mask")}
        shown = [image for image, _ in contents if image is not None]
        if not shown:
            return out
        shapes = torch.stack([p.shape for p in shown])
        if self.family == "llava_next":
            return out | {"pixel_values": torch.stack([p.pixels for p in shown]), "image_sizes": shapes}
        is_image = (out["input_ids"] == self.config.image_token_id).int()
        return out | {
            "pixel_values": torch.cat([p.pixels for p in shown]),
            "image_grid_thw": shapes,
            "mm_token_type_ids": is_image,
        }

    def save(self, folder: Path, chat_template: str | None) -> None:
        """Save the processor's files, with the prompts as its chat template; with the model's own where None."""
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        if self.family == "llava_next":
            self.llava_processor(chat_template).save_pretrained(folder)
        else:
            self.tokenizer.save_pretrained(folder)
            self.image_processor.save_pretrained(folder)
