"""A user's own rows of accelerators: read as the packaged table is, every mistake named."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SizingError, SpecError, UnknownDevice
from rigsize.hardware import find_accelerator, load_accelerators, parse_gpus
from rigsize.hardware.accelerators import START_CONTEXT, TABLE, take_accelerators
from rigsize.hardware.accelerators_file import COLUMNS, STACKS, read_accelerators
from rigsize.units import GIB, MIB

PACKAGED = load_accelerators()
HEADER = "id,software_stack,arch,memory_nominal_gb,memory_driver_mib,fp32_tflops,bf16_tflops,source"
B40 = "Lab-B40,cuda,sm_90,48,49140,80,320,our datasheet"


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "cards.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> object:
    return read_accelerators(path, beside=PACKAGED)


def test_a_row_of_few_columns(tmp_path: Path) -> None:
    (row,) = read_accelerators(written(tmp_path, B40), beside=PACKAGED)
    # 49,140 MiB x 0.985 = 48,402.9 MiB
    assert row.capacity_bytes == int(49140 * MIB * 0.985)
    assert row.capacity is not None
    assert row.capacity.source.endswith("our datasheet")
    assert (row.name, row.devices, row.compute_capability) == ("Lab-B40", 1, (9, 0))
    assert row.peak_flops_per_s == {"fp32": 80e12, "bf16": 320e12}
    assert row.context_bytes is START_CONTEXT
    # Who says nothing of its source has not opened one.
    assert (row.basis, row.check, row.as_of) == ("assumed", "R", "undated")
    assert row.memory_bytes_per_s is None
    assert row.table == str(tmp_path / "cards.csv")


def test_the_packaged_table_has_these_columns_and_stacks() -> None:
    header = TABLE.read_text(encoding="utf-8").partition("\n")[0]
    assert tuple(header.split(",")) == COLUMNS
    assert {row.software_stack for row in PACKAGED} == set(STACKS)
    assert {row.table for row in PACKAGED} == {""}


def test_own_rows_are_found_until_they_are_taken_away(tmp_path: Path) -> None:
    path = written(tmp_path, B40 + ",lab b40|B-40", header=HEADER + ",aliases")
    take_accelerators(path)
    try:
        assert len(load_accelerators()) == len(PACKAGED) + 1
        assert parse_gpus("b40:8x2").accelerator is find_accelerator("Lab-B40")
        assert find_accelerator("A100-40GB") in PACKAGED
    finally:
        take_accelerators(None)
    assert load_accelerators() is PACKAGED
    with pytest.raises(UnknownDevice):
        find_accelerator("Lab-B40")


def test_two_dies_and_what_torch_sees(tmp_path: Path) -> None:
    header = "id,software_stack,arch,devices,memory_driver_mib,torch_total_gib,as_of,check"
    row = "Duo,rocm,gfx942,2,131072,63.5,2026-11,V1"
    (found,) = read_accelerators(written(tmp_path, row, header=header), beside=PACKAGED)
    # 131,072 MiB on two dies are 64 GiB each, of which torch sees 63.5.
    assert found.capacity_bytes == int(63.5 * GIB)
    assert (found.basis, found.check, found.as_of) == ("published", "V1", "2026-11")


BAD = {
    "no id": (",cuda,sm_90,48,49140,80,320,x", "row 2, column id: empty"),
    "a count": ("B40:8,cuda,sm_90,48,49140,80,320,x", "column id: no name for --gpus"),
    "dashes": ("---,cuda,sm_90,48,49140,80,320,x", "column id: no name for --gpus"),
    "the table's": ("A100-40GB-SXM,cuda,sm_80,,,,,x", "column id: another card's name"),
    "an alias of the table": ("h100,cuda,sm_80,,,,,x", "column id: another card's name"),
    "stack": ("B,kuda,sm_90,48,49140,80,320,x", "software_stack: none of cuda, rocm, neuron"),
    "arch of cuda": ("B,cuda,hopper,48,49140,80,320,x", "column arch: not as cuda has it: sm_80"),
    "arch of rocm": ("B,rocm,sm_90,48,49140,80,320,x", "column arch: not as rocm has it: gfx90a"),
    "no arch": ("B,cuda,,48,49140,80,320,x", "column arch: empty"),
    "above the label": ("B,cuda,sm_90,48,49153,80,320,x", "more than the 48 GB of its label"),
    "far below": ("B,cuda,sm_90,48,44000,80,320,x", "less than 90 % of the 48 GB of its label"),
    "MiB in GiB": ("B,cuda,sm_90,48,47.9,80,320,x", "memory_driver_mib: not a whole number"),
    "negative": ("B,cuda,sm_90,48,49140,-80,320,x", "column fp32_tflops: negative"),
    "zero": ("B,cuda,sm_90,48,49140,80,0,x", "column bf16_tflops: 0; empty where it is not known"),
    "infinite": ("B,cuda,sm_90,48,49140,80,inf,x", "column bf16_tflops: not a number up to"),
    "not a number": ("B,cuda,sm_90,48,49140,80,nan,x", "column bf16_tflops: not a number up to"),
    "words": ("B,cuda,sm_90,48,49140,80,fast,x", "column bf16_tflops: not a number"),
    "slower in half": ("B,cuda,sm_90,48,49140,80,40,x", "below its fp32_tflops, which no card is"),
    "short": ("B,cuda,sm_90", "more or fewer cells"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_name_the_row_and_the_column(name: str, tmp_path: Path) -> None:
    row, expected = BAD[name]
    with pytest.raises(SizingError) as caught:
        read(written(tmp_path, row))
    assert expected in str(caught.value)
    assert str(caught.value).startswith("accelerators: ")
    assert "cards.csv row 2" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        ("torch_total_gib", "48", "not 94 to 100 % of the driver's memory"),
        ("torch_total_gib", "0", "0; empty where it is not known"),
        ("context_mid_mib", "500", "low, mid and high go together"),
        ("check", "V9", "none of V2, V1, R"),
        ("basis", "guessed", "none of "),
        ("as_of", "yesterday", "not a date"),
        ("as_of", "2026-02-30", "not a date"),
        ("devices", "0", "not a whole number from 1"),
        ("devices", "1e9", "not a whole number"),
        ("tdp_w", "0", "0; empty where it is not known"),
        ("aliases", "a100", "a100 is another card's name"),
        ("aliases", "B:8", "'B:8' is no name for --gpus"),
        ("link_max_peers", "0", "not a whole number from 1"),
    ],
)
def test_bad_cells(column: str, cell: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{B40},{cell}", header=f"{HEADER},{column}")
    with pytest.raises(SpecError, match="row 2, column ") as caught:
        read(path)
    assert expected in str(caught.value)


def test_grade_and_basis_go_together(tmp_path: Path) -> None:
    path = written(tmp_path, f"{B40},assumed,V2", header=f"{HEADER},basis,check")
    with pytest.raises(SpecError, match="R is what is assumed"):
        read(path)


def test_two_rows_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="row 3, column id: another card's name"):
        read(written(tmp_path, B40, B40.replace("Lab-B40", "LAB b40".replace(" ", "_"))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "the file is empty"),
        (HEADER.encode(), "a header and no row"),
        (b"id,software_stack\nB,cuda\n", "the column is missing"),
        (HEADER.replace("bf16_tflops", "bf16_flops").encode() + b"\n", "did you mean bf16_tflops"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
    ],
)
def test_bad_files(text: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "cards.csv"
    path.write_bytes(text)
    with pytest.raises(SpecError, match=expected):
        read(path)


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cards.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\r\n{B40}\r\n".encode())
    assert [row.id for row in read_accelerators(path, beside=PACKAGED)] == ["Lab-B40"]


@given(st.lists(st.text(max_size=12), min_size=8, max_size=8))
def test_any_cells_are_a_row_or_one_line(cells: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cards.csv"
        out = io.StringIO(newline="")
        csv.writer(out).writerows([HEADER.split(","), cells])
        path.write_text(out.getvalue(), encoding="utf-8", errors="replace", newline="")
        line = ""
        try:
            read(path)
        except SizingError as error:
            line = str(error)
    assert "\n" not in line
