"""The judge: an MLLM that is asked whether an image is what an instruction makes of another image.

Source of the idea: UniME-V2, arXiv:2510.13515 (the yes-probability of an MLLM as a soft label).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import JudgeConfig, Params
from tasks.judge.calibration import Calibration, read_calibration
from tasks.judge.verdict import Verdict, VerdictRules, decide
from tasks.models.llm.base import Captioner
from tasks.models.llm.load import load_captioner, run_config
from tasks.models.llm.request_cache import open_cache
from tasks.models.llm.requests import Refusal, Request
from tasks.prompts.kinds import kind_of
from tasks.prompts.styles import is_partial

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Question:
    """Is `candidate` what `instruction` makes of `query`?"""

    query: Image
    candidate: Image
    instruction: str


def load_judge(params: Params, root: Path) -> Captioner:
    """The judge that the parameters name, with the request cache of the worktree `root`.

    Raises:
        ConfigError: it cannot be loaded.
    """
    config = params.judge
    named = {"model": config.model, "revision": config.revision, "url": config.url}
    cache = open_cache(root, served=config.engine == "openai")
    sizes = {"question_batch": config.batch_questions}
    return load_captioner(run_config(params, config, "judge", root, cache, **named, **sizes))


def yes_probabilities(model: Captioner, questions: Sequence[Question], template: str) -> Sequence[float | Refusal]:
    """P(yes) per question, 0..1, or why the judge could not be asked.

    Args:
        model: the judge.
        questions: the query image is shown first, then the candidate.
        template: the prompt, with {instruction}.
    """
    return model.yes_probability(
        [Request((q.query, q.candidate), template.replace("{instruction}", q.instruction)) for q in questions]
    )


@dataclass(frozen=True)
class Calibrator:
    """Turns P(yes) for a pair's target into the probability that it fits.

    Attributes:
        calibration: None leaves P(yes) as it is.
        prompts: name of the prompt set, which tells kinds of change.
    """

    calibration: Calibration | None
    prompts: str

    @classmethod
    def load(cls, params: Params) -> Calibrator:
        """The one that the parameters name.

        Raises:
            ConfigError: `judge.calibration` cannot be read.
        """
        path = params.judge.calibration
        return cls(read_calibration(Path(path)) if path else None, params.caption.prompts)

    def probability(self, yes: float, row: Mapping[str, Any], instruction: int) -> float:
        """Of a captioned row's instruction of that position."""
        text, style = row["instructions"][instruction], row["styles"][instruction]
        return self.of_text(yes, text, kind_of(text, style, row.get("differences") or (), self.prompts))

    def of_text(self, yes: float, text: str, kind: str = "") -> float:
        """Of a text of this kind of change; the prompt set tells the kind where it is empty."""
        if self.calibration is None:
            return yes
        return self.calibration.probability(yes, kind or kind_of(text, "", (), self.prompts))


def judge_pairs(
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Any],
    model: Captioner,
    template: str,
    config: JudgeConfig,
    calibrator: Calibrator | None = None,
) -> list[Verdict]:
    """A verdict per pair.

    The judge is asked about the targets first, and about negatives only for instructions that passed, of pairs with
    enough of them.

    Args:
        rows: with instructions, styles, query_image_id, target_image_id, negative_image_ids.
        images: image_id -> image, of every image named in the rows.
        model: the judge.
        template: the prompt, with {instruction}.
        config: thresholds.
        calibrator: of P(yes) for the targets; it stays as it is when None.
    """
    instructions = [(r, n) for r, row in enumerate(rows) for n in range(len(row["instructions"]))]
    questions = [_question(rows[r], images, n, rows[r]["target_image_id"]) for r, n in instructions]
    answers = [PairAnswers() for _ in rows]
    for (r, n), yes in zip(instructions, yes_probabilities(model, questions, template), strict=True):
        if isinstance(yes, Refusal):
            answers[r].refused_instructions[n] = yes
        else:
            answers[r].target_yes[n] = yes
            answers[r].target_fits[n] = yes if calibrator is None else calibrator.probability(yes, rows[r], n)
    passed = [(r, n) for r, n in instructions if answers[r].target_fits.get(n, -1.0) >= config.threshold]
    counts = Counter(r for r, _ in passed)
    passed = [(r, n) for r, n in passed if counts[r] >= config.instructions_min]
    negatives = [(r, n, k) for r, n in passed for k in range(len(rows[r]["negative_image_ids"]))]
    questions = [_question(rows[r], images, n, rows[r]["negative_image_ids"][k]) for r, n, k in negatives]
    for (r, n, k), yes in zip(negatives, yes_probabilities(model, questions, template), strict=True):
        if not isinstance(yes, Refusal):
            answers[r].negative_yes.setdefault(n, {})[k] = yes
        elif k:
            answers[r].refused_negatives[k] = yes
        else:  # without the answer for the query image nothing is known about the instruction
            answers[r].refused_instructions[n] = yes
    rules = verdict_rules(config)
    return [answers[r].verdict([is_partial(s) for s in row["styles"]], row, rules) for r, row in enumerate(rows)]


def verdict_rules(config: JudgeConfig) -> VerdictRules:
    """The rules that the parameters state."""
    return VerdictRules(
        threshold=config.threshold,
        negative_threshold=config.negative_threshold,
        instructions_min=config.instructions_min,
        negative_margin=config.negative_margin,
        negatives_max=config.negatives,
    )


@dataclass
class PairAnswers:
    """What the judge answered about one pair; keys are positions of instructions and negatives.

    Attributes:
        target_yes: instruction -> P(yes) of the target.
        target_fits: the same, calibrated.
        negative_yes: instruction that passes -> negative -> P(yes).
        refused_instructions: instruction -> why the judge could not be asked.
        refused_negatives: negative -> why the judge could not be asked.
    """

    target_yes: dict[int, float] = field(default_factory=dict)
    target_fits: dict[int, float] = field(default_factory=dict)
    negative_yes: dict[int, dict[int, float]] = field(default_factory=dict)
    refused_instructions: dict[int, Refusal] = field(default_factory=dict)
    refused_negatives: dict[int, Refusal] = field(default_factory=dict)

    def verdict(self, is_partial: Sequence[bool], row: Mapping[str, Any], rules: VerdictRules) -> Verdict:
        """The verdict on what the judge could be asked; the rest is left out of the pair."""
        places = [n for n in self.target_yes if n not in self.refused_instructions]
        kept = [k for k in range(len(row["negative_image_ids"])) if k not in self.refused_negatives]
        verdict = decide(
            [self.target_yes[n] for n in places],
            {i: [self.negative_yes[n][k] for k in kept] for i, n in enumerate(places) if n in self.negative_yes},
            [is_partial[n] for n in places],
            rules,
            [self.target_fits[n] for n in places],
        )
        refusals = [*self.refused_instructions.values()]
        return replace(
            verdict,
            instructions=[places[i] for i in verdict.instructions],
            negatives=[kept[k] for k in verdict.negatives],
            false_negatives={kept[k]: yes for k, yes in verdict.false_negatives.items()},
            dropped={places[i]: why for i, why in verdict.dropped.items()},
            reason=refusals[0].reason if verdict.reason and refusals else verdict.reason,
            refused_instructions=self.refused_instructions,
            refused_negatives=self.refused_negatives,
        )


def _question(row: Mapping[str, Any], images: Mapping[str, Any], instruction: int, candidate_id: str) -> Question:
    return Question(images[row["query_image_id"]], images[candidate_id], row["instructions"][instruction])
