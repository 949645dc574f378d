"""What the sample world's truth says about one week's texts: what came out, and what the judge threw away.

Pure: rows in, shares out. tasks/pages/week_figures.py reads the rows from a store; no stage uses these figures to
select, write or judge anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.sample.scenes import Scene, difference
from tasks.sample.truth import is_complete, is_true

# What no verdict of the judge's decides: such pairs were accepted, or an earlier week judged them.
_NOT_REJECTED = {"shortcut", "duplicate"}

SceneOf = Callable[[str], Scene | None]
Rows = Iterable[Mapping[str, Any]]


def read_scenes(path: Path) -> dict[str, Scene]:
    """Path of an image in its source -> its scene, from a truth file of `tasks.sample.world` (JSON lines)."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {row["path"]: Scene.from_record(row["scene"]) for row in rows if row.get("scene")}


def share(part: int, whole: int) -> float | None:
    """part / whole; None where there is nothing to divide by."""
    return part / whole if whole else None


def accepted_shares(triplets: Rows, scene_of: SceneOf, partial_styles: tuple[str, ...]) -> dict[str, float | None]:
    """Shares over the texts of accepted triplets.

    Args:
        triplets: rows with query_image_id, target_image_id, instructions, styles, negative_image_ids (the query first).
        scene_of: image id -> its scene, None where it has none; a text about such an image counts as false.
        partial_styles: names of styles whose texts state one change of several, by design.
    Returns:
        true_share: of all texts, those that are true; complete_share: of the texts in other than partial styles, those
        that are true and state every difference; negatives_also_right: of all (text, mined negative), those whose
        negative the text fits too. None where there is no such text.
    """
    texts = true = whole = complete = negatives = right = 0
    for triplet in triplets:
        query, target = scene_of(triplet["query_image_id"]), scene_of(triplet["target_image_id"])
        mined = [scene_of(image_id) for image_id in list(triplet["negative_image_ids"])[1:]]
        for text, style in zip(triplet["instructions"], triplet["styles"], strict=True):
            is_whole = style.split(" ")[0] not in partial_styles
            texts, whole, negatives = texts + 1, whole + is_whole, negatives + len(mined)
            if query is None:
                continue
            if target is not None:
                true += is_true(text, query, target)
                complete += is_whole and is_complete(text, query, target)
            right += sum(scene is not None and is_true(text, query, scene) for scene in mined)
    return {
        "true_share": share(true, texts),
        "complete_share": share(complete, whole),
        "negatives_also_right": share(right, negatives),
    }


def negative_shares(triplets: Rows, scene_of: SceneOf) -> dict[str, dict[str, float | None]]:
    """Of the (text, mined negative) of accepted triplets, those that fit too, by encoder and by kind of negative.

    Args:
        triplets: rows as of `accepted_shares`, with mined_by.
        scene_of: image id -> its scene.
    Returns:
        "by_encoder": encoder that mined the pair -> share; "by_kind": "query" or "target", whichever of the two the
        negative differs less from (a tie counts as the target), -> share.
    """
    counts: dict[str, dict[str, list[int]]] = {"by_encoder": {}, "by_kind": {}}
    for triplet in triplets:
        query, target = scene_of(triplet["query_image_id"]), scene_of(triplet["target_image_id"])
        for negative in map(scene_of, list(triplet["negative_image_ids"])[1:]):
            if query is None or target is None or negative is None:
                continue
            is_of_query = len(difference(query, negative)) < len(difference(target, negative))
            right = sum(is_true(text, query, negative) for text in triplet["instructions"])
            places = [("by_encoder", encoder) for encoder in triplet["mined_by"] or ()]
            for group, name in [*places, ("by_kind", "query" if is_of_query else "target")]:
                count = counts[group].setdefault(name, [0, 0])
                count[0], count[1] = count[0] + right, count[1] + len(triplet["instructions"])
    return {
        group: {name: share(right, all_) for name, (right, all_) in sorted(names.items())}
        for group, names in counts.items()
    }


def rejected_shares(
    written: Rows, triplets: Rows, dropped: Rows, scene_of: SceneOf, partial_styles: tuple[str, ...]
) -> dict[str, float | None]:
    """Of the texts that were written, how many were true, and how many of those the judge threw away.

    A true text is thrown away where it stands in no triplet: the text was refused, or its whole pair was. Two are no
    false rejections and do not count: texts of pairs that an earlier week had judged already (`duplicate`), and texts
    of a partial style that a mined negative fits as well. Texts of pairs that were accepted and then left out as
    shortcuts were not rejected.

    Args:
        written: captioned rows joined with their pairs: pair_id, query_image_id, target_image_id, negative_image_ids,
            instructions, styles.
        triplets: rows with pair_id, instructions.
        dropped: rows of the judge: key, reason, detail (JSON).
        scene_of, partial_styles: as of `accepted_shares`.
    Returns:
        written_true_share: of the texts written, those that are true, before any judge; false_rejection_share: of the
        true ones, those thrown away.
    """
    accepted = {row["pair_id"]: set(row["instructions"]) for row in triplets}
    for row in dropped:
        if row["reason"] in _NOT_REJECTED:
            accepted.setdefault(row["key"], set()).update(json.loads(row["detail"]).get("texts", ()))
    duplicates = {row["key"] for row in dropped if row["reason"] == "duplicate"}
    texts = true = judged = rejected = 0
    for row in written:
        query, target = scene_of(row["query_image_id"]), scene_of(row["target_image_id"])
        if query is None or target is None or row["pair_id"] in duplicates:
            continue
        mined = [scene_of(image_id) for image_id in list(row["negative_image_ids"])[1:]]
        for text, style in zip(row["instructions"], row["styles"], strict=True):
            texts += 1
            if not is_true(text, query, target):
                continue
            true += 1
            is_accepted = text in accepted.get(row["pair_id"], ())
            is_partial = style.split(" ")[0] in partial_styles
            if not is_accepted and is_partial and any(s is not None and is_true(text, query, s) for s in mined):
                continue
            judged, rejected = judged + 1, rejected + (not is_accepted)
    return {"written_true_share": share(true, texts), "false_rejection_share": share(rejected, judged)}
