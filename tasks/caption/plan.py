"""Plan: what captioning and judging will ask of the models, before anything is paid: `python -m tasks plan [pairs]`.

Counts this batch's pairs that have no file yet (or takes the number given; before `select` ran,
`select.pairs_per_batch`),
and multiplies by what a pair took in earlier versions: requests and tokens from the captioned table, questions from the
triplets, seconds from the last version's ledger (version.json). Without an earlier version requests are counted from
the styles, and tokens from the prompts' length and the images' size; a time is only given where a speed was measured,
here or by `caption.tokens_per_s`. It also says what `caption.budget_tokens` will stop. Writes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store

PROMPTS = Path(__file__).parents[1] / "prompts"
CHARS_PER_TOKEN = 4  # of English prompts
PATCH_PX = 28  # side of the square that one token of a Qwen-VL stands for


@dataclass(frozen=True)
class PairCost:
    """What one pair takes, means.

    Attributes:
        requests: to the captioner and the writer, retries included.
        tokens: prompt and output of those.
        questions: to the judge.
        question_tokens: prompt of one question.
        is_measured: from earlier versions; else reckoned from prompts and images.
    """

    requests: float
    tokens: float
    questions: float
    question_tokens: float
    is_measured: bool


def reckoned(params: Params, prompt_chars: Mapping[str, int]) -> PairCost:
    """What a pair takes by the prompts' length alone; output at half of its limit."""
    config, styles = params.caption, len(params.caption.styles)
    image = (params.ingest.max_side_px / PATCH_PX) ** 2
    words = {name: chars / CHARS_PER_TOKEN for name, chars in prompt_chars.items()}
    words["write"] += config.demonstrations * prompt_chars.get("demonstration", 0) / CHARS_PER_TOKEN
    output = config.max_new_tokens / 2
    describe = 2 * image + words["describe"] + output
    write = words["write"] + output + output / 4
    directions = 2 if config.reverse else 1  # a description by a form is turned round, any other is asked for again
    described = 1 if is_structured(params) else directions
    return PairCost(
        requests=described + directions * styles,
        tokens=described * describe + directions * styles * write,
        questions=directions * styles * (2 + params.select.negatives),
        question_tokens=2 * image + words["judge"],
        is_measured=False,
    )


def is_structured(params: Params) -> bool:
    """Whether the prompt set asks for descriptions by a form (tasks/caption/descriptions.py)."""
    return (PROMPTS / params.caption.prompts / "describe.schema.json").is_file()


def demonstration_chars(folder: Path) -> int:
    """Characters of a prompt set's demonstration as a request shows it, a mean over them; 0 where it shows none."""
    path = folder / "demonstrations.jsonl"
    if not path.is_file() or "{demonstrations}" not in (folder / "write.txt").read_text(encoding="utf-8"):
        return 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    sizes = [len(row["description"]) + len(text) for row in rows for text in row["texts"].values()]
    return round(sum(sizes) / max(1, len(sizes)))


def measured(
    captioned: Mapping[str, Sequence[Any]], params: Params, judged: Mapping[str, Any] | None, fallback: PairCost
) -> PairCost:
    """What a pair took in earlier versions; `fallback` where they do not tell.

    Args:
        captioned: columns requests, prompt_tokens, output_tokens, instructions.
        judged: the judge's record in the last version's ledger, and the pairs that it judged under 'pairs'.
    """
    known = [
        (n, p + o)
        for n, p, o in zip(captioned["requests"], captioned["prompt_tokens"], captioned["output_tokens"], strict=True)
        if n
    ]
    if not known:
        return fallback
    questions, size = fallback.questions, fallback.question_tokens
    if judged and judged.get("requests") and judged.get("pairs"):
        paid = judged["requests"] - judged.get("cached", 0)
        questions, size = judged["requests"] / judged["pairs"], judged["prompt_tokens"] / paid if paid else size
    return PairCost(sum(n for n, _ in known) / len(known), sum(t for _, t in known) / len(known), questions, size, True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks plan`."""
    parser.add_argument("pairs", nargs="?", type=int, help="pairs to plan for, a count; the batch's when left out")


def run(params: Params, store: Store, pairs: int | None = None) -> StageReport:
    """Say what the run will ask; figures requests, tokens, hours (0 where no speed is known).

    Raises:
        ConfigError: nothing tells the number of pairs.
    """
    batch = batch_name(params)
    names = {"describe": "describe.txt", "write": "write.txt", "judge": "judge.txt"}
    chars = {k: len((PROMPTS / params.caption.prompts / name).read_text(encoding="utf-8")) for k, name in names.items()}
    chars["demonstration"] = demonstration_chars(PROMPTS / params.caption.prompts)
    there = store.read_table("pairs", ["pair_id"], batch).column("pair_id").to_pylist()
    done = {
        *store.read_table("captioned", ["pair_id"], batch).column("pair_id").to_pylist(),
        *store.read_dropped("caption", batch).column("key").to_pylist(),
    }
    count = (
        pairs if pairs is not None else sum(p not in done for p in there) if there else params.select.pairs_per_batch
    )
    if count is None:
        raise ConfigError(
            "plan: no pairs are selected yet and select.pairs_per_batch has no limit; say how many: `python -m tasks plan 100000`"
        )
    path = store.root / "version.json"
    ledger: dict[str, Any] = (json.loads(path.read_text()) if path.exists() else {}).get("ledger") or {}
    stages = ledger.get("stages") or {}
    judged = {**stages["judge"], "pairs": ledger.get("pairs", 0)} if "judge" in stages else None
    columns = ["requests", "prompt_tokens", "output_tokens"]
    each = measured(store.read_table("captioned", columns).to_pydict(), params, judged, reckoned(params, chars))
    # means are of rows, and the other direction of a pair is one more
    rows = 2 if params.caption.reverse and each.is_measured else 1
    requests, questions = rows * each.requests * count, each.questions * count
    tokens = rows * each.tokens * count + questions * each.question_tokens
    seconds, on = time_of(stages, params.caption.tokens_per_s, tokens)
    report = StageReport(
        "plan", read=count, figures={"requests": requests + questions, "tokens": tokens, "hours": seconds / 3600}
    )
    how = (
        "as earlier versions took"
        if each.is_measured
        else "reckoned from prompts and images, output at half of its limit"
    )
    report.notes = [
        f"{count:,} pairs: {requests:,.0f} requests to captioner and writer, {questions:,.0f} questions to the judge; {how}",
        f"{tokens:,.0f} tokens ({rows * each.tokens:,.0f} a pair to write, {each.question_tokens:,.0f} a question)",
        f"{seconds / 3600:,.2f} {on}-hours"
        if seconds
        else "no speed was measured yet: name caption.tokens_per_s for hours",
    ]
    budget = params.caption.budget_tokens
    if budget is not None and rows * each.tokens * count > budget:
        report.notes.append(
            f"caption.budget_tokens ({budget:,}) will stop it after about {budget / (rows * each.tokens):,.0f} pairs"
        )
    return report


def time_of(stages: Mapping[str, Any], tokens_per_s: float | None, tokens: float) -> tuple[float, str]:
    """(seconds, GPU or CPU) for so many tokens: by the speed given, else by the ledger's; 0 where neither tells."""
    if tokens_per_s:
        return tokens / tokens_per_s, "GPU"
    paid = sum(s["prompt_tokens"] + s["output_tokens"] for s in stages.values())
    gpu, cpu = sum(s["gpu_s"] for s in stages.values()), sum(s["cpu_s"] for s in stages.values())
    if not paid:
        return 0.0, "GPU"
    return (gpu / paid * tokens, "GPU") if gpu else (cpu / paid * tokens, "CPU")
