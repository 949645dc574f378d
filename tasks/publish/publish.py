"""Publishing: a version (or a promoted model) becomes visible to researchers whole, or not at all.

The published commit's tree is the deployed code plus the data product's own small files (card, version.json, dvc.lock,
.dvc files); its parents are the tip of `dataset` and the deployed commit. Under one lock: `dvc push`, ask the remote
for every object, compose on the newest tip, `git push --atomic` of branch and tag; when the tip moved meanwhile,
compose again on the new one. Decision: docs/decisions/0003-publishing.md. Also: how a deployment is laid out, and read
back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from tasks.errors import DataError, TransientError
from tasks.publish.dvc_repo import merged_lock, push_and_verify
from tasks.publish.git import common_dir, files_at, git, git_bytes, is_ancestor, publishing_lock, read_at, resolve_ref
from tasks.publish.published import BRANCH, REMOTE_BRANCH, version_at

# Files of the data product on its branch; all else there is the deployed code.
PRODUCT = ("README.md", "version.json", "manifest.json", "params.yaml", "dvc.lock", "reports/evaluation.json")
ATTEMPTS = 5


class Published(NamedTuple):
    """What a publication made."""

    tag: str
    commit: str
    objects: int  # DVC objects that the remote was asked for, a count


def is_product(path: str) -> bool:
    """Whether a path on the branch belongs to the data product (not to the deployed code)."""
    return path in PRODUCT or (path.endswith(".dvc") and path.startswith(("data/", "models/", "reports/")))


def merged_params(tip: bytes | None, ours: bytes, sections: Sequence[str]) -> bytes:
    """The tip's params.yaml with `sections` replaced by ours, so that dvc.lock and params.yaml of a commit agree."""
    own = yaml.safe_load(ours)
    if tip is None:
        return ours
    merged = yaml.safe_load(tip)
    for name, value in own.items():
        if name in sections or name not in merged:
            merged[name] = value
    return yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).encode()


def write_tree(cwd: Path, code: str, files: Mapping[str, bytes]) -> str:
    """A git tree: the files of commit `code` with `files` laid over. The work tree and its index stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git(cwd, "read-tree", code, index=index)
        lines = []
        for path, content in sorted(files.items()):
            blob = git(cwd, "hash-object", "-w", "--stdin", stdin=content)
            lines.append(f"100644 {blob}\t{path}")
        git(cwd, "update-index", "--index-info", stdin="\n".join(lines) + "\n", index=index)
        return git(cwd, "write-tree", index=index)


def compose(
    worktree: Path, files: Mapping[str, bytes], stages: Sequence[str], sections: Sequence[str], message: str
) -> str:
    """The commit to publish, on the newest tip of the branch.

    Args:
        files: the product's files that this run publishes, dvc.lock and params.yaml as the run has them.
        stages: entries of dvc.lock that this run made.
        sections: sections of params.yaml that this run used.
    """
    deployed = git(worktree, "rev-parse", "HEAD")
    tip = resolve_ref(worktree, REMOTE_BRANCH)
    product: dict[str, bytes] = {}
    if tip:
        product = {
            path: git_bytes(worktree, "cat-file", "blob", f"{tip}:{path}")
            for path in files_at(worktree, tip)
            if is_product(path)
        }
    merged = {**product, **files}
    merged["dvc.lock"] = merged_lock(product.get("dvc.lock"), files["dvc.lock"], stages)
    merged["params.yaml"] = merged_params(product.get("params.yaml"), files["params.yaml"], sections)
    tree = write_tree(worktree, deployed, merged)
    parents = [tip] if tip else [deployed]
    if tip and not is_ancestor(worktree, deployed, tip):
        parents.append(deployed)
    return git(worktree, "commit-tree", tree, *[a for p in parents for a in ("-p", p)], "-m", message)


def fetch(cwd: Path) -> None:
    """Make the clone's view of origin's branches and tags what origin holds, no more and no less."""
    git(cwd, "fetch", "-q", "--prune", "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")


def tag_object(cwd: Path, tag: str, commit: str, message: str) -> str:
    """An annotated tag as an object alone: the name exists nowhere until it is pushed, so a crash leaves no half-made
    version.
    """
    tagger = git(cwd, "var", "GIT_COMMITTER_IDENT")
    return git(cwd, "mktag", stdin=f"object {commit}\ntype commit\ntag {tag}\ntagger {tagger}\n\n{message}\n")


def publish(
    worktree: Path,
    *,
    tag: str,
    message: str,
    files: Mapping[str, bytes],
    stages: Sequence[str],
    sections: Sequence[str],
    parent: str | None = None,
    check_parent: bool = False,
) -> Published:
    """Push the worktree's data, verify it, then publish branch and tag in one step. Repeatable after a crash.

    Args:
        parent: version that this run's data continues; with `check_parent`, another one on the tip is refused.
    Raises:
        DataError: the tag exists with another content, or another version came in since the run opened.
        TransientError: the remote or origin cannot be reached, or lacks an object.
    """
    with publishing_lock(worktree):
        objects = push_and_verify(worktree)
        refusal: TransientError | None = None
        for _ in range(ATTEMPTS):
            fetch(worktree)
            there = resolve_ref(worktree, f"refs/tags/{tag}")
            if there:
                if all(
                    read_at(worktree, there, path) == content
                    for path, content in files.items()
                    if path not in ("dvc.lock", "params.yaml")
                ):
                    return Published(tag, there, objects)
                raise DataError(
                    f"{tag}: already published with another content; trigger a new run, it takes the next free name"
                )
            if check_parent:
                now = version_at(worktree, REMOTE_BRANCH)
                if (now or {}).get("version") != parent:
                    raise DataError(
                        f"origin: version {(now or {}).get('version')} came in since this run opened on {parent}; trigger a new run"
                    )
            commit = compose(worktree, files, stages, sections, message)
            named = tag_object(worktree, tag, commit, message)
            try:
                git(
                    worktree,
                    "push",
                    "-q",
                    "--atomic",
                    "origin",
                    f"{commit}:refs/heads/{BRANCH}",
                    f"{named}:refs/tags/{tag}",
                )
            except TransientError as error:
                refusal = error
                continue
            fetch(worktree)
            return Published(tag, commit, objects)
        raise TransientError(f"origin refused {tag} {ATTEMPTS} times; run again. Its last words: {refusal}")


# --- reading back ----------------------------------------------------------------------------------------------------


# --- a deployment ----------------------------------------------------------------------------------------------------


def close_run(worktree: Path, dataset: Path | None = None) -> None:
    """Remove a run's worktree after success. What it published lives in origin and the remote; nothing when it is gone
    already.
    """
    if not worktree.exists():
        return
    clone = dataset or common_dir(worktree).parent
    git(clone, "worktree", "remove", "--force", "--force", str(worktree.resolve()))
