"""Images, tars and tables below s3://bucket/prefix, on any S3-compatible endpoint.

Objects are listed a page at a time in key order. An object's ETag is its fingerprint, so that a later batch reads only
new and changed objects. Reads are range requests for exactly the listed version (If-Match); after a broken connection
they resume at the byte where it broke. Credentials and region come from the environment (AWS_ACCESS_KEY_ID ...,
AWS_PROFILE, an instance role); the Airflow plugin exports Airflow's own AWS connection there.
"""

from __future__ import annotations

import functools
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.config import PACKED_TABLES, PACKED_TARS, TABLE_SUFFIXES, SourceConfig
from tasks.errors import ConfigError, TransientError
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected, Metadata, SourceFile, make_source_file
from tasks.sources.folder import make_damaged_row
from tasks.sources.matching import CAPTION_TABLES, CaptionedFiles
from tasks.sources.patterns import compile_pattern, literal_start, split_pattern
from tasks.sources.sidecars import MAX_CAPTION_BYTES

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 10  # of one request; also how often in a row a body may break without progress
CHUNK_BYTES = 1 << 20
READ_THREADS = 16  # that read the texts beside images
# Error codes of a wrong bucket, address or credential: no object can be read, and a retry gives the same answer.
PERMANENT_ERRORS = (
    "NoSuchBucket",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidBucketName",
    "PermanentRedirect",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidToken",
)
FORBIDDEN = ("AccessDenied", "403")  # of a listing: the same; of one object: its own
REFUSED_OBJECT = "its bucket does not give it"  # one that may be listed, but not read
FAILED_OBJECT = "its bucket answers, but does not give it"
TEMPORARY_ERRORS = ("RequestTimeout", "RequestTimeTooSkewed", "Throttling")  # although their HTTP status is 400
OBJECT_CHANGED = ("NoSuchKey", "404", "PreconditionFailed", "412", "InvalidRange", "416")


@functools.cache
def s3_client(endpoint_url: str | None, region: str | None) -> Any:
    """boto3's S3 client; thread-safe, one per endpoint."""
    return _make_client(endpoint_url, region)


@functools.cache
def anonymous_client(endpoint_url: str | None, region: str | None) -> Any:
    """The same, whose requests are not signed."""
    from botocore import UNSIGNED

    return _make_client(endpoint_url, region or "us-east-1", signature_version=UNSIGNED)


def _make_client(endpoint_url: str | None, region: str | None, **more: Any) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        **more,
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
        pattern: of keys below the prefix, see tasks/sources/patterns.py; empty for all.
    """

    source: SourceConfig
    bucket: str
    prefix: str
    pattern: str

    @property
    def client(self) -> Any:
        """The source's client."""
        make = anonymous_client if self.source.anonymous else s3_client
        return make(self.source.endpoint_url, self.source.region)

    @property
    def request_options(self) -> dict[str, str]:
        """Parameters of every request."""
        return {"RequestPayer": "requester"} if self.source.requester_pays else {}

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
    prefix, pattern = split_pattern(rest)
    if not pattern and prefix.endswith((".tar", *PACKED_TARS, *TABLE_SUFFIXES, *PACKED_TABLES)):
        prefix, _, pattern = rest.rpartition("/")
    prefix = prefix.rstrip("/")
    return S3Location(source, bucket, f"{prefix}/" if prefix else "", pattern)


@contextmanager
def translate_errors(location: S3Location, what: str, *, is_object: bool = False) -> Iterator[None]:
    """Turn botocore's errors into the project's, by what the caller must do.

    Args:
        location: of the request.
        what: was asked for.
        is_object: whether it was one object: what its bucket alone answers concerns no other one.
    Raises:
        FileRejected: the object is gone, was changed since it was listed, or its bucket does not give it.
        ConfigError: access denied, no such bucket, no credentials.
        TransientError: the store fails; run again.
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
        is_refusal = 400 <= status < 500 and status != 429 and code not in TEMPORARY_ERRORS
        if is_object and code not in PERMANENT_ERRORS and status != 301 and (is_refusal or _answers(location)):
            raise FileRejected(
                "unreachable",
                f"{REFUSED_OBJECT if is_refusal else FAILED_OBJECT} ({code or status}); a later batch tries again",
                is_lasting=False,
            ) from error
        if code in (*PERMANENT_ERRORS, *FORBIDDEN) or status in (301, 401, 403) or is_refusal:
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
        if is_object and _answers(location):
            raise FileRejected(
                "unreachable",
                f"{FAILED_OBJECT} ({error}); a later batch tries again",
                is_lasting=False,
            ) from error
        raise TransientError(f"{where}: {error}; run the stage again") from error


def _answers(location: S3Location) -> bool:
    """Whether the store answers: then an object's failure is its own."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        location.client.list_objects_v2(
            Bucket=location.bucket, Prefix=location.prefix, MaxKeys=1, **location.request_options
        )
    except (ClientError, BotoCoreError, HTTPClientError, OSError):
        return False
    return True


def list_objects(location: S3Location) -> Iterator[S3Object]:
    """Objects below the prefix in key order, a page of 1,000 in memory.

    Raises:
        ConfigError, TransientError: see `translate_errors`.
    """
    wanted, count, others = compile_pattern(location.pattern), 0, 0
    with translate_errors(location, f"listing {location.source.path}"):
        pages = location.client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=location.prefix + literal_start(location.pattern), **location.request_options
        )
        for page in pages:
            for row in page.get("Contents", ()):
                item = S3Object(location.bucket, row["Key"], row["ETag"].strip('"'), int(row["Size"]))
                if item.key.endswith("/") and not item.size_bytes:  # a console's placeholder for a folder
                    continue
                if not location.pattern or wanted.matches_or_holds(location.path_inside(item)):
                    count += 1
                    yield item
                else:
                    others += 1
    if not count:
        raise ConfigError(
            f"ingest.sources: source '{location.source.name}': nothing at {location.source.path}"
            + (f" ({others:,} objects do not match)" if others else "")
            + "; expected objects below this prefix; put them there, or correct 'path'"
        )


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
    with translate_errors(location, item.url, is_object=True):
        while start < stop:
            response = location.client.get_object(
                Bucket=item.bucket,
                Key=item.key,
                IfMatch=f'"{item.etag}"',
                Range=f"bytes={start}-{stop - 1}",
                **location.request_options,
            )
            first = start
            try:
                with response["Body"] as body:
                    is_whole = start == 0 and response["ContentLength"] == stop
                    if response["ResponseMetadata"]["HTTPStatusCode"] != 206 and not is_whole:
                        raise OSError(f"{response['ContentLength']} bytes that are not the range that was asked for")
                    while chunk := body.read(min(CHUNK_BYTES, stop - start)):
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


def find_object(location: S3Location, name: str) -> S3Object | None:
    """The object of this name at the prefix (a HEAD request); None when there is none, or it may not be seen."""
    key = f"{location.prefix}{name}"
    try:
        with translate_errors(location, f"s3://{location.bucket}/{key}", is_object=True):
            response = location.client.head_object(Bucket=location.bucket, Key=key, **location.request_options)
    except FileRejected:
        return None
    return S3Object(location.bucket, key, response["ETag"].strip('"'), int(response["ContentLength"]))


def list_s3(
    source: SourceConfig, is_known: Callable[[str], bool], counts: ListingCounts | None = None
) -> Iterator[SourceFile]:
    """All objects below the prefix, except tables of captions and texts beside images.

    Args:
        source: of a bucket.
        is_known: whether an earlier batch has a row with this fingerprint: texts beside its image are not read.
        counts: where captions are counted.
    Raises:
        ConfigError: nothing below the prefix, or see `translate_errors`.
        DataError: captions.* has no column of paths, or no caption matches a file.
        TransientError: see `translate_errors`; also for a table of captions, without which all would be lost.
    """
    location, counts = parse_location(source), counts or ListingCounts()
    files = CaptionedFiles(source, counts)
    objects: dict[str, S3Object] = {}
    for item in list_objects(location):
        inside = location.path_inside(item)
        if files.is_table(inside):
            objects[inside] = item
        is_new = not is_known(make_source_file(source, inside, item.etag, Metadata()).fingerprint)
        files.add(inside, item.etag, item.size_bytes, is_new=is_new)
    if location.pattern:  # which leaves out what stands beside
        for name in CAPTION_TABLES[:2]:
            if name not in objects and (found := find_object(location, name)):
                objects[name] = found
                files.add_table(name)

    def item_of(inside: str, etag: str, size_bytes: int) -> S3Object:
        return S3Object(location.bucket, location.prefix + inside, etag, size_bytes)

    def read_text(text: tuple[str, str, int]) -> tuple[str, bytes | None]:
        try:
            return text[0], read_object(location, item_of(*text), MAX_CAPTION_BYTES)
        except FileRejected as rejected:
            counts.note(f"{text[0]}: {rejected.detail}")
            return text[0], None

    def read_texts(texts: Iterator[tuple[str, str, int]]) -> Iterator[tuple[str, bytes]]:
        with ThreadPoolExecutor(READ_THREADS) as pool:
            while block := list(itertools.islice(texts, 64 * READ_THREADS)):
                for name, content in pool.map(read_text, block):
                    if content is not None:
                        yield name, content

    @contextmanager
    def open_table(inside: str) -> Iterator[Path]:
        try:
            with local_copy(location, objects[inside]) as path:
                yield path
        except FileRejected as rejected:
            raise TransientError(f"{objects[inside].url}: {rejected.detail}; run the stage again") from rejected

    for place, why, is_lasting in files.read_captions(open_table, read_texts):
        yield make_damaged_row(source, place, why, is_lasting=is_lasting)
    for inside, etag, size_bytes, metadata in files.files():
        file = make_source_file(source, inside, etag, metadata)
        if file.is_litter:
            yield file.rejected("not_a_picture", "a file that an operating system leaves, not an image")
        else:
            reader = partial(read_object, location, item_of(inside, etag, size_bytes))
            yield replace(file, is_remote=True, reader=reader)
