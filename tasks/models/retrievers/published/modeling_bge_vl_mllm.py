"""BGE-VL (MLLM type) with the released models' interface: set_processor, data_process, the last token's hidden state.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.set_processor(folder)
    query = model.data_process(images="query.jpg", text="make the background dark", q_or_c="q",
    task_instruction=CIR_INSTRUCTION)
    one = torch.nn.functional.normalize(model(**query, output_hidden_states=True)[:, -1, :], dim=-1)  # (1, d)
    shown = model.data_process(images=["one.jpg", "two.jpg"], q_or_c="c")
    scores = one @ torch.nn.functional.normalize(model(**shown, output_hidden_states=True)[:, -1, :], dim=-1).T

The same folder is a plain LLaVA-NeXT, Qwen2-VL, Qwen2.5-VL or Qwen3-VL for transformers without this file. Batches are
padded on the left, so that the last position is each row's last token. Needs torch, transformers and Pillow.
Source: MegaPairs, arXiv:2412.14475, and the released modeling_llavanext_for_embedding.py.
"""

import warnings
from typing import Any

import transformers
from PIL import Image
from transformers import BatchFeature

from .bge_vl_inputs import Inputs
from .bge_vl_prompts import CIR_INSTRUCTION


class ReleasedInterface:
    """The methods that the released models add to their architecture."""

    config: Any
    device: Any
    model: Any

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as the plain architecture, which maps the weights' names of all versions, and add the interface."""
        plain = next(c for c in cls.__mro__ if c.__module__.startswith("transformers."))
        loaded = plain.from_pretrained(*args, **kwargs)  # type: ignore[attr-defined]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.__class__ = cls
        return loaded

    def set_processor(self, model_name: str) -> None:
        """Load the processor for images and texts, by name or folder; usually the model's own."""
        self.processor = Inputs.load(model_name, self.config)

    def data_process(
        self, images: Any = None, text: Any = None, q_or_c: str = "c", task_instruction: str | None = None
    ) -> BatchFeature:
        """Preprocess images and texts for the model.

        Args:
            images: a path or a PIL image, a list of them, or None.
            text: a text, a list of them, or None; as many as images where both are given.
            q_or_c: 'q' or 'query' for queries, 'c' or 'candidate' for candidates.
            task_instruction: of queries.
        Returns:
            A batch, on the model's device.
        """
        if q_or_c not in ("query", "candidate", "q", "c"):
            raise ValueError(f"data_process: q_or_c is {q_or_c!r}; expected 'q', 'query', 'c' or 'candidate'")
        if images is None and text is None:
            raise ValueError("data_process: neither images nor text given")
        given = [x if x is None or isinstance(x, list) else [x] for x in (images, text)]
        counts = {len(x) for x in given if x is not None}
        if len(counts) > 1:
            raise ValueError(f"data_process: {len(images)} images for {len(text)} texts; expected as many")
        shown, said = (x or [empty] * max(counts) for x, empty in zip(given, (None, ""), strict=True))
        is_query = q_or_c.startswith("q")
        if is_query and not task_instruction:
            warnings.warn(
                f"a query without task_instruction ranks worse; for composed image retrieval take {CIR_INSTRUCTION!r}",
                stacklevel=2,
            )
        prepared = [
            i if i is None else self.processor.image(i if isinstance(i, Image.Image) else Image.open(i)) for i in shown
        ]
        contents = list(zip(prepared, said, strict=True))
        return BatchFeature(self.processor.batch(contents, is_query=is_query, instruction=task_instruction or "")).to(
            self.device
        )

    def forward(self, *args: Any, output_hidden_states: bool | None = None, **inputs: Any) -> Any:
        """(n, tokens, d) last hidden states where `output_hidden_states` asks for them, as the released models give;
        else the base model's output.
        """
        if not hasattr(self, "model"):  # transformers before 4.52: no base model of its own
            out = super().forward(*args, **inputs, output_hidden_states=True)  # type: ignore[misc]
            return out.hidden_states[-1] if output_hidden_states else out
        out = self.model(*args, **inputs)
        return out.last_hidden_state if output_hidden_states else out


# class of this module -> architecture of transformers; made when it is asked for: old versions lack the newer ones
ARCHITECTURES = {
    "BGEVLLlavaNext": "LlavaNextForConditionalGeneration",  # BGE-VL-MLLM-S1 and -S2
    "BGEVLQwen2VL": "Qwen2VLForConditionalGeneration",
    "BGEVLQwen25VL": "Qwen2_5_VLForConditionalGeneration",  # BGE-VL-Screenshot's
    "BGEVLQwen3VL": "Qwen3VLForConditionalGeneration",
}


def __getattr__(name: str) -> Any:
    """The released interface on one architecture.

    Raises:
        ImportError: this version of transformers lacks the architecture.
    """
    if name not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    architecture = getattr(transformers, ARCHITECTURES[name], None)
    if architecture is None:
        raise ImportError(
            f"{name} needs {ARCHITECTURES[name]}, which transformers {transformers.__version__} lacks; take a newer one"
        )
    made = type(name, (ReleasedInterface, architecture), {"__module__": __name__, "__doc__": f"{name}, released form."})
    globals()[name] = made
    return made
