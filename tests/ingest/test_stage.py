"""Every file ends as one row, kept or dropped; no file stops the batch; a killed run ends in the same bytes."""

import csv
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.errors import ConfigError, DataError
from tasks.ingest import history, inspect
from tasks.ingest import stage as ingest
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.sample.world import make_world
from tasks.store import Store, tables
from tasks.store.tables import TableWriter
from tests.support.images import block_image, encode
from tests.support.ingest import folder_params, hash_files, hash_finished_files, read_drop_reasons, read_kept
from tests.support.killing import kill_when


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def test_every_file_ends_as_one_row(source: Path, tmp_path: Path):
    good = encode(block_image(1))
    png = encode(block_image(9, (200, 200)))
    files = {
        "a.png": good,
        "b_copy.png": good,
        "c_near.jpg": encode(block_image(1), "JPEG", quality=80),
        "d_truncated.png": png[: len(png) // 2],
        "e_empty.jpg": b"",
        "f_html.jpg": b"<html>404</html>",
        "g_small.png": encode(block_image(3, (20, 400))),
        "notes.txt": b"hello",
        "deep/er/h.webp": encode(block_image(4), "WEBP", quality=95),
        "i_gif.gif": encode(block_image(5), "GIF"),
    }
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    store = Store(tmp_path / "run")
    report = ingest.run(folder_params(source), store)
    assert sorted(read_kept(store)) == ["a.png", "deep/er/h.webp"]
    assert read_drop_reasons(store) == {
        "b_copy.png": "duplicate",
        "c_near.jpg": "near_duplicate",
        "d_truncated.png": "undecodable",
        "e_empty.jpg": "undecodable",
        "f_html.jpg": "undecodable",
        "g_small.png": "too_small",
        "notes.txt": "not_a_picture",
        "i_gif.gif": "unsupported_format",
    }
    assert set(read_drop_reasons(store).values()) <= set(ingest.REASONS)
    assert (report.read, report.written, sum(report.dropped.values())) == (10, 2, 8)
    assert {k: v for k, v in report.figures.items() if not k.startswith(("is_", "has_"))} == {
        "duplicate_share": 0.2,
        "unreadable_share": 0.3,
        "caption_share": 0.0,
    }
    of_copy = json.loads(
        next(r["detail"] for r in store.read_dropped("ingest").to_pylist() if r["key"] == "mine:b_copy.png")
    )
    assert of_copy["copy_of"] == read_kept(store)["a.png"]["image_id"]


def make_bomb(width: int, height: int) -> bytes:
    """A PNG whose header states a huge image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_decompression_bomb_is_rejected_by_its_header(side: int):
    result = normalize_image(make_bomb(side, side), is_named_image=True, rules=NormalizationRules())
    assert isinstance(result, Rejection) and result.reason == "too_large"


def test_a_file_of_too_many_bytes_is_not_read(source: Path, tmp_path: Path):
    (source / "a.png").write_bytes(encode(block_image(1)))
    store = Store(tmp_path / "run")
    ingest.run(folder_params(source, max_size_bytes=100), store)
    assert read_drop_reasons(store) == {"a.png": "too_large"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(0, 5_000), st.integers(0, 255), st.integers(0, 5_000))
def test_no_bytes_raise(which: int, place: int, value: int, cut: int):
    """Images with a byte changed and the end cut off."""
    content = bytearray(
        (encode(block_image(1)), encode(block_image(1), "JPEG"), encode(block_image(1), "WEBP"), make_bomb(90, 90))[
            which
        ]
    )
    content[place % len(content)] = value
    result = normalize_image(
        bytes(content[: len(content) - cut % len(content)]), is_named_image=True, rules=NormalizationRules()
    )
    assert isinstance(result, NormalizedImage) or result.reason in ingest.REASONS


def normalize(content: bytes) -> Image.Image:
    result = normalize_image(content, is_named_image=True, rules=NormalizationRules())
    assert isinstance(result, NormalizedImage), result
    image = Image.open(io.BytesIO(result.content))
    assert image.format == "JPEG" and image.mode == "RGB" and image.size == (result.width_px, result.height_px)
    assert not image.getexif() and "icc_profile" not in image.info
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # 4:4:4
    return image


def test_stored_images_are_upright_rgb_without_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010F] = "camera"
    left_red = Image.new("RGB", (200, 100), "blue")
    left_red.paste((255, 0, 0), (0, 0, 100, 100))
    turned = normalize(encode(left_red, "JPEG", exif=exif, quality=95))
    assert turned.size == (100, 200)
    assert turned.getpixel((50, 20))[0] > 200 and turned.getpixel((50, 180))[2] > 200
    assert max(normalize(encode(block_image(1, (1600, 900)), "JPEG")).size) == 512


def test_every_mode_becomes_rgb():
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert min(normalize(encode(clear)).getpixel((30, 30))) >= 250  # nothing over white
    grey16 = Image.fromarray(np.full((64, 64), 128 * 256 + 3, np.uint16))
    assert abs(normalize(encode(grey16)).getpixel((30, 30))[0] - 128) <= 2  # scaled, not clipped
    palette = Image.new("RGB", (64, 64), (10, 200, 30)).convert("P")
    assert abs(normalize(encode(palette)).getpixel((30, 30))[1] - 200) < 30
    normalize(encode(Image.new("CMYK", (64, 64), (0, 200, 200, 0)), "JPEG"))
    normalize(encode(Image.new("1", (64, 64), 1)))
    normalize(encode(Image.new("LA", (64, 64), (90, 128))))
    frames = [block_image(n) for n in range(3)]
    first = normalize(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert abs(int(first.getpixel((3, 3))[0]) - frames[0].getpixel((3, 3))[0]) < 12


def test_captions_licences_and_attributions(source: Path, tmp_path: Path):
    for n, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        (source / name).write_bytes(encode(block_image(n)))
    with open(source / "captions.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(("path", "caption", "licence", "source"))
        writer.writerow(("a.png", "  a \u202ered\x00\n circle\u2066 ", "CC-BY-4.0", "https://example.org/a"))
        writer.writerow(("b.png", "x" * 5_000, "", ""))
        writer.writerow(("c.png", " ", "secret", ""))
        writer.writerow(("../../etc/passwd", "never looked up", "", ""))
    store = Store(tmp_path / "run")
    report = ingest.run(folder_params(source, allowed_licenses=["CC-BY-4.0", "CC0-1.0"]), store)
    rows = read_kept(store)
    assert (rows["a.png"]["caption"], rows["a.png"]["license_code"], rows["a.png"]["attribution"]) == (
        "a red circle",
        "CC-BY-4.0",
        "https://example.org/a",
    )
    assert (len(rows["b.png"]["caption"]), rows["b.png"]["license_code"], rows["b.png"]["attribution"]) == (
        2_000,
        "CC0-1.0",
        "me",
    )
    assert (rows["d.png"]["caption"], rows["d.png"]["caption_source"]) == (None, None)
    assert read_drop_reasons(store) == {"c.png": "licence"}
    assert report.figures["caption_share"] == pytest.approx(2 / 3)


def test_captions_as_parquet(source: Path, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (source / "a.png").write_bytes(encode(block_image(1)))
    pq.write_table(pa.table({"path": ["a.png", None], "caption": ["a thing", None]}), source / "captions.parquet")
    store = Store(tmp_path / "run")
    ingest.run(folder_params(source), store)
    assert read_kept(store)["a.png"]["caption"] == "a thing"


def test_shards_hold_what_the_table_states(source: Path, tmp_path: Path):
    for n in range(7):
        (source / f"{n}.png").write_bytes(encode(block_image(n)))
    store = Store(tmp_path / "run")
    ingest.run(folder_params(source, shard_images=3), store)
    rows = store.read_table("images").to_pylist()
    assert [r["shard"] for r in rows] == ["2026.01.04-00000.tar"] * 3 + ["2026.01.04-00001.tar"] * 3 + [
        "2026.01.04-00002.tar"
    ]
    for row in rows:
        assert hashlib.sha256(store.read_image_bytes(row["image_id"])).hexdigest() == row["image_id"]
        assert store.read_image(row["image_id"]).size == (row["width_px"], row["height_px"])
    with tarfile.open(tmp_path / "run/data/shards/2026.01.04-00000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:2]] == [f"{rows[0]['image_id']}.jpg", f"{rows[0]['image_id']}.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
        facts = json.load(tar.extractfile(members[1]))  # type: ignore[arg-type]
        assert facts == {
            "image_id": rows[0]["image_id"],
            "caption": "",
            "license": "CC0-1.0",
            "attribution": "me",
            "source_uri": "mine:0.png",
        }


def test_a_later_run_takes_only_new_files_and_what_a_limit_left(source: Path, tmp_path: Path):
    for n in range(5):
        (source / f"{n}.png").write_bytes(encode(block_image(n)))
    (source / "5.jpg").write_bytes(b"broken")
    store = Store(tmp_path / "run")
    first = ingest.run(folder_params(source, limit=4), store)
    assert (first.new, first.written, first.reused) == (4, 4, 0)
    second = ingest.run(folder_params(source, "2026.01.11"), store)
    assert (second.new, second.written, second.reused) == (2, 1, 4)
    assert [r["batch"] for r in read_kept(store).values()] == ["2026.01.04"] * 4 + ["2026.01.11"]
    third = ingest.run(folder_params(source, "2026.01.18"), store)  # an empty week, the broken file included
    assert (third.new, third.written, third.dropped, third.figures, third.reused) == (0, 0, {}, {}, 5)
    assert store.table_path("images", "2026.01.18").exists()
    (source / "5.jpg").write_bytes(encode(block_image(50), "JPEG", quality=95))  # mended
    (source / "copy.png").write_bytes((source / "0.png").read_bytes())
    fourth = ingest.run(folder_params(source, "2026.01.25"), store)
    assert (fourth.new, fourth.written, fourth.dropped) == (2, 1, {"duplicate": 1})


def test_a_changed_caption_is_counted_and_reported_and_the_published_one_stays(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    def write_captions(*captions: str) -> None:
        (source / "captions.csv").write_text(
            "path,caption\n" + "".join(f"{n}.png,{caption}\n" for n, caption in enumerate(captions))
        )

    for n in range(3):
        (source / f"{n}.png").write_bytes(encode(block_image(n)))
    (source / "3.jpg").write_bytes(b"broken")
    write_captions("a red thing", "", "a third")
    store = Store(tmp_path / "run")
    first = ingest.run(folder_params(source), store)
    assert "captions_changed" not in first.figures and "earlier batches" not in str(first.notes)
    write_captions("a crimson thing", "a second thing", "a third")
    second = ingest.run(folder_params(source, "2026.01.11"), store)
    assert (second.new, second.figures["captions_changed"]) == (0, 2)
    assert (
        "2 images of earlier batches" in second.notes[0]
        and "mine:0.png ('a crimson thing')" in second.notes[0]
        and "mine:2.png" not in second.notes[0]
    )
    assert second.notes[0] in caplog.text
    assert {uri: row["caption"] for uri, row in read_kept(store).items()} == {
        "0.png": "a red thing",
        "1.png": None,
        "2.png": "a third",
    }
    assert (
        ingest.run(folder_params(source, "2026.01.11"), store) == second
    )  # the batch is done; its report says the same


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=5), st.sampled_from(["duplicate", "blocked"])), max_size=40),
    st.integers(1, 7),
    st.integers(1, 4),
)
def test_rows_written_one_by_one_are_the_bytes_of_rows_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, dropped: list[tuple[str, str]], batch: int, batches: int
):
    rows = [
        {
            "stage": "ingest",
            "batch": "b",
            "key": key.encode("utf-8", "replace").decode(),
            "reason": reason,
            "detail": "{}",
        }
        for key, reason in dropped
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH_ROWS", batch)
        patch.setattr(tables, "ROW_GROUP_ROWS", batch * batches)
        folder = tmp_path_factory.mktemp("rows")
        writer = TableWriter(folder / "one.parquet", "dropped")
        for row in rows:
            writer.add(row)
        assert not (folder / "one.parquet").exists()
        writer.close()
        Store(folder).write(folder / "other.parquet", rows, "dropped")
        assert (folder / "one.parquet").read_bytes() == (folder / "other.parquet").read_bytes()
        stopped = TableWriter(folder / "stopped.parquet", "dropped")
        for row in rows:
            stopped.add(row)
        stopped.discard()
    assert sorted(p.name for p in folder.iterdir()) == ["one.parquet", "other.parquet"]


def test_the_file_systems_order_does_not_affect_the_tables(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_world(source, seed=3, images=60, truth=tmp_path / "truth.jsonl")
    ingest.run(folder_params(source), Store(tmp_path / "one"))
    scan = os.scandir

    @contextmanager
    def shuffled(top: Path):
        with scan(top) as directory:
            entries = list(directory)
        random.Random(1).shuffle(entries)
        yield iter(entries)

    monkeypatch.setattr(os, "scandir", shuffled)
    for module in (inspect, history):
        monkeypatch.setattr(module, "BLOCK_FILES", 7)
    ingest.run(folder_params(source), Store(tmp_path / "two"))
    assert hash_files(tmp_path / "one") == hash_files(tmp_path / "two")


def test_links_out_of_the_source_are_not_followed(source: Path, tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(encode(block_image(1)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(encode(block_image(2)))
    (source / "a.png").write_bytes(encode(block_image(3)))
    (source / "out.png").symlink_to(tmp_path / "secret.png")
    (source / "within.png").symlink_to(source / "a.png")
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(source / "pipe.jpg")
    store = Store(tmp_path / "run")
    ingest.run(folder_params(source), store)
    assert sorted(read_kept(store)) == ["a.png"]
    assert read_drop_reasons(store) == {
        "out.png": "not_a_picture",
        "within.png": "duplicate",
        "pipe.jpg": "not_a_picture",
    }


def test_a_missing_folder_and_a_wrong_table_are_errors(source: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="is no folder"):
        ingest.run(folder_params(tmp_path / "nowhere"), Store(tmp_path / "run"))
    (source / "captions.csv").write_text("file,text\na.png,hi\n")
    with pytest.raises(DataError, match="column 'path' is missing"):
        ingest.run(folder_params(source), Store(tmp_path / "run"))


def make_roots(tmp_path: Path, other: str, source: Path) -> dict[str, Path]:
    """Two run folders over one source; in 'whole' ingest has run undisturbed."""
    roots = {name: tmp_path / name for name in ("whole", other)}
    params = folder_params(source, shard_images=20)
    for root in roots.values():
        root.mkdir()
        (root / "params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True, mode="json")))
    ingest.run(params, Store(roots["whole"]))
    return roots


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_rerun_gives_the_same_bytes(source: Path, tmp_path: Path, project: Path):
    make_world(source, seed=3, images=150, truth=tmp_path / "truth.jsonl")
    roots = make_roots(tmp_path, "killed", source)
    command = [sys.executable, "-m", "tasks", "ingest", "--root", str(roots["killed"])]
    kill_when(lambda: any(roots["killed"].glob("data/shards/*.tar")), command, project, with_children=False)
    subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL)
    assert hash_finished_files(roots["killed"]) == hash_files(roots["whole"])


@pytest.mark.slow
def test_a_file_size_limit_stops_the_run_and_the_next_one_gives_the_same_bytes(
    source: Path, tmp_path: Path, project: Path
):
    make_world(source, seed=4, images=60, truth=tmp_path / "truth.jsonl")
    roots = make_roots(tmp_path, "full", source)
    # bytes that a file may have: no shard fits
    room = max(p.stat().st_size for p in roots["whole"].rglob("*.tar")) // 2
    limited = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}));"
        "sys.argv[0] = 'tasks'; runpy.run_module('tasks', run_name='__main__')"
    )
    words = ["ingest", "--root", str(roots["full"])]
    stopped = subprocess.run([sys.executable, "-c", limited, *words], cwd=project, capture_output=True, text=True)
    # neither done nor a matter of configuration or data: Airflow tries again
    assert stopped.returncode not in (0, 64, 65), stopped.stderr
    assert not list(roots["full"].rglob("data/images/*.parquet")), "the marker comes last"
    subprocess.run([sys.executable, "-m", "tasks", *words], cwd=project, check=True, stdout=subprocess.DEVNULL)
    assert hash_finished_files(roots["full"]) == hash_files(roots["whole"])


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_with_more_room_the_next_one_gives_the_same_bytes(
    source: Path, tmp_path: Path, project: Path
):
    """On a small tmpfs in a mount namespace of its own, which ends with the test."""
    apart = ["unshare", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*apart, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
    ):
        pytest.skip("no mount namespace for this user; the test above limits files instead")
    make_world(source, seed=4, images=60, truth=tmp_path / "truth.jsonl")
    roots = make_roots(tmp_path, "small", source)
    disk = roots["small"] / "disk"
    disk.mkdir()
    room = max(p.stat().st_size for p in roots["whole"].rglob("*.tar")) // 2
    script = f"""
        mount -t tmpfs -o size={room} none {disk} && cp {roots["small"]}/params.yaml {disk}/
        {sys.executable} -m tasks ingest --root {disk} 2> {roots["small"]}/first.err
        echo $? > {roots["small"]}/first.rc
        ls {disk}/data/images/*.parquet > {roots["small"]}/markers 2> /dev/null
        mount -o remount,size=64m {disk}
        {sys.executable} -m tasks ingest --root {disk} > /dev/null && cp -r {disk}/. {roots["small"]}/copy
    """
    subprocess.run([*apart, "sh", "-c", script], cwd=project, check=True)
    stderr = (roots["small"] / "first.err").read_text()
    assert (roots["small"] / "first.rc").read_text().strip() not in ("0", "64", "65") and "No space left" in stderr, (
        stderr
    )
    assert (roots["small"] / "markers").read_text() == ""
    assert hash_finished_files(roots["small"] / "copy") == hash_files(roots["whole"])
