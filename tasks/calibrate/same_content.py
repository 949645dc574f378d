"""Propose `select.same_content_min`: from which similarity two images count as one content in two shots.

    python -m tasks calibrate --source FOLDER --same-content [PAIRS.CSV] [--false-share 0.01] [--limit 400] [--write]
    python -m tasks calibrate --root WORKTREE --same-content [PAIRS.CSV] [--false-share 0.01] [--write]

Positives, what the limit should find: other shots that code makes of up to SHOT_IMAGES images
(tasks/calibrate/shots.py), less those that ingest takes for copies itself, which never become a pair. They are easier
than real second photographs, so the share found is an upper bound. PAIRS.CSV names real ones: the columns `query`,
`target` (files of the source) and `same` (yes or no); they are the kind `labelled`.

Negatives, what it should leave: each image and its nearest other image under the encoder, without pairs labelled `yes`.
They are the hardest that the images offer. Where the images hold second shots that nobody labelled, these count as
negatives: the false-positive share is then an upper bound, too.

The proposal is the lowest limit, of four decimals, at which at most `--false-share` of the negatives lie at or above
it. Its false-positive share is stated for images that it was not chosen by: each half of the images by the other half's
limit. Of the encoders the one that finds most positives (of the labelled ones, where there are some) is proposed, and
none where that is less than half of them: such an encoder does not see that two shots show the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.calibrate.shots import other_shots
from tasks.config import Params
from tasks.errors import DataError
from tasks.ingest.dedup import DuplicateIndex
from tasks.ingest.inspect import normalization_rules
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import Rejection
from tasks.models.encoders.load import load_encoder
from tasks.store import Store

if TYPE_CHECKING:
    from PIL import Image

SHOT_IMAGES = 100  # images that other shots are made of
FOUND_MIN = 0.5  # share of the positives below which a limit drops little but what it should leave
NEGATIVES = 2_000  # images whose nearest other image is searched
LABELLED = "labelled"  # kind of the pairs that a person named
STEP = 1e-4  # of a limit
Pair = frozenset[str]  # ids of two images
Shots = dict[str, list[tuple[str, "Image.Image"]]]  # kind -> (id of the image, another shot of it)


@dataclass(frozen=True)
class Proposal:
    """What one encoder's limit does.

    Attributes:
        role: the encoder's.
        limit: cosine from which two images count as the same content; above 1 where no limit keeps the share.
        negatives: a count.
        false_share: of the negatives at or above the limit, 0..1; each half by the other half's limit.
        found: kind -> (positives at or above the limit, all), counts.
        medians: of the negatives' cosines, then of each kind's by its name.
        pairs: selected pairs at or above the limit, and all of them, counts; None where no pairs are stored.
    """

    role: str
    limit: float
    negatives: int
    false_share: float
    found: Mapping[str, tuple[int, int]]
    medians: Mapping[str, float]
    pairs: tuple[int, int] | None

    @property
    def found_share(self) -> float:
        """Of the positives, of the labelled ones alone where there are some, 0..1."""
        counts = [self.found[LABELLED]] if LABELLED in self.found else list(self.found.values())
        return sum(found for found, _ in counts) / max(1, sum(total for _, total in counts))

    @property
    def is_usable(self) -> bool:
        """Whether a cosine can reach the limit, and enough positives do."""
        return 0 < self.limit <= 1 and self.found_share >= FOUND_MIN

    def lines(self) -> list[str]:
        """The figures, for a person."""
        found = ", ".join(f"{kind} {n} of {total}" for kind, (n, total) in self.found.items())
        medians = ", ".join(f"{name} {median:.4f}" for name, median in self.medians.items())
        lines = [
            f"{self.role}: median cosine: {medians}",
            f"{self.role}: limit {self.limit:.4f}; at or above it {self.false_share:.1%} of {self.negatives} negatives "
            f"(each half by the other half's limit); finds {self.found_share:.0%}: {found or 'nothing'}",
        ]
        if self.pairs is not None:
            lines.append(f"{self.role}: {self.pairs[0]} of {self.pairs[1]} selected pairs lie at or above it")
        return lines


def read_labelled(path: Path) -> dict[tuple[str, str], bool]:
    """(query, target) -> whether both show the same, of a PAIRS.CSV.

    Raises:
        DataError: it cannot be read, lacks a column, or has another value.
    """
    labels: dict[tuple[str, str], bool] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in (reader := csv.DictReader(file, restval="")):
                answer = {"yes": True, "no": False}.get(row["same"].strip().lower())
                if answer is None or not row["query"] or not row["target"]:
                    raise ValueError(f"line {reader.line_num}: {dict(row)}")
                labels[row["query"], row["target"]] = answer
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: {error}; expected the columns query, target, same (yes or no)") from error
    return labels


def labelled_ids(store: Store, labels: Mapping[tuple[str, str], bool]) -> dict[Pair, bool]:
    """The labelled pairs whose two files are stored images, by their ids."""
    images = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    ids = {u.partition(":")[2]: i for i, u in zip(images["image_id"], images["source_uri"], strict=True)}
    pairs = {frozenset((ids[q], ids[t])): same for (q, t), same in labels.items() if q in ids and t in ids}
    return {pair: same for pair, same in pairs.items() if len(pair) == 2}


def make_shots(params: Params, store: Store) -> tuple[Shots, dict[str, int]]:
    """Other shots of a sample of the stored images; without those that ingest would drop as copies of these images.

    Returns:
        The shots; and kind -> how many ingest would drop.
    """
    columns = ["image_id", "source_sha256", "phash", "thumbnail"]
    table = store.read_table("images", columns)
    rng = np.random.default_rng(params.open_run.seed)
    sample = table.take(np.sort(rng.permutation(table.num_rows)[:SHOT_IMAGES])).to_pydict()
    ids, config, rules = sample["image_id"], params.ingest, normalization_rules(params.ingest)
    index = DuplicateIndex(
        sample,
        hash_distance_bits=config.hash_distance_bits,
        thumbnail_max=config.thumbnail_distance,
        crop_margin=config.crop_margin,
        read_kept=lambda row: store.read_image_bytes(ids[row]),
    )
    shots: Shots = {}
    copies: dict[str, int] = {}
    for image_id in ids:
        for kind, shot in other_shots(store.read_image(image_id), rng).items():
            content = io.BytesIO()
            shot.save(content, "PNG")
            stored = normalize_image(content.getvalue(), is_named_image=True, rules=rules)
            copies.setdefault(kind, 0)
            if isinstance(stored, Rejection) or index.find("", "", stored) is not None:
                copies[kind] += 1
            else:
                shots.setdefault(kind, []).append((image_id, shot))
    return shots, copies


def nearest_others(ids: list[str], vectors: np.ndarray, same: Set[Pair], seed: int) -> np.ndarray:
    """(n,) float64 cosines of a sample of the images and their nearest other image, in the order of `ids`.

    Args:
        ids: (m) of the images.
        vectors: (m, d) float16, theirs.
        same: pairs that are no negatives.
        seed: of the sample.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:NEGATIVES])
    row_of = {image_id: n for n, image_id in enumerate(ids)}
    partners: dict[int, list[int]] = {}
    for a, b in ((row_of[x], row_of[y]) for x, y in map(sorted, same) if x in row_of and y in row_of):
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    every, result = vectors.astype(np.float32), np.empty(len(rows))
    for n, row in enumerate(rows.tolist()):
        cosines = every @ every[row]
        cosines[[row, *partners.get(row, [])]] = -1
        result[n] = cosines.max()
    return result


def lowest_limit(negatives: np.ndarray, false_share: float) -> float:
    """The lowest multiple of STEP that at most this share of the negatives (n,) reach; the share is below 1."""
    allowed = int(false_share * len(negatives) + 1e-9)
    highest = float(np.sort(negatives)[::-1][allowed])  # the first that must stay below
    limit = round(float(np.ceil(highest / STEP)) * STEP, 4)
    return limit if limit > highest else round(limit + STEP, 4)


def held_out_share(negatives: np.ndarray, false_share: float) -> float:
    """Share of the negatives (n,) that reach the limit which the other half of them gives, 0..1."""
    halves = negatives[::2], negatives[1::2]
    reached = sum(int((a >= lowest_limit(b, false_share)).sum()) for a, b in (halves, halves[::-1]))
    return reached / max(1, len(negatives))


def _pair_cosines(store: Store, role: str) -> np.ndarray | None:
    """Similarities of the selected pairs under an encoder, (p,); None where no pairs are stored."""
    if not store.table_files("pairs"):
        return None
    column = store.read_table("pairs", [f"similarity_{role}"]).column(0)
    return np.asarray(column.drop_null().to_numpy())


def propose(
    params: Params, store: Store, role: str, shots: Shots, labelled: Mapping[Pair, bool], false_share: float
) -> Proposal:
    """One encoder's limit, and what it does."""
    ids, vectors, _ = store.read_embeddings(role)
    if len(ids) < 3:
        raise DataError(f"calibrate --same-content: {len(ids)} vectors of {role}; at least 3 are needed")
    row_of = {image_id: n for n, image_id in enumerate(ids)}

    def cosine(pair: Pair) -> float:
        a, b = (vectors[row_of[i]].astype(np.float32) for i in sorted(pair))
        return float(a @ b)

    known = {pair: same for pair, same in labelled.items() if pair <= row_of.keys()}
    is_same = {pair for pair, same in known.items() if same}
    named = [cosine(pair) for pair in sorted(known, key=sorted) if pair not in is_same]
    negatives = np.concatenate([nearest_others(ids, vectors, is_same, params.open_run.seed), named])
    limit = lowest_limit(negatives, false_share)
    encoder = load_encoder(params.embed.encoders[role], params.embed.device, params.open_run.threads)  # type: ignore[index]
    positives = {}
    for kind, of_kind in shots.items():
        originals = vectors[[row_of[i] for i, _ in of_kind]].astype(np.float32)
        positives[kind] = np.einsum("md,md->m", originals, encoder.encode_images([shot for _, shot in of_kind]))
    if is_same:
        positives[LABELLED] = np.array([cosine(pair) for pair in is_same])
    found = {kind: (int((cosines >= limit).sum()), len(cosines)) for kind, cosines in positives.items()}
    medians = {name: float(np.median(c)) for name, c in {"nearest others": negatives, **positives}.items()}
    pairs = _pair_cosines(store, role)
    counted = None if pairs is None else (int((pairs >= limit).sum()), len(pairs))
    return Proposal(role, limit, len(negatives), held_out_share(negatives, false_share), found, medians, counted)


def calibrate_same_content(
    params: Params, store: Store, labels: Mapping[tuple[str, str], bool], false_share: float
) -> dict[str, Any]:
    """Propose the limit from stored images and embeddings; prints what each image encoder's would do.

    Args:
        params: whose image encoders embedded the images.
        store: with images and embeddings.
        labels: of `read_labelled`; none where empty.
        false_share: most negatives at or above the limit, 0..1.
    Returns:
        `select.same_content_min` as values of the trigger form; no value where no encoder has a usable limit.
    Raises:
        DataError: fewer than three vectors.
    """
    labelled = labelled_ids(store, labels)
    if labels:
        print(f"labelled pairs: {len(labelled)} of {len(labels)} have both images stored")
    shots, copies = make_shots(params, store)
    for kind, count in copies.items():
        made = count + len(shots.get(kind, []))
        print(f"other shots, made by code: {made} {kind}; ingest takes {count} for copies, they are not counted")
    roles = [role for role, spec in params.embed.encoders.items() if spec.kind == "image"]
    proposals = [propose(params, store, role, shots, labelled, false_share) for role in roles]
    print("\n".join(line for proposal in proposals for line in proposal.lines()))
    best = max(proposals, key=lambda proposal: (proposal.is_usable, proposal.found_share), default=None)
    if best is None or not best.is_usable:
        print(f"no encoder finds {FOUND_MIN:.0%} of the positives so: leave select.same_content_min empty")
        return {}
    return {"select": {"same_content_min": {best.role: best.limit}}}
