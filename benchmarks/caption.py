"""Describing and judging pairs on a CPU: a plain one-by-one loop against our batched engine, vLLM offline and its
server where they are.

    python -m benchmarks.caption [--pairs 256] [--turns 3] [--no-vllm] [--vllm-python .venv-vllm/bin/python]

Two images a request, the shipped tiny model, greedy, one thread, equal requests. The loop is transformers' own way:
processor, generate, decode, one request after another. The judge's own loop generates its answer and parses it; ours
reads P(yes) off the logits. Each turn draws images of its own and runs all in turn; what is told are medians, of ratios
the median of the turns' ratios.

vLLM runs in an environment of its own (`make test-vllm`): offline in a process that prints its figures, the server
started and asked from here, 64 requests in flight; its CPU-seconds are those of all its processes and of the client.
Where that environment is not there the figures are null, with the reason. An engine's start is counted from the birth
of its process until the model is there; `*_part_pairs` is how many pairs a part needs for the start
to be 5% of its CPU time. What a GPU would do is not guessed: its figures are null where none is.

The last line is JSON: loop_pairs_per_cpu_s, batched_pairs_per_cpu_s, vllm_offline_pairs_per_cpu_s,
vllm_server_pairs_per_cpu_s, ratio (best over loop), batched_ratio, judge_loop_pairs_per_cpu_s, judge_pairs_per_cpu_s,
judge_ratio, pairs, turns, equal_share (of the loop's replies, those that ours gives too), vllm_equal_share,
batched_start_cpu_s, vllm_offline_start_cpu_s, vllm_server_start_cpu_s, batched_part_pairs,
vllm_offline_part_pairs, vllm_server_part_pairs, vllm_reason, gpu_days_1m, gpu_days_10m, gpu_reason.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import fair_environment, parse_arguments

CHECKPOINTS = Path("tasks/sample/checkpoints")
VLLM_PYTHON = Path(".venv-vllm/bin/python")
START_SHARE = 0.05  # of a part's CPU time, what its engine's start may take
TOKENS = 80  # of a reply at most
ANSWER_TOKENS = 4  # of the judge's loop, which parses yes or no
IN_FLIGHT = 64  # requests at the server


def cpu_s(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """(CPU-seconds, what the work returned)."""
    start = time.process_time()
    made = work(*arguments)
    return time.process_time() - start, made


def part_pairs(start_s: float, pairs_per_s: float) -> int:
    """Pairs in a part of which the start is START_SHARE, a count; seconds of one clock."""
    return math.ceil((1 / START_SHARE - 1) * start_s * pairs_per_s)


def drawn(pairs: int, turn: int) -> tuple[list[Any], list[Any]]:
    """(descriptions, questions) to ask about `pairs` pairs of related scenes; other scenes each turn."""
    from PIL import Image

    from tasks.models.llm.requests import Request
    from tasks.sample.scenes import draw, family

    rng = random.Random(f"caption:{turn}")
    shown = [tuple(Image.fromarray(draw(s)) for s in rng.sample(family(rng, "corpus", 4), 2)) for _ in range(pairs)]
    return [Request(p, "Compare the pictures.") for p in shown], [
        Request(p, "Does it fit: change the background to teal") for p in shown
    ]


def loop(model: Any, requests: Sequence[Any], max_new_tokens: int) -> list[str]:
    """transformers' own way, one request after another."""
    import torch

    out = []
    for request in requests:
        content = [*({"type": "image"} for _ in request.images), {"type": "text", "text": request.text}]
        prompt = model.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = model.processor(text=[prompt], images=[list(request.images)], return_tensors="pt")
        with torch.inference_mode():
            made = model.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        out.append(model.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return out


def offline(pairs: int, turns: int) -> dict[str, Any]:
    """In vLLM's environment: start_cpu_s, per turn cpu_s, and the first turn's replies."""
    from tasks.models.llm.base import LlmConfig
    from tasks.models.llm.load import load_captioner

    model = load_captioner(LlmConfig(str(CHECKPOINTS / "vlm"), engine="vllm", max_new_tokens=TOKENS))
    start_s = time.process_time()
    model.chat(drawn(2, -1)[0])
    made = [cpu_s(model.chat, drawn(pairs, turn)[0]) for turn in range(turns)]
    return {"start_cpu_s": start_s, "cpu_s": [s for s, _ in made], "replies": [r.text for r in made[0][1]]}


def run_offline(python: Path, pairs: int, turns: int) -> dict[str, Any]:
    """`offline` in a process of its own.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    command = [str(python), "-m", "benchmarks.caption", "--offline", "--pairs", str(pairs), "--turns", str(turns)]
    made = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "VLLM_NO_USAGE_STATS": "1"},
    )
    if made.returncode:
        raise RuntimeError(f"vLLM offline: exit code {made.returncode}: {made.stderr[-1500:]}")
    return dict(json.loads(made.stdout.splitlines()[-1]))


def run_server(python: Path, pairs: int, turns: int) -> dict[str, Any]:
    """The same figures of a server, its client's CPU-seconds included.

    Raises:
        ServerDidNotStart: with the end of its log.
    """
    from benchmarks.vllm_server import serving
    from tasks.models.llm.base import LlmConfig
    from tasks.models.llm.load import load_captioner

    with (
        tempfile.TemporaryDirectory() as folder,
        serving(str(python), str(CHECKPOINTS / "vlm"), Path(folder) / "server.log") as server,
    ):
        start_s = server.cpu_s()
        config = LlmConfig("tiny", engine="openai", url=server.url, max_new_tokens=TOKENS, in_flight=IN_FLIGHT)
        model = load_captioner(config)
        model.chat(drawn(2, -1)[0])
        spent, replies = [], []
        for turn in range(turns):
            asked, before = drawn(pairs, turn)[0], server.cpu_s()
            client_s, made = cpu_s(model.chat, asked)
            spent.append(client_s + server.cpu_s() - before)
            replies.append([r.text for r in made])
        return {"start_cpu_s": start_s, "cpu_s": spent, "replies": replies[0]}


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.caption", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-vllm", action="store_true")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON)
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    args = parse_arguments(parser, argv, {"pairs": 6, "turns": 1, "no_vllm": True})
    if args.offline:
        figures: dict[str, Any] = offline(args.pairs, args.turns)
        print(json.dumps(figures), flush=True)
        return figures
    import torch

    from tasks.models.llm.base import LlmConfig
    from tasks.models.llm.load import load_captioner

    describer = load_captioner(LlmConfig(str(CHECKPOINTS / "vlm"), device="cpu", max_new_tokens=TOKENS, batch=64))
    start_s = time.process_time()
    judge = load_captioner(LlmConfig(str(CHECKPOINTS / "judge"), device="cpu"))
    describe, questions = drawn(2, -1)
    # warm
    (
        describer.chat(describe),
        loop(describer, describe, TOKENS),
        judge.yes_probability(questions),
        loop(judge, questions, ANSWER_TOKENS),
    )
    spent: dict[str, list[float]] = {name: [] for name in ("loop", "batched", "judge_loop", "judge")}
    plain: list[str] = []
    ours: list[str] = []
    for turn in range(args.turns):
        describe, questions = drawn(args.pairs, turn)
        for name, work, arguments in (
            ("loop", loop, (describer, describe, TOKENS)),
            ("batched", describer.chat, (describe,)),
            ("judge_loop", loop, (judge, questions, ANSWER_TOKENS)),
            ("judge", judge.yes_probability, (questions,)),
        ):
            seconds, made = cpu_s(work, *arguments)
            spent[name].append(seconds)
            plain += made if name == "loop" else []
            ours += [r.text for r in made] if name == "batched" else []
            print(f"turn {turn + 1}: {name} {args.pairs / seconds:.1f} pairs a CPU-second", flush=True)

    def rate(seconds: Sequence[float]) -> float:
        return round(args.pairs / median(seconds), 2)

    def over(slow: Sequence[float], fast: Sequence[float]) -> float:
        return round(median(a / b for a, b in zip(slow, fast, strict=True)), 2)

    figures = {f"{name}_pairs_per_cpu_s": rate(seconds) for name, seconds in spent.items()}
    figures |= {
        "batched_ratio": over(spent["loop"], spent["batched"]),
        "judge_ratio": over(spent["judge_loop"], spent["judge"]),
    }
    figures |= {
        "pairs": args.pairs,
        "turns": args.turns,
        "equal_share": sum(a == b for a, b in zip(plain, ours, strict=True)) / len(plain),
    }
    figures |= {
        "batched_start_cpu_s": round(start_s, 1),
        "batched_part_pairs": part_pairs(start_s, args.pairs / median(spent["batched"])),
    }
    reasons: list[str] = []
    ratios: list[float] = [figures["batched_ratio"]]
    for name, measure in (("vllm_offline", run_offline), ("vllm_server", run_server)):
        figures |= dict.fromkeys(
            (f"{name}_pairs_per_cpu_s", f"{name}_start_cpu_s", f"{name}_part_pairs", f"{name}_equal_share")
        )
        if args.no_vllm or not args.vllm_python.exists():
            reasons.append(
                "left out, --no-vllm" if args.no_vllm else f"{args.vllm_python} is not there; `make test-vllm` makes it"
            )
            continue
        try:
            found = measure(args.vllm_python, args.pairs, args.turns)
        except Exception as error:  # the others' figures stand, and the reason is told
            reasons.append(" ".join(f"{name}: {error}".split())[-800:])
            continue
        per_s = args.pairs / median(found["cpu_s"])
        figures |= {f"{name}_pairs_per_cpu_s": round(per_s, 2), f"{name}_start_cpu_s": round(found["start_cpu_s"], 1)}
        figures |= {f"{name}_part_pairs": part_pairs(found["start_cpu_s"], per_s)}
        figures |= {
            f"{name}_equal_share": sum(a == b for a, b in zip(plain, found["replies"], strict=False)) / args.pairs
        }
        ratios.append(over(spent["loop"], found["cpu_s"]))
    figures |= {"ratio": max(ratios), "vllm_reason": "; ".join(dict.fromkeys(reasons)) or None}
    reason = (
        "projected from nothing here: no GPU in this machine"
        if not torch.cuda.is_available()
        else "this benchmark measures a CPU"
    )
    figures |= {"gpu_days_1m": None, "gpu_days_10m": None, "gpu_reason": reason}
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("caption")
    main()
    sys.exit(0)
