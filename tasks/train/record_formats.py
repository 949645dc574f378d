"""Records of MegaPairs and of VLM2Vec (MMEB) become examples. Pure.

    megapairs   {"q_img": path, "q_text": [texts], "t_img": path, "hns": [paths]}; hns[0] is the query image
    mmeb        {"qry": text, "qry_image_path": path, "pos_text": text, "pos_image_path": path, "neg_text": text or
                [texts], "neg_image_path": path or [paths]}, or MMEB v2's columns (V2_NAMES, instructions apart)

A query of MMEB is an image with a text, or a text alone; a candidate is an image, a text, or an image with a text such
as "Represent the given image.". Tokens that stand for an image in a chat model's text are removed. Sources:
VectorSpaceLab/MegaPairs, README; TIGER-AI-Lab/VLM2Vec, src/data/dataset/mmeb_dataset.py and
src/data/eval_dataset/image_t2i_eval.py (v2: instruction, a blank, text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tasks.errors import ConfigError
from tasks.train.batches import Candidate, CandidateId, Example

IMAGE_TOKEN = re.compile(r"<\|image_\d+\|>|<image>|<\|image_pad\|>|<\|vision_start\|>|<\|vision_end\|>")
# MMEB v2's name of a column -> v1's
V2_NAMES = {
    "qry_text": "qry",
    "qry_img_path": "qry_image_path",
    "pos_img_path": "pos_image_path",
    "neg_img_path": "neg_image_path",
    "tgt_text": "pos_text",
    "tgt_img_path": "pos_image_path",
}
INSTRUCTIONS = {"qry_inst": "qry", "pos_inst": "pos_text", "tgt_inst": "pos_text", "neg_inst": "neg_text"}
V1_NAMES = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
PREFIXES = ("qry", "pos_", "neg_", "tgt_")


def strip_image_tokens(text: Any) -> str:
    """A text without image tokens, with single blanks."""
    return " ".join(IMAGE_TOKEN.sub(" ", str(text or "")).split())


def as_list(value: Any) -> list[str]:
    """One path or text, several or none, as a list without empty ones."""
    return [str(v) for v in (value if isinstance(value, list | tuple) else [value]) if v]


def megapairs_example(record: Mapping[str, Any]) -> Example | str:
    """An example, or the reason why the record is left out: no_query_image, no_text, no_target."""
    texts = tuple(t for t in map(strip_image_tokens, as_list(record.get("q_text"))) if t)
    query, target = str(record["q_img"] or ""), record.get("t_img")
    if not query:
        return "no_query_image"
    if not texts:
        return "no_text"
    if not target:
        return "no_target"
    negatives = tuple(i for i in dict.fromkeys(as_list(record.get("hns"))) if i not in (query, target))
    return Example(query, str(target), negatives, texts)


def require_mmeb_columns(columns: Iterable[str]) -> None:
    """Refuse columns that say something of a query or a candidate and are not read, so that none is lost silently.

    Raises:
        ConfigError: such a column, by name.
    """
    known = {*V1_NAMES, *V2_NAMES, *INSTRUCTIONS}
    unknown = sorted(c for c in columns if c.startswith(PREFIXES) and c not in known)
    if unknown:
        raise ConfigError(
            f"'train.datasets': format mmeb does not read the columns {unknown} (images and texts are read: "
            f"{sorted(known)}); take a dataset of images, or rename them"
        )


def with_v1_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of MMEB v2 by v1's names, each instruction before its text."""
    out = {name: record[name] for name in V1_NAMES if name in record}
    for name, v1_name in V2_NAMES.items():
        if name in record:
            out[v1_name] = record[name]
    for name, text_name in INSTRUCTIONS.items():
        instruction = str(record.get(name) or "")
        if instruction:
            texts = out.get(text_name) or ""
            is_list = isinstance(texts, list | tuple)
            out[text_name] = [f"{instruction} {t or ''}" for t in texts] if is_list else f"{instruction} {texts}"
    return out


def candidates(texts: Any, images: Any) -> list[CandidateId]:
    """Candidates of texts and images side by side; one of either goes with each of the other.

    Args:
        texts: a text, a list of them, or None.
        images: a path, a list of them, or None.
    Raises:
        ValueError: several of both, in different numbers.
    """
    columns = [list(v) if isinstance(v, list | tuple) else [v] for v in (texts, images)]
    count = max(map(len, columns)) if all(columns) else max(map(len, columns), default=0)
    columns = [column * count if len(column) == 1 else column or [None] * count for column in columns]
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"{len(columns[0])} texts for {len(columns[1])} images of candidates")
    out: list[CandidateId] = []
    for text, image in zip(*columns, strict=True):
        clean = strip_image_tokens(text)
        if clean:
            out.append(Candidate(str(image) if image else None, clean))
        elif image:
            out.append(str(image))
    return out


def mmeb_example(record: Mapping[str, Any]) -> Example | str:
    """An example, or the reason why the record is left out: no_text, no_target.

    Of several targets, as MMEB's evaluation sets have them, the first is the right one and the others are negatives.

    Raises:
        KeyError: no query.
        ValueError: texts and images of the candidates do not go together.
        ConfigError: columns that are not read.
    """
    require_mmeb_columns(record)
    record = with_v1_names(record)
    images = as_list(record.get("qry_image_path"))
    text = strip_image_tokens(record["qry"])
    if not text:
        return "no_text"
    targets = candidates(record.get("pos_text"), record.get("pos_image_path"))
    if not targets:
        return "no_target"
    query, target = images[0] if images else None, targets[0]
    wrong = [*targets[1:], *candidates(record.get("neg_text"), record.get("neg_image_path"))]
    example = Example(query, target, (), (text,))
    negatives = tuple(c for c in dict.fromkeys(wrong) if c not in (target, query, example.query_candidate))
    return Example(query, target, negatives, (text,))


PARSERS: dict[str, Callable[[Mapping[str, Any]], Example | str]] = {
    "megapairs": megapairs_example,
    "mmeb": mmeb_example,
}
