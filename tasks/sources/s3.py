"""Images, tars and tables below s3://bucket/prefix, on any S3-compatible endpoint.

Objects are listed a page at a time in key order. An object's ETag is its fingerprint, so that a later batch reads only
new and changed objects. Reads are range requests for exactly the listed version (If-Match); after a broken connection
they resume at the byte where it broke. Credentials and region come from the environment (AWS_ACCESS_KEY_ID ...,
AWS_PROFILE, an instance role); the Airflow plugin exports Airflow's own AWS connection there.
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
from tasks.sources.files import FileRejected, SourceFile, make_source_file
from tasks.sources.metadata import CAPTION_FILES, MetadataTable

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 10  # of one request; also how often in a row a body may break without progress
CHUNK_BYTES = 1 << 20
# Error codes for which a retry gives the same answer.
PERMANENT_ERRORS = (
    "NoSuchBucket",
    "AccessDenied",
    "403",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidBucketName",
    "PermanentRedirect",
    "AllAccessDisabled",
)
TEMPORARY_ERRORS = ("RequestTimeout", "RequestTimeTooSkewed", "Throttling")  # although their HTTP status is 400
OBJECT_CHANGED = ("NoSuchKey", "404", "PreconditionFailed", "412", "InvalidRange", "416", "InvalidObjectState")


@functools.cache
def s3_client(endpoint_url: str | None, region: str | None) -> Any:
    """boto3's S3 client; thread-safe, one per endpoint."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
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

    @property
    def url(self) -> str:
        """s3://bucket/key."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class S3Location:
    """A source's objects: s3://bucket/prefix, or s3://bucket/prefix/*.tar.

    Attributes:
        source: the source that names it.
        bucket: its name.
        prefix: ends with a slash, or is empty.
        pattern: of keys below the prefix; empty for all.
    """

    source: SourceConfig
    bucket: str
    prefix: str
    pattern: str

    @property
    def client(self) -> Any:
        """The source's client."""
        return s3_client(self.source.endpoint_url, self.source.region)

    def path_inside(self, item: S3Object) -> str:
        """The key below the prefix, as it appears in source_uri."""
        return item.key[len(self.prefix) :]


def parse_location(source: SourceConfig) -> S3Location:
    """Bucket, prefix and pattern of a source's path.

    Raises:
        ConfigError: the path names no bucket.
    """
    bucket, _, rest = source.path.removeprefix("s3://").partition("/")
    if not bucket:
        raise ConfigError(
            f"ingest.sources: source '{source.name}': '{source.path}' names no bucket; expected s3://bucket/prefix; "
            "correct 'path'"
        )
    folder, _, last = rest.rpartition("/")
    is_pattern = "*" in last or last.endswith((".tar", *PACKED_TARS, *TABLE_SUFFIXES, *PACKED_TABLES))
    prefix, pattern = (folder, last) if is_pattern else (rest.rstrip("/"), "")
    return S3Location(source, bucket, f"{prefix}/" if prefix else "", pattern)


@contextmanager
def translate_errors(location: S3Location, what: str) -> Iterator[None]:
    """Turn botocore's errors into the project's, by what the caller must do.

    Raises:
        FileRejected: the object is gone or was changed since it was listed.
        ConfigError: access denied, no such bucket, no credentials.
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

    where = f"ingest.sources: source '{location.source.name}': {what}"
    try:
        yield
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in OBJECT_CHANGED:
            raise FileRejected(
                "unreachable",
                f"gone, or changed since it was listed ({code}); a later batch takes what is there then",
                is_lasting=False,
            ) from error
        if code in PERMANENT_ERRORS or status in (301, 401, 403) or status == 400 and code not in TEMPORARY_ERRORS:
            raise ConfigError(
                f"{where}: {code}; correct 'path', 'endpoint_url' or the credentials "
                "(AWS_ACCESS_KEY_ID ..., Airflow's aws_default)"
            ) from error
        raise TransientError(f"{where}: {code or error} after {MAX_ATTEMPTS} tries; run the stage again") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise ConfigError(
            f"{where}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or Airflow's connection aws_default"
        ) from error
    except (BotoCoreError, HTTPClientError, OSError) as error:
        raise TransientError(f"{where}: {error}; run the stage again") from error


def list_objects(location: S3Location) -> Iterator[S3Object]:
    """Objects below the prefix in key order, a page of 1,000 in memory.

    Raises:
        ConfigError, TransientError: see `translate_errors`.
    """
    with translate_errors(location, f"listing {location.source.path}"):
        pages = location.client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=location.prefix + location.pattern.partition("*")[0]
        )
        for page in pages:
            for row in page.get("Contents", ()):
                item = S3Object(location.bucket, row["Key"], row["ETag"].strip('"'), int(row["Size"]))
                if item.key.endswith("/") and not item.size_bytes:  # a console's placeholder for a folder
                    continue
                inside, pattern = location.path_inside(item), location.pattern
                if pattern in ("", inside) or "*" in pattern and fnmatch.fnmatchcase(inside, pattern):
                    yield item


def stream_object(location: S3Location, item: S3Object, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Bytes [start, stop) of an object as it was listed, in chunks; resumes where a connection broke.

    Raises:
        FileRejected, ConfigError, TransientError: see `translate_errors`.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError
    from urllib3.exceptions import HTTPError

    broken_body = (OSError, HTTPError, HTTPClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
    stop = item.size_bytes if stop is None else stop
    failures = 0
    with translate_errors(location, item.url):
        while start < stop:
            response = location.client.get_object(
                Bucket=item.bucket, Key=item.key, IfMatch=f'"{item.etag}"', Range=f"bytes={start}-{stop - 1}"
            )
            first = start
            try:
                with response["Body"] as body:
                    while chunk := body.read(CHUNK_BYTES):
                        start += len(chunk)
                        yield chunk
                if start < stop:
                    raise OSError(f"{stop - start} bytes short")
            except broken_body as error:
                failures = failures + 1 if start == first else 0
                if failures == MAX_ATTEMPTS:
                    raise OSError(f"its body broke {MAX_ATTEMPTS} times: {error}") from error
                log.info("ingest: %s: connection broke at byte %d (%s); resuming", item.url, start, error)


def read_object(
    location: S3Location, item: S3Object, limit_bytes: int, start: int = 0, stop: int | None = None
) -> bytes:
    """An object's bytes, or the range [start, stop) of them.

    Raises:
        FileRejected: too_large, or see `translate_errors`.
    """
    size = (item.size_bytes if stop is None else stop) - start
    if size > limit_bytes:
        raise FileRejected("too_large", f"{size} bytes, at most {limit_bytes}")
    return b"".join(stream_object(location, item, start, stop))


@contextmanager
def local_copy(location: S3Location, item: S3Object) -> Iterator[Path]:
    """A metadata or URL table as a temporary local file with the same suffix.

    Raises:
        FileRejected, ConfigError, TransientError: see `translate_errors`.
    """
    with tempfile.TemporaryDirectory(prefix="megapairs-") as folder:
        path = Path(folder) / f"table{next((s for s in TABLE_SUFFIXES if item.key.endswith(s)), '')}"
        with open(path, "wb") as f:
            for chunk in stream_object(location, item):
                f.write(chunk)
        yield path


def read_metadata_table(location: S3Location) -> MetadataTable:
    """The captions.parquet or captions.csv at the prefix; empty when there is neither."""
    table = MetadataTable()
    for name in CAPTION_FILES:
        item = find_object(location, name)
        if item is not None:
            try:
                with local_copy(location, item) as path:
                    return table.add(path, location.source, name=item.url)
            except FileRejected as rejected:  # without it every caption would be lost
                raise TransientError(f"{item.url}: {rejected.detail}; run the stage again") from rejected
    return table


def find_object(location: S3Location, name: str) -> S3Object | None:
    """The object of this name at the prefix (a HEAD request); None when there is none."""
    key = f"{location.prefix}{name}"
    try:
        with translate_errors(location, f"s3://{location.bucket}/{key}"):
            response = location.client.head_object(Bucket=location.bucket, Key=key)
    except FileRejected:
        return None
    return S3Object(location.bucket, key, response["ETag"].strip('"'), int(response["ContentLength"]))


def list_s3(source: SourceConfig) -> Iterator[SourceFile]:
    """All objects below the prefix except its metadata table.

    Raises:
        ConfigError, TransientError: see `translate_errors`.
        DataError: a metadata table that cannot be read.
    """
    location = parse_location(source)
    metadata = read_metadata_table(location)
    for item in list_objects(location):
        inside = location.path_inside(item)
        if inside not in CAPTION_FILES:
            file = make_source_file(source, inside, item.etag, metadata.get(inside))
            yield replace(file, is_remote=True, reader=partial(read_object, location, item))
