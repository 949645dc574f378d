"""The retriever of the MLLM type: one decoder reads image and text; the last token's hidden state is the vector.

Architectures: LLaVA-NeXT, as BGE-VL-MLLM-S1 and BGE-VL-v1.5 were released, Qwen2-VL, Qwen2.5-VL (BGE-VL-Screenshot)
and Qwen3-VL (Qwen3-VL-Embedding); config.json says which, and no code from the folder runs. Each by its own prompts:
tasks/models/retrievers/published/bge_vl_prompts.py. Batches are padded on the left.
LLaVA-NeXT's images are resized to 512 x 512; Qwen-VL takes them as they are, within its processor's limits
(tasks/models/retrievers/published/bge_vl_inputs.py). Weights are float32; under adapters the base may be held in
bfloat16 or 4 bits (`train.base_precision`). LoRA adapters:
`MllmRetriever.add_adapters`.

Source: MegaPairs, arXiv:2412.14475, appendix B, and the released modeling_llavanext_for_embedding.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.devices import pick_device
from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows
from tasks.models.hub import load_errors, model_revision
from tasks.models.retrievers.adapters import bfloat16_with_adapter, save_adapter, weight_format
from tasks.models.retrievers.base import BasePrecision, Role, add_remote_code, count_rows
from tasks.models.retrievers.content_encoders import JointEncoder
from tasks.models.retrievers.kept_rows import EncodeOptions
from tasks.models.retrievers.old_layout import rename_weights, write_old_layout
from tasks.models.retrievers.published.bge_vl_inputs import ImageInput, Inputs
from tasks.models.retrievers.published.bge_vl_prompts import CIR_INSTRUCTION, FAMILIES
from tasks.store.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# model_type -> class in modeling_bge_vl_mllm.py
REMOTE_CLASSES = {
    "llava_next": "BGEVLLlavaNext",
    "qwen2_vl": "BGEVLQwen2VL",
    "qwen2_5_vl": "BGEVLQwen25VL",
    "qwen3_vl": "BGEVLQwen3VL",
}
# family -> names of its vision and language modules
MODULES = {"llava_next": ("vision_tower", "language_model"), "qwen_vl": ("visual", "language_model")}
PUBLISHED = Path(__file__).parent / "published"
PUBLISHED_FILES = (
    "bge_vl_inputs.py",
    "bge_vl_prompts.py",
    "modeling_bge_vl_mllm.py",
    "mllm/modules.json",
    "mllm/sentence_bert_config.json",
)


class MllmRetriever:
    """A vision-language model with the parts of its processor; `model` may be trained from outside.

    Implements `Retriever`.
    """

    is_joint = True

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        threads: int = 1,
        instruction: str = CIR_INSTRUCTION,
        base_precision: BasePrecision = "float32",
    ) -> None:
        """Load the model.

        Args:
            model: Hugging Face name or local folder.
            revision: pinned revision of a name.
            device: auto, cpu, cuda or cuda:N.
            threads: CPU threads, a count.
            instruction: task instruction in every query's prompt; candidates have none.
            base_precision: number format of the weights; another than float32 is for training adapters on them.
        Raises:
            ConfigError: another architecture, no such model, or 4bit without bitsandbytes.
        """
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        torch.set_num_threads(threads)
        self.name, self.instruction, self.base_precision = model, instruction, base_precision
        self.device = pick_device(device)
        with load_errors(model, "a retriever"):
            self.kind = str(AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).model_type)
        if self.kind not in FAMILIES:
            raise ConfigError(
                f"model '{model}': architecture '{self.kind}' is no MLLM retriever; expected one of {sorted(FAMILIES)}"
            )
        self.family = FAMILIES[self.kind]
        with load_errors(model, "a retriever"):
            self.source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                model, use_safetensors=True, **self.source, **weight_format(base_precision, self.device)
            )
            self.inputs = Inputs.load(model, self.model.config, **self.source)
        self.model.eval()
        if base_precision != "4bit":  # whose weights are on the device already
            self.model.to(self.device)
        self.revision = model_revision(model, revision, self.model.config)
        self.dimension = int(self.model.config.text_config.hidden_size)

    # --- inputs and features --------------------------------------------------------------------------------------

    def preprocess(self, images: Sequence[Image]) -> list[ImageInput]:
        """The model's input of each image, one by one: they may differ in size."""
        return [self.inputs.image(image) for image in images]

    def prompt_features(
        self, contents: Sequence[tuple[ImageInput | None, str]], role: Role, task: str | None = None
    ) -> torch.Tensor:
        """(n, d) last hidden state of each prompt's last token, in one pass, with gradients."""
        instruction = self.instruction if task is None else task
        base = self.model.get_base_model() if self.is_adapted else self.model
        batch = self.inputs.batch(contents, is_query=role == "query", instruction=instruction)
        # `model`, not the whole: the language head is not needed
        out = base.model(**{key: value.to(self.device) for key, value in batch.items()}, use_cache=False)
        rows: torch.Tensor = out.last_hidden_state[:, -1, :]
        return rows

    def image_features(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """(n, d) of images as candidates."""
        return self.prompt_features([(image, "") for image in images], "candidate")

    def query_features(self, images: Sequence[ImageInput | None], texts: Sequence[str]) -> torch.Tensor:
        """(n, d) of texts as queries, each with its image or without one."""
        return self.prompt_features(list(zip(images, texts, strict=True)), "query")

    def features(
        self,
        *,
        pixels: Any = None,
        texts: Sequence[str] | None = None,
        role: Role = "query",
        task: str | None = None,
    ) -> torch.Tensor:
        """(n, d) of preprocessed images as candidates, or of texts, each with its image or without one, in a role.

        `task` is the task instruction of queries; the retriever's own where None.

        Raises:
            ConfigError: neither is given.
        """
        if texts is None:
            if pixels is None:
                raise ConfigError("features: expected pixels, texts, or as many of both; found neither")
            return self.image_features(pixels)
        images = [None] * len(texts) if pixels is None else pixels
        return self.prompt_features(list(zip(images, texts, strict=True)), role, task)

    def encode(
        self,
        images: Sequence[Image] | None = None,
        texts: Sequence[str] | None = None,
        batch_size: int = 8,
        *,
        role: Role | None = None,
    ) -> np.ndarray:
        """Unit rows of images, of texts, or of queries of both.

        Args:
            images: n images, or None.
            texts: n texts, or None.
            batch_size: rows in one pass of the model, a count.
            role: query or candidate; where None, image and text together are a query, one alone is a candidate.
        Returns:
            (n, d) float32.
        Raises:
            ConfigError: neither is given, or both in different numbers.
        """
        count = count_rows(images, texts)
        role = role or ("candidate" if images is None or texts is None else "query")
        rows = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, count, batch_size):
            batch = slice(start, min(start + batch_size, count))
            size = batch.stop - batch.start
            inputs = [None] * size if images is None else self.preprocess(images[batch])
            batch_texts = [""] * size if texts is None else texts[batch]
            rows.append(self.raw_features(list(zip(inputs, batch_texts, strict=True)), role))
        return unit_rows(np.concatenate(rows))

    def raw_features(self, contents: Sequence[tuple[ImageInput | None, str]], role: Role) -> np.ndarray:
        """(n, d) float32, in one pass, without gradients."""
        import torch

        with torch.inference_mode():
            return self.prompt_features(contents, role).float().cpu().numpy()

    def content_encoder(
        self,
        read_image: Callable[[str], Image],
        batch_size: int,
        image_features: Mapping[str, np.ndarray] | None = None,
        options: EncodeOptions | None = None,
    ) -> JointEncoder:
        """An encoder of a benchmark's contents.

        Raises:
            ConfigError: features of images alone are given: a query cannot be computed from them.
        """
        if image_features is not None:
            raise ConfigError(
                f"model '{self.name}': a {self.kind} encodes image and text together; features of images alone cannot "
                "be reused"
            )
        return JointEncoder(self, read_image, batch_size, options)

    # --- adapters -------------------------------------------------------------------------------------------------

    @property
    def is_adapted(self) -> bool:
        """Whether the model has adapters that are not merged yet."""
        return hasattr(self.model, "peft_config")

    def add_adapters(
        self, *, rank: int, alpha: int, dropout: float = 0.0, targets: str = "all-linear", seed: int = 0
    ) -> None:
        """Insert LoRA adapters into the vision and the language part; from here on only they are trained.

        Args:
            rank: of the adapters.
            alpha: their scale is alpha / rank.
            dropout: on their input.
            targets: 'all-linear' (all but the language head), or a regular expression over module names.
            seed: of the matrices that start at random; the others start at zero, so that no output changes at first.
        Raises:
            ConfigError: peft is not installed, or the targets leave out the vision or the language part.
        """
        import torch

        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise ConfigError(
                "'train.lora' is set and peft is not installed; `pip install peft`, or train all weights"
            ) from error
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
        try:
            self.model = get_peft_model(self.model, config)
        except ValueError as error:
            raise ConfigError(f"'train.lora.targets' is {targets!r}: {error}") from error
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        missing = [module for module in MODULES[self.family] if not any(f".{module}." in name for name in names)]
        if missing:
            raise ConfigError(
                f"'train.lora.targets' is {targets!r}: no module of {missing} is matched; expected vision and language "
                "parts, such as 'all-linear'"
            )

    # --- saving ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write model, processor and what other libraries need to load them, atomically.

        Adapters are saved as they are (`adapter/`, for peft) and merged into the weights; the retriever continues
        as the merged model.

        Args:
            folder: an old one is replaced as a whole.
            weights: the full state dict where this process holds only a shard of it; the model's own where None.
        Raises:
            ConfigError: a model with adapters of which this process holds only a shard.
        """
        if weights is not None and self.is_adapted:
            raise ConfigError(
                "'train.lora' and 'train.shard_weights' do not go together: adapters are not merged into shards; "
                "switch one of them off"
            )
        with atomic_write(folder) as temporary:
            if self.is_adapted:
                save_adapter(self.model, temporary / "adapter", self.name, self.source["revision"])
                if self.base_precision == "4bit":
                    self.model = bfloat16_with_adapter(self.name, self.source, temporary / "adapter")
                self.model = self.model.merge_and_unload()
            self.model.save_pretrained(temporary, state_dict=weights)
            is_ours = self.inputs.style == self.family
            self.inputs.save(temporary, chat_template(self.family) if is_ours else None)
            write_old_layout(temporary)
            if self.kind == "llava_next":
                rename_weights(temporary, "vision_tower.", "vision_tower.vision_model.")
            add_mllm_remote_code(temporary, self.kind, self.dimension, self.instruction)


def chat_template(family: str) -> str:
    """The prompts as a Jinja template over messages: with a system message it is a query's prompt (the message is the
    instruction), without one a candidate's.
    """
    return (PUBLISHED / "mllm" / f"chat_template_{family}.jinja").read_text(encoding="utf-8")


def add_mllm_remote_code(folder: Path, kind: str, dimension: int, instruction: str) -> None:
    """Copy into a saved folder what sentence-transformers and the released models' interface need.

    Plain transformers needs none of it.

    Args:
        folder: a saved model.
        kind: the model_type of its config.json.
        dimension: width of the vectors.
        instruction: task instruction of queries.
    """
    add_remote_code(folder, PUBLISHED_FILES, f"modeling_bge_vl_mllm.{REMOTE_CLASSES[kind]}")
    if kind == "llava_next":  # the released models' image size, which no setting of the plain processor gives
        shutil.copyfile(PUBLISHED / "bge_vl_processor.py", folder / "bge_vl_processor.py")
        path = folder / "processor_config.json"
        processor = json.loads(path.read_text())
        processor["auto_map"] = {"AutoProcessor": "bge_vl_processor.BGEVLProcessor"}
        path.write_text(json.dumps(processor, indent=2, sort_keys=True) + "\n")
        # Pillow's resizing, also where torchvision is installed; Qwen-VL's whole processor has no such choice
        path = folder / "sentence_bert_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_kwargs": {"backend": "pil"}}, indent=2))
    pooling = {"embedding_dimension": dimension, "pooling_mode": "lasttoken", "include_prompt": True}
    sentence_transformers = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": instruction, "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    for name, content in (
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", sentence_transformers),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
