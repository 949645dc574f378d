"""The judge: an MLLM that is asked whether an image is what an instruction makes of another image.

Source of the idea: UniME-V2, arXiv:2510.13515 (the yes-probability of an MLLM as a soft label).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import JudgeConfig, Params
from tasks.judge.calibration import Calibration, read_calibration
from tasks.judge.verdict import Verdict, VerdictRules, decide, negative_limit
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

    The judge is asked in four rounds, each about what the ones before leave open: the targets; the query images, about
    instructions that passed, of pairs with enough of them; the mined negatives, about the first instruction that states
    the whole change; those which do not meet it, about all others. A negative that meets one is out, whatever the
    others say. The verdicts are those of all answers (a test holds them to it).

    Args:
        rows: with instructions, styles, query_image_id, target_image_id, negative_image_ids.
        images: image_id -> image, of every image named in the rows.
        model: the judge.
        template: the prompt, with {instruction}.
        config: thresholds.
        calibrator: of P(yes) for the targets; it stays as it is when None.
    """
    rules = verdict_rules(config)
    partial = [[is_partial(style) for style in row["styles"]] for row in rows]
    answers = [PairAnswers() for _ in rows]

    def ask(places: Sequence[tuple[int, int, str]]) -> Sequence[float | Refusal]:
        """P(yes) per (row, instruction, candidate's id)."""
        questions = [_question(rows[r], images, n, candidate) for r, n, candidate in places]
        return yes_probabilities(model, questions, template)

    def ask_negatives(places: Sequence[tuple[int, int, int]]) -> None:
        replies = ask([(r, n, rows[r]["negative_image_ids"][k]) for r, n, k in places])
        for (r, n, k), yes in zip(places, replies, strict=True):
            answers[r].add_negative(n, k, yes)

    targets = [(r, n, row["target_image_id"]) for r, row in enumerate(rows) for n in _positions(row)]
    for (r, n, _), yes in zip(targets, ask(targets), strict=True):
        if isinstance(yes, Refusal):
            answers[r].refused_instructions[n] = yes
        else:
            answers[r].target_yes[n] = yes
            answers[r].target_fits[n] = yes if calibrator is None else calibrator.probability(yes, rows[r], n)
    passed = {r: [n for n in _positions(row) if answers[r].passes(n, rules)] for r, row in enumerate(rows)}
    ask_negatives([(r, n, 0) for r, texts in _with_enough(passed, rules).items() for n in texts])
    left = {r: [n for n in texts if answers[r].query_fails(n, rules)] for r, texts in passed.items()}
    left = _with_enough(left, rules)
    mined = {r: range(1, len(rows[r]["negative_image_ids"])) for r in left}
    whole = {r: [n for n in texts if not partial[r][n]] for r, texts in left.items()}
    first = {r: texts[0] for r, texts in whole.items() if texts}
    ask_negatives([(r, n, k) for r, n in first.items() for k in mined[r]])
    still = {r: [k for k in ks if answers[r].is_open(k, first.get(r), rules)] for r, ks in mined.items()}
    others = {r: [n for n in texts if n != first.get(r)] for r, texts in left.items()}
    ask_negatives([(r, n, k) for r, texts in others.items() for n in texts for k in still[r]])
    return [answers[r].verdict(partial[r], row, rules) for r, row in enumerate(rows)]


def _positions(row: Mapping[str, Any]) -> range:
    return range(len(row["instructions"]))


def _with_enough(texts: Mapping[int, list[int]], rules: VerdictRules) -> dict[int, list[int]]:
    """The rows with at least `instructions_min` instructions."""
    return {r: places for r, places in texts.items() if len(places) >= rules.instructions_min}


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
        negative_yes: instruction that passes -> negative -> P(yes), of those that were asked.
        refused_instructions: instruction -> why the judge could not be asked.
        refused_negatives: negative -> why the judge could not be asked.
    """

    target_yes: dict[int, float] = field(default_factory=dict)
    target_fits: dict[int, float] = field(default_factory=dict)
    negative_yes: dict[int, dict[int, float]] = field(default_factory=dict)
    refused_instructions: dict[int, Refusal] = field(default_factory=dict)
    refused_negatives: dict[int, Refusal] = field(default_factory=dict)

    def add_negative(self, instruction: int, negative: int, yes: float | Refusal) -> None:
        """Keep an answer; a refusal leaves out the negative or, about the query image, the instruction."""
        if not isinstance(yes, Refusal):
            self.negative_yes.setdefault(instruction, {})[negative] = yes
        elif negative:
            self.refused_negatives[negative] = yes
        else:  # without the answer for the query image nothing is known about the instruction
            self.refused_instructions[instruction] = yes

    def passes(self, instruction: int, rules: VerdictRules) -> bool:
        """Whether the target fits the instruction."""
        return self.target_fits.get(instruction, -1.0) >= rules.threshold

    def query_fails(self, instruction: int, rules: VerdictRules) -> bool:
        """Whether the query image was asked about, and does not meet the instruction."""
        yes = self.negative_yes.get(instruction, {}).get(0)
        return yes is not None and yes < negative_limit(self.target_yes[instruction], rules)

    def is_open(self, negative: int, instruction: int | None, rules: VerdictRules) -> bool:
        """Whether a mined negative is not refused and does not meet the one instruction that it was asked about."""
        if negative in self.refused_negatives:
            return False
        if instruction is None:
            return True
        return self.negative_yes[instruction][negative] < negative_limit(self.target_yes[instruction], rules)

    def verdict(self, is_partial: Sequence[bool], row: Mapping[str, Any], rules: VerdictRules) -> Verdict:
        """The verdict on what the judge could be asked; the rest is left out of the pair."""
        places = [n for n in self.target_yes if n not in self.refused_instructions]
        kept = [k for k in range(len(row["negative_image_ids"])) if k not in self.refused_negatives]
        verdict = decide(
            [self.target_yes[n] for n in places],
            {
                i: {j: yes[k] for j, k in enumerate(kept) if k in yes}
                for i, n in enumerate(places)
                if (yes := self.negative_yes.get(n)) is not None
            },
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
