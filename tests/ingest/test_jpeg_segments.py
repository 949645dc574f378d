"""Stray bytes outside the scans cost nothing; a scan that never came costs the file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.ingest.jpeg_segments import missing_scans, without_stray_bytes
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tests.support.images import block_image, encode

CASE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "ingest" / "19_jpeg_40_bytes_between_headers.jpg"
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": "4:4:4", "progressive": True},
    "restarts": {"restart_marker_blocks": 2},
}


def jpeg(kind: str, mode: str = "RGB") -> bytes:
    return encode(block_image(5, (220, 180)).convert(mode), "JPEG", quality=85, **KINDS[kind])


def normalized(content: bytes) -> NormalizedImage | Rejection:
    return normalize_image(content, is_named_image=True, rules=NormalizationRules())


def places(content: bytes, marker: bytes) -> list[int]:
    """Where headers of this marker begin; looked for by their bytes, which the test images have nowhere else."""
    found, at = [], content.find(marker)
    while at >= 0:
        found.append(at)
        at = content.find(marker, at + 1)
    return found


@pytest.mark.parametrize("stray", [b"\0" * 40, b"pad" * 700, b"\xff\x00" * 50, b"\0" * 17])
@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc4", b"\xff\xda"])
@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_stray_bytes_between_headers_cost_nothing(kind: str, marker: bytes, stray: bytes):
    content = jpeg(kind)
    at = places(content, marker)[0]
    padded = content[:at] + stray + content[at:]
    whole, found = normalized(content), normalized(padded)
    assert isinstance(found, NormalizedImage) and found == whole
    assert without_stray_bytes(padded) == content


def test_stray_bytes_between_headers_of_a_later_scan_cost_nothing():
    content = jpeg("progressive")
    tables = [at for at in places(content, b"\xff\xc4") if at > places(content, b"\xff\xda")[0]]
    behind = tables[0] + 2 + int.from_bytes(content[tables[0] + 2 : tables[0] + 4], "big")
    padded = content[:behind] + b"\0" * 90 + content[behind:]
    assert normalized(padded) == normalized(content)


def test_stray_bytes_do_not_hide_damage_behind_them():
    """libjpeg prints its first warning only."""
    content = jpeg("baseline")
    at = places(content, b"\xff\xdb")[0]
    for cut in (content[: len(content) // 2], content[: len(content) // 2] + b"\xff\xd9"):
        found = normalized(cut[:at] + b"\0" * 40 + cut[at:])
        assert isinstance(found, Rejection) and found.reason == "undecodable"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_progressive_file_whose_later_scans_never_came_is_damaged(mode: str):
    content = jpeg("progressive", mode)
    assert missing_scans(content) is None and isinstance(normalized(content), NormalizedImage)
    scans = places(content, b"\xff\xda")
    assert len(scans) >= 6 or mode == "L"
    for at in scans[1:]:
        found = normalized(content[:at] + b"\xff\xd9")
        assert isinstance(found, Rejection) and found.reason == "undecodable"
        assert "never came" in found.detail or "no scan" in found.detail


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_whole_file_has_all_scans_and_no_stray_byte(kind: str, mode: str):
    content = jpeg(kind, mode)
    assert missing_scans(content) is None and without_stray_bytes(content) == content


def test_a_sequential_file_with_a_scan_for_each_component_needs_all_of_them():
    """Made by hand: three scans of one frame; the pixels do not matter."""
    frame = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    scan = [b"\xff\xda\x00\x08\x01" + bytes([n]) + b"\x00\x00\x3f\x00ab\xff\x00c" for n in (1, 2, 3)]
    start, end = b"\xff\xd8" + frame, b"\xff\xd9"
    assert missing_scans(start + b"".join(scan) + end) is None
    assert missing_scans(start + scan[0] + scan[1] + end) == "no scan holds component 3 of 3"
    assert missing_scans(start + end) == "no scan holds component 1 of 3"
    assert missing_scans(b"\xff\xd8") is None and missing_scans(np.random.default_rng(0).bytes(5000)) is None


def test_case_19_is_kept():
    if not CASE.exists():
        pytest.skip(f"case 19: {CASE} is not there; the generated files above are its twins")
    found = normalized(CASE.read_bytes())
    assert isinstance(found, NormalizedImage)
    full = Image.open(io.BytesIO(without_stray_bytes(CASE.read_bytes()))).convert("RGB")
    assert (found.width_px, found.height_px) == full.size
