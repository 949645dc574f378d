"""Describing and judging pairs on a CPU: a plain one-by-one loop against our batched engine, vLLM and its server where they are.

    python -m benchmarks.caption [--pairs 256]

Two pictures a request, the shipped tiny model, greedy, one thread, equal requests. The loop is transformers' own way: processor,
generate, decode, one request after another. The judge's own loop generates its answer and parses it; ours reads P(yes) off the
logits. vLLM runs in an environment of its own (tests/test_vllm.py); its figures are null here, with the reason, where that is not
there. `equal_share` is how many of the loop's replies ours gives too.

The last line is JSON: loop_pairs_per_cpu_s, batched_pairs_per_cpu_s, vllm_offline_pairs_per_cpu_s, vllm_server_pairs_per_cpu_s,
ratio (best over loop), judge_loop_pairs_per_cpu_s, judge_pairs_per_cpu_s, judge_ratio, pairs, equal_share, vllm_reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.mine import fair_environment

CHECKPOINTS = Path("tasks/sample/checkpoints")


def cpu_s(work: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU-seconds, what the work returned)."""
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def loop(model: Any, requests: Sequence[Any], max_new_tokens: int) -> list[str]:
    """transformers' own way, one request after another."""
    import torch

    out = []
    for request in requests:
        content = [*({"type": "image"} for _ in request.images), {"type": "text", "text": request.text}]
        prompt = model.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
        inputs = model.processor(text=[prompt], images=[list(request.images)], return_tensors="pt")
        with torch.inference_mode():
            made = model.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        out.append(model.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return out


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caption", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    args = parser.parse_args(argv)
    from PIL import Image

    from tasks.models.captioner import load_captioner
    from tasks.models.replies import Request
    from tasks.sample.scenes import draw, family

    rng = random.Random(1)
    pairs = [tuple(Image.fromarray(draw(s)) for s in rng.sample(family(rng, "corpus", 4), 2)) for _ in range(args.pairs)]
    describe = [Request(p, "Compare the pictures.") for p in pairs]
    questions = [Request(p, "Does it fit: change the background to teal") for p in pairs]
    describer = load_captioner(str(CHECKPOINTS / "vlm"), device="cpu", max_new_tokens=80, batch=64)
    judge = load_captioner(str(CHECKPOINTS / "judge"), device="cpu")
    for warm in (lambda: describer.chat(describe[:2]), lambda: loop(describer, describe[:1], 80), lambda: judge.yes_probability(questions[:2])):
        warm()
    loop_s, plain = cpu_s(lambda: loop(describer, describe, 80))
    ours_s, replies = cpu_s(lambda: [r.text for r in describer.chat(describe)])
    judge_loop_s, _ = cpu_s(lambda: [text.lower().startswith("yes") for text in loop(judge, questions, 4)])
    judge_s, _ = cpu_s(lambda: judge.yes_probability(questions))
    figures: dict[str, object] = {
        "loop_pairs_per_cpu_s": round(args.pairs / loop_s, 2),
        "batched_pairs_per_cpu_s": round(args.pairs / ours_s, 2),
        "vllm_offline_pairs_per_cpu_s": None,
        "vllm_server_pairs_per_cpu_s": None,
        "ratio": round(loop_s / ours_s, 2),
        "judge_loop_pairs_per_cpu_s": round(args.pairs / judge_loop_s, 2),
        "judge_pairs_per_cpu_s": round(args.pairs / judge_s, 2),
        "judge_ratio": round(judge_loop_s / judge_s, 2),
        "pairs": args.pairs,
        "equal_share": sum(a == b for a, b in zip(plain, replies, strict=True)) / args.pairs,
        "vllm_reason": "vLLM is not in this environment",
    }
    if importlib.util.find_spec("vllm") is not None:
        offline = load_captioner(str(CHECKPOINTS / "vlm"), engine="vllm", max_new_tokens=80)
        offline.chat(describe[:2])
        vllm_s, _ = cpu_s(lambda: offline.chat(describe))
        best = min(ours_s, vllm_s)
        figures |= {"vllm_offline_pairs_per_cpu_s": round(args.pairs / vllm_s, 2), "ratio": round(loop_s / best, 2)}
        figures["vllm_reason"] = "the server's processes are not on this clock; its contract is in tests/test_vllm.py"
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("caption")
    main()
    sys.exit(0)
