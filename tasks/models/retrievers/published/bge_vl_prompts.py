"""The prompts of BGE-VL of the MLLM type, exactly as its weights were trained with. Pure.

Also copied beside the weights. LLaVA-NeXT: the released models' own prompt (modeling_llavanext_for_embedding.py),
blanks included. Qwen-VL: the form of the embedding models built on it (GME, Qwen3-VL-Embedding): the instruction as
system message, the content as user message, then an end token whose last hidden state is the vector.
"""

CIR_INSTRUCTION = (
    "Retrieve the target image that best meets the combined criteria by using both the provided image and the image "
    "retrieval instructions: "
)
QWEN_INSTRUCTION = "You are a helpful assistant."  # of a candidate, and of a query without one
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


PROMPTS = {"llava_next": llava_next_prompt, "qwen_vl": qwen_vl_prompt}
# config.json's model_type -> family
FAMILIES = {"llava_next": "llava_next", "qwen2_vl": "qwen_vl", "qwen3_vl": "qwen_vl"}
