"""Which paths and servers a run may use: what the deployment allows, whatever the trigger form asks for.

Who may start a run may write its parameters; without a limit that is who may read any file of the workers (`/etc` as a
source) and send images to any host. The limits are the deployment's, from its environment and from the parameters of
the deployed commit, which are reviewed:

- MEGAPAIRS_SOURCE_ROOTS: folders and s3://bucket/prefix addresses, separated by commas or colons. Paths must lie in one
  of them, local ones after symbolic links are resolved; S3 servers (`endpoint_url`) and private hosts (`allow_hosts`)
  must then be the deployment's own. Where the variable is not set: the folder from which relative paths start, the
  folder that holds the deployment's clone, and, without their hidden folders, the user's home, the folder of temporary
  files and those where disks are mounted (DATA_FOLDERS); S3 is then open.
- MEGAPAIRS_MODEL_HOSTS: host names of model servers, separated by commas. This machine's loopback is always allowed.

What the deployed params.yaml names is allowed too. A refusal is a ConfigError when the run opens.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.config import Params, SourceConfig
from tasks.errors import ConfigError
from tasks.sources.folder import walk
from tasks.sources.patterns import compile_pattern, split_pattern

SOURCE_ROOTS, MODEL_HOSTS = "MEGAPAIRS_SOURCE_ROOTS", "MEGAPAIRS_MODEL_HOSTS"
DATA_FOLDERS = ("/data", "/mnt", "/media", "/srv", "/Volumes")  # where people keep and mount what is not the system's


@dataclass(frozen=True)
class Allowed:
    """What runs may use.

    Attributes:
        roots: folders, resolved.
        s3_prefixes: s3://bucket/prefix; None where all of S3 is open.
        hosts: of model servers, lower case.
        endpoints: addresses of S3 servers, where S3 is not open.
        private_hosts: hosts that are not public and may be downloaded from, where S3 is not open.
        without_hidden: folders that are open but for their hidden folders, resolved; none where roots are stated.
        base: where relative paths start.
    """

    roots: tuple[Path, ...]
    s3_prefixes: tuple[str, ...] | None
    hosts: frozenset[str]
    without_hidden: tuple[Path, ...]
    base: Path
    endpoints: frozenset[str] = frozenset()
    private_hosts: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], clone: Path, base: Path) -> Allowed:
        """What the deployment's variables say.

        Args:
            environment: variables.
            clone: the deployment's clone.
            base: where relative paths start.
        Raises:
            ConfigError: a root that is not absolute.
        """
        entries = environment.get(MODEL_HOSTS, "").replace(",", " ").split()
        hosts = [_host(f"//{entry}") or entry for entry in entries]  # a port may be stated, and does not matter
        stated = environment.get(SOURCE_ROOTS)
        if stated is None:
            roots = _below_the_top(base, clone.resolve().parent)
            people = _below_the_top(Path.home(), Path(tempfile.gettempdir()), *map(Path, DATA_FOLDERS))
            return cls(roots, None, frozenset(hosts), people, base)
        entries = [entry.strip() for entry in stated.replace("s3://", "s3//").replace(",", ":").split(":")]
        entries = [entry.replace("s3//", "s3://", 1) for entry in entries if entry]
        local = [Path(entry) for entry in entries if "://" not in entry]
        if wrong := [str(path) for path in local if not path.is_absolute()]:
            raise ConfigError(
                f"{SOURCE_ROOTS}: {wrong} are not absolute; expected folders separated by ':', such as /data:/mnt"
            )
        prefixes = tuple(entry for entry in entries if "://" in entry)
        endpoints = {environment[name] for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3") if environment.get(name)}
        roots = tuple(path.resolve() for path in local)
        return cls(roots, prefixes, frozenset(hosts), (), base, frozenset(endpoints))

    def also(self, deployed: Mapping[str, Any]) -> Allowed:
        """With what the deployed parameters (resolved, as a mapping) name."""
        values = [value for _, value in (*_paths_of(deployed), *_code_paths_of(deployed))]
        local = [self._resolved(value) for value in values if Path(value).is_absolute() and "://" not in value]
        prefixes = self.s3_prefixes
        if prefixes is not None:
            prefixes = (*prefixes, *(value for value in values if "://" in value))
        hosts = {host for _, url in _urls_of(deployed) if (host := _host(url))}
        sources = (deployed.get("ingest") or {}).get("sources") or []
        return replace(
            self,
            roots=(*self.roots, *local),
            s3_prefixes=prefixes,
            hosts=self.hosts | hosts,
            endpoints=self.endpoints | {s["endpoint_url"] for s in sources if s.get("endpoint_url")},
            private_hosts=self.private_hosts | {host for s in sources for host in s.get("allow_hosts") or ()},
        )

    def _resolved(self, path: str) -> Path:
        """A path, absolute and without links; of one with a wildcard, the folders before it."""
        literal = self.base / path
        return literal.resolve() if literal.exists() else Path(split_pattern(str(literal))[0]).resolve()

    def has_path(self, path: str) -> bool:
        """Whether a local path or an s3:// address may be read; of one with a wildcard, every link that it matches."""
        if "://" in path:
            return self.s3_prefixes is None or any(_is_below(path, prefix) for prefix in self.s3_prefixes)
        folder, pattern = split_pattern(str(self.base / path))
        if not self._is_open(self._resolved(path)):
            return False
        if not pattern or (self.base / path).exists() or not Path(folder).is_dir():
            return True
        wanted = compile_pattern(pattern)
        found = walk(folder) if ".." not in pattern.split("/") else ()
        links = [Path(file) for inside, file in found if os.path.islink(file) and wanted.matches_or_holds(inside)]
        return all(self._is_open(link.resolve()) for link in links)

    def _is_open(self, path: Path) -> bool:
        if any(path.is_relative_to(root) for root in self.roots):
            return True
        below = [path.relative_to(folder).parts for folder in self.without_hidden if path.is_relative_to(folder)]
        return any(not any(part.startswith(".") for part in parts) for parts in below)

    def has_host(self, url: str) -> bool:
        """Whether requests may go to the host of an address."""
        host = _host(url)
        return host is not None and (host in self.hosts or _is_loopback(host))


def _below_the_top(*folders: Path) -> tuple[Path, ...]:
    """The folders, resolved, without `/`: a user without a home, or a clone at the top, must not open all."""
    return tuple(path for folder in folders if (path := folder.resolve()) != Path(path.anchor))


def _host(url: str) -> str | None:
    """The host name of an address, lower case; None where it has none."""
    try:
        return urlsplit(url).hostname
    except ValueError:  # brackets that do not match
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_below(path: str, prefix: str) -> bool:
    """Whether an s3:// address is a prefix or below it, by whole parts, without `..`."""
    if ".." in path.split("/"):
        return False
    prefix = prefix.rstrip("/")
    return path == prefix or path.startswith(prefix + "/")


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _paths_of(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value) of every parameter that names a file or a folder to be read."""
    ingest, evaluate, train = (raw.get(section) or {} for section in ("ingest", "evaluate", "train"))
    named: list[tuple[str, Any]] = []
    for source in ingest.get("sources") or []:
        named.append((f"ingest.sources.{source['name']}", source["path"]))
    for key in ("blocklists", "benchmark_hashes", "takedown"):
        named += [(f"ingest.{key}", path) for path in _items(ingest.get(key))]
    for benchmark in _items(evaluate.get("benchmark")):
        is_entry = isinstance(benchmark, Mapping)
        name = f"evaluate.benchmark.{benchmark.get('name')}" if is_entry else "evaluate.benchmark"
        named.append((name, benchmark.get("path") if is_entry else benchmark))
    named.append(("evaluate.truth", evaluate.get("truth")))
    for dataset in train.get("datasets") or []:
        if dataset.get("format") == "rows":  # the path names a task, the files are the version's own
            continue
        named += [(f"train.datasets.{dataset['name']}.{key}", dataset[key]) for key in ("path", "images")]
    yield from ((name, value) for name, value in named if isinstance(value, str) and value)


def _code_paths_of(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value) of every parameter that may name a file or a folder of the code, or elsewhere an absolute one."""
    caption, judge, train = (raw.get(section) or {} for section in ("caption", "judge", "train"))
    named = [(f"caption.{key}", caption.get(key)) for key in ("prompts", "canaries", "model", "writer")]
    named += [(f"judge.{key}", judge.get(key)) for key in ("labelled", "calibration", "model")]
    named.append(("train.base_model", train.get("base_model")))
    named.append(("train.teacher.model", (train.get("teacher") or {}).get("model")))
    named.append(("select.differences", (raw.get("select") or {}).get("differences")))
    for key in ("encoders", "next"):
        for role, encoder in ((raw.get("embed") or {}).get(key) or {}).items():
            named.append((f"embed.{key}.{role}.model", encoder.get("model")))
    for name, model in ((raw.get("ingest") or {}).get("filters") or {}).items():
        named.append((f"ingest.filters.{name}.model", model.get("model")))
    yield from ((name, value) for name, value in named if isinstance(value, str) and value)


def _urls_of(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, address) of every model server."""
    for section, key in (("caption", "url"), ("caption", "writer_url"), ("judge", "url")):
        for url in str((raw.get(section) or {}).get(key) or "").split(","):
            if url.strip():
                yield f"{section}.{key}", url.strip()


def require_allowed(params: Params, allowed: Allowed) -> None:
    """Check that a run reads and asks only what the deployment allows; before any of it is read.

    Raises:
        ConfigError: a path, an address or a host that is not allowed.
    """
    raw = params.model_dump(mode="json", by_alias=True)
    for name, path in _paths_of(raw):
        if not allowed.has_path(path):
            where = ", ".join([*map(str, allowed.roots + allowed.without_hidden), *(allowed.s3_prefixes or ())])
            raise ConfigError(
                f"{name}: {path} is not in a folder that this deployment reads from; expected a path below {where}; "
                f"move the files there, or have whoever runs the deployment add their folder to {SOURCE_ROOTS}"
            )
    for name, path in _code_paths_of(raw):
        is_inside = not Path(path).is_absolute() and ".." not in Path(path).parts
        if not is_inside and not allowed.has_path(path):
            raise ConfigError(
                f"{name}: {path} leads out of the code; expected a name, a path inside it without '..', or an absolute "
                f"path below a folder of {SOURCE_ROOTS}; give one of these"
            )
    for name, url in _urls_of(raw):
        _require_model_server(name, url, allowed)
    if allowed.s3_prefixes is not None:
        for source in params.ingest.sources:
            _require_own_network(source, allowed)


def _require_model_server(name: str, url: str, allowed: Allowed) -> None:
    """Raise ConfigError where an address is none of a model server of the deployment. It holds no credentials: the
    parameters' own check refuses them."""
    if not url.startswith(("http://", "https://")) or not allowed.has_host(url):
        raise ConfigError(
            f"{name}: {url} is no model server of this deployment; expected http:// or https:// and a host of "
            f"{sorted(allowed.hosts)} or this machine; have whoever runs the deployment add it to {MODEL_HOSTS}"
        )


def _require_own_network(source: SourceConfig, allowed: Allowed) -> None:
    """Raise ConfigError where a source names an S3 server or a private host that is not the deployment's."""
    if source.endpoint_url is not None and source.endpoint_url not in allowed.endpoints:
        raise ConfigError(
            f"ingest.sources.{source.name}.endpoint_url: {source.endpoint_url} is no S3 server of this deployment; "
            f"expected one of {sorted(allowed.endpoints)}; leave it empty, or name it in the deployed params.yaml"
        )
    if foreign := sorted(set(source.allow_hosts) - allowed.private_hosts):
        raise ConfigError(
            f"ingest.sources.{source.name}.allow_hosts: {foreign} are not allowed by this deployment; expected some of "
            f"{sorted(allowed.private_hosts)}; have them named in the deployed params.yaml"
        )
