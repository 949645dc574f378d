"""Renewal by hand: a run without sources makes old rows anew and publishes them; older versions stay as they are."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

import tasks.caption.models
import tasks.judge.stage
from tasks.config import overlay
from tasks.errors import ConfigError
from tasks.models.llm.requests import Request
from tasks.publish.open_run import Deployment
from tasks.publish.published import version_at
from tasks.publish.renew_run import Renewal, check_wish, renew, run_values
from tasks.store import Store
from tests.support.colour_pairs import paint
from tests.support.fake_llm import FakeLlm
from tests.support.fake_run import image, publish_version
from tests.support.takedowns import clone_of, run_here

pytestmark = pytest.mark.slow
PIXELS = {Image.open(io.BytesIO(image(n))).convert("RGB").tobytes(): n for n in range(8)}
EARLY = "made_before=2026-11-20"
NO_CHECKS = {"caption": {"canaries": None, "instructions_min": 1}, "judge": {"labelled": None, "calibration": None}}


def judge() -> FakeLlm:
    """Accepts the image after the query's, but for the last one."""

    def yes(request: Request) -> float:
        query, candidate = (PIXELS[i.tobytes()] for i in request.images)  # type: ignore[attr-defined]
        return 0.95 if candidate == query + 1 and query != 3 else 0.05

    return FakeLlm(yes=yes)


@pytest.fixture(scope="module")
def before(deployment: Path) -> Path:
    """A deployment with one version of another captioner, writer and judge: pairs 0-1 to 5-6, all but one accepted."""
    publish_version(deployment, "one", "2026-11-16", range(8))
    return deployment


def deployment_at(root: Path) -> Deployment:
    return Deployment(root / "dataset", root / "runs")


def renew_here(
    root: Path, run_id: str, stage: str, budget: int | None, date: str, *, where: str = EARLY, is_dry: bool = False
) -> Renewal:
    values = {**run_values(stage, check_wish(stage, where, budget)), "date": date}
    values = overlay(values, NO_CHECKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.caption.models, "load_captioner", lambda _: FakeLlm(lambda _: "another colour is on it"))
        patch.setattr(tasks.caption.models, "load_writer", lambda _: FakeLlm(paint))
        patch.setattr(tasks.judge.stage, "load_judge", lambda *_: judge())
        # the fake run's vectors are no CLIP's
        patch.setattr(tasks.judge.stage.ShortcutDetector, "find", lambda _, triplets: [None] * len(triplets))
        return renew(deployment_at(root), run_id, values, is_dry=is_dry, run=run_here)


def test_a_dry_run_counts_and_changes_nothing(before: Path):
    done = renew_here(before, "dry", "caption", 4, "2026-11-23", is_dry=True)
    assert done.version is None
    assert done.notes == ("caption: 6 stale rows, 4 would be renewed, the oldest of 2026.11.16",)
    assert version_at(before / "dataset")["version"] == "2026.11.16"  # type: ignore[index]


def test_a_renewal_is_a_version_that_counts_what_changed(before: Path, tmp_path: Path):
    done = renew_here(before, "first", "caption", 4, "2026-11-23")
    assert done.version == "dataset/2026.11.23"
    clone = Store(clone_of(before, tmp_path / "new", done.version))
    old = Store(clone_of(before, tmp_path / "old", "dataset/2026.11.16"))
    captioned = {row["pair_id"]: row for row in clone.read_table("captioned").to_pylist()}
    assert sorted(row["captioner"] for row in captioned.values()) == ["fake"] * 4 + ["fake/vlm"] * 2
    assert {row["captioner"] for row in old.read_table("captioned").to_pylist()} == {"fake/vlm"}
    record = json.loads((clone.root / "version.json").read_text())
    assert record["renewed"] == {"caption": 4}
    assert (record["stale"]["caption"]["stale"], record["stale"]["caption"]["oldest"]) == (2, "2026.11.16")
    assert record["rows"]["images"] == 8 and record["new_rows"]["captioned"] == 4
    card = (clone.root / "README.md").read_text()
    assert "| descriptions and instructions | 6 | 2 | 2026.11.16 | 4 |" in card
    exported = {p.stem: Store(clone.root).read_table("triplets", batch=p.stem).num_rows
                for p in (clone.root / "data" / "export").glob("*.parquet")}  # fmt: skip
    assert exported == {b: clone.read_table("triplets", ["pair_id"], b).num_rows for b in exported}
    rejected = [r for r in clone.read_dropped("judge", "2026.11.23").to_pylist() if r["reason"] != "renewed"]
    gone = [r for r in clone.read_dropped("judge", "2026.11.23").to_pylist() if r["reason"] == "renewed"]
    published = {r["triplet_id"] for r in old.read_table("triplets").to_pylist()}
    now = {r["triplet_id"] for r in clone.read_table("triplets").to_pylist()}
    assert {r["key"] for r in gone} == published - now and len(rejected) <= 1


def test_what_is_not_stale_makes_no_version_and_an_unclear_wish_no_run(before: Path):
    done = renew_here(before, "second", "judge", None, "2026-11-30", where="made_before=2026-11-01")
    assert done.version is None and done.notes[0].startswith("renewal of judge: 0 rows")
    with pytest.raises(ConfigError, match="--where: unknown condition 'colour'"):
        check_wish("caption", "colour=red", None)
    with pytest.raises(ConfigError, match="--budget: found 0"):
        check_wish("judge", "", 0)
