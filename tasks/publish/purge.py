"""Delete images from what is already published, for legal reasons. Without --yes it only says what holds them.

    python -m tasks purge ENTRY ... [--list FILE]             which tags, objects, caches, replies and models hold them
    python -m tasks purge ENTRY ... --yes [--reason CODE]     rewrite the affected versions, delete the rest
    python -m tasks purge ENTRY ... --yes --retire            delete the affected versions without a replacement

An ENTRY is a line of a takedown list (tasks/fingerprints/takedown_list.py). With --yes, in this order:

1. the newest version is taken down from, as `python -m tasks takedown` does; every other affected one is rewritten as
   `dataset/<version>.<n>`, on its own data, with the same stages, encoders and windows;
2. the affected tags are deleted in origin;
3. the objects that hold the images are deleted from the DVC remote and the cache, the replies about them from the
   request cache, and what people wrote about them (tasks/publish/purge_texts.py);
4. each model that was trained on them gets a note (`git notes --ref=purge`), and the promoted one a sentence in its
   card, published under the next name of the day;
5. purges.jsonl beside the clone records what was done, without the images.

Tags that hold none of the images stay and pull as before. Models' own weights are not changed: train anew. What others
have cloned is out of reach: `data/withdrawn` of the newest version tells them. Deletion comes last, and
nothing is deleted while an affected version has no other in its place. What is done so far stands in a file beside the
clone (tasks/publish/purge_record.py): killed on its way, the same command does what is missing.
"""

from __future__ import annotations

import argparse
import datetime
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.config import Params, parse_params, resolve
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown import match_limits
from tasks.fingerprints.takedown_list import Entry, TakedownList
from tasks.models.llm.request_cache import cache_folder
from tasks.publish.dvc_repo import commit_outputs, dvc_repo
from tasks.publish.git import common_dir, git, next_free_name, read_at, resolve_ref, tags, version_key
from tasks.publish.objects import Objects
from tasks.publish.open_run import Deployment, RunRequest, close_run, open_run, read_deployed_params
from tasks.publish.publish import Publication, fetch, publish
from tasks.publish.published import REMOTE_BRANCH, version_at
from tasks.publish.purge_record import UnderWay, add_record
from tasks.publish.purge_scan import Holdings, scan
from tasks.publish.purge_texts import count_texts, remove_texts
from tasks.publish.snapshots import fetched_path
from tasks.publish.takedown_list import add_to_list
from tasks.publish.takedown_run import (
    Rewrite,
    Runner,
    add_entry_arguments,
    gather_entries,
    open_takedown,
    planned_tag,
    require_no_run,
    run_process,
    take_down,
)
from tasks.reviews.searches import feedback_files
from tasks.store.atomic import write_bytes

NOTES_REF = "refs/notes/purge"
CARD_HEADING = "## Images withdrawn after training"


@dataclass(frozen=True)
class Purged:
    """What a purge did.

    Attributes:
        replaced: tag of an affected version -> the version in its place; None for none.
        objects: deleted objects.
        replies: deleted replies of models, a count.
        texts: deleted lines of people, a count.
        models: affected models, tags.
        record: the purge's record.
    """

    replaced: Mapping[str, str | None]
    objects: tuple[str, ...]
    replies: int
    texts: int
    models: tuple[str, ...]
    record: Path


def deployed_params(deployment: Deployment) -> Params:
    """The parameters of the deployed commit.

    Raises:
        ConfigError: there is no such commit, or they are wrong.
    """
    commit = resolve_ref(deployment.clone, deployment.deployed)
    if commit is None:
        raise ConfigError(f"MEGAPAIRS_DEPLOYED: {deployment.clone} has no commit {deployment.deployed!r}")
    raw = read_deployed_params(deployment.clone, commit)
    return parse_params(resolve(raw, raw.get("profile")), where=f"params.yaml at {deployment.deployed}")


def find_holdings(deployment: Deployment, entries: Sequence[Entry]) -> Holdings:
    """What of all that is published, cached and trained holds the images that the entries name."""
    fetch(deployment.clone)
    params = deployed_params(deployment)
    takedown = TakedownList(entries, {source.name: source.path for source in params.ingest.sources})
    return scan(Objects(deployment.clone), takedown, match_limits(params), cache_folder(deployment.clone))


def describe(holdings: Holdings, objects: Objects, texts: int = 0) -> list[str]:
    """What holds the images, a line each.

    Args:
        holdings: of `find_holdings`.
        objects: of the clone.
        texts: lines of people that name one of them, a count.
    """
    lines = [f"{len(holdings.image_ids)} images: {', '.join(sorted(holdings.image_ids))}"]
    for tag, files in holdings.files.items():
        lines.append(f"{tag}: {len(files)} files")
        lines += [f"  {path}  object {name}" for path, name in sorted(files.items())]
    cached = sum(objects.path(name).exists() for name in holdings.objects)
    lines.append(f"objects: {len(holdings.objects)} in the remote, {cached} of them in the cache")
    lines.append(f"replies of models about them: {len(holdings.replies)}")
    lines += [f"  {path}" for path in holdings.replies]
    lines.append(f"lines that people wrote about them: {texts}")
    lines.append(f"models trained on them: {', '.join(holdings.models) or 'none'}")
    if holdings.unknown_models:
        lines.append(
            f"models whose training set was purged before, so that it cannot be looked at: "
            f"{', '.join(holdings.unknown_models)}"
        )
    return lines


def purge(
    deployment: Deployment,
    entries: Sequence[Entry],
    holdings: Holdings,
    *,
    retire: bool,
    date: str,
    run: Runner = run_process,
    feedback: Sequence[Path] = (),
) -> Purged:
    """Delete the images; see the module's docstring.

    Args:
        deployment: where.
        entries: what names the images.
        holdings: of `find_holdings`.
        retire: delete affected versions without rewriting them; the newest one is taken down from in any case.
        date: of what is published, ISO.
        run: runs a command line of a run.
        feedback: files of answers to composed search beside those that are found.
    """
    clone = deployment.clone
    add_to_list(deployment.takedown_list, entries)
    under_way = UnderWay.read(clone, entries)
    under_way.start(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    _replace_versions(deployment, entries, holdings, under_way, retire=retire, date=date, run=run)
    require_unneeded(clone, holdings.objects, under_way.replaced)
    mark_models(deployment, holdings, date, under_way)
    files = feedback_files(clone, feedback)
    under_way.count_texts(count_texts(clone, files, holdings.image_ids))
    remove_texts(clone, files, holdings.image_ids)
    under_way.add(
        holdings.objects,
        holdings.replies,
        [tag for tag in holdings.models if tag != under_way.marked],
        len(holdings.image_ids),
        _count_present(clone, sorted(holdings.objects)),
    )
    if present := sorted(set(under_way.replaced) & set(tags(clone, "dataset"))):
        git(clone, "push", "-q", "--atomic", "origin", *(f":refs/tags/{tag}" for tag in present))
        fetch(clone)
    names = tuple(sorted(under_way.objects))
    _delete_objects(clone, names)
    for reply in under_way.replies:
        Path(reply).unlink(missing_ok=True)
    models = sorted(under_way.models)
    record = {
        "purge": f"{under_way.key} {under_way.begun_at}",
        "purged_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "reasons": sorted({entry.reason for entry in entries}),
        "images": under_way.images,
        "versions": under_way.replaced,
        "objects": list(names),
        "deleted_from": under_way.present,
        "replies": len(under_way.replies),
        "texts": under_way.texts or 0,
        "models": models,
        "marked_model": under_way.marked,
    }
    path = add_record(clone, record)
    under_way.remove()
    texts = under_way.texts or 0
    return Purged(under_way.replaced, names, len(under_way.replies), texts, tuple(models), path)


def _replace_versions(
    deployment: Deployment,
    entries: Sequence[Entry],
    holdings: Holdings,
    under_way: UnderWay,
    *,
    retire: bool,
    date: str,
    run: Runner,
) -> None:
    """Withdraw from the newest version, and rewrite the other affected ones; `under_way` gets the tag in each place.

    The tag is noted before anything is published under it: an earlier try that was cut off behind the publication has
    replaced the version, whatever is the newest one by now.

    Raises:
        DataError: the stages found none of the images in a version that holds them; it must not be deleted then.
    """
    clone, replaced = deployment.clone, under_way.replaced
    newest = f"dataset/{(version_at(clone) or {}).get('version')}"
    known = tags(clone, "dataset")
    own = {*replaced.values(), *under_way.begun.values()}  # made by an earlier try
    for tag in sorted(set(holdings.versions) - set(replaced) - own, key=lambda tag: (tag == newest, version_key(tag))):
        run_id = f"purge {under_way.key} {tag}"
        done = under_way.begun.get(tag) if under_way.begun.get(tag) in known else None
        if done:
            for left in (run_id, f"{run_id} newest"):
                close_run(deployment.worktree(left), clone)
        elif tag == newest or not retire:
            how: dict[str, Any] = {"date": date}
            if tag == newest:
                run_id += " newest"
            else:
                day = str((version_at(clone, f"refs/tags/{tag}") or {})["date"])
                how = {"rewrite": Rewrite(tag, next_free_name(tags(clone, "dataset"), day), day)}
            under_way.begin(tag, planned_tag(open_takedown(deployment, entries, run_id, **how)))
            done = take_down(deployment, entries, run_id, run=run, **how).version
        if done is None and (tag == newest or not retire):
            raise DataError(
                f"purge: {tag} holds the images, and its stages found none of them to withdraw; expected a version in "
                "its place, so nothing was deleted. Name the images by their ids, as the list without --yes shows "
                "them, and run again; if it stays, report it with the log"
            )
        under_way.replace(tag, done)


def require_unneeded(clone: Path, names: Set[str], replaced: Iterable[str]) -> None:
    """Check that no version which stays names an object that is about to be deleted.

    Raises:
        DataError: one does: another run has published it meanwhile, or a rewritten one still holds an image.
    """
    fetch(clone)
    objects = Objects(clone)
    for ref in (*(f"refs/tags/{tag}" for tag in tags(clone, "dataset") if tag not in set(replaced)), REMOTE_BRANCH):
        files = objects.files_at(ref).items()
        if held := sorted(path for path, name in files if name in names and path.startswith("data/")):
            raise DataError(
                f"purge: {ref} holds {len(held)} files that were to be deleted, first {held[:3]}; expected none. "
                "Nothing was deleted; run the same command again: it withdraws from this version too"
            )


@contextmanager
def _object_stores(clone: Path) -> Iterator[dict[str, Any]]:
    """DVC's object databases of a clone: its cache and its remote."""
    with dvc_repo(clone) as repo:
        logging.getLogger("dvc").setLevel(logging.ERROR)
        yield {"cache": repo.cache.local, "remote": repo.cloud.get_remote_odb()}


def _count_present(clone: Path, names: Sequence[str]) -> dict[str, int]:
    """Where -> how many of the objects are there."""
    with _object_stores(clone) as stores:
        return {where: sum(odb.fs.exists(odb.oid_to_path(n)) for n in names) for where, odb in stores.items()}


def _delete_objects(clone: Path, names: Sequence[str]) -> None:
    """Delete objects from cache and remote. Copies that `diff` has fetched go too."""
    for name in names:
        fetched_path(clone, name).unlink(missing_ok=True)
    with _object_stores(clone) as stores:
        for odb in stores.values():
            for name in names:
                if odb.fs.exists(odb.oid_to_path(name)):
                    odb.delete(name)


def mark_models(deployment: Deployment, holdings: Holdings, day: str, under_way: UnderWay) -> None:
    """Note at each affected model that its images were withdrawn; the promoted one gets a tag with a marked card."""
    clone = deployment.clone
    models = [tag for tag in holdings.models if tag != under_way.marked]
    if not models:
        return
    sentence = f"Trained on {len(holdings.image_ids)} images that were withdrawn from the dataset on {day}. Train anew."
    for tag in models:
        git(clone, "notes", f"--ref={NOTES_REF}", "add", "-f", "-m", sentence, f"refs/tags/{tag}^{{commit}}")
    git(clone, "push", "-q", "--force", "origin", f"{NOTES_REF}:{NOTES_REF}")
    if under_way.marked in tags(clone, "model"):  # by an earlier try
        close_run(deployment.worktree(card_run(under_way)), clone)
        return
    promoted = read_at(clone, REMOTE_BRANCH, "models/promoted.dvc")
    affected = [tag for tag in models if read_at(clone, f"refs/tags/{tag}", "models/promoted.dvc") == promoted]
    if affected and promoted:
        publish_marked_card(deployment, affected[-1], sentence, day, under_way)


def card_run(under_way: UnderWay) -> str:
    """Id of the run that publishes a marked card."""
    return f"purge {under_way.key} card"


def publish_marked_card(deployment: Deployment, tag: str, sentence: str, day: str, under_way: UnderWay) -> None:
    """Publish the promoted model with a sentence in its card, under the next free name."""
    request = RunRequest(card_run(under_way), "model", {"date": day})
    root = Path(open_run(request, deployment).notes[0])
    card = root / "models" / "promoted" / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    if sentence not in text:
        heading = "" if CARD_HEADING in text else f"{CARD_HEADING}\n\n"
        write_bytes(card, f"{text.rstrip()}\n\n{heading}{sentence}\n".encode())
    commit_outputs(root, [], ["models/promoted"], (root / "dvc.lock").read_bytes())
    name = next_free_name(tags(deployment.clone, "model"), day)
    paths = ("params.yaml", "dvc.lock", "models/promoted.dvc")
    files = {path: (root / path).read_bytes() for path in paths}
    message = f"Model {name}: {tag} with a card that says what it was trained on"
    under_way.mark(f"model/{name}")
    publish(root, Publication(f"model/{name}", message, files))
    close_run(root, deployment.clone)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks purge`."""
    add_entry_arguments(parser, "delete")
    parser.add_argument("--retire", action="store_true", help="delete affected versions instead of rewriting them")
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="of what is published (default: today)")
    parser.add_argument(
        "--feedback",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="answers to composed search (`serve --feedback`) that lie in no folder beside the clone; repeatable",
    )
    parser.add_argument("--yes", action="store_true", help="do it; without, only what holds the images is listed")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """List what holds the images, or delete them; {"images", "versions", "objects", ..., "is_purged"}.

    Raises:
        ConfigError: nothing is named, an entry is not understood, or a run is under way.
    """
    entries = gather_entries(args.entries, args.list, args.reason)
    deployment = Deployment.from_environment()
    deployment = replace(deployment, clone=common_dir(deployment.clone).parent)
    holdings = find_holdings(deployment, entries)
    texts = count_texts(deployment.clone, feedback_files(deployment.clone, args.feedback), holdings.image_ids)
    for line in describe(holdings, Objects(deployment.clone), texts):
        print(line)
    versions: Mapping[str, str | None] = dict.fromkeys(holdings.versions)
    is_wanted = bool(holdings.image_ids) or UnderWay.read(deployment.clone, entries).images > 0
    if args.yes and is_wanted:
        require_no_run(deployment)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        date = args.date or today
        done = purge(deployment, entries, holdings, retire=args.retire, date=date, feedback=args.feedback)
        versions = done.replaced
        for tag, new in versions.items():
            print(f"{tag}: {'rewritten as ' + new if new else 'deleted'}")
        print(f"recorded in {done.record}")
    elif holdings.image_ids:
        print("nothing is changed; --yes deletes it")
    return {
        "images": len(holdings.image_ids),
        "versions": dict(versions),
        "objects": sorted(holdings.objects),
        "replies": len(holdings.replies),
        "texts": texts,
        "models": holdings.models,
        "is_purged": args.yes and is_wanted,
    }
