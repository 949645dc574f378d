"""Renewed captions of images: the oldest first, in slices or at once, and the text encoder's vectors follow them."""

from pathlib import Path

import numpy as np
import pytest

from tasks.caption import recaption
from tasks.config import Params, RenewConfig, RenewRows
from tasks.embed import stage as embed
from tasks.publish.renew_run import forecast
from tasks.renewal.plan import read_plan
from tasks.store import Store
from tests.support.colour_pairs import with_caption
from tests.support.fake_llm import FakeLlm
from tests.support.toy_encoder import ToyEncoder, fill, params_for

WEEKS, NOW = ("2026.01.04", "2026.01.11"), "2026.01.18"
SHADES = ([10, 60, 110], [160, 210])


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "load_encoder", lambda *_: ToyEncoder())


def use(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """A captioner of this revision; `new` has nothing to say about shade 60, `old` nothing about 110."""

    def describe(request: object) -> str:
        shade = request.images[0].getpixel((0, 0))[0]  # type: ignore[attr-defined]
        return "" if shade == {"new": 60, "old": 110}[words] else f"{words} words about a shade of {shade}"

    model = FakeLlm(describe)  # type: ignore[arg-type]
    model.revision = words
    monkeypatch.setattr(recaption, "load_captioner", lambda _: model)


def run_week(store: Store, batch: str, renew: RenewRows | None = None) -> Params:
    for path in [p for p in store.folder(".run", "renew").rglob("*") if p.is_file()]:
        path.unlink()  # a run's own
    params = with_caption(params_for(batch), canaries=None)
    params = params.model_copy(
        update={
            "renew": RenewConfig.of(recaption=renew),
            "recaption": params.recaption.model_copy(update={"chunk_images": 2}),
        }
    )
    if not store.table_path("images", batch).exists():
        shades = SHADES[WEEKS.index(batch)] if batch in WEEKS else []
        fill(store, batch, shades, [None] * len(shades))
    store = Store(store.root)  # a run is a process of its own
    recaption.run(params, store)
    embed.run(params, store, "caption")
    return params


def weeks(monkeypatch: pytest.MonkeyPatch, root: Path, words: str) -> Store:
    store = Store(root)
    use(monkeypatch, words)
    for batch in WEEKS:
        run_week(store, batch)
    return store


def content(store: Store) -> tuple[dict[str, str], list[str], dict[str, list[float]]]:
    """Captions, what was rejected, and the vectors of captions."""
    ids, vectors, _ = store.read_embeddings("caption")
    rejected = sorted(store.read_dropped("recaption").column("key").to_pylist())
    return store.captions(), rejected, {i: v.tolist() for i, v in zip(ids, vectors, strict=True)}


def test_renewed_captions_and_their_vectors_are_those_of_a_fresh_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fresh = content(weeks(monkeypatch, tmp_path / "fresh", "new"))
    once = weeks(monkeypatch, tmp_path / "once", "old")
    use(monkeypatch, "new")
    run_week(once, NOW, RenewRows())
    assert content(once) == fresh and len(fresh[0]) == 4 and len(fresh[1]) == 1

    slices = weeks(monkeypatch, tmp_path / "slices", "old")
    use(monkeypatch, "new")
    for batch, renewed in ((NOW, 2), ("2026.01.25", 4), ("2026.02.01", 5)):
        run_week(slices, batch, RenewRows(budget=2))
        sources = slices.read_table("captions").column("caption_source").to_pylist()
        assert sum(s.endswith("@new") for s in sources) == renewed - 1  # one of them is rejected
    assert content(slices) == fresh


def test_a_dry_run_leaves_out_captions_that_the_source_gives_by_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A row of `captions` about such an image is no unit of the run's plan, and none of the dry run's."""
    store = weeks(monkeypatch, tmp_path, "old")
    path = store.table_path("images", WEEKS[0])
    [first, *others] = store.read(path, "images").to_pylist()
    store.write(path, [{**first, "caption": "its source's words"}, *others], "images")
    asked = params_for(NOW).model_copy(update={"renew": RenewConfig.of(recaption=RenewRows(budget=3))})
    said = forecast(asked, store)
    use(monkeypatch, "new")
    run_week(store, NOW, RenewRows(budget=3))
    plan = read_plan(store, "recaption")
    assert plan is not None and (len(plan.units), plan.left) == (3, 1)
    assert said == [f"recaption: 4 stale rows, 3 would be renewed, the oldest of {WEEKS[0]}"]


def test_a_killed_following_of_vectors_starts_from_the_old_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calm = weeks(monkeypatch, tmp_path / "calm", "old")
    store = weeks(monkeypatch, tmp_path / "killed", "old")
    use(monkeypatch, "new")
    run_week(calm, NOW, RenewRows())
    write = Store.write_bytes

    def write_until(self: Store, path: Path, data: bytes) -> None:
        if path.name == f"{WEEKS[0]}-00000.parquet" and path.parent.name == "caption":
            raise KeyboardInterrupt  # the vectors are written, their ids are not
        write(self, path, data)

    monkeypatch.setattr(Store, "write_bytes", write_until)
    with pytest.raises(KeyboardInterrupt):
        run_week(store, NOW, RenewRows())
    monkeypatch.setattr(Store, "write_bytes", write)
    params = params_for(NOW).model_copy(update={"renew": RenewConfig.of(recaption=RenewRows())})
    embed.run(params, store, "caption")
    assert content(store) == content(calm)
    folders = [s.folder("data", "embeddings", "caption") for s in (calm, store)]
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert files[0] == files[1] and all(np.load(p).dtype == np.float16 for p in folders[1].glob("*.npy"))
