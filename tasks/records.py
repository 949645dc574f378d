"""The tables' schemas (Arrow) and the report that every stage prints.

One name for one quantity everywhere: units last (`_px`, `_bytes`, `_s`), ids `*_id`, counts plain.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclasses.dataclass
class StageReport:
    """What one stage (or one part of it) did: counts, never rows. A stage prints it last; Airflow passes it on by XCom.

    Attributes:
        stage: the stage's name.
        part: what part of it, e.g. ``semantic`` or ``1/2``; empty for the whole.
        read: rows read.
        written: rows written by this call.
        dropped: rows left out, by reason.
        new: rows that this run had to work on.
        done: rows that this call (or an earlier, interrupted call of this run) worked on.
        reused: rows of earlier versions, taken as they are.
        seconds: wall time, s.
        tokens: model tokens, prompt and output together.
        figures: named figures of the run (yields, medians), for the gates and the version's card.
        notes: sentences for a person.
        parts: stage -> number of parts of a later stage whose work this one leaves at hand (tasks/parts.py).
    """

    stage: str
    part: str = ""
    read: int = 0
    written: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    new: int = 0
    done: int = 0
    reused: int = 0
    seconds: float = 0.0
    tokens: int = 0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    parts: dict[str, int] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` rows as left out for `reason`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def to_json(self) -> str:
        """One line of JSON, keys in declaration order."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> StageReport:
        """Inverse of `to_json`; unknown keys are refused."""
        return cls(**json.loads(text))

    @classmethod
    def merged(cls, stage: str, reports: list[StageReport]) -> StageReport:
        """The sum of a stage's parts. `figures` of the parts are averaged, weighted by `done` (or equally); a figure of
        one part alone is that very number.
        """
        out = cls(stage=stage)
        figures: dict[str, list[tuple[float, float]]] = {}  # name -> (value, weight)
        for r in reports:
            for name in ("read", "written", "new", "done", "reused", "seconds", "tokens"):
                setattr(out, name, getattr(out, name) + getattr(r, name))
            for reason, count in r.dropped.items():
                out.drop(reason, count)
            for key, value in r.figures.items():
                figures.setdefault(key, []).append((value, float(r.done or 1)))
            out.notes += r.notes
            out.parts |= r.parts
        for key, parts in figures.items():
            mean = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
            out.figures[key] = parts[0][0] if len(parts) == 1 else mean
        return out


def schemas() -> dict[str, pa.Schema]:
    """Arrow schema per table; the dataset's card (tasks/pages) explains each column."""
    import pyarrow as pa

    s, i32, i64, f32, b = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.bool_()
    strings = pa.list_(pa.field("item", s))
    floats = pa.list_(pa.field("item", f32))
    return {
        # One stored image. image_id = sha256 of the stored bytes; offset/size: one image is one pread of its shard.
        "images": pa.schema(
            [
                ("image_id", s),
                ("source_uri", s),  # <source name>:<path inside the source>
                ("source_sha256", s),
                ("batch", s),
                ("shard", s),  # file name of the tar, in data/shards
                ("width_px", i32),
                ("height_px", i32),
                ("caption", s),  # null until recaption has written one in `captions`
                ("caption_source", s),  # 'source' or null
                ("license_code", s),
                ("attribution", s),
                ("fetched_at", s),  # the run's date, ISO 8601
                ("phash", s),  # 64-bit perceptual hash, 16 hex digits
                ("thumbnail", pa.binary()),  # 8x8 RGB uint8, 192 bytes: near-duplicates are confirmed on it
                ("offset_bytes", i64),
                ("size_bytes", i32),
                # what the source changes when the bytes change (ETag, tar member, URL); '' for files of a folder
                ("source_fingerprint", s),
                # what the site allows machine readers (tasks/sources/web/robots.py); '' where it was not asked
                ("robots", s),
                ("sharpness", f32),  # variance of the Laplacian of the grey image, levels^2
                ("is_blurry", b),
                ("is_near_empty", b),
                ("has_extreme_ratio", b),
                ("is_text_heavy", b),
                ("license_stated", s),  # the licence as its source spells it; '' where it states none for the image
            ]
        ),
        # Rows left out, by any stage; `key` names the row (source URI, pair id, triplet id ...).
        "dropped": pa.schema(
            [("stage", s), ("batch", s), ("key", s), ("reason", s), ("detail", s)],
        ),
        "captions": pa.schema(
            [
                ("image_id", s),
                ("caption", s),
                ("caption_source", s),  # model@revision
                ("prompt_tokens", i32),
                ("output_tokens", i32),
                ("prompt_sha256", s),
            ]
        ),
        # Candidates of one encoder. rank counts the query's neighbours by falling similarity, 0 = nearest.
        "neighbours": pa.schema(
            [("query_image_id", s), ("target_image_id", s), ("similarity", f32), ("rank", i32)],
        ),
        "pairs": pa.schema(
            [
                ("pair_id", s),
                ("batch", s),
                ("query_image_id", s),
                ("target_image_id", s),
                ("mined_by", strings),  # encoders in whose window the pair lies and that ranked it among the k nearest
                ("similarity_semantic", f32),  # cosine; null when the encoder has no vector for one of the two
                ("similarity_pattern", f32),
                ("similarity_caption", f32),
                ("rank", i32),  # best rank among the encoders that mined it
                ("negative_image_ids", strings),  # negative 0 is the query image
                # to the target, by the encoder that proposed the negative; [0] query-target
                ("negative_similarity", floats),
                # how many things differ and the chance that the judge accepts the pair, as estimated from cosines and
                # captions before a model saw it; null without `select.differences`
                ("estimated_differences", i32),
                ("estimated_acceptance", f32),
                ("similarity_words", f32),  # as similarity_caption; null without an encoder `words`
            ]
        ),
        # What the MLLM and the LLM wrote for a pair, before the judge.
        "captioned": pa.schema(
            [
                ("pair_id", s),
                ("batch", s),
                ("description", s),
                ("instructions", strings),
                ("styles", strings),
                ("captioner", s),
                ("captioner_revision", s),
                ("writer", s),
                ("writer_revision", s),
                ("prompt_sha256", s),
                ("prompt_tokens", i32),
                ("output_tokens", i32),
                # 'kind: source -> target', where the describing model answers by a schema; else empty
                ("differences", strings),
                ("language", s),  # of the instructions
                ("requests", i32),  # put to models for this pair, retries included
                ("engine", s),  # of both models, with its version
                ("sampling", s),  # JSON
                ("seed", i64),
                # what both images show, where the describing model answers by a schema; else null
                ("shared_concept", s),
            ]
        ),
        "triplets": pa.schema(
            [
                ("triplet_id", s),
                ("pair_id", s),
                ("batch", s),
                ("query_image_id", s),
                ("target_image_id", s),
                ("instructions", strings),
                ("styles", strings),
                ("negative_image_ids", strings),
                ("judge_target", floats),  # P(yes), one per instruction
                # highest P(yes) over the instructions, one per negative (0 = the query image)
                ("judge_negative", floats),
                ("mined_by", strings),
                ("description", s),
                ("captioner", s),
                ("captioner_revision", s),
                ("prompt_sha256", s),
                ("judge", s),
                ("judge_revision", s),
                ("tokens", i32),
                ("language", s),
                ("engine", s),
                ("sampling", s),  # JSON
                ("seed", i64),
                ("judge_prompt_sha256", s),
                ("judge_engine", s),  # with its version
                # of text, image, composed: those that rank the target first among the corpus' images; null where that
                # was not measured
                ("found_by", strings),
                # the strictest licence of its images ('A AND B' where several are), and each image's own terms
                ("license_code", s),
                ("query_license", s),
                ("target_license", s),
                ("negative_licenses", strings),  # one per negative
                ("query_attribution", s),
                ("target_attribution", s),
                ("negative_attributions", strings),
            ]
        ),
        # A row for another task than composed retrieval, made of a triplet or an image (tasks/publish/further_rows.py).
        # A target or a negative of description_to_pair is two images, one after the other.
        "further_rows": pa.schema(
            [
                ("row_id", s),
                ("task", s),
                ("batch", s),
                ("source_id", s),  # triplet_id or image_id that it is made of
                ("instruction", s),  # of the task, the same on each of its rows
                ("query_text", s),  # '' where the query is images alone
                ("query_image_ids", strings),
                ("target_text", s),  # null where the target is images
                ("target_image_ids", strings),
                ("negative_texts", strings),
                ("negative_image_ids", strings),
                ("text_by", s),  # who wrote the texts: `source`, or a model
                ("license_code", s),  # the strictest licence of its images
                ("licenses", strings),  # one per image: of the query, then the target, then the negatives
                ("attributions", strings),
            ]
        ),
        # what was withdrawn after it was published; kind: image, pair or triplet (tasks/fingerprints/takedown.py)
        "withdrawn": pa.schema([("id", s), ("kind", s), ("withdrawn_on", s), ("batch", s), ("reason", s)]),
        "quarantine": pa.schema(
            [("table", s), ("batch", s), ("key", s), ("expectation", s), ("column", s), ("observed", s)]
        ),
    }


# Columns that versions before them lack; they are read as nulls there.
LATER_COLUMNS: dict[str, tuple[str, ...]] = {
    "images": (
        "source_fingerprint",
        "robots",
        "sharpness",
        "is_blurry",
        "is_near_empty",
        "has_extreme_ratio",
        "is_text_heavy",
        "license_stated",
    ),
    "captions": ("prompt_sha256",),
    "pairs": ("estimated_differences", "estimated_acceptance", "similarity_words"),
    "captioned": ("differences", "language", "requests", "engine", "sampling", "seed", "shared_concept"),
    "triplets": (
        "language",
        "engine",
        "sampling",
        "seed",
        "judge_prompt_sha256",
        "judge_engine",
        "found_by",
        "license_code",
        "query_license",
        "target_license",
        "negative_licenses",
        "query_attribution",
        "target_attribution",
        "negative_attributions",
    ),
}
