"""The prompts of retrievers of the MLLM type, as their weights were trained with. Pure.

Also copied beside the weights. A style is a form of prompt:

    llava_next           BGE-VL-MLLM-S1, -S2 and BGE-VL-v1.5: the released models' own prompt, blanks included
                         (modeling_llavanext_for_embedding.py)
    qwen_vl              ours on Qwen2-VL, Qwen2.5-VL and Qwen3-VL, in GME's form: the instruction as system message,
                         the content as user message, then an end token whose last hidden state is the vector
    qwen3_vl_embedding   Qwen3-VL-Embedding: the chat form without an end token, an instruction that ends in a
                         punctuation mark, its own instruction for candidates (scripts/qwen3_vl_embedding.py)
    bge_vl_screenshot    BGE-VL-Screenshot (UniSE) on Qwen2.5-VL: the chat form without an end token, the text before
                         the image, as sentence-transformers renders its template

A model's config.json may name its style (`prompt_style`); a saved model's does. Else the model's name and its
architecture say which.
"""

import unicodedata

CIR_INSTRUCTION = (
    "Retrieve the target image that best meets the combined criteria by using both the provided image and the image "
    "retrieval instructions: "
)
QWEN_INSTRUCTION = "You are a helpful assistant."  # of a candidate, and of a query without one
QWEN3_EMBEDDING_INSTRUCTION = "Represent the user's input."  # the same of Qwen3-VL-Embedding
IMAGE_TOKENS = {"llava_next": "<image>", "qwen_vl": "<|image_pad|>"}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def llava_next_prompt(text: str, has_image: bool, is_query: bool, instruction: str = "") -> str:
    """The released template, with one `<image>` where there is an image.

    Args:
        text: of the query or candidate; empty for none.
        has_image: whether the query or candidate has an image.
        is_query: queries carry the instruction, candidates do not.
        instruction: the task instruction; empty for none.
    """
    if not is_query:
        out = "[INST] "
    else:
        out = f"[INST] \n <instruct> {instruction} <query> " if instruction else "[INST] \n <instruct>  <query>"
    if text:
        out += f" {text} \n"
    if has_image:
        out += " <image>"
    return out + " [/INST]"


def qwen_vl_prompt(text: str, has_image: bool, is_query: bool, instruction: str = "") -> str:
    """The chat form with an end token, with one image's tokens where there is an image. Arguments as in
    `llava_next_prompt`.
    """
    system = instruction if is_query and instruction else QWEN_INSTRUCTION
    content = (QWEN_IMAGE if has_image else "") + text
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
        "<|im_start|>assistant\n<|endoftext|>"
    )


def qwen3_vl_embedding_prompt(text: str, has_image: bool, is_query: bool, instruction: str = "") -> str:
    """Qwen3-VL-Embedding's prompt; an empty content is the word NULL. Arguments as in `llava_next_prompt`."""
    system = instruction.strip() if is_query else ""
    if system and not unicodedata.category(system[-1]).startswith("P"):
        system += "."
    content = (QWEN_IMAGE if has_image else "") + text or "NULL"
    return chat_prompt(system or QWEN3_EMBEDDING_INSTRUCTION, content)


def bge_vl_screenshot_prompt(text: str, has_image: bool, is_query: bool, instruction: str = "") -> str:
    """BGE-VL-Screenshot's prompt. Arguments as in `llava_next_prompt`."""
    system = instruction if is_query and instruction else QWEN_INSTRUCTION
    return chat_prompt(system, text + (QWEN_IMAGE if has_image else ""))


def chat_prompt(system: str, content: str) -> str:
    """Qwen's chat form up to where the assistant speaks."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS = {
    "llava_next": llava_next_prompt,
    "qwen_vl": qwen_vl_prompt,
    "qwen3_vl_embedding": qwen3_vl_embedding_prompt,
    "bge_vl_screenshot": bge_vl_screenshot_prompt,
}
# config.json's model_type -> family
FAMILIES = {"llava_next": "llava_next", "qwen2_vl": "qwen_vl", "qwen2_5_vl": "qwen_vl", "qwen3_vl": "qwen_vl"}
# style -> its architecture and what its models' names have in them
NAMED_STYLES = {
    "qwen3_vl_embedding": ("qwen3_vl", ("qwen3-vl-embedding",)),
    "bge_vl_screenshot": ("qwen2_5_vl", ("bge-vl-screenshot", "unise-mllm")),
}


def prompt_style(model: str, model_type: str, stated: str | None = None) -> str:
    """The style of a model.

    Args:
        model: name or folder.
        model_type: of its config.json.
        stated: `prompt_style` of its config.json, where it has that.
    Raises:
        ValueError: config.json states an unknown style.
    """
    if stated is not None:
        if stated not in PROMPTS:
            raise ValueError(f"{model}: prompt_style is {stated!r}; expected one of {sorted(PROMPTS)}")
        return stated
    name = model.rstrip("/").lower()
    for style, (architecture, parts) in NAMED_STYLES.items():
        if model_type == architecture and any(part in name for part in parts):
            return style
    return FAMILIES[model_type]
