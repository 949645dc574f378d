"""One redaction for all that is published: parameters, dvc.lock, version.json, cards, reports, dropped rows, remotes.

What is private is decided by tasks/config/public.py. Here it is taken out of the forms in which it would be published:

- `published_files`: params.yaml and the parameters that dvc.lock repeats, in their public form (they agree, so that
  `dvc status` in a clone finds nothing changed); other texts without the private texts;
- `published_code`: the deployed code's own params.yaml, profiles and .dvc/config;
- `redact_data`: reports of the gates, and dropped rows, whose detail may repeat what a server or a disk said.

The DVC remote as strangers reach it is MEGAPAIRS_PUBLIC_REMOTE: an address for reading, options in its query, such as
https://data.example.org/megapairs or s3://bucket/prefix?allow_anonymous_login=true&region=eu-west-1.
"""

from __future__ import annotations

import configparser
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml

from tasks.config import is_profile
from tasks.config.public import private_texts, public_params, require_no_credentials
from tasks.errors import ConfigError
from tasks.publish.dvc_repo import locked_stages
from tasks.records import schemas
from tasks.store import Store

PUBLIC_REMOTE = "MEGAPAIRS_PUBLIC_REMOTE"
REMOVED = "[private]"
DVC_CONFIG = ".dvc/config"
# Options of a DVC remote that say where and how to read; all others (keys, users, files of this machine) stay private.
REMOTE_OPTIONS = ("url", "verify", "endpointurl", "region", "allow_anonymous_login", "use_ssl", "version_aware")


def without(text: str, private: Sequence[str]) -> str:
    """The text without the private ones (the longest first), as they are and as JSON spells them."""
    for word in private:
        for spelling in dict.fromkeys((word, json.dumps(word)[1:-1])):
            if spelling in text:
                # a whole word: what is part of a longer one is another; JSON's \\n may stand before it
                before = r"(?:(?<![\w-])|(?<=\\[nrt]))" if spelling[0].isalnum() else ""
                text = re.sub(rf"{before}{re.escape(spelling)}(?![\w-])", lambda _: REMOVED, text)
    return text


def _dump(params: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True).encode()


def _public_lock(lock: bytes, params: Mapping[str, Any]) -> bytes:
    """dvc.lock with the public values of the parameters that its stages used; `params` are public already."""
    stages = locked_stages(lock)
    for stage in stages.values():
        for name in (stage.get("params") or {}).get("params.yaml") or ():
            value: Any = params
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            stage["params"]["params.yaml"][name] = value
    return yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False).encode()


def published_files(files: Mapping[str, bytes], private: Sequence[str] = ()) -> dict[str, bytes]:
    """The product's small files as they are published.

    Args:
        files: path -> content.
        private: texts that no file may hold.
    """
    out = dict(files)
    if "params.yaml" in out:
        params = public_params(yaml.safe_load(out["params.yaml"]))
        out["params.yaml"] = _dump(params)
        if "dvc.lock" in out:
            out["dvc.lock"] = _public_lock(out["dvc.lock"], params)
    for path, content in files.items():
        if path.endswith((".json", ".md", ".html", ".txt")) and path != "manifest.json":
            out[path] = without(content.decode(), private).encode()
    return out


def published_code(files: Mapping[str, bytes], environment: Mapping[str, str]) -> dict[str, bytes]:
    """Files of the deployed code that hold parameters or the remote's address, as they are published.

    Args:
        files: path -> content; others than these are left out.
        environment: with MEGAPAIRS_PUBLIC_REMOTE where the deployment has one.
    Raises:
        ConfigError: as of `public_config`.
    """
    out = {}
    for path, content in files.items():
        if path == "params.yaml" or is_profile(path):
            raw = yaml.safe_load(content) or {}
            shown = public_params(raw)
            if shown != raw:
                out[path] = _dump(shown)
        elif path == DVC_CONFIG:
            out[path] = public_config(content, environment.get(PUBLIC_REMOTE))
    return out


def remote_options(address: str) -> dict[str, str]:
    """MEGAPAIRS_PUBLIC_REMOTE as options of a DVC remote: its url, and those in its query.

    Raises:
        ConfigError: no address, one with credentials, or an option that is not one of reading.
    """
    require_no_credentials({PUBLIC_REMOTE: address})
    url, _, query = address.strip().partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(REMOTE_OPTIONS[1:])):
        raise ConfigError(
            f"{PUBLIC_REMOTE}: unknown or private options {unknown}; expected some of "
            f"{list(REMOTE_OPTIONS[1:])}, as in s3://bucket/prefix?allow_anonymous_login=true"
        )
    if not re.match(r"(https?|s3|gs|azure|ssh)://[^/]", url) and not Path(url).is_absolute():
        raise ConfigError(
            f"{PUBLIC_REMOTE}: {address!r} is no address of a DVC remote; expected https://host/folder, "
            "s3://bucket/prefix or an absolute folder"
        )
    return {"verify": "true", **options, "url": url}


def public_config(content: bytes, public_remote: str | None) -> bytes:
    """`.dvc/config` as it is published: remotes without keys and users, the default one at its public address.

    Raises:
        ConfigError: as of `remote_options`.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(re.sub(r"(?m)^[ \t]+", "", content.decode()))
    default = config.get("core", "remote", fallback="versions")
    sections: dict[str, dict[str, str]] = {}
    for section in config.sections():
        name = re.fullmatch(r"'?remote \"(.+)\"'?", section)
        entries = dict(config[section])
        if name:
            entries = {key: value for key, value in entries.items() if key in REMOTE_OPTIONS}
            entries["url"] = re.sub(r"(?<=://)[^/\s?#]*@", "", entries.get("url", ""))
            if public_remote and name[1] == default:
                entries = remote_options(public_remote)
        elif section != "core":
            continue  # of this machine: cache, exp, db ...
        sections[section] = entries
    out = io.StringIO()
    for section, entries in sections.items():
        out.write(f"[{section}]\n" + "".join(f"    {key} = {value}\n" for key, value in entries.items()))
    return out.getvalue().encode()


def run_private_texts(root: Path) -> list[str]:
    """What must not be published of a run: private texts of its parameters, and the worktree's own place.

    Not the names of the published tables' columns, which a source's own table may share: `columns: {sha256: image_id}`.
    """
    raw = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    places = {str(root.resolve()), str(Path.home()), str(root.resolve().parent)} - {"/"}
    own = {name for schema in schemas().values() for name in schema.names} | set(schemas())
    return sorted({*private_texts(raw), *places} - own, key=lambda text: (-len(text), text))


def redact_data(store: Store, batch: str, private: Sequence[str]) -> int:
    """Take the private texts out of the gates' reports and the batch's dropped rows; returns how many files changed."""
    changed = 0
    for report in sorted(store.folder("reports", "validation").glob("*.json")):
        text = report.read_text(encoding="utf-8")
        if (shown := without(text, private)) != text:
            store.write_bytes(report, shown.encode())
            changed += 1
    for path in sorted(store.folder("data", "dropped").glob("*/*.parquet")):
        if path.stem == batch or path.stem.rpartition("-")[0] == batch:
            changed += _redact_rows(store, path, private)
    return changed


def _redact_rows(store: Store, path: Path, private: Sequence[str]) -> bool:
    """Rewrite a file of dropped rows where one of them holds a private text; whether it was."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = store.read(path, "dropped")
    details = rows.column("detail")
    spellings = {spelling for word in private for spelling in (word, json.dumps(word)[1:-1])}
    if not any(pc.any(pc.match_substring(details, spelling)).as_py() for spelling in spellings):
        return False
    shown = pa.array([None if text is None else without(text, private) for text in details.to_pylist()], pa.string())
    store.write(path, rows.set_column(rows.schema.get_field_index("detail"), "detail", shown), "dropped")
    return True
