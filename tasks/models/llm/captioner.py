"""Multimodal LLMs: images and a text in, a reply or a probability of yes out; in process or on a server.

`load_captioner(name)` gives a `Captioner`: `chat` writes (greedy), `yes_probability` reads P(yes) off the first answer
token. Engines: 'transformers' (any AutoModelForImageTextToText, no torchvision), 'openai' (an OpenAI-compatible server
such as `vllm serve`; tasks/models/llm/openai_server.py) and 'vllm' (its offline engine in this process;
tasks/models/llm/vllm_engine.py).

In process, work is sorted by length and cut into fixed batches within one call, so equal calls give equal bytes. For
the class of SmolVLM (Idefics3) the vision features of an image are made once a call, whatever number of requests show
it (tasks/models/llm/vision.py: prepared by a thread while the model writes), and questions about the same images share
the images' part of the attention cache (tasks/models/llm/kv_cache.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError, DataError
from tasks.models.hub import loading, pick_device, revision_of
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Accounted, Reply, Request
from tasks.models.llm.vision import Looking, Vision

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# spellings of yes and no; those of one token each count
ANSWERS = (("yes", "no"), ("Yes", "No"), (" yes", " no"), (" Yes", " No"))
TAILS = 64  # questions whose own tokens are read in one pass, a count: of similar length, so that little is padding
FAST_ARCHITECTURES = ("idefics3", "smolvlm")  # get_image_features gives the rows that <image> tokens stand for


# --- in process -----------------------------------------------------------------------------------------------------


class LocalModel(Accounted):
    """A transformers model in this process that writes: how it is loaded, and how its tokens become replies."""

    tokenizer: Any

    def __init__(
        self,
        auto: Any,
        model: str,
        *,
        key: str,
        revision: str | None,
        device: str,
        threads: int,
        max_new_tokens: int,
        batch: int,
        cache: RequestCache | None = None,
    ) -> None:
        """Load the weights with `auto`, a transformers Auto class; `key` says in errors which parameter names the
        model.
        """
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.name, self.max_new_tokens, self.batch = model, max_new_tokens, batch
        self.device = pick_device(device)
        dtype: Any = torch.float32 if self.device == "cpu" else "auto"
        with loading(model, key):
            self.model: Any = auto.from_pretrained(
                model, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        self.model.eval().to(self.device)
        self.revision = revision_of(model, revision, self.model.config)
        self.is_on_gpu = self.device != "cpu"
        self._account(
            f"transformers {transformers.__version__}, torch {torch.__version__}",
            {"temperature": 0, "max_new_tokens": max_new_tokens},
            cache,
        )
        self._facts = {"batch": batch, "threads": threads, "device": self.device.partition(":")[0]}

    def _pad_left(self) -> None:
        """Batches end where the reply begins."""
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _replies(self, outputs: torch.Tensor, prompt_tokens: Sequence[int]) -> list[Reply]:
        """(b, length) new tokens -> replies, each up to its end token."""
        pad, ends = self.tokenizer.pad_token_id, self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        replies = []
        for ids, count in zip(outputs.tolist(), prompt_tokens, strict=True):
            length = next((n + 1 for n, i in enumerate(ids) if i in ends), len(ids))
            while length and ids[length - 1] == pad and pad not in ends:
                length -= 1
            replies.append(Reply(self.tokenizer.decode(ids[:length], skip_special_tokens=True).strip(), count, length))
        return replies


class LocalCaptioner(LocalModel):
    """A multimodal transformers model in this process."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        device: str,
        threads: int,
        max_new_tokens: int,
        batch: int,
        question_batch: int,
        cache: RequestCache | None = None,
    ) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        key = "an MLLM"
        with loading(model, key):
            self.processor: Any = AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
        self.tokenizer = self.processor.tokenizer
        self._pad_left()
        shared: dict[str, Any] = {
            "key": key,
            "revision": revision,
            "device": device,
            "threads": threads,
            "cache": cache,
        }
        super().__init__(AutoModelForImageTextToText, model, max_new_tokens=max_new_tokens, batch=batch, **shared)
        self.question_batch = question_batch
        self.is_fast = self.model.config.model_type in FAST_ARCHITECTURES
        self.vision = Vision(self.processor, self.model, self.device, batch)
        self._yes, self._no = self._answer_tokens()
        if set(self._yes) & set(self._no):
            raise ConfigError(f"model '{model}': its tokenizer begins yes and no with the same token; it cannot judge")

    def _answer_tokens(self) -> tuple[list[int], list[int]]:
        """Ids of yes and of no: spellings that are one token each, or the first tokens of the first spelling where none
        are.
        """
        ids = [[self.tokenizer(word, add_special_tokens=False).input_ids for word in words] for words in ANSWERS]
        found = [(yes[0], no[0]) for yes, no in ids if len(yes) == len(no) == 1] or [(ids[0][0][0], ids[0][1][0])]
        return sorted({yes for yes, _ in found}), sorted({no for _, no in found})

    # --- prompts ---

    def _prompt(self, request: Request) -> str:
        content: list[dict[str, Any]] = [{"type": "image"} for _ in request.images] + [
            {"type": "text", "text": request.text}
        ]
        return str(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )

    def _ids(self, prompt: str) -> list[int]:
        is_begun = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        return list(self.tokenizer(prompt, add_special_tokens=not is_begun).input_ids)

    def _expanded(self, request: Request, texts: dict[int, str]) -> str:
        """The prompt with every image token replaced by what the processor puts there."""
        parts = self._prompt(request).split(self.processor.image_token)
        if len(parts) != len(request.images) + 1:
            raise DataError(
                f"a prompt of '{self.name}' has {len(parts) - 1} places for {len(request.images)} images; does the text hold an image token?"
            )
        return parts[0] + "".join(
            texts[id(image)] + part for image, part in zip(request.images, parts[1:], strict=True)
        )

    def _embedded(
        self, ids: Sequence[Sequence[int]], images: Sequence[tuple[Image, ...]], looking: Looking, side: str
    ) -> tuple[Any, Any]:
        """Token rows padded on a side, (b, length, width) and their mask (b, length); image tokens get their images'
        rows.
        """
        import torch

        length = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        padded = [
            [pad] * (length - len(i)) + list(i) if side == "left" else list(i) + [pad] * (length - len(i)) for i in ids
        ]
        mask = [
            [0] * (length - len(i)) + [1] * len(i) if side == "left" else [1] * len(i) + [0] * (length - len(i))
            for i in ids
        ]
        tokens = torch.tensor(padded, device=self.device)
        rows = self.model.get_input_embeddings()(tokens)
        shown = [looking.rows(i) for group in images for i in group]
        if shown:
            where = (tokens == self.model.config.image_token_id) & torch.tensor(
                mask, dtype=torch.bool, device=self.device
            )
            rows = rows.masked_scatter(where[..., None], torch.cat(shown).to(rows.dtype))
        return rows, torch.tensor(mask, device=self.device)

    # --- chat ---

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        import torch

        with torch.inference_mode():
            return self._texts(
                "chat",
                requests,
                self._facts,
                lambda: self._chat_fast(requests) if self.is_fast else self._chat_plain(requests),
            )

    def _chat_fast(self, requests: Sequence[Request]) -> list[Reply]:
        from tasks.models.llm.kv_cache import roomy_cache

        replies: dict[int, Reply] = {}
        with Looking(self.vision, (i for r in requests for i in r.images)) as looking:
            ids = [self._ids(self._expanded(r, looking.texts)) for r in requests]
            parts = batches_by_length([len(i) for i in ids], self.batch)
            looking.expect(i for part in parts for n in part for i in requests[n].images)
            for part in parts:
                rows, mask = self._embedded([ids[n] for n in part], [requests[n].images for n in part], looking, "left")
                made = self.model.generate(
                    inputs_embeds=rows,
                    attention_mask=mask,
                    past_key_values=roomy_cache(self.model.config),
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                )
                replies |= dict(zip(part, self._replies(made, [len(ids[n]) for n in part]), strict=True))
        return [replies[n] for n in range(len(requests))]

    def _plain_inputs(self, requests: Sequence[Request]) -> Any:
        prompts = [self._prompt(r) for r in requests]
        images = [list(r.images) for r in requests] if any(r.images for r in requests) else None
        is_begun = bool(self.tokenizer.bos_token) and all(p.startswith(self.tokenizer.bos_token) for p in prompts)
        return self.processor(
            text=prompts, images=images, padding=True, add_special_tokens=not is_begun, return_tensors="pt"
        ).to(self.device)

    def _chat_plain(self, requests: Sequence[Request]) -> list[Reply]:
        """Any architecture: the processor and the model as they come."""
        replies: dict[int, Reply] = {}
        for part in batches_by_length([len(r.text) for r in requests], self.batch):
            inputs = self._plain_inputs([requests[n] for n in part])
            made = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
            replies |= dict(
                zip(
                    part,
                    self._replies(made[:, inputs["input_ids"].shape[1] :], inputs["attention_mask"].sum(1).tolist()),
                    strict=True,
                )
            )
        return [replies[n] for n in range(len(requests))]

    # --- yes or no ---

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        """P(yes) among yes and no at the first answer token, one per request, in order."""
        import torch

        facts = {**self._facts, "batch": self.question_batch}
        with torch.inference_mode():
            return self._once(
                "yes", requests, facts, lambda: self._yes_fast(requests) if self.is_fast else self._yes_plain(requests)
            )

    def _p_yes(self, logits: torch.Tensor) -> list[float]:
        """(b, vocabulary) -> P(yes), b numbers."""
        import torch

        scores = logits.double()
        yes, no = (torch.logsumexp(scores[:, ids], -1) for ids in (self._yes, self._no))
        return [float(p) for p in torch.sigmoid(yes - no)]

    def _yes_plain(self, requests: Sequence[Request]) -> list[float]:
        found: dict[int, float] = {}
        for part in batches_by_length([len(r.text) for r in requests], self.question_batch):
            inputs = self._plain_inputs([requests[n] for n in part])
            self.spent.prompt_tokens += int(inputs["attention_mask"].sum())
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
            found |= dict(zip(part, self._p_yes(logits), strict=True))
        return [found[n] for n in range(len(requests))]

    def _yes_fast(self, requests: Sequence[Request]) -> list[float]:
        """Images once, then the questions: those about the same images share the cache of the images' tokens."""
        found: dict[int, float] = {}
        with Looking(self.vision, (i for r in requests for i in r.images)) as looking:
            image_id = self.model.config.image_token_id
            groups: dict[tuple[tuple[int, ...], tuple[int, ...]], _Asked] = {}
            for n, request in enumerate(requests):
                ids = self._ids(self._expanded(request, looking.texts))
                self.spent.prompt_tokens += len(ids)
                cut = 1 + max((i for i, t in enumerate(ids) if t == image_id), default=-1)
                groups.setdefault(
                    (tuple(ids[:cut]), tuple(map(id, request.images))), _Asked(tuple(ids[:cut]), request.images, [], [])
                ).add(n, ids[cut:])
            by_length: dict[int, list[_Asked]] = {}
            for asked in groups.values():
                by_length.setdefault(len(asked.prefix), []).append(asked)
            parts = [part for same in by_length.values() for part in _parts(same, self.question_batch)]
            looking.expect(i for part in parts for asked in part for i in asked.images)
            for part in parts:
                found |= self._answered(part, looking)
        return [found[n] for n in range(len(requests))]

    def _answered(self, part: Sequence[_Asked], looking: Looking) -> dict[int, float]:
        """P(yes) by request number of questions whose image prefixes are of one length."""
        import torch

        from tasks.models.llm.kv_cache import chosen, filled_cache

        length, prefixes = len(part[0].prefix), None
        asked = [
            (n, number, tail) for n, one in enumerate(part) for number, tail in zip(one.numbers, one.tails, strict=True)
        ]
        if length:
            rows, mask = self._embedded([one.prefix for one in part], [one.images for one in part], looking, "right")
            prefixes = filled_cache(self.model.model, self.model.config, inputs_embeds=rows, attention_mask=mask)
        whole = length + max(len(tail) for _, _, tail in asked)
        found: dict[int, float] = {}
        for some in batches_by_length([len(tail) for _, _, tail in asked], TAILS):
            owners, numbers, tails = zip(*(asked[n] for n in some), strict=True)
            past = None if prefixes is None else chosen(prefixes, torch.tensor(owners, device=self.device), whole)
            rows, mask = self._embedded(tails, [()] * len(tails), looking, "right")
            last = mask.sum(1) - 1
            if past is not None:
                mask = torch.nn.functional.pad(
                    torch.cat([mask.new_ones((len(tails), length)), mask], 1), (0, whole - length - mask.shape[1])
                )
            hidden = self.model.model(
                inputs_embeds=rows, attention_mask=mask, past_key_values=past, use_cache=past is not None
            ).last_hidden_state
            logits = self.model.lm_head(hidden[torch.arange(len(tails), device=self.device), last])
            found |= dict(zip(numbers, self._p_yes(logits), strict=True))
        return found


@dataclass
class _Asked:
    """Questions about the same images: the tokens up to the images' last, then per question its number and its own
    tokens.
    """

    prefix: tuple[int, ...]
    images: tuple[Image, ...]
    numbers: list[int]
    tails: list[list[int]]

    def add(self, number: int, tail: list[int]) -> None:
        self.numbers.append(number)
        self.tails.append(tail)


def _parts(asked: Sequence[_Asked], questions: int) -> list[list[_Asked]]:
    """Cut into parts that are full once they hold `questions` questions, a count."""
    parts: list[list[_Asked]] = []
    count = questions
    for one in asked:
        if count >= questions:
            parts.append([])
            count = 0
        parts[-1].append(one)
        count += len(one.tails)
    return parts


def batches_by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Positions cut into batches of similar length, longest first; ties by position, so equal inputs give equal
    batches.
    """
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    return [order[start : start + batch] for start in range(0, len(order), batch)]
