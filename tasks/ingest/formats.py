"""Image formats that ingest knows by their first bytes and does not read, so that a file of them says what it is.

They are left out because a decoder of untrusted bytes is a risk that each further format adds to; converting them once,
by the owner of the files, is not. Pure.
"""

from __future__ import annotations

HEADERS = (
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("BigTIFF", b"II+\0"),
    ("BigTIFF", b"MM\0+"),
    ("Photoshop", b"8BPS"),
    ("JPEG XL", b"\xff\x0a"),
    ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
    ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("camera raw (RAF)", b"FUJIFILMCCD-RAW"),
)
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of the header behind the file's own, bytes


def unread_format(content: bytes) -> str | None:
    """Name of the image format that the file has, of those that are not read; None for any other file.

    Args:
        content: the file, or its first 32 bytes.
    """
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        return "HEIC or HEIF"
    if content[:2] == b"BM" and int.from_bytes(content[14:18], "little") in BMP_HEADERS:
        return "BMP"
    return next((name for name, header in HEADERS if content.startswith(header)), None)
