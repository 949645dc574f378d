"""Measure the shipped checkpoints on held-out scenes and write `checkpoints/REPORT.md` and `checkpoints/curves.png`.

    python -m tasks.sample.evaluate [--pairs 600] [--questions 2400]

Everything is measured on the saved float16 weights, loaded through the Auto classes, on scenes that are never trained
on (the split 'benchmark' of `scenes.assign_split`). About three minutes of one core. The report's prose is in
tasks/sample/report.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tasks.sample import phrases, train_clip, train_dino, train_judge, train_vlm, train_writer
from tasks.sample.common import held_out_pairs
from tasks.sample.judge_packing import QuestionPacker
from tasks.sample.judge_questions import held_out_questions
from tasks.sample.related import SAID_EDITS, held_out_related
from tasks.sample.report import plot_curves, render_report
from tasks.sample.scenes import Scene, difference, draw
from tasks.sample.tokens import CHECKPOINTS

MODELS = ("clip", "dino", "vlm", "judge", "writer")


def describe_shares(texts: Sequence[str], pairs: Sequence[tuple[Scene, Scene]]) -> dict[str, Any]:
    """Shares of descriptions that are exactly right, by number of edits, and of one-edit pairs by kind of edit."""
    by_count: dict[int, list[bool]] = {}
    change_only: dict[int, list[bool]] = {}
    by_kind: dict[str, list[bool]] = {}
    for (s, t), text in zip(pairs, texts, strict=True):
        gold, edits = phrases.describe(s, t), difference(s, t)
        by_count.setdefault(len(edits), []).append(text == gold)
        change_only.setdefault(len(edits), []).append(text.split("change: ")[-1] == gold.split("change: ")[-1])
        if len(edits) == 1:
            by_kind.setdefault(edits[0].kind, []).append(text == gold)
    return {
        "exact": {n: round(float(np.mean(v)), 3) for n, v in sorted(by_count.items())},
        "change_exact": {n: round(float(np.mean(v)), 3) for n, v in sorted(change_only.items())},
        "pairs": {n: len(v) for n, v in sorted(by_count.items())},
        "one_edit_by_kind": {k: f"{sum(v)}/{len(v)}" for k, v in sorted(by_kind.items())},
    }


def drawn(pairs: Sequence[tuple[Scene, Scene]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs' images."""
    return [(draw(s, rendering=1), draw(t, rendering=2)) for s, t in pairs]


def related_shares(texts: Sequence[str], pairs: Sequence[tuple[Scene, Scene]]) -> dict[str, float]:
    """Shares of related pairs whose changes are stated exactly ('1' to '3' edits), or that are called too different."""
    right: dict[str, list[bool]] = {}
    for (s, t), text in zip(pairs, texts, strict=True):
        edits = len(difference(s, t))
        name = str(edits) if edits <= SAID_EDITS else "more"
        right.setdefault(name, []).append(
            text.split("change: ")[-1] == train_vlm.gold_description(s, t).split("change: ")[-1]
        )
    return {name: round(float(np.mean(v)), 3) for name, v in sorted(right.items())}


def measure_all(folder: Path, *, pairs: int, questions: int) -> dict[str, Any]:
    """The figures of REPORT.md, from the checkpoints under `folder`."""
    out: dict[str, Any] = {"mib": {m: round(_size(folder / m) / 2**20, 2) for m in MODELS}}
    processor = AutoProcessor.from_pretrained(folder / "vlm")
    vlm = AutoModelForImageTextToText.from_pretrained(folder / "vlm", dtype=torch.float32).eval()
    scenes = held_out_pairs(pairs, seed=91)
    out["vlm"] = describe_shares(train_vlm.write_descriptions(vlm, processor, drawn(scenes)), scenes)
    related = held_out_related(pairs, seed=94)
    out["vlm"]["related"] = related_shares(train_vlm.write_descriptions(vlm, processor, drawn(related)), related)
    out["vlm"]["caption_exact"] = caption_share(vlm, processor, [s for s, _ in scenes[:200]])
    judge = AutoModelForImageTextToText.from_pretrained(folder / "judge", dtype=torch.float32).eval()
    packer = QuestionPacker(judge, processor)
    mistakes = train_judge.find_describer_errors(vlm, processor, held_out_pairs(2 * pairs, 92), random.Random(92))
    held_out = held_out_questions(questions, 93, mistakes)
    out["judge"] = train_judge.measure_answers(held_out, packer.score(held_out)) | {
        "own_errors": len(mistakes),
        "questions": len(held_out),
    }
    words = AutoTokenizer.from_pretrained(folder / "writer")
    out["writer"] = train_writer.measure(
        AutoModelForCausalLM.from_pretrained(folder / "writer", dtype=torch.float32), words
    )
    clip = AutoModel.from_pretrained(folder / "clip", dtype=torch.float32)
    out["clip"] = train_clip.measure(clip, AutoProcessor.from_pretrained(folder / "clip"))
    out["dino"] = train_dino.measure(AutoModel.from_pretrained(folder / "dino", dtype=torch.float32))
    return out


@torch.no_grad()
def caption_share(model: Any, processor: Any, scenes: Sequence[Scene]) -> float:
    """Share of single images whose caption is exactly that of `phrases.caption`."""
    ids = torch.tensor([train_vlm.encode_prompt(1, train_vlm.tokens.prompt("caption"), processor)])
    right = 0
    for i in range(0, len(scenes), 50):
        part = scenes[i : i + 50]
        inputs = ids.repeat(len(part), 1)
        values = train_vlm.to_pixel_values([draw(s, rendering=1) for s in part])[:, None]
        output = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), pixel_values=values, max_new_tokens=64
        )
        texts = processor.tokenizer.batch_decode(output[:, inputs.shape[1] :], skip_special_tokens=True)
        right += sum(text.strip() == phrases.caption(scene) for text, scene in zip(texts, part, strict=True))
    return round(right / len(scenes), 3)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m tasks.sample.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--questions", type=int, default=2400)
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    figures = measure_all(options.folder, pairs=options.pairs, questions=options.questions)
    print(json.dumps(figures, indent=1))
    plot_curves(options.folder / "curves", options.folder / "curves.png")
    (options.folder / "REPORT.md").write_text(render_report(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
