"""The takedown list that a run works with: the deployment's own, the one of the parameters, and the form's entries.

The deployment's list is a file that never leaves it: MEGAPAIRS_TAKEDOWN, else takedown.jsonl beside the clone. What
`python -m tasks takedown` or the trigger form names is added to it, so that no later run takes such an image in again.
`open_run` checks all three lists and writes their entries into the run's worktree, `.run/takedown.jsonl`, which is
never versioned: every stage reads the same list, and the published params.yaml names neither an entry nor a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.config import Params, overlay
from tasks.fingerprints.list_text import decode_text, utf16_encoding
from tasks.fingerprints.takedown_list import Entry, normalize_address, parse_lines, read_entries
from tasks.locks import exclusive
from tasks.store.atomic import write_bytes

RUN_LIST = ".run/takedown.jsonl"  # in the worktree
WITHHELD = "withheld"  # stands for the form's entries in a run's params.yaml
FORM = "open_run.takedown"
LOCK_TIMEOUT_S = 60.0


def form_entries(params: Params) -> list[Entry]:
    """The entries that the form names; none where it names none.

    Raises:
        ConfigError: one of them is no entry.
    """
    lines = [line for text in params.open_run.takedown for line in text.splitlines()]
    return parse_lines(lines, "the form", FORM) if lines else []


def deployment_entries(deployment_list: Path) -> list[Entry]:
    """The entries of the deployment's list; none where it is not there yet, or nobody has asked for anything yet.

    Raises:
        ConfigError: as of `read_entries`, but that it may be empty.
    """
    if not deployment_list.exists():
        return []
    return list(read_entries([deployment_list], "MEGAPAIRS_TAKEDOWN", may_be_empty=True))


def all_entries(params: Params, deployment_list: Path) -> list[Entry]:
    """The entries of the three lists, each value once.

    Raises:
        ConfigError: a list is unreadable, has a line that is no entry, or, where the parameters name it, no entry.
    """
    entries = deployment_entries(deployment_list)
    if params.ingest.takedown:
        entries += read_entries([Path(params.ingest.takedown)], "ingest.takedown")
    entries += form_entries(params)
    return list({(entry.kind, entry.value): entry for entry in entries}.values())


def with_source_uris(entries: Iterable[Entry], raw: Mapping[str, Any]) -> list[Entry]:
    """The entries, those by an address below a source's place (a bucket) also as the source_uri that it has there.

    A takedown's own run reads no source, and so could not tell.

    Args:
        entries: of the lists.
        raw: the deployment's resolved parameters.
    """
    places = []
    for source in (raw.get("ingest") or {}).get("sources") or ():
        if isinstance(source, Mapping) and "://" in str(source.get("path")):
            places.append((source.get("name"), normalize_address(str(source["path"]).rstrip("/")).rstrip("/") + "/"))
    out = []
    for entry in entries:
        addresses = [normalize_address(spelling) for spelling in entry.spellings if entry.kind == "url"]
        uris = [f"{name}:{a.removeprefix(below)}" for name, below in places for a in addresses if a.startswith(below)]
        out.append(replace(entry, spellings=(*entry.spellings, *uris)) if uris else entry)
    return out


def add_to_list(deployment_list: Path, entries: Sequence[Entry]) -> int:
    """Add entries to the deployment's list, those that it lacks; returns how many these are."""
    deployment_list.parent.mkdir(parents=True, exist_ok=True)
    lock = deployment_list.with_name(f".{deployment_list.name}.lock")
    problem = f"{lock}: another process has been writing the takedown list for {LOCK_TIMEOUT_S:.0f} s; try again"
    with exclusive(lock, LOCK_TIMEOUT_S, problem):
        known = {(entry.kind, entry.value) for entry in deployment_entries(deployment_list)}
        present = deployment_list.read_bytes() if deployment_list.exists() else b""
        if utf16_encoding(present):
            present = "\n".join(decode_text(present, deployment_list, "MEGAPAIRS_TAKEDOWN")).encode()
        new = [entry for entry in entries if (entry.kind, entry.value) not in known]
        lines = "".join(f"{entry.to_json()}\n" for entry in new).encode()
        if new:
            separator = b"" if not present or present.endswith(b"\n") else b"\n"
            write_bytes(deployment_list, present + separator + lines)
    return len(new)


def with_run_list(raw: dict[str, Any], worktree: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    """Resolved parameters that name the run's own list, which is written here; as they are where there is no entry."""
    if not entries:
        return raw
    write_bytes(worktree / RUN_LIST, "".join(f"{entry.to_json()}\n" for entry in entries).encode())
    change: Mapping[str, Any] = {"ingest": {"takedown": RUN_LIST}}
    if (raw.get("open_run") or {}).get("takedown"):
        change = {**change, "open_run": {"takedown": [WITHHELD]}}
    return overlay(raw, dict(change))
