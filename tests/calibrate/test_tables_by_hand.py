"""Tables that a person writes by hand (labels, canaries, pairs): what is wrong in one is named, whatever it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.calibrate import differences, same_content
from tasks.caption.canaries import read_canaries
from tasks.errors import ConfigError, DataError
from tasks.evaluate.protocols import icir
from tasks.judge.labelled import read_labelled

Reader = Callable[[Path], Any]
READERS: dict[str, tuple[Reader, str, str]] = {  # reader, header, a good row
    "differences": (lambda path: differences.read_labels(path, 3), "query,target,differences", "a.jpg,b.jpg,1"),
    "same content": (same_content.read_labelled, "query,target,same", "a.jpg,b.jpg,yes"),
    "labelled": (read_labelled, "query,candidate,instruction,fits", "a.jpg,b.jpg,make it red,yes"),
    "i-CIR": (icir.read_rows, "image_path,text,instance", "a.jpg,red,7"),
    "canaries": (lambda path: read_canaries(path.parent), "query,target,expect", "a.png,b.png,red"),
}
FAULTS = {
    "a short row": lambda header, row: f"{header}\n{row.partition(',')[0]}\n".encode(),
    "an empty value": lambda header, row: f"{header}\n,{row.partition(',')[2]}\n".encode(),
    "another encoding": lambda header, row: f"{header}\nJosé{row}\n".encode("cp1252"),
    "a field without an end": lambda header, row: f'{header}\n"{"x" * 200_000}\n'.encode(),
    "an unknown answer": lambda header, row: f"{header}\n{row.rpartition(',')[0]},-\n".encode(),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", READERS)
def test_a_fault_is_an_error_that_names_the_file(name: str, fault: str, tmp_path: Path):
    read, header, row = READERS[name]
    if name == "i-CIR" and fault in ("an empty value", "an unknown answer"):
        return  # any text is an instance, and paths are looked up later
    path = tmp_path / "canaries.csv"
    path.write_bytes(FAULTS[fault](header, row))
    with pytest.raises((ConfigError, DataError), match="canaries.csv"):
        read(path)


@pytest.mark.parametrize("name", [name for name in READERS if name != "canaries"])
def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_column(name: str, tmp_path: Path):
    read, header, row = READERS[name]
    path = tmp_path / "x.csv"
    path.write_bytes(f"\ufeff{header}\r\n{row}\r\n".encode())
    assert len(read(path)) == 1
