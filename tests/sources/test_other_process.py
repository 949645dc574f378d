"""A listed file can be read by another process: what it takes with it says where its bytes lie."""

import io
import pickle
import tarfile
from typing import Any

from tasks.config import SourceConfig
from tasks.ingest.staging import load_file
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files


def test_objects_and_members_of_tars_in_a_bucket_are_read_where_they_lie(s3: Any, s3_url: str):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in (("a.jpg", b"first"), ("a.txt", b"a caption"), ("b.jpg", b"second")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    s3.put_object(Bucket="images", Key="week/c.jpg", Body=b"third")
    s3.put_object(Bucket="images", Key="tars/x.tar", Body=packed.getvalue())
    for path in ("s3://images/week", "s3://images/tars/x.tar"):
        files = list(list_files(SourceConfig(name="box", path=path, endpoint_url=s3_url)))
        sent = [pickle.dumps(file) for file in files]
        arrived = [load_file(content) for content in sent]
        assert arrived == files and files
        assert [file.read(99) for file in arrived] == [file.read(99) for file in files]
        assert all(len(content) < 3_000 for content in sent)  # a place, no bytes


def test_a_rejected_file_arrives_rejected(tmp_path: Any):
    (tmp_path / "link.jpg").symlink_to("/etc/hostname")
    (file,) = list_files(SourceConfig(name="mine", path=str(tmp_path)))
    try:
        load_file(pickle.dumps(file)).read(10)
    except FileRejected as rejected:
        assert rejected.reason == "not_a_picture"
    else:
        raise AssertionError("read")
