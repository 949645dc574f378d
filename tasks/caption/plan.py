"""Plan: estimate what captioning and judging will ask of the models before anything is paid for.

    python -m tasks plan            this batch's pairs without captions; before select ran, select.pairs_per_batch
    python -m tasks plan 100000     100,000 pairs

Multiplies the number of pairs by what one pair took in earlier versions: requests and tokens from the captioned table,
questions to the judge and seconds from the usage record of the last version (version.json). Without an earlier version
requests are counted from the styles, and tokens are estimated from the length of the prompts and the size of the
images. Hours are given only where a speed was measured, by an earlier version or as `caption.tokens_per_s`. Also says
where `caption.budget_tokens` will end captioning. Writes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.names import batch_name
from tasks.prompts.prompt_set import PromptSet, read_prompt_file, read_prompt_set
from tasks.records import StageReport
from tasks.store import Store

CHARS_PER_TOKEN = 4  # of English prompts
PATCH_PX = 28  # side of the square that one token of a Qwen-VL covers, pixels


@dataclass(frozen=True)
class PairCost:
    """What one pair takes, means.

    Attributes:
        requests: to the captioner and the writer, retries included.
        tokens: prompt and output of those.
        questions: to the judge.
        question_tokens: prompt of one question.
        is_measured: from earlier versions; else estimated from prompts and images.
    """

    requests: float
    tokens: float
    questions: float
    question_tokens: float
    is_measured: bool


@dataclass(frozen=True)
class Estimate:
    """What a number of pairs takes.

    Attributes:
        requests: to captioner and writer.
        tokens_per_pair: of those requests, per pair.
        questions: to the judge.
        tokens: of all requests and questions.
        seconds: 0 where no speed is known.
        device: 'GPU' or 'CPU', of the seconds.
    """

    requests: float
    tokens_per_pair: float
    questions: float
    tokens: float
    seconds: float
    device: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks plan`."""
    parser.add_argument("pairs", nargs="?", type=int, help="pairs to plan for, a count; the batch's when left out")


def run(params: Params, store: Store, pairs: int | None = None) -> StageReport:
    """Report what `pairs` (by default this batch's) will take; figures requests, tokens, hours (0 without a speed).

    Raises:
        ConfigError: nothing determines the number of pairs.
    """
    count = pending_pairs(params, store) if pairs is None else pairs
    if count is None:
        raise ConfigError(
            "plan: no pairs are selected yet and select.pairs_per_batch has no limit; say how many: "
            "`python -m tasks plan 100000`"
        )
    cost = pair_cost(params, store)
    estimate = estimate_run(cost, count, params, usage_record(store).get("stages") or {})
    report = StageReport("plan", read=count)
    report.figures = {
        "requests": estimate.requests + estimate.questions,
        "tokens": estimate.tokens,
        "hours": estimate.seconds / 3600,
    }
    report.notes = notes(cost, estimate, count, params.caption.budget_tokens)
    return report


def pending_pairs(params: Params, store: Store) -> int | None:
    """This batch's pairs that are neither captioned nor dropped, a count; before select `select.pairs_per_batch`."""
    batch = batch_name(params)
    pair_ids = store.read_table("pairs", ["pair_id"], batch).column("pair_id").to_pylist()
    if not pair_ids:
        return params.select.pairs_per_batch
    captioned = store.read_table("captioned", ["pair_id"], batch).column("pair_id").to_pylist()
    done = {*captioned, *store.read_dropped("caption", batch).column("key").to_pylist()}
    return sum(pair_id not in done for pair_id in pair_ids)


def usage_record(store: Store) -> dict[str, Any]:
    """The usage record of the last version, by stage; empty without an earlier version."""
    path = store.root / "version.json"
    version: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return version.get("ledger") or {}


def pair_cost(params: Params, store: Store) -> PairCost:
    """What one pair takes: measured where earlier versions tell, else estimated."""
    record = usage_record(store)
    stages = record.get("stages") or {}
    judged = {**stages["judge"], "pairs": record.get("pairs", 0)} if "judge" in stages else None
    captioned = store.read_table("captioned", ["requests", "prompt_tokens", "output_tokens"]).to_pydict()
    return measured_cost(captioned, judged, estimated_cost(params))


def estimated_cost(params: Params) -> PairCost:
    """What a pair takes by the length of the prompts and the size of the images; output at half of its limit."""
    config, styles = params.caption, len(params.caption.styles)
    prompts = read_prompt_set(config.prompts)
    prompt_tokens = {
        part: len(read_prompt_file(config.prompts, f"{part}.txt")) / CHARS_PER_TOKEN
        for part in ("describe", "write", "judge")
    }
    prompt_tokens["write"] += config.demonstrations * demonstration_chars(prompts) / CHARS_PER_TOKEN
    image_tokens = (params.ingest.max_side_px / PATCH_PX) ** 2
    output = config.max_new_tokens / 2
    description = 2 * image_tokens + prompt_tokens["describe"] + output
    instruction = prompt_tokens["write"] + output + output / 4
    directions = 2 if config.reverse else 1
    described = directions if prompts.schema is None else 1  # a structured description is reversed without a request
    return PairCost(
        requests=described + directions * styles,
        tokens=described * description + directions * styles * instruction,
        questions=directions * styles * (2 + params.select.negatives),
        question_tokens=2 * image_tokens + prompt_tokens["judge"],
        is_measured=False,
    )


def demonstration_chars(prompts: PromptSet) -> int:
    """Characters of one demonstration as a request shows it, a mean over all; 0 where requests show none."""
    rows = prompts.demonstrations
    sizes = [len(row["description"]) + len(text) for row in rows for text in row["texts"].values()]
    return round(sum(sizes) / max(1, len(sizes)))


def measured_cost(
    captioned: Mapping[str, Sequence[Any]], judged: Mapping[str, Any] | None, estimated: PairCost
) -> PairCost:
    """What a pair took in earlier versions; `estimated` where they do not tell.

    Args:
        captioned: columns requests, prompt_tokens, output_tokens.
        judged: the judge's usage in the last version, with the number of pairs that it judged as `pairs`.
        estimated: the fallback.
    """
    columns = (captioned[name] for name in ("requests", "prompt_tokens", "output_tokens"))
    rows = [(requests, prompt + output) for requests, prompt, output in zip(*columns, strict=True) if requests]
    if not rows:
        return estimated
    questions, question_tokens = estimated.questions, estimated.question_tokens
    if judged and judged.get("requests") and judged.get("pairs"):
        questions = judged["requests"] / judged["pairs"]
        if paid := judged["requests"] - judged.get("cached", 0):
            question_tokens = judged["prompt_tokens"] / paid
    requests, tokens = (sum(values) / len(rows) for values in zip(*rows, strict=True))
    return PairCost(requests, tokens, questions, question_tokens, True)


def estimate_run(cost: PairCost, count: int, params: Params, stages: Mapping[str, Any]) -> Estimate:
    """What `count` pairs take; `stages` is the last version's usage by stage."""
    # a measured mean is of a row, and a reversed pair has a row of its own
    rows = 2 if params.caption.reverse and cost.is_measured else 1
    questions = cost.questions * count
    tokens = rows * cost.tokens * count + questions * cost.question_tokens
    seconds, device = estimate_time(stages, params.caption.tokens_per_s, tokens)
    return Estimate(rows * cost.requests * count, rows * cost.tokens, questions, tokens, seconds, device)


def estimate_time(stages: Mapping[str, Any], tokens_per_s: float | None, tokens: float) -> tuple[float, str]:
    """(seconds, 'GPU' or 'CPU') for a number of tokens: by the speed given, else the last version's, else 0."""
    if tokens_per_s:
        return tokens / tokens_per_s, "GPU"
    paid = sum(s["prompt_tokens"] + s["output_tokens"] for s in stages.values())
    gpu_s, cpu_s = sum(s["gpu_s"] for s in stages.values()), sum(s["cpu_s"] for s in stages.values())
    if not paid:
        return 0.0, "GPU"
    return (gpu_s / paid * tokens, "GPU") if gpu_s else (cpu_s / paid * tokens, "CPU")


def notes(cost: PairCost, estimate: Estimate, count: int, budget: int | None) -> list[str]:
    """The estimate in sentences; `budget` is `caption.budget_tokens`."""
    method = "estimated from prompts and images, output at half of its limit"
    if cost.is_measured:
        method = "measured by earlier versions"
    sentences = [
        f"{count:,} pairs: {estimate.requests:,.0f} requests to captioner and writer, {estimate.questions:,.0f} "
        f"questions to the judge; {method}",
        f"{estimate.tokens:,.0f} tokens ({estimate.tokens_per_pair:,.0f} a pair to write, {cost.question_tokens:,.0f} "
        "a question)",
        f"{estimate.seconds / 3600:,.2f} {estimate.device}-hours"
        if estimate.seconds
        else "no speed was measured yet: name caption.tokens_per_s for hours",
    ]
    if budget is not None and estimate.tokens_per_pair * count > budget:
        affordable = budget / estimate.tokens_per_pair
        sentences.append(f"caption.budget_tokens ({budget:,}) will stop it after about {affordable:,.0f} pairs")
    return sentences
