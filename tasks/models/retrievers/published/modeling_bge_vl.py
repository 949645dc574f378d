"""BGE-VL (CLIP type) with the released models' interface: set_processor, encode(images=, text=), data_process.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.set_processor(folder)
    query = model.encode(images="query.jpg", text="make the background dark")  # (1, d), unit length
    scores = query @ model.encode(images=["one.jpg", "two.jpg"]).T

The same folder is a plain CLIP for transformers without this file. A query of image and text is the sum of their raw
projected features, scaled to unit length. Needs torch, transformers and Pillow. Source: MegaPairs, arXiv:2412.14475,
equation 2.
"""

from typing import Any

import torch
import transformers
from PIL import Image
from transformers import CLIPModel, CLIPProcessor


class BGEVLModel(CLIPModel):
    """A CLIP that also encodes images and texts together."""

    def set_processor(self, model_name: str) -> None:
        """Load the processor for images and texts, by name or folder; usually the model's own."""
        # Pillow's resizing, also where torchvision is installed, whose vectors differ; transformers 4 has no choice
        kept = {"backend": "pil"} if int(transformers.__version__.partition(".")[0]) >= 5 else {}
        self.processor = CLIPProcessor.from_pretrained(model_name, **kept)

    def data_process(self, images: Any = None, text: Any = None) -> tuple[Any, Any, str]:
        """Preprocess images and texts for the towers.

        Args:
            images: a path or a PIL image, a list of them, or None.
            text: a text, a list of them, or None; as many as images where both are given.
        Returns:
            (pixels or None, tokens or None, kind); kind is 'images', 'text' or 'multimodal'.
        """
        if images is None and text is None:
            raise ValueError("encode: neither images nor text given")
        if images is not None and text is not None and isinstance(images, list) != isinstance(text, list):
            raise ValueError("encode: images and text must both be lists, or both single")
        pixels = tokens = None
        if images is not None:
            images = images if isinstance(images, list) else [images]
            images = [(i if isinstance(i, Image.Image) else Image.open(i)).convert("RGB") for i in images]
            pixels = self.processor.image_processor(images=images, return_tensors="pt").to(self.device)
        if text is not None:
            text = text if isinstance(text, list) else [text]
            longest = self.config.text_config.max_position_embeddings
            tokens = self.processor.tokenizer(
                text, return_tensors="pt", padding=True, truncation=True, max_length=longest
            ).to(self.device)
        if images is not None and text is not None and len(images) != len(text):
            raise ValueError(f"encode: {len(images)} images for {len(text)} texts; expected as many")
        return (
            pixels,
            tokens,
            "multimodal" if pixels is not None and tokens is not None else "images" if tokens is None else "text",
        )

    def get_composed_features(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(n, d) sum of the raw projected features of image and text; sentence-transformers calls it for {"image",
        "text"}.
        """
        return raw(self.get_image_features(pixel_values=pixel_values)) + raw(
            self.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        )

    def encode_image(self, images: Any) -> torch.Tensor:
        """(n, d) of unit length, of `data_process`'s pixels."""
        return unit(raw(self.get_image_features(pixel_values=images["pixel_values"])))

    def encode_text(self, text: Any) -> torch.Tensor:
        """(n, d) of unit length, of `data_process`'s tokens."""
        return unit(raw(self.get_text_features(input_ids=text["input_ids"], attention_mask=text["attention_mask"])))

    def encode_multimodal(self, images: Any, text: Any) -> torch.Tensor:
        """(n, d) of unit length, of pixels and tokens together."""
        return unit(self.get_composed_features(images["pixel_values"], text["input_ids"], text["attention_mask"]))

    def encode(self, images: Any = None, text: Any = None) -> torch.Tensor:
        """(n, d) of unit length; images, texts, or queries of both. Arguments as of `data_process`."""
        pixels, tokens, kind = self.data_process(images, text)
        if kind == "images":
            return self.encode_image(pixels)
        return self.encode_text(tokens) if kind == "text" else self.encode_multimodal(pixels, tokens)


def raw(output: Any) -> torch.Tensor:
    """The projected features; transformers 5 wraps them."""
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return features


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows scaled to unit length."""
    return torch.nn.functional.normalize(rows, dim=-1)
