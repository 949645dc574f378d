"""The retriever of the MLLM type: one decoder reads image and text together, the last token's hidden state is the
vector.

LLaVA-NeXT as BGE-VL-MLLM-S1 was released, or Qwen2-VL and Qwen3-VL; config.json says which, and no code from the folder
runs.
Prompts: tasks/models/retrievers/published/bge_vl_prompts.py. Batches are padded on the left. LLaVA-NeXT's images are
512 x 512; Qwen-VL takes them as they are, within its processor's limits (models/published/bge_vl_inputs.py). Weights
stay float32; adapters (LoRA): `MllmRetriever.adapt`.
Source: MegaPairs, arXiv:2412.14475, appendix B, and the released modeling_llavanext_for_embedding.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import ConfigError
from tasks.knn.unit_rows import unit_rows
from tasks.models.hub import loading, pick_device, revision_of
from tasks.models.retrievers.base import Content, Role, count_of, publish
from tasks.models.retrievers.published.bge_vl_inputs import ImageInput, Inputs
from tasks.models.retrievers.published.bge_vl_prompts import CIR_INSTRUCTION, FAMILIES
from tasks.store.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# in modeling_bge_vl_mllm.py
INTERFACES = {"llava_next": "BGEVLLlavaNext", "qwen2_vl": "BGEVLQwen2VL", "qwen3_vl": "BGEVLQwen3VL"}
# names of vision and language modules
PARTS = {"llava_next": ("vision_tower", "language_model"), "qwen_vl": ("visual", "language_model")}


class MllmRetriever:
    """A vision-language model with the parts of its processor; `model` may be trained from outside."""

    is_joint = True

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        threads: int = 1,
        instruction: str = CIR_INSTRUCTION,
    ) -> None:
        """Load it.

        Args:
            model: Hugging Face name or local folder.
            revision: pinned revision of a name.
            device: auto, cpu, cuda or cuda:N.
            threads: CPU threads, a count.
            instruction: what queries ask for; candidates carry none.
        Raises:
            ConfigError: another architecture, or no such model.
        """
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        torch.set_num_threads(threads)
        self.name, self.instruction = model, instruction
        self.device = pick_device(device)
        with loading(model, "a retriever"):
            self.kind = str(AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).model_type)
        if self.kind not in FAMILIES:
            raise ConfigError(
                f"model '{model}': architecture '{self.kind}' is no MLLM retriever; expected one of {sorted(FAMILIES)}"
            )
        self.family = FAMILIES[self.kind]
        with loading(model, "a retriever"):
            kept = {"revision": revision, "trust_remote_code": False}
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=torch.float32, use_safetensors=True, **kept
            )
            self.inputs = Inputs.load(model, self.model.config, **kept)
        self.model.eval().to(self.device)
        self.revision = revision_of(model, revision, self.model.config)
        self.dimension = int(self.model.config.text_config.hidden_size)

    # --- what goes in ---------------------------------------------------------------------------------------------

    def pixels(self, images: Sequence[Image]) -> list[ImageInput]:
        """Each image as the model takes it, one by one: they may differ in size."""
        return [self.inputs.image(image) for image in images]

    # --- what comes out -------------------------------------------------------------------------------------------

    def features(self, contents: Sequence[tuple[ImageInput | None, str]], role: Role) -> torch.Tensor:
        """(n, d) last hidden state of each prompt's last token, in one pass."""
        base = self.model.get_base_model() if self.is_adapted else self.model
        made = self.inputs.batch(contents, is_query=role == "query", instruction=self.instruction)
        # below the language head
        out = base.model(**{key: value.to(self.device) for key, value in made.items()}, use_cache=False)
        rows: torch.Tensor = out.last_hidden_state[:, -1, :]
        return rows

    def image_features(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """(n, d) of images as candidates."""
        return self.features([(image, "") for image in images], "candidate")

    def query_features(self, images: Sequence[ImageInput], texts: Sequence[str]) -> torch.Tensor:
        """(n, d) of images and texts as queries."""
        return self.features(list(zip(images, texts, strict=True)), "query")

    def encode(
        self,
        images: Sequence[Image] | None = None,
        texts: Sequence[str] | None = None,
        batch: int = 8,
        *,
        role: Role | None = None,
    ) -> np.ndarray:
        """Unit rows of images, of texts, or of both together.

        Args:
            images: n images, or None.
            texts: n texts, or None.
            batch: rows in one pass of the model, a count.
            role: query or candidate; where None, both together are a query, one alone is a candidate.
        Returns:
            (n, d) float32.
        Raises:
            ConfigError: neither is given, or both in different numbers.
        """
        count = count_of(images, texts)
        role = role or ("candidate" if images is None or texts is None else "query")
        rows = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            shown = self.pixels(images[part]) if images is not None else [None] * len(range(count)[part])
            rows.append(
                self.raw_contents(
                    list(zip(shown, texts[part] if texts is not None else [""] * len(shown), strict=True)), role
                )
            )
        return unit_rows(np.concatenate(rows))

    def raw_contents(self, contents: Sequence[tuple[ImageInput | None, str]], role: Role) -> np.ndarray:
        """(n, d) float32, in one pass."""
        import torch

        with torch.inference_mode():
            return self.features(contents, role).float().cpu().numpy()

    def embedder(
        self, read: Callable[[str], Image], batch: int, images: Mapping[str, np.ndarray] | None = None
    ) -> Joint:
        """Vectors of a benchmark's contents.

        Raises:
            ConfigError: features of images alone are given: here there are none that a query could be put together
                from.
        """
        if images is not None:
            raise ConfigError(
                f"model '{self.name}': a {self.kind} encodes image and text together; features of images alone cannot be reused"
            )
        return Joint(self, read, batch)

    # --- adapters -------------------------------------------------------------------------------------------------

    @property
    def is_adapted(self) -> bool:
        """Whether there are adapters, not yet merged."""
        return hasattr(self.model, "peft_config")

    def adapt(self, *, rank: int, alpha: int, dropout: float = 0.0, targets: str = "all-linear", seed: int = 0) -> None:
        """Put LoRA adapters into vision and language part; from here on only they are trained.

        Args:
            rank: of the adapters.
            alpha: their scale is alpha / rank.
            dropout: on their input.
            targets: 'all-linear' (all but the language head), or a regular expression over module names.
            seed: of their random half; the other half is zero, so that nothing changes at first.
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
        missing = [part for part in PARTS[self.family] if not any(f".{part}." in name for name in names)]
        if missing:
            raise ConfigError(
                f"'train.lora.targets' is {targets!r}: no module of {missing} is meant; expected vision and language parts, such as 'all-linear'"
            )

    # --- saving ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Save model, processor and what others need to load them beside the folder, then put the whole in its place.

        Adapters are saved as they are (`adapter/`, for peft) and merged into the weights; the retriever goes on as the
        merged model.

        Args:
            folder: the old one gives way.
            weights: the whole state where the model holds but a shard of it; the model's own where None.
        Raises:
            ConfigError: adapters of a model that holds but a shard.
        """
        if weights is not None and self.is_adapted:
            raise ConfigError(
                "'train.lora' and 'train.shard_weights' do not go together: adapters are not merged into shards; switch one of them off"
            )
        with atomic_write(folder) as temporary:
            if self.is_adapted:
                save_adapter(self.model, temporary / "adapter", self.name)
                self.model = self.model.merge_and_unload()
            self.model.save_pretrained(temporary, state_dict=weights)
            self.inputs.save(temporary, chat_template(self.family))
            publish_interface(temporary, self.kind, self.dimension, self.instruction)


class Joint:
    """Vectors of a benchmark's contents: every content is encoded once in each role, image and text together."""

    def __init__(self, retriever: MllmRetriever, read: Callable[[str], Image], batch: int) -> None:
        """Nothing is encoded yet.

        Args:
            retriever: the model.
            read: image key -> image.
            batch: contents in one pass of the model, a count.
        """
        self._retriever, self._read, self._batch = retriever, read, batch
        self._known: dict[tuple[Role, Content], np.ndarray] = {}

    def prepare(self, images: Sequence[str], texts: Sequence[str]) -> None:
        """Nothing: what an image or text is alone says nothing of both together."""

    def rows(self, contents: Sequence[Content], role: Role) -> np.ndarray:
        """(n, d) float32 unit rows of (image key or None, text); a row of zeros where there is neither."""
        missing = [c for c in dict.fromkeys(contents) if (role, c) not in self._known and (c[0] is not None or c[1])]
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            shown = [None if key is None else self._retriever.pixels([self._read(key)])[0] for key, _ in part]
            raw = self._retriever.raw_contents(
                [(image, text) for image, (_, text) in zip(shown, part, strict=True)], role
            )
            self._known.update({(role, content): row for content, row in zip(part, unit_rows(raw), strict=True)})
        nothing = np.zeros(self._retriever.dimension, np.float32)
        return np.stack([self._known.get((role, c), nothing) for c in contents])


def chat_template(family: str) -> str:
    """The prompts as a Jinja template over messages; a system message is a query's instruction, without one it is a
    candidate.
    """
    return (Path(__file__).parent / "published" / "mllm" / f"chat_template_{family}.jinja").read_text(encoding="utf-8")


def save_adapter(model: Any, folder: Path, base: str) -> None:
    """Save a peft model's adapter alone, with no clock, set order or path of this machine but the base's name in it."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def publish_interface(folder: Path, kind: str, dimension: int, instruction: str) -> None:
    """Put into a saved folder what sentence-transformers and the released models' interface need; plain transformers
    needs none of it.
    """
    files = [
        "bge_vl_inputs.py",
        "bge_vl_prompts.py",
        "modeling_bge_vl_mllm.py",
        "mllm/modules.json",
        "mllm/sentence_bert_config.json",
    ]
    publish(folder, files, f"modeling_bge_vl_mllm.{INTERFACES[kind]}")
    for name, content in (
        (
            "1_Pooling/config.json",
            {"embedding_dimension": dimension, "pooling_mode": "lasttoken", "include_prompt": True},
        ),
        (
            "config_sentence_transformers.json",
            {
                "model_type": "SentenceTransformer",
                "prompts": {"query": instruction, "document": ""},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        ),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
