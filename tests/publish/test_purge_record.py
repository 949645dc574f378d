"""A purge that is cut off, and one whose stages find nothing: what is done already counts, and no version is lost."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DataError
from tasks.fingerprints.takedown_list import parse_lines
from tasks.publish import purge
from tasks.publish.git import git
from tasks.publish.open_run import Deployment
from tasks.publish.purge_record import UnderWay, purged_objects
from tasks.publish.purge_scan import Holdings
from tasks.publish.takedown_run import Takedown

ENTRIES = parse_lines(["f" * 64], "letter")
OLD, NEWEST = "dataset/2026.11.01", "dataset/2026.11.08"


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """Two affected versions, of which the clone knows the names alone."""
    git(tmp_path, "init", "-q", "dataset")
    monkeypatch.setattr(purge, "version_at", lambda _, ref=None: {"version": NEWEST[8:], "date": "2026-11-08"})
    monkeypatch.setattr(purge, "tags", lambda *_: [OLD, NEWEST])
    monkeypatch.setattr(purge, "open_takedown", lambda *_, **__: Path())
    monkeypatch.setattr(purge, "planned_tag", lambda _: "dataset/planned")
    return Deployment(tmp_path / "dataset", tmp_path / "runs")


def replace(deployment: Deployment, under_way: UnderWay) -> None:
    holdings = Holdings(image_ids={"f" * 64}, files={OLD: {}, NEWEST: {}})
    purge._replace_versions(deployment, ENTRIES, holdings, under_way, retire=False, date="2026-11-15", run=lambda *_: 0)


def test_a_version_without_another_in_its_place_ends_the_purge(deployment: Deployment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(purge, "take_down", lambda *_, **__: Takedown(None, ()))
    under_way = UnderWay.read(deployment.clone, ENTRIES)
    with pytest.raises(DataError, match=f"purge: {OLD} holds the images, .* nothing was deleted"):
        replace(deployment, under_way)
    assert not under_way.replaced


def test_a_purge_that_is_given_again_does_what_is_missing(deployment: Deployment, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    key = UnderWay.read(deployment.clone, ENTRIES).key

    def take_down(_: Any, __: Any, run_id: str, **___: Any) -> Takedown:
        if len(made) == 1:
            made.append("cut off")
            raise KeyboardInterrupt
        made.append(run_id.replace(key, "KEY"))
        return Takedown(f"dataset/of {made[-1]}", ())

    monkeypatch.setattr(purge, "take_down", take_down)
    with pytest.raises(KeyboardInterrupt):
        replace(deployment, UnderWay.read(deployment.clone, ENTRIES))
    again = UnderWay.read(deployment.clone, ENTRIES)
    replace(deployment, again)
    ids = [f"purge KEY {OLD}", f"purge KEY {NEWEST} newest"]
    assert made == [ids[0], "cut off", ids[1]]
    assert again.replaced == {OLD: f"dataset/of {ids[0]}", NEWEST: f"dataset/of {ids[1]}"}
    other = UnderWay.read(deployment.clone, parse_lines(["e" * 64], "another"))
    assert other.replaced == {} and other.key != key, "the runs of another purge are others"


def test_an_object_of_a_version_that_stays_ends_the_purge(deployment: Deployment, monkeypatch: pytest.MonkeyPatch):
    class Files:
        def files_at(self, ref: str) -> dict[str, str]:
            return {"data/triplets/a.parquet": "ab12"} if ref.endswith(NEWEST) else {"data/triplets/a.parquet": "cd34"}

    monkeypatch.setattr(purge, "fetch", lambda _: None)
    monkeypatch.setattr(purge, "Objects", lambda _: Files())
    purge.require_unneeded(deployment.clone, {"ab12"}, [NEWEST])
    with pytest.raises(DataError, match=f"refs/tags/{NEWEST} holds 1 files .*a.parquet.*Nothing"):
        purge.require_unneeded(deployment.clone, {"ab12"}, [OLD])


def test_what_a_purge_is_about_to_delete_outlives_the_tags_that_named_it(deployment: Deployment):
    reply = deployment.clone / "reply.json"
    UnderWay.read(deployment.clone, ENTRIES).add(["ab12"], [reply], ["model/2026.11.09"], 1)
    UnderWay.read(deployment.clone, ENTRIES).add(["cd34"], [], [], 0)
    again = UnderWay.read(deployment.clone, ENTRIES)
    assert again.objects == ["ab12", "cd34"] and again.replies == [str(reply)] and again.images == 1
    assert purged_objects(deployment.clone) == {"ab12", "cd34"}, "neither purge nor gc takes them for lost"
    again.remove()
    assert purged_objects(deployment.clone) == set()
