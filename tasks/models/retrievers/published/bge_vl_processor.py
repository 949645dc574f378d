"""LLaVA-NeXT's processor with the image size that BGE-VL-MLLM was trained with: every image becomes 512 x 512.

AutoProcessor takes it where remote code is trusted, and so does sentence-transformers: its vectors are then those of
the released interface. Without trust the plain processor cuts an image of another size into other crops.
"""

from typing import Any

from PIL import Image
from transformers import LlavaNextProcessor
from transformers.image_utils import load_image

from .bge_vl_inputs import LLAVA_SIDE_PX


class BGEVLProcessor(LlavaNextProcessor):
    """The processor; the shape of an image is not kept, as in the released data_process."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """As LlavaNextProcessor, with each image resized before."""
        return super().__call__(images=squared(images), text=text, **kwargs)


def squared(images: Any) -> Any:
    """Images (paths, URLs, PIL images or arrays, in lists of any depth) of 512 x 512 pixels."""
    if images is None:
        return None
    if isinstance(images, (list, tuple)):
        return [squared(image) for image in images]
    if isinstance(images, str):
        images = load_image(images)
    if not isinstance(images, Image.Image):
        pixels = images.permute(1, 2, 0).numpy() if hasattr(images, "permute") else images
        images = Image.fromarray(pixels)
    return images.resize((LLAVA_SIDE_PX, LLAVA_SIDE_PX))
