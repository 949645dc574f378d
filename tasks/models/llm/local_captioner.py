"""Multimodal LLM in process: any AutoModelForImageTextToText, without torchvision.

`chat` writes greedy replies; `yes_probability` reads P(yes) off the first answer token. For the architecture of SmolVLM
(Idefics3) there is a fast path: the vision features of an image are computed once a call, whatever number of requests
show it (tasks/models/llm/vision.py; a thread prepares images while the model writes), and questions about the same
images share the key-value cache up to where their texts differ (tasks/models/llm/kv_cache.py). Other architectures
take the processor and the model as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError, DataError
from tasks.models.hub import load_errors
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.local_model import LocalModel, batches_by_length
from tasks.models.llm.requests import Refusal, Reply, Request
from tasks.models.llm.vision import ImageFeatures, VisionTower

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# spellings of (yes, no); those of one token each count
ANSWERS = (("yes", "no"), ("Yes", "No"), (" yes", " no"), (" Yes", " No"))
QUESTIONS_PER_PASS = 64  # questions in one pass after their images, a count: of similar length, so little is padding
# what processors raise for an image that they cannot take (Qwen-VL for ratios above 200: ValueError)
PROCESSOR_ERRORS = (ValueError, TypeError, ArithmeticError, RuntimeError, LookupError)
FAST_ARCHITECTURES = ("idefics3", "smolvlm")  # get_image_features gives the rows that <image> tokens stand for


class LocalCaptioner(LocalModel):
    """A multimodal transformers model in this process."""

    def __init__(self, config: LlmConfig) -> None:
        """Load processor and weights.

        Raises:
            ConfigError: nothing loadable under that name, or a tokenizer whose yes and no begin with the same token.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        parameter = "an MLLM"
        with load_errors(config.model, parameter):
            self.processor: Any = AutoProcessor.from_pretrained(
                config.model, revision=config.revision, trust_remote_code=False
            )
        self.tokenizer = self.processor.tokenizer
        self._pad_left()
        super().__init__(AutoModelForImageTextToText, config, parameter=parameter)
        self.question_batch = config.question_batch
        self.is_fast = self.model.config.model_type in FAST_ARCHITECTURES
        self.vision = VisionTower(self.processor, self.model, self.device, config.batch)
        self._yes, self._no = self._answer_tokens()
        if set(self._yes) & set(self._no):
            raise ConfigError(
                f"model '{config.model}': its tokenizer begins yes and no with the same token; it cannot judge: "
                "name another model"
            )

    def _answer_tokens(self) -> tuple[list[int], list[int]]:
        """Token ids of yes and of no.

        Of all spellings that are one token each; without any, the first tokens of the first spelling.
        """
        ids = [[self.tokenizer(word, add_special_tokens=False).input_ids for word in words] for words in ANSWERS]
        pairs = [(yes[0], no[0]) for yes, no in ids if len(yes) == len(no) == 1] or [(ids[0][0][0], ids[0][1][0])]
        return sorted({yes for yes, _ in pairs}), sorted({no for _, no in pairs})

    # --- prompts ---

    def _prompt(self, request: Request) -> str:
        content: list[dict[str, Any]] = [{"type": "image"} for _ in request.images]
        content.append({"type": "text", "text": request.text})
        turns = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _token_ids(self, prompt: str) -> list[int]:
        has_start = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        return list(self.tokenizer(prompt, add_special_tokens=not has_start).input_ids)

    def _expanded_prompt(self, request: Request, image_texts: dict[int, str]) -> str:
        """The prompt with every image token replaced by the processor's text for that image, by id()."""
        parts = self._prompt(request).split(self.processor.image_token)
        if len(parts) != len(request.images) + 1:
            raise DataError(
                f"a prompt of '{self.name}' has {len(parts) - 1} places for {len(request.images)} images; does the "
                "text hold an image token?"
            )
        images = zip(request.images, parts[1:], strict=True)
        return parts[0] + "".join(image_texts[id(image)] + part for image, part in images)

    def _embed(
        self, ids: Sequence[Sequence[int]], images: Sequence[tuple[Image, ...]], features: ImageFeatures, side: str
    ) -> tuple[Any, Any]:
        """Token embeddings (b, length, width), image tokens replaced by image features, and their mask (b, length).

        Args:
            ids: token ids of each row.
            images: of each row.
            features: of the call's images.
            side: 'left' or 'right', where shorter rows are padded.
        """
        import torch

        length = max(map(len, ids))
        padding = [[self.tokenizer.pad_token_id] * (length - len(row)) for row in ids]
        hidden = [[0] * len(pad) for pad in padding]
        visible = [[1] * len(row) for row in ids]
        if side == "left":
            padded = [pad + list(row) for pad, row in zip(padding, ids, strict=True)]
            mask = [zeros + ones for zeros, ones in zip(hidden, visible, strict=True)]
        else:
            padded = [list(row) + pad for pad, row in zip(padding, ids, strict=True)]
            mask = [ones + zeros for zeros, ones in zip(hidden, visible, strict=True)]
        tokens = torch.tensor(padded, device=self.device)
        rows = self.model.get_input_embeddings()(tokens)
        image_rows = [features.rows(image) for group in images for image in group]
        if image_rows:
            is_visible = torch.tensor(mask, dtype=torch.bool, device=self.device)
            is_image = (tokens == self.model.config.image_token_id) & is_visible
            rows = rows.masked_scatter(is_image[..., None], torch.cat(image_rows).to(rows.dtype))
        return rows, torch.tensor(mask, device=self.device)

    # --- images that the processor refuses ---

    def _without_bad_images(
        self, requests: Sequence[Request], answer: Callable[[Sequence[Request]], Sequence[Any]]
    ) -> list[Any]:
        """Answers in order, with a `Refusal` for each request that shows an image which the processor refuses.

        Args:
            requests: all of a call.
            answer: requests -> answers; called again without those requests where it fails.
        Raises:
            ConfigError: the processor refuses a plain image too.
        """
        try:
            return list(answer(requests))
        except PROCESSOR_ERRORS:
            images = {id(image): image for request in requests for image in request.images}
            faults = {key: self._image_fault(image) for key, image in images.items()}
            bad = {key: words for key, words in faults.items() if words is not None}
            if not bad:
                raise
        if len(bad) == len(images):
            self._require_plain_image()
        words_of = [next((bad[id(image)] for image in r.images if id(image) in bad), None) for r in requests]
        good = [request for request, words in zip(requests, words_of, strict=True) if words is None]
        answers = iter(answer(good) if good else [])
        return [next(answers) if words is None else Refusal("bad_image", words) for words in words_of]

    def _image_fault(self, image: Image) -> str | None:
        """The processor's words where it refuses an image; None where it takes it."""
        try:
            self._generic_inputs([Request((image,), "x")])
        except PROCESSOR_ERRORS as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({image.width}x{image.height} px)"
        return None

    def _require_plain_image(self) -> None:
        from PIL import Image

        if words := self._image_fault(Image.new("RGB", (64, 64), (128, 128, 128))):
            raise ConfigError(
                f"model '{self.name}': its processor refuses even a plain image ({words}); expected a model for images "
                "and text: name another one, or install what its processor needs"
            )

    # --- chat ---

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""
        import torch

        replies: dict[int, Reply] = {}
        with torch.inference_mode():
            for limit in sorted({r.max_tokens or self.max_new_tokens for r in requests}):
                numbers = [n for n, r in enumerate(requests) if (r.max_tokens or self.max_new_tokens) == limit]
                of_limit = self._without_bad_images([requests[n] for n in numbers], partial(self._chat, limit))
                replies |= dict(zip(numbers, of_limit, strict=True))
        return [r if isinstance(r, Reply) else Reply("", 0, 0, refusal=r) for _, r in sorted(replies.items())]

    def _chat(self, limit: int, requests: Sequence[Request]) -> list[Reply]:
        """Replies of at most `limit` tokens."""
        generate = self._chat_fast if self.is_fast else self._chat_generic
        return self._cached_replies("chat", requests, self._settings, lambda: generate(requests, limit))

    def _chat_fast(self, requests: Sequence[Request], limit: int) -> list[Reply]:
        from tasks.models.llm.kv_cache import growing_cache

        replies: dict[int, Reply] = {}
        with ImageFeatures(self.vision, (image for r in requests for image in r.images)) as features:
            ids = [self._token_ids(self._expanded_prompt(r, features.texts)) for r in requests]
            parts = batches_by_length([len(i) for i in ids], self.batch)
            features.prefetch(image for part in parts for n in part for image in requests[n].images)
            for part in parts:
                rows, mask = self._embed([ids[n] for n in part], [requests[n].images for n in part], features, "left")
                outputs = self.model.generate(
                    inputs_embeds=rows,
                    attention_mask=mask,
                    past_key_values=growing_cache(self.model.config),
                    max_new_tokens=limit,
                    do_sample=False,
                )
                replies |= dict(zip(part, self._replies(outputs, [len(ids[n]) for n in part]), strict=True))
        return [replies[n] for n in range(len(requests))]

    def _generic_inputs(self, requests: Sequence[Request]) -> Any:
        prompts = [self._prompt(r) for r in requests]
        images = [list(r.images) for r in requests] if any(r.images for r in requests) else None
        has_start = bool(self.tokenizer.bos_token) and all(p.startswith(self.tokenizer.bos_token) for p in prompts)
        inputs = self.processor(
            text=prompts, images=images, padding=True, add_special_tokens=not has_start, return_tensors="pt"
        )
        return inputs.to(self.device)

    def _chat_generic(self, requests: Sequence[Request], limit: int) -> list[Reply]:
        """Any architecture: the processor and the model as they are."""
        replies: dict[int, Reply] = {}
        for part in batches_by_length([len(r.text) for r in requests], self.batch):
            inputs = self._generic_inputs([requests[n] for n in part])
            outputs = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
            new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
            prompt_tokens = inputs["attention_mask"].sum(1).tolist()
            replies |= dict(zip(part, self._replies(new_tokens, prompt_tokens), strict=True))
        return [replies[n] for n in range(len(requests))]

    # --- yes or no ---

    def yes_probability(self, requests: Sequence[Request]) -> list[float | Refusal]:
        """P(yes) among yes and no at the first answer token, or a `Refusal`; one per request, in order."""
        import torch

        settings = {**self._settings, "batch": self.question_batch}
        answer = self._yes_fast if self.is_fast else self._yes_generic
        with torch.inference_mode():
            return self._without_bad_images(
                requests, lambda good: self._cached_call("yes", good, settings, lambda: answer(good))
            )

    def _yes_from_logits(self, logits: torch.Tensor) -> list[float]:
        """(b, vocabulary) -> P(yes), b numbers."""
        import torch

        scores = logits.double()
        yes, no = (torch.logsumexp(scores[:, ids], -1) for ids in (self._yes, self._no))
        return [float(p) for p in torch.sigmoid(yes - no)]

    def _yes_generic(self, requests: Sequence[Request]) -> list[float]:
        """Any architecture: the processor and the model as they are."""
        probabilities: dict[int, float] = {}
        for part in batches_by_length([len(r.text) for r in requests], self.question_batch):
            inputs = self._generic_inputs([requests[n] for n in part])
            self.usage.prompt_tokens += int(inputs["attention_mask"].sum())
            logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]
            probabilities |= dict(zip(part, self._yes_from_logits(logits), strict=True))
        return [probabilities[n] for n in range(len(requests))]

    def _yes_fast(self, requests: Sequence[Request]) -> list[float]:
        """The images' tokens and what all questions begin with first, then the rest of each question: those about the
        same images share the cache of what comes first.
        """
        probabilities: dict[int, float] = {}
        with ImageFeatures(self.vision, (image for r in requests for image in r.images)) as features:
            groups = self._group_questions(requests, features)
            move_common_start(groups)
            by_length: dict[int, list[QuestionGroup]] = {}
            for group in groups:
                by_length.setdefault(len(group.prefix), []).append(group)
            parts = [part for same in by_length.values() for part in split_groups(same, self.question_batch)]
            features.prefetch(image for part in parts for group in part for image in group.images)
            for part in parts:
                probabilities |= self._answer(part, features)
        return [probabilities[n] for n in range(len(requests))]

    def _group_questions(self, requests: Sequence[Request], features: ImageFeatures) -> list[QuestionGroup]:
        """The requests by their images and the tokens up to the last image token, in order of appearance."""
        image_token = self.model.config.image_token_id
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], QuestionGroup] = {}
        for n, request in enumerate(requests):
            ids = self._token_ids(self._expanded_prompt(request, features.texts))
            self.usage.prompt_tokens += len(ids)
            cut = 1 + max((i for i, token in enumerate(ids) if token == image_token), default=-1)
            prefix = tuple(ids[:cut])
            key = (prefix, tuple(map(id, request.images)))
            groups.setdefault(key, QuestionGroup(prefix, request.images)).add(n, ids[cut:])
        return list(groups.values())

    def _answer(self, part: Sequence[QuestionGroup], features: ImageFeatures) -> dict[int, float]:
        """P(yes) by request number, of groups whose prefixes are of one length."""
        import torch

        from tasks.models.llm.kv_cache import prefill_cache, select_rows

        length, prefixes = len(part[0].prefix), None
        questions = [
            (n, number, tail)
            for n, group in enumerate(part)
            for number, tail in zip(group.numbers, group.tails, strict=True)
        ]
        if length:
            rows, mask = self._embed([g.prefix for g in part], [g.images for g in part], features, "right")
            prefixes = prefill_cache(self.model.model, self.model.config, inputs_embeds=rows, attention_mask=mask)
        whole = length + max(len(tail) for _, _, tail in questions)
        probabilities: dict[int, float] = {}
        for batch in batches_by_length([len(tail) for _, _, tail in questions], QUESTIONS_PER_PASS):
            owners, numbers, tails = zip(*(questions[n] for n in batch), strict=True)
            past = None if prefixes is None else select_rows(prefixes, torch.tensor(owners, device=self.device), whole)
            rows, mask = self._embed(tails, [()] * len(tails), features, "right")
            last = mask.sum(1) - 1
            if past is not None:
                mask = torch.cat([mask.new_ones((len(tails), length)), mask], 1)
                mask = torch.nn.functional.pad(mask, (0, whole - mask.shape[1]))
            hidden = self.model.model(
                inputs_embeds=rows, attention_mask=mask, past_key_values=past, use_cache=past is not None
            ).last_hidden_state
            logits = self.model.lm_head(hidden[torch.arange(len(tails), device=self.device), last])
            probabilities |= dict(zip(numbers, self._yes_from_logits(logits), strict=True))
        return probabilities


@dataclass
class QuestionGroup:
    """Questions about the same images.

    Attributes:
        prefix: token ids up to the last image token, or further where all questions of a call go on alike.
        images: in the prefix.
        numbers: per question its position among the requests.
        tails: per question its token ids after the prefix.
    """

    prefix: tuple[int, ...]
    images: tuple[Image, ...]
    numbers: list[int] = field(default_factory=list)
    tails: list[list[int]] = field(default_factory=list)

    def add(self, number: int, tail: list[int]) -> None:
        """Add a question."""
        self.numbers.append(number)
        self.tails.append(tail)


def move_common_start(groups: Sequence[QuestionGroup]) -> None:
    """Move what all tails begin with to the prefixes, in place; a token stays in the shortest tail.

    The same number of tokens for all groups, so that prefixes of one length stay so and share their passes.
    """
    tails = [tail for group in groups for tail in group.tails]
    if not tails:
        return
    count = min(len(os.path.commonprefix(tails)), min(map(len, tails)) - 1)  # of lists, too
    for group in groups:
        group.prefix += tuple(group.tails[0][:count])
        group.tails = [tail[count:] for tail in group.tails]


def split_groups(groups: Sequence[QuestionGroup], questions: int) -> list[list[QuestionGroup]]:
    """Groups cut into parts; a part is full once it has `questions` questions, a count."""
    parts: list[list[QuestionGroup]] = []
    count = questions
    for group in groups:
        if count >= questions:
            parts.append([])
            count = 0
        parts[-1].append(group)
        count += len(group.tails)
    return parts
