"""What a DVC remote holds of the versions: objects by tag, and errors that say why a remote gives nothing.

An object is a file's content, or the list of a folder's files (its id ends in .dir), by MD5. What a version needs
stands in git: dvc.lock and the .dvc files of its commit; lists are read from the clone's cache, else from the remote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tasks.errors import CredentialsError, DataError, MissingPackageError, TasksError, UnreachableError
from tasks.publish.dvc_repo import dvc_repo, locked_stages
from tasks.publish.git import files_at, read_at
from tasks.publish.published import MODEL_STAGES, cache_dir

PACKAGE_SIGNS = ("remotemissingdepserror", "is supported, but requires", "no module named 'dvc_")
CREDENTIAL_SIGNS = (
    "nocredentialserror",
    "partialcredentialserror",
    "permissionerror",
    "unable to locate credentials",
    "accessdenied",
    "access denied",
    "forbidden",
    "unauthorized",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "tokenrefresh",
    "ssotokenloaderror",
)
CONNECTION_SIGNS = (
    "endpointconnectionerror",
    "connecttimeout",
    "connectionerror",
    "connectionrefusederror",
    "connectorerror",
    "clientconnector",
    "could not connect",
    "connection refused",
    "gaierror",
    "name or service not known",
    "timeouterror",
    "nosuchbucket",
    "bucket does not exist",
    "invalidbucketname",
    "serverdisconnected",
)


class Output(NamedTuple):
    """What DVC tracks: a file or a folder, and the MD5 of its content or of the list of its files."""

    path: str
    md5: str


class Lost(NamedTuple):
    """An object that a remote lacks, and the file (or the folder, of a list) that it is."""

    path: str
    object_path: str  # below the remote's root


def object_path(md5: str) -> str:
    """Where an object lies below a cache's or a remote's root."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def outputs_of(files: Mapping[str, bytes]) -> Iterator[Output]:
    """All that DVC brings into a clone: outputs in dvc.lock and of the .dvc files.

    Args:
        files: path -> content of dvc.lock and the .dvc files; others are ignored.
    """
    for name, stage in locked_stages(files.get("dvc.lock")).items():
        if name not in MODEL_STAGES:  # not in the cache: what a training won is models/promoted.dvc
            yield from (Output(out["path"], str(out["md5"])) for out in stage.get("outs", []) if "md5" in out)
    for path, content in sorted(files.items()):
        if path.endswith(".dvc") and path.startswith(("data/", "models/", "reports/")):
            for out in yaml.safe_load(content)["outs"]:
                yield Output((Path(path).parent / out["path"]).as_posix(), str(out["md5"]))


def outputs_at(clone: Path, ref: str) -> list[Output]:
    """What DVC tracks at a commit."""
    paths = [path for path in files_at(clone, ref) if path == "dvc.lock" or path.endswith(".dvc")]
    return list(outputs_of({path: read_at(clone, ref, path) or b"" for path in paths}))


def explain(error: BaseException, address: str) -> TasksError | None:
    """Why a remote gave nothing, as an error with its own exit code; None for an error of another kind."""
    words, cause = "", error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        words += f" {type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return explain_words(words, address)


def explain_words(words: str, address: str) -> TasksError | None:
    """As `explain`, of an error's names and messages."""
    low, short = words.lower(), " ".join(words.split())[:300]
    if any(sign in low for sign in PACKAGE_SIGNS):
        kind = address.partition("://")[0]
        return MissingPackageError(
            f"remote {address}: this kind of remote needs a package that is not installed ({short}); "
            f"`pip install dvc-{'s3' if kind not in ('gs', 'azure', 'ssh', 'http', 'https') else kind}`, then again"
        )
    if any(sign in low for sign in CREDENTIAL_SIGNS):
        return CredentialsError(
            f"remote {address}: refuses or lacks credentials ({short}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or for a public bucket "
            "`dvc remote modify --local <name> allow_anonymous_login true`"
        )
    if any(sign in low for sign in CONNECTION_SIGNS):
        return UnreachableError(
            f"remote {address}: cannot be reached ({short}); expected a store that answers there; look at the network "
            "and at the address in .dvc/config, then again"
        )
    return None


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn errors of a remote into UnreachableError, CredentialsError or MissingPackageError; others pass."""
    try:
        yield
    except TasksError as error:
        raise (explain(error, address) or error) from error
    except Exception as error:
        if known := explain(error, address):
            raise known from error
        raise


def is_content(md5: str, content: bytes) -> bool:
    """Whether an object has the content that its name says; a folder's list too."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5.removesuffix(".dir")


class Remote:
    """The objects of a DVC remote."""

    def __init__(self, odb: Any, address: str) -> None:
        self._odb, self.address = odb, address

    def existing(self, md5s: Iterable[str]) -> set[str]:
        """Those of the objects that the remote has."""
        wanted = sorted(set(md5s))
        return set(self._odb.oids_exist(wanted)) if wanted else set()

    def read(self, md5: str) -> bytes | None:
        """An object's content; None where the remote lacks it."""
        try:
            with self._odb.fs.open(self._odb.oid_to_path(md5), "rb") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None

    def has_hash(self, md5: str) -> bool:
        """Whether an object that is there has the content that its name says; it is read in blocks."""
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with self._odb.fs.open(self._odb.oid_to_path(md5), "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError:
            return False
        return digest.hexdigest() == md5.removesuffix(".dir")


@contextmanager
def open_remote(root: Path, name: str | None = None) -> Iterator[Remote]:
    """The default remote of a clone's DVC configuration, or the one of that name.

    Raises:
        UnreachableError, CredentialsError, MissingPackageError: it gives nothing, while it is used too.
    """
    address = remote_address(root, name)
    with explained(address), dvc_repo(root) as repo:
        odb = repo.cloud.get_remote_odb(name)
        folder = Path(odb.path).parent.parent  # objects lie in files/md5 below it
        if "://" not in address and not folder.is_dir():
            raise UnreachableError(
                f"remote {folder}: no such folder here; expected the folder that holds the versions' objects; mount "
                "it, or correct the address in .dvc/config"
            )
        yield Remote(odb, address)


def remote_address(root: Path, name: str | None = None) -> str:
    """Address of a clone's remote as its DVC configuration has it; the remote's name where it has none."""
    import configparser

    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    name = name or str(config.get("core", "remote", fallback=""))
    section = next((s for s in config.sections() if s.strip("'") == f'remote "{name}"'), None)
    return str(config.get(section, "url", fallback=name)) if section else name


def folder_list(md5: str, cache: Path, remote: Remote | None) -> list[tuple[str, str]] | None:
    """(path inside, MD5) of a folder's files; None where neither cache nor remote has its list, or another content."""
    path = cache / object_path(md5)
    content = path.read_bytes() if path.exists() else remote.read(md5) if remote else None
    if content is None:
        return None
    if not path.exists() and not is_content(md5, content):
        return None
    return [(entry["relpath"], entry["md5"]) for entry in json.loads(content)]


def lost_objects(outputs: Sequence[Output], remote: Remote, cache: Path) -> tuple[int, list[Lost]]:
    """(count of the objects that outputs need, those that the remote lacks). An altered list counts as lost."""
    wanted: dict[str, str] = {}
    unlisted = []
    for output in outputs:
        wanted.setdefault(output.md5, output.path)
        if output.md5.endswith(".dir"):
            entries = folder_list(output.md5, cache, remote)
            if entries is None:
                unlisted.append(output.md5)
            wanted |= {md5: f"{output.path}/{name}" for name, md5 in entries or () if md5 not in wanted}
    gone = (set(wanted) - remote.existing(wanted)) | set(unlisted)
    lost = [Lost(path, object_path(md5)) for md5, path in wanted.items() if md5 in gone]
    return len(wanted), sorted(lost)


def require_version(root: Path, tag: str) -> None:
    """Check that the remote still holds every object of a version that others go on from.

    Raises:
        DataError: names those that are gone. A new version would put back what it shares with the old one, and the old
            tags would break unseen.
    """
    root = root.resolve()  # DVC works in the root as the current folder
    with open_remote(root) as remote:
        count, lost = lost_objects(outputs_at(root, f"refs/tags/{tag}"), remote, cache_dir(root))
    if lost:
        raise DataError(
            f"remote {remote.address}: {len(lost)} of {count} objects of {tag} are gone, first {lost[0].path} "
            f"({lost[0].object_path}); expected all of them before the next version; `python -m tasks audit` names "
            "what each version lacks. Restore the remote from its backup, or run `dvc push --all-tags` in a clone "
            "whose cache has them"
        )
