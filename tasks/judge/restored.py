"""What people judged right wins over a rejection: pairs of earlier versions that become triplets of this one.

A pair that the judge rejected, or that people withdrew before, and of which people judge a text right, or wrote
another text, becomes a triplet: with that text, with those of its other texts that the judge passes now, and with its
mined negatives, which the judge is asked about as for any pair (tasks/judge/verdict.py). Over what people said the
judge has no say: their text is neither too wrong for the target nor met by the query image, and a negative that meets
it is taken out. `judge_target` is the judge's own number, however low; `found_by` is null, because it was not measured.
A pair with a text that people judge wrong, or with an image that is gone, stays out.

These triplets belong to the run's batch and have a file of their own, data/triplets/<batch>-reviewed.parquet, so that
the gates and the week's figures, which measure models, can tell them from what the models made. It is its own marker:
a rerun makes it only where it is missing. Then the rows that said that the pairs were left out go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.judge.licences import licence_columns, read_terms
from tasks.judge.questions import Question, yes_probabilities
from tasks.judge.reviewed import Texts, add_dropped, final_text
from tasks.judge.rows import BatchPairs, Ends, dropped_row, triplet_row
from tasks.judge.verdict import Verdict as JudgeVerdict
from tasks.judge.verdict import VerdictRules, decide
from tasks.models.llm.base import Captioner
from tasks.models.llm.requests import Refusal
from tasks.names import stable_id
from tasks.prompts.styles import is_partial
from tasks.reasons import REVIEWED_NEGATIVE, REVIEWED_WRONG
from tasks.reviews.verdicts import Verdict, read_verdicts
from tasks.store import Store

Row = dict[str, Any]
Ask = Callable[[Sequence[Question]], Sequence[float | Refusal]]
BLOCK_ROWS = 50_000  # in memory at a time
APPROVED = "approved"  # of a joined row: places of the texts that people judged right or wrote


def rejected_and_right(store: Store, batch: str) -> list[Row]:
    """The pairs of other batches that are no triplet and that people judge right, ready to be judged.

    Returns:
        Rows of table `captioned` joined with their pairs, by pair id: with the texts as people want them, the places of
        those that they approved (APPROVED), without negatives that they found to fit better, and with this batch.
    Raises:
        DataError: as of `read_verdicts`.
    """
    of_ends: dict[Ends, dict[str, Verdict]] = {}
    for verdict in read_verdicts(store.root):
        of_ends.setdefault((verdict.query, verdict.target), {})[verdict.instruction] = verdict
    wanted = {ends for ends, texts in of_ends.items() if any(v.is_right or v.text for v in texts.values())}
    wanted -= _present_ends(store, wanted, batch)
    if not wanted:
        return []
    rows = [approved_row(row, of_ends[ends]) for ends, row in _captioned_rows(store, wanted, batch).items()]
    images = _known_images(store, {image for row in rows if row for image in _image_ids(row)})
    found = []
    for row in (row for row in rows if row is not None):
        if not {row["query_image_id"], row["target_image_id"]} <= images:
            continue
        stays = [image for image in row["negative_image_ids"] if image in images]
        found.append({**row, "batch": batch, "negative_image_ids": stays})
    return sorted(found, key=lambda row: str(row["pair_id"]))


def approved_row(row: Row, texts: Texts) -> Row | None:
    """A rejected row as people want it, or None where they do not want it.

    Args:
        row: of table `captioned`, joined with its pair.
        texts: verdicts on its pair of images.
    """
    instructions: list[str] = []
    styles: list[str] = []
    approved: list[int] = []
    for text, style in zip(row["instructions"], row["styles"], strict=True):
        new = final_text(text, texts)
        verdict = texts.get(new)
        if verdict is not None and verdict.is_wrong:
            return None
        if new.lower() in {other.lower() for other in instructions}:
            continue
        if new != text or (verdict is not None and verdict.is_right):
            approved.append(len(instructions))
        instructions.append(new)
        styles.append(style)
    if not approved:
        return None
    fits = {image for verdict in texts.values() for image in verdict.fits}
    stays = [image for n, image in enumerate(row["negative_image_ids"]) if n == 0 or image not in fits]
    taken_out = [image for image in row["negative_image_ids"] if image not in stays]
    changed = {"instructions": instructions, "styles": styles, "negative_image_ids": stays}
    return {**row, **changed, APPROVED: approved, REVIEWED_NEGATIVE: taken_out}


def judge_approved(row: Row, ask: Ask, images: Mapping[str, Any], fits: Callable[[float, Row, int], float],
                   rules: VerdictRules) -> JudgeVerdict | None:  # fmt: skip
    """The judge's verdict on a row of `approved_row`, over whose approved texts it has no say.

    Args:
        row: the row.
        ask: questions -> P(yes) of each, or why it could not be asked.
        images: image_id -> image.
        fits: P(yes) of the target, row, place of the text -> calibrated probability.
        rules: of all other pairs.
    Returns:
        None where the judge cannot be asked about an approved text, so that no score is known.
    """
    query, approved = images[row["query_image_id"]], set(row[APPROVED])
    texts, negatives = row["instructions"], row["negative_image_ids"]
    answers = ask([Question(query, images[row["target_image_id"]], text) for text in texts])
    target_yes = {n: yes for n, yes in enumerate(answers) if not isinstance(yes, Refusal)}
    target_fits = {n: fits(yes, row, n) for n, yes in target_yes.items()}
    asked = [n for n in target_yes if n in approved or target_fits[n] >= rules.threshold]
    places = [(n, k) for n in asked for k in range(len(negatives))]
    replies = ask([Question(query, images[negatives[k]], texts[n]) for n, k in places])
    known = {place: yes for place, yes in zip(places, replies, strict=True) if not isinstance(yes, Refusal)}
    kept = [k for k in range(len(negatives)) if all((n, k) in known for n in asked if n in approved)]
    whole = [n for n in asked if all((n, k) in known for k in kept)]
    if not approved <= set(whole) or 0 not in kept:
        return None
    verdict = decide(
        [1.0 if n in approved else target_yes[n] for n in whole],
        {i: [0.0 if k == 0 and n in approved else known[n, k] for k in kept] for i, n in enumerate(whole)},
        [n not in approved and is_partial(row["styles"][n]) for n in whole],
        VerdictRules(rules.threshold, rules.negative_threshold, 1, rules.negative_margin, rules.negatives_max),
        [1.0 if n in approved else target_fits[n] for n in whole],
    )
    instructions = [whole[i] for i in verdict.instructions]
    stays = [kept[k] for k in verdict.negatives]
    return JudgeVerdict(
        instructions=instructions,
        negatives=stays,
        judge_target=[target_fits[n] for n in instructions],
        judge_negative=[max(known[n, k] for n in instructions) for k in stays],
        false_negatives={kept[k]: yes for k, yes in verdict.false_negatives.items()},
    )


class Restorer:
    """Makes the triplets of `rejected_and_right`.

    Args:
        store: of the worktree.
        batch: the run's.
        load: the judge.
        template: its prompt, with {instruction}, and `prompt_sha256` the prompt's hash.
        fits: see `judge_approved`.
        rules: of all other pairs.
    """

    def __init__(self, store: Store, batch: str, *, load: Callable[[], Captioner], template: str, prompt_sha256: str,
                 fits: Callable[[float, Row, int], float], rules: VerdictRules) -> None:  # fmt: skip
        self.store, self.batch, self.load, self.template = store, batch, load, template
        self.prompt_sha256, self.fits, self.rules = prompt_sha256, fits, rules

    def restore(self, rows: Sequence[Row]) -> int:
        """Write the triplets where they are not there yet, and take back that they were left out; returns their count.

        Args:
            rows: of `rejected_and_right`.
        """
        path = self.store.reviewed_path(self.batch)
        if rows and not path.exists():
            triplets = self._judge(rows)
            self._note_negatives(triplets, rows)
            self.store.write(path, triplets, "triplets")  # last: the marker
        if not path.exists():
            return 0
        made = self.store.read(path, "triplets", ["pair_id", "query_image_id", "target_image_id"]).to_pylist()
        take_back(self.store, self.batch, made)
        return len(made)

    def _judge(self, rows: Sequence[Row]) -> list[Row]:
        import pyarrow as pa

        model, out = self.load(), list[Row]()
        columns = ["query_image_id", "target_image_id", "negative_image_ids"]
        ends = pa.table({name: [row[name] for row in rows] for name in columns})
        terms = read_terms(self.store, ends)
        for row in rows:
            images = {image: self.store.read_image(image) for image in _image_ids(row)}
            ask = lambda questions: yes_probabilities(model, questions, self.template)  # noqa: E731
            verdict = judge_approved(row, ask, images, self.fits, self.rules)
            if verdict is not None:
                triplet = triplet_row(row, verdict, model, self.prompt_sha256)
                out.append({**triplet, **licence_columns(triplet, terms)})
        return out

    def _note_negatives(self, triplets: Sequence[Row], rows: Sequence[Row]) -> None:
        """Dropped rows of the negatives that people found to fit better than the target."""
        ids = {triplet["pair_id"]: triplet["triplet_id"] for triplet in triplets}
        new = [
            dropped_row(row, f"{ids[row['pair_id']]}:{image}", REVIEWED_NEGATIVE, {"image_id": image})
            for row in rows
            if row["pair_id"] in ids
            for image in row[REVIEWED_NEGATIVE]
        ]
        add_dropped(self.store, self.store.dropped_path("judge", self.batch), new)


def take_back(store: Store, batch: str, triplets: Iterable[Mapping[str, Any]]) -> None:
    """Remove the rows of other batches that say that these pairs were left out; a second call changes nothing."""
    ends = {(row["query_image_id"], row["target_image_id"]): row["pair_id"] for row in triplets}
    ids = set(ends.values())
    own = set(store.dropped_files("judge", batch))
    for path in (path for path in store.dropped_files("judge") if path not in own):
        rows = store.read(path, "dropped").to_pylist()
        stays = [row for row in rows if row["key"] not in ids and _withdrawn_ends(row) not in ends]
        if len(stays) < len(rows):
            store.write(path, stays, "dropped")


def _withdrawn_ends(row: Mapping[str, Any]) -> Ends | None:
    """Query and target of a triplet that people withdrew; None for other rows."""
    if row["reason"] != REVIEWED_WRONG:
        return None
    detail = json.loads(row["detail"])
    return detail["query"], detail["target"]


def _present_ends(store: Store, wanted: Iterable[Ends], batch: str) -> set[Ends]:
    """Those of the ends that make a triplet already, but for what this batch restored."""
    queries, own = {query for query, _ in wanted}, store.reviewed_path(batch)
    files = [path for path in store.table_files("triplets") if path != own] if queries else []
    names = ["query_image_id", "target_image_id"]
    return {
        (row[names[0]], row[names[1]])
        for block in store.iter_blocks(files, "triplets", names, rows=BLOCK_ROWS)
        for row in block.to_pylist()
        if row[names[0]] in queries
    }


def _captioned_rows(store: Store, wanted: set[Ends], batch: str) -> dict[Ends, Row]:
    """Ends -> the captioned row of other batches with these images, joined with its pair; the newest one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pa.array(sorted({image for ends in wanted for image in ends}), pa.string())
    own = {*store.batch_files("pairs", batch), *store.batch_files("captioned", batch)}
    blocks = []
    for block in store.iter_blocks(
        [path for path in store.table_files("pairs") if path not in own], "pairs", rows=BLOCK_ROWS
    ):
        is_wanted = [pc.is_in(block.column(name), value_set=names) for name in ("query_image_id", "target_image_id")]
        blocks.append(block.filter(pc.and_(*is_wanted)))
    if not blocks:
        return {}
    pairs = BatchPairs(pa.concat_tables(blocks))
    ids = {row["pair_id"] for row in pairs.table.select(["pair_id"]).to_pylist()}
    ids |= {stable_id(*ends) for ends in wanted}
    captioned: dict[str, Row] = {}
    for block in store.iter_blocks(
        [path for path in store.table_files("captioned") if path not in own], "captioned", rows=BLOCK_ROWS
    ):
        rows = block.filter(pc.is_in(block.column("pair_id"), value_set=pa.array(sorted(ids), pa.string())))
        captioned |= {row["pair_id"]: row for row in rows.to_pylist()}
    joined = pairs.join(list(captioned.values()))
    by_ends = {(row["query_image_id"], row["target_image_id"]): row for row in joined}
    return {ends: row for ends, row in by_ends.items() if ends in wanted}


def _image_ids(row: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([row["query_image_id"], row["target_image_id"], *row["negative_image_ids"]]))


def _known_images(store: Store, wanted: Iterable[str]) -> set[str]:
    """Those of the images that the store has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.array(sorted(wanted), pa.string())
    blocks = store.iter_blocks(store.table_files("images"), "images", ["image_id"], rows=BLOCK_ROWS)
    return {
        image
        for block in blocks
        for image in block.column("image_id").filter(pc.is_in(block.column("image_id"), value_set=ids)).to_pylist()
    }
