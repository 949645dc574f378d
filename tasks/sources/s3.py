"""Images, tars and tables below s3://bucket/prefix, of any S3 endpoint.

Listed a page at a time in the order of the keys; an object's ETag is its fingerprint, so that a later batch reads new
and changed objects alone. Reads are ranges of the very object that was listed (If-Match), begun again where a
connection broke. Credentials and region come from the environment (AWS_ACCESS_KEY_ID ..., AWS_PROFILE, an instance's
role), where the Airflow plugin puts Airflow's own AWS connection.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.config import PACKED_TABLES, PACKED_TARS, TABLE_SUFFIXES, SourceConfig
from tasks.errors import ConfigError, TransientError
from tasks.sources.files import Refused, SourceFile
from tasks.sources.folder import labelled
from tasks.sources.labels import CAPTION_FILES, Labels

log = logging.getLogger(__name__)

TRIES = 10  # of one request; a broken body is begun again where it broke as often
PIECE_BYTES = 1 << 20
# What the endpoint answers when asking again gives the same.
WRONG = (
    "NoSuchBucket",
    "AccessDenied",
    "403",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidBucketName",
    "PermanentRedirect",
    "AllAccessDisabled",
)
PASSING = ("RequestTimeout", "RequestTimeTooSkewed", "Throttling")  # though they are answers of the kind 400
GONE = ("NoSuchKey", "404", "PreconditionFailed", "412", "InvalidRange", "416", "InvalidObjectState")


@functools.cache
def client_of(endpoint_url: str | None, region: str | None) -> Any:
    """boto3's S3 client; safe for threads, one per endpoint."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": TRIES},
        connect_timeout=10,
        read_timeout=30,
        max_pool_connections=32,
        s3={"addressing_style": "path"} if endpoint_url else None,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


@dataclass(frozen=True)
class S3Object:
    """An object as it was listed."""

    bucket: str
    key: str
    etag: str
    size_bytes: int


@dataclass(frozen=True)
class Place:
    """s3://bucket/prefix, or s3://bucket/prefix/*.tar."""

    source: SourceConfig
    bucket: str
    prefix: str  # ends with a slash, or is empty
    pattern: str  # of keys below the prefix; empty: all

    @property
    def client(self) -> Any:
        """The source's client."""
        return client_of(self.source.endpoint_url, self.source.region)

    def inside(self, found: S3Object) -> str:
        """The key below the prefix: what stands in source_uri."""
        return found.key[len(self.prefix) :]


def place_of(source: SourceConfig) -> Place:
    """Where a source's objects are.

    Raises:
        ConfigError: no bucket.
    """
    bucket, _, rest = source.path.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError(
            f"ingest.sources: source '{source.name}': '{source.path}' names no bucket; expected s3://bucket/prefix"
        )
    folder, _, last = rest.rpartition("/")
    is_pattern = "*" in last or last.endswith((".tar", *PACKED_TARS, *TABLE_SUFFIXES, *PACKED_TABLES))
    prefix, pattern = (folder, last) if is_pattern else (rest.rstrip("/"), "")
    return Place(source, bucket, f"{prefix}/" if prefix else "", pattern)


@contextmanager
def errors_of(place: Place, what: str) -> Iterator[None]:
    """botocore's errors by what the caller must do.

    Raises:
        Refused: the object is gone or was changed since it was listed.
        ConfigError: no right to it, no bucket, no credentials.
        TransientError: everything else; run again.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    where = f"ingest.sources: source '{place.source.name}': {what}"
    try:
        yield
    except ClientError as error:
        code, status = (
            str(error.response["Error"].get("Code", "")),
            error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
        )
        if code in GONE:
            raise Refused(
                "unreachable",
                f"gone, or changed since it was listed ({code}); a later batch takes what is there then",
                is_lasting=False,
            ) from error
        if code in WRONG or status in (301, 401, 403) or status == 400 and code not in PASSING:
            raise ConfigError(
                f"{where}: {code}; correct 'path', 'endpoint_url' or the credentials (AWS_ACCESS_KEY_ID ..., Airflow's aws_default)"
            ) from error
        raise TransientError(f"{where}: {code or error} after {TRIES} tries; run the stage again") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise ConfigError(
            f"{where}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or Airflow's connection aws_default"
        ) from error
    except (BotoCoreError, HTTPClientError, OSError) as error:
        raise TransientError(f"{where}: {error}; run the stage again") from error


def objects(place: Place) -> Iterator[S3Object]:
    """Objects below the prefix in order of their keys, a page of 1,000 in memory.

    Raises:
        ConfigError, TransientError: see `errors_of`.
    """
    with errors_of(place, f"listing {place.source.path}"):
        pages = place.client.get_paginator("list_objects_v2").paginate(
            Bucket=place.bucket, Prefix=place.prefix + place.pattern.partition("*")[0]
        )
        for page in pages:
            for row in page.get("Contents", ()):
                found = S3Object(place.bucket, row["Key"], row["ETag"].strip('"'), int(row["Size"]))
                if found.key.endswith("/") and not found.size_bytes:  # consoles make these for folders
                    continue
                inside = place.inside(found)
                if place.pattern in ("", inside) or "*" in place.pattern and fnmatch.fnmatchcase(inside, place.pattern):
                    yield found


def pieces_of(place: Place, found: S3Object, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Bytes [start, stop) of an object as it was listed, a piece at a time; a broken connection is begun again where it
    broke.

    Raises:
        Refused, ConfigError, TransientError: see `errors_of`.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError
    from urllib3.exceptions import HTTPError

    stop = found.size_bytes if stop is None else stop
    broken = 0
    with errors_of(place, f"s3://{found.bucket}/{found.key}"):
        while start < stop:
            got = place.client.get_object(
                Bucket=found.bucket, Key=found.key, IfMatch=f'"{found.etag}"', Range=f"bytes={start}-{stop - 1}"
            )
            begun = start
            try:
                with got["Body"] as body:
                    while piece := body.read(PIECE_BYTES):
                        start += len(piece)
                        yield piece
                if start < stop:
                    raise OSError(f"{stop - start} bytes short")
            except (
                OSError,
                HTTPError,
                HTTPClientError,
                IncompleteReadError,
                ReadTimeoutError,
                ResponseStreamingError,
            ) as error:
                broken = broken + 1 if start == begun else 0
                if broken == TRIES:
                    raise OSError(f"its body broke {TRIES} times: {error}") from error
                log.info(
                    "ingest: s3://%s/%s: broken at byte %d (%s), begun again", found.bucket, found.key, start, error
                )


def read_object(place: Place, found: S3Object, limit_bytes: int, start: int = 0, stop: int | None = None) -> bytes:
    """An object's bytes, or a range of them.

    Raises:
        Refused: too_large, or see `errors_of`.
    """
    size = (found.size_bytes if stop is None else stop) - start
    if size > limit_bytes:
        raise Refused("too_large", f"{size} bytes, at most {limit_bytes}")
    return b"".join(pieces_of(place, found, start, stop))


@contextmanager
def local_copy(place: Place, found: S3Object) -> Iterator[Path]:
    """The object as a temporary file with its suffix, for tables.

    Raises:
        TransientError: it was changed since it was listed.
    """
    with tempfile.TemporaryDirectory(prefix="megapairs-") as folder:
        path = Path(folder) / f"table{next((s for s in TABLE_SUFFIXES if found.key.endswith(s)), '')}"
        try:
            with open(path, "wb") as f:
                for piece in pieces_of(place, found):
                    f.write(piece)
        except Refused as refused:
            raise TransientError(f"s3://{found.bucket}/{found.key}: {refused.detail}; run the stage again") from refused
        yield path


def labels_of(place: Place) -> Labels:
    """What captions.parquet or captions.csv at the prefix says; empty when there is neither."""
    labels = Labels()
    for name in CAPTION_FILES:
        found = head(place, name)
        if found is not None:
            with local_copy(place, found) as path:
                return labels.add(path, place.source, where=f"s3://{found.bucket}/{found.key}")
    return labels


def head(place: Place, name: str) -> S3Object | None:
    """The object of this name at the prefix, None when there is none."""
    try:
        with errors_of(place, f"s3://{place.bucket}/{place.prefix}{name}"):
            got = place.client.head_object(Bucket=place.bucket, Key=f"{place.prefix}{name}")
    except Refused:
        return None
    return S3Object(place.bucket, f"{place.prefix}{name}", got["ETag"].strip('"'), int(got["ContentLength"]))


def list_s3(source: SourceConfig) -> Iterator[SourceFile]:
    """All objects below the prefix but its table.

    Raises:
        ConfigError, TransientError: see `errors_of`.
        DataError: a table that cannot be read.
    """
    place = place_of(source)
    labels = labels_of(place)
    for found in objects(place):
        inside = place.inside(found)
        if inside not in CAPTION_FILES:
            file = labelled(source, inside, found.etag, labels.get(inside))
            yield replace(file, is_remote=True, reader=partial(read_object, place, found))
