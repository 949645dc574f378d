"""What may be published of a run's parameters, and which of their texts hold credentials.

A published version is read by strangers and cannot be called back. So a text of the parameters is published only where
it stands in PUBLIC or NAMES: paths, hosts, addresses, contacts and file names of lists stay private, and so does the
text of a parameter that nobody has classified. Numbers, switches and choices from a closed list are always public.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel

from tasks.config.params import Params
from tasks.config.section import ROW_TASKS
from tasks.config.sources import SourceConfig
from tasks.config.training import BenchmarkConfig
from tasks.errors import ConfigError

PRIVATE = "private"  # what stands for a private text where a text is required
# Texts that say what the data is, by their dotted names; names of list entries and mappings are left out of them.
PUBLIC = frozenset(
    [
        "profile",
        "open_run.dataset",
        "open_run.date",
        "open_run.batch",
        "version.license",
        "version.contact",
        "version.citation",
        "train.datasets.split",
        "train.datasets.subset",
        "train.teacher.revision",
        "promote.metric",
        "ingest.sources.name",
        "ingest.sources.license_code",
        "ingest.sources.attribution",
        "ingest.sources.encoding",
        "ingest.allowed_licenses",
        "ingest.filters.revision",
        "ingest.filters.labels",
        "embed.encoders.revision",
        "embed.next.revision",
        "embed.device",
        "caption.revision",
        "caption.writer_revision",
        "caption.styles",
        "caption.languages",
        "caption.device",
        "judge.revision",
        "judge.device",
        "train.revision",
        "train.datasets.name",
        "train.lora.targets",
        "train.device",
        "evaluate.benchmark.name",
        "evaluate.benchmark.split",
        "evaluate.benchmark.template",
        "evaluate.template",
        "evaluate.device",
    ]
)
# Names on a hub or paths inside the code; of another path only the last part is published: rows name their models.
NAMES = frozenset(
    [
        "ingest.filters.model",
        "embed.encoders.model",
        "embed.next.model",
        "caption.model",
        "caption.writer",
        "caption.prompts",
        "judge.model",
        "train.base_model",
        "train.teacher.model",
    ]
)
# Published where they lie in the code.
CODE_PATHS = frozenset({"caption.canaries", "judge.labelled", "judge.calibration"})
# What stands for private texts that are required, so that the published parameters can be read as parameters.
STAND_INS = {
    "caption.url": "http://private.invalid/v1",
    "caption.writer_url": "http://private.invalid/v1",
    "judge.url": "http://private.invalid/v1",
    "open_run.takedown": "withheld",
    **dict.fromkeys(("renew.recaption.where", "renew.caption.where", "renew.judge.where"), ""),
    **dict.fromkeys(
        (
            "ingest.sources.path",
            "ingest.sources.contact",
            "train.datasets.path",
            "train.datasets.images",
            "evaluate.benchmark.path",
        ),
        PRIVATE,
    ),
}
# Mappings whose keys are names of entries, not of parameters.
BY_NAME = ("embed.encoders", "embed.next", "ingest.filters", "mine.windows")
# A list may be named after one of these.
BENCHMARKS: tuple[str, ...] = get_args(BenchmarkConfig.model_fields["protocol"].annotation)
# A user before the host; or, after a port that is no number, an @: a password with one of / ? # in it.
USERINFO = re.compile(r"(?:^|:)//[^/\s?#]*@|://[^/\s?#@]*:[^/\s?#@]*[^\d/\s?#@\]][^/\s?#@]*[/?#]\S*@")
SECRET_QUERY = re.compile(
    r"[?&;](x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|(?:access_|auth_)?token"
    r"|api_?key|key|password|passwd|pwd|secret)=[^&\s]",
    re.IGNORECASE,
)


def public_name(name: str) -> str:
    """A model's name as it may be published: of a path outside the code only the last part."""
    is_elsewhere = name.startswith(("/", "~", "\\")) or ".." in PurePath(name).parts or "://" in name or ":\\" in name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_elsewhere else name


@cache
def choices() -> frozenset[str]:
    """Dotted names of the parameters that are a choice from a closed list."""
    return frozenset(name for name, kind in _fields(Params) if kind is Literal)


@cache
def free_texts() -> frozenset[str]:
    """Dotted names of the parameters that may hold any text."""
    return frozenset(name for name, kind in _fields(Params) if kind is str)


def _fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, str or Literal) of every text below a section; a field that may be either counts as str."""
    for name, field in model.model_fields.items():
        dotted = f"{above}{field.alias or name}"
        kinds = set(_kinds(field.annotation))
        for section in [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]:
            yield from _fields(section, f"{dotted}.")
        if str in kinds:
            yield dotted, str
        elif Literal in kinds:
            yield dotted, Literal


def _kinds(annotation: Any) -> Iterator[Any]:
    if annotation is str or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        yield annotation
    elif get_origin(annotation) is Literal:
        yield Literal
    else:
        for inner in get_args(annotation):
            yield from _kinds(inner)


def public_params(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters (all, or some sections of them) as they may be published.

    What is there already in its published form stays as it is, so that the parameters of an earlier version may be put
    in again. The result of complete parameters can be read by `parse_params`.
    """
    params: dict[str, Any] = _public(raw, "")
    return params


def _public(value: Any, name: str) -> Any:
    if name == "ingest.sources" and isinstance(value, list | tuple):
        return [_public_source(source) for source in value]
    if name == "ingest.benchmark_hashes":
        return [_benchmark(path, n) for n, path in enumerate(value or (), 1)]
    if name == "ingest.sources.columns":  # names of the columns of somebody's own table
        return {}
    if isinstance(value, Mapping):
        fields = {str(key): f"{name}.{key}".lstrip(".") for key in value}
        inside = dict.fromkeys(value, name) if name in BY_NAME else fields
        return {key: _public(entry, inside[key]) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_public(entry, name) for entry in value]
        return [entry for entry in entries if entry is not None]
    if not isinstance(value, str) or name in PUBLIC or name in choices():
        return value
    if name == "train.datasets.path" and value in ROW_TASKS:  # of format rows: a task, no place
        return value
    if name in NAMES or (name in CODE_PATHS and public_name(value) == value):
        return public_name(value)
    return STAND_INS.get(name) if value else value


def _public_source(source: Any) -> Any:
    """A source without its place; `kind` is stated, because the path no longer tells it."""
    if not isinstance(source, Mapping):
        return PRIVATE
    shown = {key: _public(value, f"ingest.sources.{key}") for key, value in source.items()}
    if isinstance(path := source.get("path"), str):
        kind = source.get("kind") or SourceConfig.model_construct(path=path, kind=None).kind_of_path
        shown |= {"kind": kind} | ({"contact": PRIVATE} if kind == "table" else {})
    return shown


def _benchmark(path: Any, number: int) -> str:
    """The name of a list of a benchmark's images: the benchmark's where it is a well-known one, else its number."""
    stem = re.sub(r"[^a-z0-9]", "", PurePath(str(path)).name.lower())  # i-cir.jsonl too
    return next((name for name in BENCHMARKS if name in stem), f"list {number}")


def private_texts(raw: Mapping[str, Any]) -> list[str]:
    """Texts of the parameters that must not be published, and the hosts in them, the longest first.

    Only those that cannot be a word of ordinary text: with a character that words lack, and of four or more.
    """
    shown = {text for _, text in _texts(public_params(raw))}
    hidden: set[str] = set()
    for _, text in _texts(raw):
        if text in shown:
            continue
        for part in [text, *text.split(",")]:
            hidden |= {part.strip(), part.strip().rstrip("/"), _host(part)}
    return sorted((t for t in hidden if len(t) >= 4 and re.search(r"[^A-Za-z]", t)), key=lambda t: (-len(t), t))


def _host(text: str) -> str:
    """The host of an address, but for this machine's own; '' for other texts."""
    try:
        host = urlsplit(text.strip()).hostname or ""
    except ValueError:
        return ""
    return "" if host.startswith("127.") or host in ("localhost", "::1") or host.endswith(".invalid") else host


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every text in nested mappings and lists; keys of mappings too."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            inside = f"{name}.{key}".lstrip(".")
            yield from ([(inside, key)] if "://" in str(key) else [])
            yield from _texts(entry, inside)
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            has_name = isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
            yield from _texts(entry, f"{name}.{entry['name']}" if has_name else f"{name}[{number}]")
    elif isinstance(value, str):
        yield name, value


def require_no_credentials(raw: Mapping[str, Any]) -> None:
    """Check that no address in the parameters holds a user, a password or a signature: parameters are published.

    Raises:
        ConfigError: names the parameter; the text is not repeated.
    """
    for name, text in _texts(raw):
        what = "a user or a password" if USERINFO.search(text) else "a key in its query" if _has_key(text) else ""
        if what:
            where = f" (host {host})" if (host := _plain_host(text)) else ""
            raise ConfigError(
                f"{name}: the URL{where} holds {what}, which would be stored with every version; remove it. Keys come "
                "from the environment or from an Airflow connection: MEGAPAIRS_MODEL_API_KEY or megapairs_models for "
                "model servers, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3"
            )


def _has_key(text: str) -> bool:
    return "://" in text and bool(SECRET_QUERY.search(text))


def _plain_host(text: str) -> str:
    """The host where it is one beyond doubt; '' where a part of a password might be taken for it."""
    host = text.rpartition("@")[2].partition("/")[0] if "@" in text else _host(text)
    return host if re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", host) else ""
