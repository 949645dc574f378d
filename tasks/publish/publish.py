"""Publish a version or a promoted model: it becomes visible to researchers whole, or not at all.

The published commit's tree is the deployed code plus the data product's small files (card, version.json, dvc.lock,
.dvc files), without what is private (tasks/publish/redaction.py). Its parent is the tip of branch `dataset` alone, so
that a clone of the branch brings the versions and not the code's history. Under one lock: `dvc push`, ask the remote
for every object, compose the commit on the newest tip, `git push --atomic` of branch and tag. When the tip moved
meanwhile, compose again on the new one. Decisions: docs/decisions/0003-publishing.md, 0110.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import yaml

from tasks.config import is_profile
from tasks.errors import DataError, TransientError
from tasks.publish.branch_files import CODE_TRAILER, peoples_files
from tasks.publish.dvc_repo import merge_locks, push_and_verify
from tasks.publish.git import files_at, git, git_bytes, publishing_lock, read_at, resolve_ref
from tasks.publish.graph import without_unlocked_outputs
from tasks.publish.published import BRANCH, REMOTE_BRANCH, version_at
from tasks.publish.redaction import DVC_CONFIG, published_code, published_files, run_private_texts
from tasks.publish.remote import require_version

# Files of the data product on its branch; all else there is the deployed code.
PRODUCT = (
    "README.md",
    "CHANGELOG-DATA.md",
    "croissant.json",
    "version.json",
    "manifest.json",
    "params.yaml",
    "dvc.lock",
    "reports/evaluation.json",
    "reports/quality.json",
)
GRAPH = "dvc.yaml"
MERGED = ("dvc.lock", "params.yaml")  # of these, only the entries of the run's own stages and sections are published
ATTEMPTS = 5


@dataclass(frozen=True)
class Publication:
    """What a run publishes under one tag.

    Attributes:
        tag: its name, for example ``dataset/2026.11.24``.
        message: of the commit and of the tag.
        files: path -> content of the product's small files; `dvc.lock` and `params.yaml` as the run has them.
        stages: entries of dvc.lock that this run made.
        sections: sections of params.yaml that this run used.
        parent: version that this run's data continues; None for the first one.
        removed: files of the product on the branch's tip that this version no longer has.
        base: commit to compose on in place of the branch's tip; the tag alone is published then, the branch stays.
        is_parent_required: refuse to publish when the branch's tip holds a version other than `parent`.
    """

    tag: str
    message: str
    files: Mapping[str, bytes]
    stages: Sequence[str] = ()
    sections: Sequence[str] = ()
    parent: str | None = None
    is_parent_required: bool = False
    removed: Sequence[str] = ()
    base: str | None = None


class Published(NamedTuple):
    """What a publication made."""

    tag: str
    commit: str
    objects: int  # DVC objects verified in the remote, a count


def is_product(path: str) -> bool:
    """Whether a path on the branch belongs to the data product (not to the deployed code)."""
    return path in PRODUCT or (path.endswith(".dvc") and path.startswith(("data/", "models/", "reports/")))


def merge_params(tip: bytes | None, ours: bytes, sections: Sequence[str]) -> bytes:
    """The tip's params.yaml with `sections` replaced by ours, so that dvc.lock and params.yaml of a commit agree."""
    if tip is None:
        return ours
    merged = yaml.safe_load(tip)
    for name, value in yaml.safe_load(ours).items():
        if name in sections or name not in merged:
            merged[name] = value
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()


def write_tree(cwd: Path, code: str, files: Mapping[str, bytes], entries: Sequence[str] = ()) -> str:
    """A git tree: the files of commit `code` with `files` laid over. The work tree and its index stay as they are.

    Args:
        entries: further files, as `git ls-tree` prints them.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git(cwd, "read-tree", code, index=index)
        lines = list(entries)
        for path, content in sorted(files.items()):
            blob = git(cwd, "hash-object", "-w", "--stdin", stdin=content)
            lines.append(f"100644 {blob}\t{path}")
        git(cwd, "update-index", "-z", "--index-info", stdin="".join(f"{line}\0" for line in lines), index=index)
        return git(cwd, "write-tree", index=index)


def compose_commit(worktree: Path, publication: Publication) -> str:
    """Make the commit to publish, on the newest tip of the branch; nothing names it yet.

    Raises:
        DataError: people changed files on the branch that it would overwrite.
    """
    deployed = git(worktree, "rev-parse", "HEAD")
    tip = publication.base or resolve_ref(worktree, REMOTE_BRANCH)
    product: dict[str, bytes] = {}
    if tip:
        paths = [path for path in files_at(worktree, tip) if is_product(path) and path not in publication.removed]
        product = {path: git_bytes(worktree, "cat-file", "blob", f"{tip}:{path}") for path in paths}
    files = publication.files
    merged = {
        **product,
        **files,
        "dvc.lock": merge_locks(product.get("dvc.lock"), files["dvc.lock"], publication.stages),
        "params.yaml": merge_params(product.get("params.yaml"), files["params.yaml"], publication.sections),
    }
    code = {
        path: git_bytes(worktree, "cat-file", "blob", f"{deployed}:{path}")
        for path in files_at(worktree, deployed)
        if path == DVC_CONFIG or is_profile(path)
    }
    graph_yaml = read_at(worktree, deployed, GRAPH)
    graph = {GRAPH: without_unlocked_outputs(graph_yaml, merged["dvc.lock"])} if graph_yaml else {}
    entries = peoples_files(worktree, tip, deployed, is_product) if tip else []
    tree = write_tree(
        worktree, deployed, {**published_code(code, os.environ), **graph, **published_files(merged)}, entries
    )
    parents = ["-p", tip] if tip else []
    message = f"{publication.message}\n\n{CODE_TRAILER}: {deployed}"
    return git(worktree, "commit-tree", tree, *parents, "-m", message)


def fetch(cwd: Path) -> None:
    """Make the clone's view of origin's branches and tags equal to origin's."""
    git(cwd, "fetch", "-q", "--prune", "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")


def make_tag_object(cwd: Path, tag: str, commit: str, message: str) -> str:
    """Make an annotated tag as an object alone; returns its id.

    The name exists nowhere until it is pushed, so a crash leaves no half-made version.
    """
    tagger = git(cwd, "var", "GIT_COMMITTER_IDENT")
    return git(cwd, "mktag", stdin=f"object {commit}\ntype commit\ntag {tag}\ntagger {tagger}\n\n{message}\n")


def published_before(worktree: Path, publication: Publication) -> str | None:
    """The commit that an earlier try of this run published under the tag; None when the tag is free.

    Raises:
        DataError: the tag has another content.
    """
    commit = resolve_ref(worktree, f"refs/tags/{publication.tag}")
    if commit is None:
        return None
    unmerged = {path: content for path, content in publication.files.items() if path not in MERGED}
    if all(read_at(worktree, commit, path) == content for path, content in unmerged.items()):
        return commit
    raise DataError(
        f"{publication.tag}: already published with another content; trigger a new run, it takes the next free name"
    )


def require_parent(worktree: Path, publication: Publication) -> None:
    """Raise DataError when another version was published since the run opened."""
    newest = (version_at(worktree, REMOTE_BRANCH) or {}).get("version")
    if newest != publication.parent:
        raise DataError(
            f"origin: version {newest} came in since this run opened on {publication.parent}; trigger a new run"
        )


def publish(worktree: Path, publication: Publication) -> Published:
    """Push the worktree's data, verify it, then publish branch and tag in one step. Repeatable after a crash.

    Raises:
        DataError: the tag exists with another content, another version came in since the run opened, or the remote
            lost objects of the version that it continues.
        TransientError: the remote or origin cannot be reached, or lacks an object.
        ConfigError: MEGAPAIRS_PUBLIC_REMOTE is no address.
    """
    tag = publication.tag
    unmerged = {path: content for path, content in publication.files.items() if path not in MERGED}
    shown = published_files(unmerged, run_private_texts(worktree))
    publication = replace(publication, files={**publication.files, **shown})
    with publishing_lock(worktree):
        if publication.is_parent_required and publication.parent:
            require_version(worktree, f"dataset/{publication.parent}")
        objects = push_and_verify(worktree)
        refusal: TransientError | None = None
        for _ in range(ATTEMPTS):
            fetch(worktree)
            if earlier := published_before(worktree, publication):
                return Published(tag, earlier, objects)
            if publication.is_parent_required:
                require_parent(worktree, publication)
            commit = compose_commit(worktree, publication)
            tag_object = make_tag_object(worktree, tag, commit, publication.message)
            branch = [] if publication.base else [f"{commit}:refs/heads/{BRANCH}"]
            refs = [*branch, f"{tag_object}:refs/tags/{tag}"]
            try:
                git(worktree, "push", "-q", "--atomic", "origin", *refs)
            except TransientError as error:
                refusal = error
                continue
            fetch(worktree)
            return Published(tag, commit, objects)
        raise TransientError(f"origin refused {tag} {ATTEMPTS} times; run again. Its last words: {refusal}")
