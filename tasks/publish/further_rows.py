"""Rows for other tasks than composed retrieval, made of what a batch holds already: no model is asked. Pure.

    image_to_caption           image -> its caption, among captions of images that it makes a triplet with
    caption_to_image           the other way round
    description_to_pair        description of a pair -> its two images, among the reversed pair and pairs with negatives
    difference_classification  two images -> the kind of change from the first to the second, among the other kinds
    which_image_fits           image and instruction -> the target, among the negatives that the judge refused

Task-diverse data is worth more than pairs of one kind (mmE5, arXiv:2502.08468; MuCo). A negative is what the judge
already told apart: two images of a triplet differ by what its instructions say, so the caption of one is not that of
the other; a pair read backwards is another pair; mined negatives are those that no instruction leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.names import stable_id
from tasks.prompts.kinds import ANY, kind_of
from tasks.prompts.styles import is_partial
from tasks.sources.strictness import strictest

INSTRUCTIONS = {
    "image_to_caption": "Retrieve the caption that describes the image.",
    "caption_to_image": "Retrieve the image that the caption describes.",
    "description_to_pair": "Retrieve the two images whose difference the description states.",
    "difference_classification": "Name the kind of change that turns the first image into the second.",
    "which_image_fits": "Choose the image that is what the text makes of the query image.",
}
Terms = Mapping[str, tuple[str, str]]  # image id -> (licence, attribution)
Row = dict[str, Any]


@dataclass(frozen=True)
class RowSources:
    """What the rows of a batch are made of.

    Attributes:
        batch: its name.
        image_ids: of the images that the batch took in, in order.
        captions: image id -> (caption, who wrote it), of these images and of the triplets' others; images without one
            make no row with a caption.
        triplets: rows of the batch's table.
        differences: pair id -> `kind: source -> target`; empty for a pair whose description is prose.
        terms: of all images of the triplets and of `image_ids`.
        prompts: prompt set that wrote the texts; it tells kinds of change where descriptions are prose.
    """

    batch: str
    image_ids: Sequence[str]
    captions: Mapping[str, tuple[str, str]]
    triplets: Sequence[Mapping[str, Any]]
    differences: Mapping[str, Sequence[str]]
    terms: Terms
    prompts: str


def further_rows(task: str, sources: RowSources) -> list[Row]:
    """The rows of a task, of table `further_rows`, in the order of what they are made of.

    Raises:
        KeyError: no such task.
    """
    return [_with_terms(row, sources) for row in BUILDERS[task](sources)]


def _captioned(sources: RowSources) -> Iterator[tuple[str, str, str, Sequence[str]]]:
    """(image, caption, who wrote it, images that it is paired with) of each image with a caption."""
    others = partners(sources)
    for image_id in sources.image_ids:
        if image_id in sources.captions:
            yield image_id, *sources.captions[image_id], tuple(others.get(image_id, ()))


def image_to_caption(sources: RowSources) -> Iterator[Row]:
    """A row for each image with a caption."""
    for image_id, text, by, others in _captioned(sources):
        known = [sources.captions[i][0] for i in others if i in sources.captions]
        negatives = [t for t in dict.fromkeys(known) if _words(t) != _words(text)]
        yield _row(
            "image_to_caption", image_id, by, query_images=[image_id], target_text=text, negative_texts=negatives
        )


def caption_to_image(sources: RowSources) -> Iterator[Row]:
    """A row for each image with a caption; an image without one may fit any text, and is no negative."""
    for image_id, text, by, others in _captioned(sources):
        unlike = [i for i in others if i in sources.captions and _words(sources.captions[i][0]) != _words(text)]
        yield _row("caption_to_image", image_id, by, query_text=text, target_images=[image_id], negative_images=unlike)


def description_to_pair(sources: RowSources) -> Iterator[Row]:
    """A row for each triplet with a description."""
    for t in sources.triplets:
        if not t["description"]:
            continue
        query, target = t["query_image_id"], t["target_image_id"]
        wrong = [(target, query), *((query, i) for i in t["negative_image_ids"] if i not in (query, target))]
        yield _row(
            "description_to_pair",
            t["triplet_id"],
            t["captioner"],
            query_text=t["description"],
            target_images=[query, target],
            negative_images=[image_id for pair in wrong for image_id in pair],
        )


def difference_classification(sources: RowSources) -> Iterator[Row]:
    """A row for each triplet whose kind of change can be told; the labels are the kinds that the batch has."""
    kinds = {t["triplet_id"]: kind_of_triplet(t, sources) for t in sources.triplets}
    labels = sorted({kind for kind in kinds.values() if kind})
    for t in sources.triplets:
        kind = kinds[t["triplet_id"]]
        if kind and len(labels) > 1:
            yield _row(
                "difference_classification",
                t["triplet_id"],
                t["captioner"],
                query_images=[t["query_image_id"], t["target_image_id"]],
                target_text=kind,
                negative_texts=[label for label in labels if label != kind],
            )


def which_image_fits(sources: RowSources) -> Iterator[Row]:
    """A row for each triplet, with the text of which the judge was surest."""
    for t in sources.triplets:
        best = max(range(len(t["instructions"])), key=lambda n: (t["judge_target"][n], -n))
        yield _row(
            "which_image_fits",
            t["triplet_id"],
            t["captioner"],
            query_images=[t["query_image_id"]],
            query_text=t["instructions"][best],
            target_images=[t["target_image_id"]],
            negative_images=list(t["negative_image_ids"]),
        )


BUILDERS: Mapping[str, Callable[[RowSources], Iterator[Row]]] = {
    "image_to_caption": image_to_caption,
    "caption_to_image": caption_to_image,
    "description_to_pair": description_to_pair,
    "difference_classification": difference_classification,
    "which_image_fits": which_image_fits,
}


def partners(sources: RowSources) -> dict[str, list[str]]:
    """Image id -> the images that it makes a triplet with, each once."""
    out: dict[str, dict[str, None]] = {}
    for t in sources.triplets:
        query, target = t["query_image_id"], t["target_image_id"]
        out.setdefault(query, {})[target] = None
        out.setdefault(target, {})[query] = None
    return {image_id: list(others) for image_id, others in out.items()}


def kind_of_triplet(triplet: Mapping[str, Any], sources: RowSources) -> str | None:
    """The kind of change of a triplet, by its first text that states the whole of it; None where it cannot be told."""
    differences = sources.differences.get(triplet["pair_id"]) or ()
    for text, style in zip(triplet["instructions"], triplet["styles"], strict=True):
        if not is_partial(style):
            kind = kind_of(text, style, differences, sources.prompts)
            return None if kind == ANY else kind
    return None


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _row(
    task: str,
    source_id: str,
    text_by: str,
    *,
    query_images: Sequence[str] = (),
    query_text: str = "",
    target_images: Sequence[str] = (),
    target_text: str | None = None,
    **negatives: Sequence[str],
) -> Row:
    """A row without its batch and its terms; `negatives`: negative_texts, negative_images."""
    return {
        "row_id": stable_id(task, source_id),
        "task": task,
        "source_id": source_id,
        "instruction": INSTRUCTIONS[task],
        "query_text": query_text,
        "query_image_ids": list(query_images),
        "target_text": target_text,
        "target_image_ids": list(target_images),
        "negative_texts": list(negatives.get("negative_texts", ())),
        "negative_image_ids": list(negatives.get("negative_images", ())),
        "text_by": text_by,
    }


def _with_terms(row: Row, sources: RowSources) -> Row:
    """The row with its batch, and licence and attribution of each of its images."""
    named = [i for column in ("query_image_ids", "target_image_ids", "negative_image_ids") for i in row[column]]
    terms = [sources.terms.get(image_id, ("", "")) for image_id in named]
    return {
        **row,
        "batch": sources.batch,
        "license_code": strictest(code for code, _ in terms),
        "licenses": [code for code, _ in terms],
        "attributions": [name for _, name in terms],
    }
