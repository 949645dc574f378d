"""Pack several questions about one pair of images into one sequence, and read the judge's answers from the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from tasks.sample import tokens
from tasks.sample.common import to_pixel_values
from tasks.sample.judge_questions import Question
from tasks.sample.scenes import draw
from tasks.sample.train_vlm import VISUAL_TOKENS, format_turn, image_features

DEPTH = 4  # layers of the describer, and of the judge before layers are added


@dataclass(frozen=True)
class EncodedQuestion:
    """Tokens of one question.

    Attributes:
        ids: token ids.
        marks: (token, `Phrase.may_begin` of the phrase up to this token) of every token of its phrases.
        text_tokens: the tokens of its text.
    """

    ids: list[int]
    marks: list[tuple[int, bool]]
    text_tokens: list[int]


@dataclass(frozen=True)
class PackedQuestions:
    """Sequences of the questions of several pairs.

    Attributes:
        ids, position: (pairs, length) int64.
        mask: (pairs, length, length) bool, to and from: a question attends to the images and to itself.
        last: (pairs, questions) int64, positions of each question's last token.
        marks: (pair, position, whether a true phrase may begin so).
        right_tokens: (pair, position) of the tokens of right texts.
    """

    ids: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    marks: list[tuple[int, int, bool]]
    right_tokens: list[tuple[int, int]]


@dataclass(frozen=True)
class Answers:
    """The model's output for packed questions.

    Attributes:
        logits: (pairs, questions, vocabulary) of each answer's first token.
        states: (pairs, length, width) of every layer.
        marks: as of PackedQuestions.
        word_loss: cross-entropy of the right texts' words.
    """

    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]
    marks: list[tuple[int, int, bool]]
    word_loss: torch.Tensor


class QuestionPacker:
    """Packs the questions about each pair of images into one sequence, and computes the answers' logits."""

    def __init__(self, model: Idefics3ForConditionalGeneration, processor: Idefics3Processor) -> None:
        self.model, self.words, self.processor = model, processor.tokenizer, processor
        self.image_id = model.config.image_token_id
        chat = format_turn(2, tokens.prompt("judge").format(instruction="\0"), processor)
        cut = chat.rindex("<fake_token_around_image>") + len("<fake_token_around_image>")
        self.prefix = self.words(chat[:cut], add_special_tokens=False).input_ids
        self.before, self.after = chat[cut:].split("\0")
        self.second = [i for i, token in enumerate(self.prefix) if token == self.image_id][VISUAL_TOKENS:]
        self.yes, self.no = (self.words(t, add_special_tokens=False).input_ids[0] for t in ("yes", "no"))

    def encode(self, question: Question) -> EncodedQuestion:
        """Tokens of a question after the images, up to where the answer begins."""
        tokenized = self.words(
            self.before + question.text + self.after, add_special_tokens=False, return_offsets_mapping=True
        )
        offsets = tokenized.offset_mapping
        marks, begin = [], len(self.before)
        for part in question.parts:
            begin = (self.before + question.text).index(part.text, begin)
            stop = begin + len(part.text)
            marks += [(i, part.may_begin(end - begin)) for i, (_, end) in enumerate(offsets) if begin < end <= stop]
            begin = stop
        first, last = len(self.before), len(self.before) + len(question.text)
        text_tokens = [i for i, (_, end) in enumerate(offsets) if first < end <= last]
        return EncodedQuestion(tokenized.input_ids, marks, text_tokens)

    def pack(self, rows: Sequence[Sequence[Question]]) -> PackedQuestions:
        """The questions of each pair in one sequence; equally many for every pair."""
        start = len(self.prefix)
        encoded = [[self.encode(question) for question in row] for row in rows]
        length = start + max(sum(len(question.ids) for question in row) for row in encoded)
        ids = torch.full((len(rows), length), self.words.pad_token_id)
        block = torch.full((len(rows), length), -1)
        position = torch.zeros(len(rows), length, dtype=torch.long)
        last = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
        ids[:, :start], block[:, :start], position[:, :start] = torch.tensor(self.prefix), 0, torch.arange(start)
        marks: list[tuple[int, int, bool]] = []
        right_tokens: list[tuple[int, int]] = []
        for i, row in enumerate(encoded):
            at = start
            for j, question in enumerate(row):
                end = at + len(question.ids)
                ids[i, at:end], block[i, at:end] = torch.tensor(question.ids), j + 1
                position[i, at:end] = torch.arange(start, start + len(question.ids))
                marks += [(i, at + token, may) for token, may in question.marks]
                right_tokens += [(i, at + token) for token in question.text_tokens if rows[i][j].is_right]
                last[i, j], at = end - 1, end
        mask = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])  # (pairs, to, from)
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        return PackedQuestions(ids, position, mask, last, marks, right_tokens)

    def logits(
        self, features: torch.Tensor, where: Sequence[tuple[int, int]], rows: Sequence[Sequence[Question]]
    ) -> Answers:
        """Answers to all questions.

        Args:
            features: (images, 9, width) visual tokens.
            where: each pair's two rows of `features`.
            rows: each pair's questions, equally many for every pair.
        """
        packed = self.pack(rows)
        embedded = self.model.get_input_embeddings()(packed.ids)
        embedded = embedded.masked_scatter(
            (packed.ids == self.image_id)[..., None], features[[i for pair in where for i in pair]]
        )
        text_model = self.model.model.text_model
        out = text_model(
            inputs_embeds=embedded,
            attention_mask=packed.mask[:, None],
            position_ids=packed.position,
            use_cache=False,
            output_hidden_states=True,
        )
        hidden = out.last_hidden_state
        answers = hidden.gather(1, packed.last[..., None].expand(-1, -1, hidden.shape[-1]))
        word_loss = torch.zeros(())
        if packed.right_tokens:
            row, to = torch.tensor(packed.right_tokens).T
            at_depth = hidden if len(text_model.layers) == DEPTH else text_model.norm(out.hidden_states[DEPTH])
            word_loss = F.cross_entropy(self.model.lm_head(at_depth[row, to - 1]), packed.ids[row, to])
        return Answers(self.model.lm_head(answers), out.hidden_states, packed.marks, word_loss)

    @torch.no_grad()
    def score(self, questions: Sequence[Question]) -> np.ndarray:
        """Probability of yes against no for each question, (n,) float; one question a sequence, as at inference."""
        scores = []
        for i in range(0, len(questions), 64):
            part = questions[i : i + 64]
            images = [draw(s, rendering=r) for q in part for s, r in ((q.query, 1), (q.candidate, 2))]
            features = image_features(self.model, to_pixel_values(images))
            where = [(2 * k, 2 * k + 1) for k in range(len(part))]
            out = self.logits(features, where, [[q] for q in part]).logits[:, 0]
            scores += (out[:, self.yes] - out[:, self.no]).sigmoid().tolist()
        return np.asarray(scores)
