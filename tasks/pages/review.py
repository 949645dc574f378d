"""Review page: one self-contained HTML page that shows what was accepted, what was rejected, and why.

    python -m tasks verdicts --root CLONE --out verdicts.html [--count 30]

Three parts: accepted triplets, pairs that were rejected as a whole, and instructions and negatives that were removed
from triplets that stayed. Rows are drawn by their ids alone; rejected ones take one of each reason in turn. Reads
triplets, pairs, captioned, the dropped rows of caption and judge, the judge's thresholds (params.yaml) and the images,
of a clone or of a run's worktree. The page runs no script and loads nothing, every text is escaped. Its words and marks
are in templates/review.html.j2, its look in style.css.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params, load_params
from tasks.errors import ConfigError
from tasks.names import stable_id
from tasks.pages.images import draw_ids, thumbnail_uri
from tasks.pages.render import html, words
from tasks.reasons import why
from tasks.store import Store

SIDE_PX, QUALITY = 192, 80
SALT = "verdicts"  # of the draw
COMMENTS = {
    "query_fits": "the query itself meets it",
    "partial_fits": "states one change of several, and a negative meets it",
}
TARGET_REASONS = ("wrong_target", "wrong_instruction")  # measured by judge.threshold
OTHERS_REASONS = ("ambiguous", "partial_fits", "false_negative", "query_fits")  # by judge.negative_threshold


@dataclass(frozen=True)
class Text:
    """A text on a card.

    Attributes:
        text: the instruction or the model's reply.
        comment: its style, or what is wrong with it.
        score: the judge's probability, where one decided.
        is_good: whether it was accepted; None: neither accepted nor rejected.
    """

    text: str
    comment: str
    score: float | None = None
    is_good: bool | None = None


@dataclass(frozen=True)
class Card:
    """One accepted triplet or one dropped row.

    Attributes:
        label: 'accepted', or stage and reason.
        sentence: why, for a person.
        query, target, negative: image sources (data: URIs); `negative` is empty where none was at stake.
        texts: instructions or replies.
        description: what the captioning model wrote about the pair.
    """

    label: str
    sentence: str
    is_accepted: bool
    query: str
    target: str
    texts: Sequence[Text]
    description: str = ""
    negative: str = ""


# --- pure parts ------------------------------------------------------------------------------------------------------


def draw_by_reason(rows: Sequence[Mapping[str, Any]], count: int, salt: str) -> list[Mapping[str, Any]]:
    """At most `count` rows, one of each reason in turn, drawn by their keys alone; the same for the same rows."""
    rank = {key: n for n, key in enumerate(draw_ids([r["key"] for r in rows], len(rows), salt))}
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (rank[r["key"]], r["reason"])):
        by_reason.setdefault(row["reason"], []).append(row)
    out: list[Mapping[str, Any]] = []
    while len(out) < count and any(by_reason.values()):
        for reason in sorted(by_reason):
            if by_reason[reason] and len(out) < count:
                out.append(by_reason[reason].pop(0))
    return out


def dropped_texts(reason: str, detail: Mapping[str, Any]) -> list[Text]:
    """The texts in a dropped row's detail, whatever stage wrote it."""
    judged = [*detail.get("instructions", []), *([detail] if "instruction" in detail else [])]
    texts = [judged_text(row) for row in judged]
    problems = detail.get("problems", {})
    for name, reply in detail.get("replies", {}).items():
        texts.append(Text(reply or "(nothing)", f"{name}: {words(problems.get(name, reason))}", None, False))
    texts += [Text(text, f"{style}: could be used") for style, text in detail.get("kept", {}).items()]
    finders = " and by ".join(detail.get("found_by") or [])
    texts += [Text(text, f"the target is found first by {finders}", None, False) for text in detail.get("texts", [])]
    return texts


def judged_text(row: Mapping[str, Any]) -> Text:
    """An instruction that the judge rejected.

    Its probability is the text's score where the target's probability decided; where another image's did, it is part
    of the comment.
    """
    if row["reason"] == "wrong_instruction":
        return Text(row["instruction"], f"{row['style']}: does not lead to the target", row["p_yes"], False)
    comment = COMMENTS.get(row["reason"], words(row["reason"]))
    return Text(row["instruction"], f"{row['style']}: {comment} ({row['p_yes']:.2f})", None, False)


def accepted_sentence(triplet: Mapping[str, Any]) -> str:
    """Why a triplet was accepted, and whether it is a shortcut."""
    lowest, highest = min(triplet["judge_target"]), max(triplet["judge_negative"], default=0.0)
    count = len(triplet["negative_image_ids"])
    negatives = "1 negative" if count == 1 else f"{count} negatives"
    sentence = (
        f"Every text leads to the target ({lowest:.2f} or more) and to none of {negatives}, "
        f"the query among them ({highest:.2f} or less)."
    )
    if triplet["found_by"] is None:
        return sentence
    alone = [f"the {name}" for name in triplet["found_by"] if name != "composed"]
    if alone:
        return f"{sentence} A shortcut: {' and '.join(alone)} alone would find it first."
    return f"{sentence} Neither text nor image alone would find it first."


def rejected_sentence(row: Mapping[str, Any], params: Params | None) -> str:
    """Why a row was left out: the reason's sentence, and the threshold that it is measured by."""
    _, _, reason = why(row["stage"], row["reason"]).rpartition(": ")
    sentence = f"{reason[:1].upper()}{reason[1:]}."
    if params is not None and row["reason"] in TARGET_REASONS:
        sentence += f" A text must reach {params.judge.threshold:g} for the target."
    if params is not None and row["reason"] in OTHERS_REASONS:
        sentence += f" No other image may reach {params.judge.negative_threshold:g}."
    return sentence


def accepted_card(triplet: Mapping[str, Any], source: Callable[[str], str]) -> Card:
    """The card of an accepted triplet.

    Args:
        triplet: its row.
        source: image_id -> what an <img> shows.
    """
    scored = zip(triplet["instructions"], triplet["styles"], triplet["judge_target"], strict=True)
    return Card(
        "accepted",
        accepted_sentence(triplet),
        True,
        source(triplet["query_image_id"]),
        source(triplet["target_image_id"]),
        [Text(text, style, score, True) for text, style, score in scored],
        triplet["description"],
    )


# --- the page --------------------------------------------------------------------------------------------------------


class Review:
    """The tables that the page needs, by id."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.triplets = {t["triplet_id"]: t for t in store.read_table("triplets").to_pylist()}
        self.triplet_of_pair = {t["pair_id"]: t for t in self.triplets.values()}
        columns = ["pair_id", "query_image_id", "target_image_id"]
        pairs = {p["pair_id"]: p for p in store.read_table("pairs", columns).to_pylist()}
        reverse = [(p["target_image_id"], p["query_image_id"]) for p in pairs.values()]
        # The other direction, which caption.reverse adds, has no row of its own in the table of pairs.
        self.pairs = {stable_id(q, t): {"query_image_id": q, "target_image_id": t} for q, t in reverse} | pairs
        captioned = store.read_table("captioned", ["pair_id", "description"]).to_pylist()
        self.descriptions = {c["pair_id"]: c["description"] for c in captioned}
        dropped = [row for stage in ("caption", "judge") for row in store.read_dropped(stage).to_pylist()]
        self.dropped = [row for row in dropped if row["key"].partition(":")[0] in self.pairs]
        try:
            self.params: Params | None = load_params(store.root / "params.yaml")
        except ConfigError:
            self.params = None  # a bare copy of the tables: the page goes without the thresholds

    def image(self, image_id: str) -> str:
        """A stored image as a data: URI."""
        return thumbnail_uri(self.store, image_id, SIDE_PX, QUALITY)

    def rejected_card(self, row: Mapping[str, Any]) -> Card:
        """The card of a dropped row: a pair, or an instruction or a negative of one (key 'pair_id:...')."""
        pair_id = row["key"].partition(":")[0]
        pair, detail = self.pairs[pair_id], json.loads(row["detail"] or "{}")
        texts, negative = dropped_texts(row["reason"], detail), ""
        if "image_id" in detail:
            negative = self.image(detail["image_id"])
            comment = f"leads to the negative ({detail['p_yes']:.2f}) as well as to the target"
            texts = [Text(text, comment) for text in self.triplet_of_pair[pair_id]["instructions"]]
        return Card(
            f"{row['stage']}: {words(row['reason'])}",
            rejected_sentence(row, self.params),
            False,
            self.image(pair["query_image_id"]),
            self.image(pair["target_image_id"]),
            texts,
            self.descriptions.get(pair_id) or detail.get("description") or "",
            negative,
        )

    def parts(self, count: int) -> list[dict[str, Any]]:
        """The three parts of the page, at most `count` cards each."""
        whole = [r for r in self.dropped if ":" not in r["key"]]
        removed = [r for r in self.dropped if ":" in r["key"] and r["key"].partition(":")[0] in self.triplet_of_pair]
        drawn = draw_ids(list(self.triplets), count, SALT)
        some = max(1, count * 2 // 5)
        return [
            {
                "id": "accepted",
                "heading": "Accepted",
                "lead": "Triplets, drawn at random.",
                "cards": [accepted_card(self.triplets[i], self.image) for i in drawn],
                "total": len(self.triplets),
            },
            {
                "id": "rejected",
                "heading": "Rejected",
                "lead": "Pairs that gave no triplet, drawn at random from each reason in turn.",
                "cards": [self.rejected_card(row) for row in draw_by_reason(whole, count, SALT)],
                "total": len(whole),
            },
            {
                "id": "removed",
                "heading": "Removed from accepted triplets",
                "lead": "Instructions and negatives that were removed while their triplet stayed, drawn at random "
                "from each reason in turn.",
                "cards": [self.rejected_card(row) for row in draw_by_reason(removed, some, SALT)],
                "total": len(removed),
            },
        ]


def build(store: Store, count: int = 30) -> str:
    """The page, with at most `count` cards in each part."""
    return html("review.html.j2", parts=Review(store).parts(count))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks verdicts`."""
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull`, or a run's worktree")
    parser.add_argument("--out", default="verdicts.html", type=Path, help="the page (default: verdicts.html)")
    parser.add_argument(
        "--count", default=30, type=int, help="accepted triplets and rejected pairs shown, a count of each (default 30)"
    )


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page; {"path", "size_bytes"}."""
    Store(args.root).write_bytes(args.out, build(Store(args.root), args.count).encode())
    size_bytes = args.out.stat().st_size
    print(f"{args.out}: {size_bytes / 1e6:.1f} MB")
    return {"path": str(args.out), "size_bytes": size_bytes}
