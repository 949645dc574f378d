"""A store with two weeks made by one set of models, and other models that make its rows anew."""

from pathlib import Path
from typing import Any

import pytest

from tasks.caption.stage import run as run_caption
from tasks.config import Params, RenewConfig, RenewRows
from tasks.judge.stage import run as run_judge
from tasks.models.llm.requests import Request
from tasks.store import Store
from tests.support.colour_pairs import BATCH, PAIRS, by_colours, paint, use_models, with_batch, write_colour_store
from tests.support.fake_llm import FakeLlm

SECOND, NOW = "2026.01.12", "2026.01.19"
TOO_DIFFERENT = ("green", "white")  # whose pair the new captioner rejects


def model(words: str, revision: str) -> FakeLlm:
    """A writer whose texts begin with `words`."""
    fake = FakeLlm(lambda request: f"{words} {paint(request)}")
    fake.revision = revision
    return fake


def captioner(revision: str) -> FakeLlm:
    """A captioner; of revision `new` it rejects every image of green and white together."""

    def describe(request: Request) -> str:
        colours = [image.getpixel((0, 0)) for image in request.images]
        is_rejected = revision == "new" and colours == [(0, 128, 0), (255, 255, 255)]
        return "" if is_rejected else f"the wall got another colour, says {revision}"

    fake = FakeLlm(describe)
    fake.revision = revision
    return fake


def judge(revision: str) -> FakeLlm:
    """A judge; of revision `strict` it rejects what leads to black; `all` also accepts reversed pairs."""

    def yes(query: str, candidate: str, text: str) -> float:
        is_pair = (query, candidate) in PAIRS or (revision == "all" and (candidate, query) in PAIRS)
        if not is_pair:
            return 0.1
        return 0.2 if revision == "strict" and candidate == "black" else 0.9

    fake = by_colours(yes)
    fake.revision = revision
    return fake


def models(monkeypatch: pytest.MonkeyPatch, texts: str = "old", judging: str = "old") -> None:
    """The models of now: captioner and writer of revision `texts`, a judge of revision `judging`."""
    use_models(monkeypatch, captioner(texts), model(texts, texts), judge(judging))


def write_weeks(root: Path) -> Store:
    """The colour store with its pairs in two weeks: p0 to p2, then p3 and p4."""
    store = write_colour_store(root)
    pairs = store.read_table("pairs").to_pylist()
    store.write(store.table_path("pairs", BATCH), pairs[:3], "pairs")
    store.write(store.table_path("pairs", SECOND), [{**p, "batch": SECOND} for p in pairs[3:]], "pairs")
    return store


def make_weeks(monkeypatch: pytest.MonkeyPatch, root: Path, params: Params, **of: str) -> Store:
    """Both weeks, captioned and judged by `models(**of)`."""
    store = write_weeks(root)
    models(monkeypatch, **of)
    for batch in (BATCH, SECOND):
        run_caption(with_batch(params, batch), store)
        run_judge(with_batch(params, batch), store)
    return store


def renew(store: Store, params: Params, batch: str = NOW, parts: int = 1, **stages: dict[str, Any]) -> None:
    """One week without new pairs that renews what `stages` (stage -> where, budget) say."""
    for folder in ("renew", "makers"):  # a run's own
        for path in store.folder(".run", folder).glob("*.json"):
            path.unlink()
    config = RenewConfig.of(**{stage: RenewRows(**rows) for stage, rows in stages.items()})
    run_params = with_batch(params, batch).model_copy(update={"renew": config})
    if not store.table_path("pairs", batch).exists():
        store.write(store.table_path("pairs", batch), [], "pairs")
    for part in range(1, parts + 1):
        run_caption(run_params, store, (part, parts))
        run_judge(run_params, store, (part, parts))


def content(store: Store, *tables: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of tables by pair, without what says when and at what cost they were made.

    `batch` is left out: it says which run made a row, and a renewal is another run than that of a fresh build, by
    definition. It has a law of its own (`batches`): the run that renewed a row, else the run that made it first.
    """
    out = {}
    for table in tables:
        rows = store.read_dropped(table.partition("/")[2]) if table.startswith("dropped/") else store.read_table(table)
        kept = [{k: v for k, v in row.items() if k != "batch"} for row in rows.to_pylist()]
        out[table] = sorted((row for row in kept if row.get("reason") != "renewed"), key=str)
    return out


def batches(store: Store) -> dict[str, set[str]]:
    """Pair id -> batches of its captioned, judged and rejected rows; those of reason `renewed` are of old triplets."""
    rows = [row for table in ("captioned", "triplets") for row in store.read_table(table).to_pylist()]
    rejected = [row for stage in ("caption", "judge") for row in store.read_dropped(stage).to_pylist()]
    rows += [{**row, "pair_id": row["key"].partition(":")[0]} for row in rejected if row["reason"] != "renewed"]
    out: dict[str, set[str]] = {}
    for row in rows:
        out.setdefault(row["pair_id"], set()).add(row["batch"])
    return out
