"""What one search answers: for each model the images nearest to image and text together, to the image, to the text."""

from __future__ import annotations

import datetime
import json
import random
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.locks import exclusive
from tasks.reviews.searches import UPLOAD
from tasks.store import Store
from tasks.studio.galleries import Gallery, Images

MODES = ("composed", "image_only", "text_only")
MAX_TEXT = 1000  # characters of a query's text
MAX_RESULTS = 100
EXAMPLES_KEPT = 2000  # triplets that example queries are drawn from
NAME_LENGTH = 100
LOCK_WAIT_S = 10.0


def one_line(text: str) -> str:
    """A stranger's text as one line: NFC, single blanks, no control characters, no marks that turn the direction."""
    normal = unicodedata.normalize("NFC", text)
    return " ".join("".join(c if c.isprintable() else " " for c in normal).split())


@dataclass(frozen=True)
class Query:
    """An image, a change of it, and how many results are wanted.

    Attributes:
        image: image id or key of an upload; None searches by the text alone.
        text: the change, "" searches by the image alone.
        top_k: results of each mode, a count.
    """

    image: str | None
    text: str
    top_k: int = 20

    @staticmethod
    def checked(image: str | None, text: str | None, top_k: int = 20) -> Query:
        """A query as it came from a stranger, its text normalised (NFC, blanks, no control characters).

        Raises:
            DataError: it has neither image nor text, or is too long.
        """
        words = one_line(text or "")
        if len(words) > MAX_TEXT:
            raise DataError(f"text: {len(words):,} characters; expected at most {MAX_TEXT:,}")
        if not words and not image:
            raise DataError("query: expected an image, a text, or both")
        if not 1 <= top_k <= MAX_RESULTS:
            raise DataError(f"top_k: {top_k}; expected 1 to {MAX_RESULTS}")
        return Query(image or None, words, top_k)

    def contents(self) -> dict[str, tuple[str | None, str]]:
        """Mode -> what is encoded; only the modes for which there is something."""
        contents = {"composed": (self.image, self.text), "image_only": (self.image, ""), "text_only": (None, self.text)}
        if not (self.image and self.text):
            del contents["composed"]
        return {mode: content for mode, content in contents.items() if content != (None, "")}


class Triplets:
    """The version's triplets as far as a search needs them: known answers, and examples."""

    def __init__(self, store: Store) -> None:
        table = store.read_table("triplets", columns=["query_image_id", "target_image_id", "instructions"])
        self._targets: dict[tuple[str, str], str] = {}
        self._examples: list[tuple[str, str]] = []
        for row in table.to_pylist():
            for text in row["instructions"]:
                self._targets[row["query_image_id"], one_line(text)] = row["target_image_id"]
            if row["instructions"]:
                self._examples.append((row["query_image_id"], row["instructions"][0]))
        self._examples = random.Random(0).sample(self._examples, min(EXAMPLES_KEPT, len(self._examples)))

    def __len__(self) -> int:
        return len(self._targets)

    def target(self, query: Query) -> str | None:
        """The target of the triplet that the query is taken from; None for any other query."""
        return self._targets.get((query.image or "", query.text))

    def examples(self, count: int, seed: int = 0) -> list[tuple[str, str]]:
        """`count` (query image id, instruction), others for another seed."""
        return random.Random(seed).sample(self._examples, min(count, len(self._examples)))


def answer(query: Query, galleries: Sequence[Gallery], images: Images, triplets: Triplets) -> dict[str, Any]:
    """The results of all models and modes as JSON-ready values.

    Args:
        query: checked.
        galleries: one for each model.
        images: captions and licences by id.
        triplets: the version's, for the answer that is known.
    Returns:
        {"query": {image, text}, "target": id or null, "models": [{"model", "modes": {mode: [{rank, image_id,
        similarity, caption, license, is_target, is_query}]}}]}
    Raises:
        DataError: no such image.
    """
    target, contents = triplets.target(query), query.contents()
    with ThreadPoolExecutor(max_workers=max(1, len(galleries))) as pool:  # numpy and torch work beside each other
        answers = list(pool.map(lambda gallery: gallery.search(list(contents.values()), query.top_k), galleries))
    models = []
    for gallery, found in zip(galleries, answers, strict=True):
        modes = {
            mode: [
                {
                    "rank": rank,
                    "image_id": image_id,
                    "similarity": round(similarity, 6),
                    "caption": images.captions[image_id],
                    "license": images.licenses[image_id],
                    "is_target": image_id == target,
                    "is_query": image_id == query.image,
                }
                for rank, (image_id, similarity) in enumerate(results, 1)
            ]
            for mode, results in zip(contents, found, strict=True)
        }
        models.append({"model": gallery.label, "modes": modes})
    return {"query": {"image": query.image, "text": query.text}, "target": target, "models": models}


class Feedback:
    """What people said should have been first: lines of JSON, and the images that they had uploaded for it.

    The review queue reads them (tasks/reviews/searches.py).

    Args:
        path: the JSON lines; uploads are kept in `<path without suffix>/<key>.jpg`.
        version: that is searched.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path, self.version = path, version

    def add(self, query: Query, image_id: str, name: str, images: Images, models: Mapping[str, str]) -> None:
        """Append one line: {"at", "name", "version", "query_image", "text", "should_be_first", "models"}.

        Args:
            query: what was searched, by an image and a text.
            image_id: the image that should have been the first.
            name: of the person, as given.
            images: the version's.
            models: label -> name or folder of the models that answered.
        Raises:
            DataError: no such image in the version, no name, or nothing that a person could judge.
        """
        if not query.image or not query.text:
            raise DataError("feedback: expected an image and a text; search by both, then say what should be first")
        if image_id == query.image:
            raise DataError("should_be_first: this is the query image itself; expected another one")
        if not (name := one_line(name)[:NAME_LENGTH].strip()):
            raise DataError("name: empty; expected who says so, because reviewers see it; write it above the results")
        if image_id not in images.captions:
            raise DataError(f"image {image_id[:70]!r}: not in this version; expected one of its image ids")
        line = {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "name": name,
            "version": self.version,
            "query_image": query.image,
            "text": query.text,
            "should_be_first": image_id,
            "models": dict(models),
        }
        uploaded = images.content(query.image)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path.with_suffix(".lock"), LOCK_WAIT_S, f"{self.path} is being written to"):
            if query.image.startswith(UPLOAD):
                folder = self.path.with_suffix("")
                folder.mkdir(exist_ok=True)
                (folder / f"{query.image}.jpg").write_bytes(uploaded)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
