"""A purge that is killed at any of its steps and given again ends as one that nobody disturbed."""

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.fingerprints.takedown_list import parse_lines
from tasks.publish import purge, purge_record, purge_texts
from tasks.publish.git import git, next_free_name, tags
from tasks.publish.open_run import Deployment
from tasks.publish.purge_scan import Holdings
from tasks.publish.takedown_run import Takedown
from tasks.reviews.answers import Review, Reviews
from tasks.reviews.searches import FEEDBACK

IMAGE, OTHER = "a" * 64, "b" * 64
ENTRIES = parse_lines([IMAGE], "letter")
OLD, NEWEST, MODEL = "dataset/2026.11.01", "dataset/2026.11.08", "model/2026.11.09"


class Killed(BaseException):
    """In place of a SIGKILL."""


def commit_version(clone: Path, tag: str, held: str, on_branch: bool = True) -> None:
    """Publish a commit that says which image it holds, as a version or a model."""
    if tag.startswith("dataset/"):
        (clone / "version.json").write_text(json.dumps({"version": tag[8:], "date": "2026-11-08"}))
    (clone / "held").write_text(held)
    (clone / "models").mkdir(exist_ok=True)
    (clone / "models" / "promoted.dvc").write_text(f"outs: []  # card of {tag if tag.startswith('model/') else MODEL}")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "--allow-empty", "-m", tag)
    git(clone, "tag", tag)
    git(clone, "push", "-q", "origin", tag, *(["HEAD:refs/heads/dataset"] if on_branch else []))
    git(clone, "fetch", "-q", "origin")
    if not on_branch:
        git(clone, "reset", "-q", "--hard", "HEAD~1")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two affected versions and a model; the repository's files stand for DVC's."""
    root = tmp_path_factory.mktemp("template")
    git(root, "init", "-q", "--bare", "origin.git")
    git(root, "init", "-q", "dataset")
    git(root / "dataset", "remote", "add", "origin", "../origin.git")
    for tag in (OLD, NEWEST, MODEL):
        commit_version(root / "dataset", tag, IMAGE)
    for n, query in enumerate((IMAGE, OTHER)):
        Reviews(root / "dataset").add(Review("", "ann", "v", f"t{n}", "in blue", query, OTHER, "wrong"))
    for name in ("ab12", "cd34"):
        (root / "objects" / name).parent.mkdir(exist_ok=True)
        (root / "objects" / name).write_text("pixels")
    feedback = root / "studio" / ".run" / FEEDBACK
    feedback.parent.mkdir(parents=True)
    feedback.write_text("".join(json.dumps({"query_image": i, "should_be_first": i}) + "\n" for i in (IMAGE, OTHER)))
    return root


class World:
    """A deployment without stages and DVC: what a purge does to it, and the step at which it is killed."""

    def __init__(self, root: Path, kill_at: int | None = None) -> None:
        self.root, self.clone = root, root / "dataset"
        self.here, self.kill_at = Deployment(self.clone, root / "runs"), kill_at
        self.steps = itertools.count()

    def step(self) -> None:
        """A moment at which the process may be killed."""
        if next(self.steps) == self.kill_at:
            raise Killed

    def held(self, ref: str) -> str:
        return git(self.clone, "show", f"{ref}:held")

    def find(self) -> Holdings:
        """As a scan would find it: what is deleted, or about to be, is not looked at."""
        git(self.clone, "fetch", "-q", "--prune", "origin", "+refs/tags/*:refs/tags/*")
        gone = purge_record.purged_objects(self.clone)
        names = {f"data/{n}": n for n in ("ab12", "cd34") if n not in gone}
        known = [*tags(self.clone, "dataset"), *tags(self.clone, "model")]
        files = {tag: names for tag in known if names and self.held(f"refs/tags/{tag}") == IMAGE}
        models = [tag for tag in files if tag.startswith("model/")]
        return Holdings({IMAGE} if files else set(), set(), files, [], models)

    def open_takedown(self, _: Any, __: Any, run_id: str, *, rewrite: Any = None, date: str = "") -> Path:
        folder = self.here.worktree(run_id)
        if not folder.exists():
            name = rewrite.name if rewrite else next_free_name(tags(self.clone, "dataset"), date)
            folder.mkdir(parents=True)
            (folder / "tag").write_text(f"dataset/{name}")
        self.step()
        return folder

    def take_down(self, *arguments: Any, rewrite: Any = None, run: Any = None, **more: Any) -> Takedown:
        folder = self.open_takedown(*arguments, rewrite=rewrite, **more)
        tag = (folder / "tag").read_text()
        if tag not in tags(self.clone, "dataset"):
            commit_version(self.clone, tag, "", on_branch=rewrite is None)
        self.step()
        shutil.rmtree(folder)
        self.step()
        return Takedown(tag, ())

    def publish_marked_card(self, _: Any, tag: str, sentence: str, day: str, under_way: purge_record.UnderWay) -> None:
        name = f"model/{next_free_name(tags(self.clone, 'model'), day)}"
        under_way.mark(name)
        commit_version(self.clone, name, IMAGE)
        self.step()

    @contextmanager
    def stores(self, _: Path) -> Iterator[dict[str, Any]]:
        world = self

        class Store:
            """A folder of objects."""

            @property
            def fs(self) -> Any:
                return self

            def oid_to_path(self, name: str) -> Path:
                return world.root / "objects" / name

            def exists(self, path: Path) -> bool:
                return path.exists()

            def delete(self, name: str) -> None:
                (world.root / "objects" / name).unlink()
                world.step()

        yield {"remote": Store()}

    def purge(self) -> None:
        """Purge, with every write and every push a step."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(purge, "open_takedown", self.open_takedown)
            patch.setattr(purge, "planned_tag", lambda folder: (folder / "tag").read_text())
            patch.setattr(purge, "take_down", self.take_down)
            patch.setattr(purge, "publish_marked_card", self.publish_marked_card)
            patch.setattr(purge, "_object_stores", self.stores)
            patch.setattr(purge, "close_run", lambda folder, _: shutil.rmtree(folder, ignore_errors=True))
            for module, name in ((purge_record, "write_bytes"), (purge_texts, "write_bytes"), (purge, "git")):
                patch.setattr(module, name, self.with_steps(getattr(module, name)))
            holdings = self.find()
            if holdings.image_ids or purge_record.UnderWay.read(self.clone, ENTRIES).images:
                purge.purge(self.here, ENTRIES, holdings, retire=False, date="2026-11-15")

    def with_steps(self, original: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            result = original(*arguments, **more)
            self.step()
            return result

        return call

    def state(self) -> dict[str, Any]:
        """All that is left, but for hashes and times."""
        listed = git(self.root / "origin.git", "tag", "--list").split()
        record = [json.loads(line) for line in (self.root / "purges.jsonl").read_text().splitlines()]
        return {
            "tags": listed,
            "messages": {tag: git(self.root / "origin.git", "log", "-1", "--format=%s", tag) for tag in listed},
            "branch": git(self.root / "origin.git", "log", "--format=%s", "dataset").split("\n"),
            "notes": git(self.root / "origin.git", "notes", "--ref=refs/notes/purge", "list").count("\n") + 1,
            "note": git(self.root / "origin.git", "notes", "--ref=refs/notes/purge", "show", f"{MODEL}^{{commit}}"),
            "record": [{k: v for k, v in row.items() if k not in ("purged_at", "purge")} for row in record],
            "files": sorted(p.name for p in self.root.glob("*") if not p.name.endswith(".lock")),
            "objects": sorted(p.name for p in (self.root / "objects").glob("*")),
            "runs": sorted(p.name for p in (self.root / "runs").glob("*")),
            "reviews": (self.root / "reviews.jsonl").read_text(),
            "feedback": (self.root / "studio" / ".run" / FEEDBACK).read_text(),
        }


def copy_of(template: Path, to: Path) -> Path:
    shutil.copytree(template, to)
    git(to / "dataset", "remote", "set-url", "origin", str(to / "origin.git"))
    return to


@pytest.mark.slow
def test_killed_at_any_step_and_given_again_it_ends_as_undisturbed(template: Path, tmp_path: Path):
    whole = World(copy_of(template, tmp_path / "whole"))
    whole.purge()
    wanted = whole.state()
    assert wanted["tags"] == ["dataset/2026.11.08.2", "dataset/2026.11.15", MODEL, "model/2026.11.15"]
    assert (wanted["objects"], wanted["runs"], wanted["notes"]) == ([], [], 1)
    [record] = wanted["record"]
    assert record["versions"] == {OLD: "dataset/2026.11.08.2", NEWEST: "dataset/2026.11.15"}
    assert (record["texts"], record["deleted_from"], record["models"]) == (2, {"remote": 2}, [MODEL])
    assert IMAGE not in wanted["reviews"] + wanted["feedback"] and OTHER in wanted["reviews"]
    count = next(whole.steps)
    assert count > 20
    for moment in range(count):
        root = copy_of(template, tmp_path / f"{moment}")
        with pytest.raises(Killed):
            World(root, moment).purge()
        World(root).purge()
        assert World(root).state() == wanted, moment
        shutil.rmtree(root)
