import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SizingError, SpecError, UnknownDevice
from rigsize.hardware import (
    accelerator_family,
    find_accelerator,
    load_accelerators,
    parse_gpus,
)
from rigsize.hardware.names import normal


def test_no_two_rows_share_an_id_or_an_alias() -> None:
    names = Counter(
        name for row in load_accelerators() for name in {normal(a) for a in (row.id, *row.aliases)}
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_id_alias_and_name_finds_its_own_row() -> None:
    for row in load_accelerators():
        for name in (row.id, *row.aliases, row.name):
            assert find_accelerator(name) is row, name


@pytest.mark.parametrize(
    ("typed", "id_"),
    [
        # What torch.cuda.get_device_name prints.
        ("NVIDIA A100-SXM4-40GB", "A100-40GB-SXM"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB-PCIe"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB-SXM"),
        ("Tesla V100-SXM2-16GB", "V100-16GB-SXM2"),
        ("Tesla P100-PCIE-16GB", "P100-16GB-PCIe"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-BSE"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA H200", "H200-141GB-SXM"),
        # What people type.
        ("a100 80gb", "A100-80GB-SXM"),
        ("rtx_6000_ada", "RTX6000-Ada"),
        ("CPU", "cpu"),
    ],
)
def test_names(typed: str, id_: str) -> None:
    assert find_accelerator(typed).id == id_


@pytest.mark.parametrize(
    ("text", "id_", "per_node", "nodes"),
    [
        ("L4", "L4", 1, 1),
        ("A100-80GB:8", "A100-80GB-SXM", 8, 1),
        ("A100:80GB:8", "A100-80GB-SXM", 8, 1),
        ("A100:80GB", "A100-80GB-SXM", 1, 1),
        ("H100:8x2", "H100-80GB-SXM", 8, 2),
        ("h100 : 8 x 2", "H100-80GB-SXM", 8, 2),
        ("H200:141GB:8", "H200-141GB-SXM", 8, 1),
        ("V100:32GB:4", "V100-32GB-SXM2", 4, 1),
        ("L4:24GB:4", "L4", 4, 1),
        ("RTX6000:48GB", "RTX6000-Ada", 1, 1),
    ],
)
def test_parse_gpus(text: str, id_: str, per_node: int, nodes: int) -> None:
    gpus = parse_gpus(text)
    assert (gpus.accelerator.id, gpus.per_node, gpus.nodes) == (id_, per_node, nodes)


def test_bare_a100_is_40_gb_and_says_so() -> None:
    gpus = parse_gpus("A100")
    assert gpus.accelerator.id == "A100-40GB-SXM"
    assert gpus.assumed_note == (
        "A100 is taken as A100-40GB-SXM, as SkyPilot does; the name also covers "
        "A100-40GB-PCIe, A100-80GB-PCIe, A100-80GB-SXM"
    )


@pytest.mark.parametrize("text", ["L4:1", "A100-40GB-SXM:8", "T4", "cpu", "A10"])
def test_an_unambiguous_name_has_no_note(text: str) -> None:
    assert parse_gpus(text).assumed_note is None


@pytest.mark.parametrize("text", ["H100", "V100", "RTX6000", "A100-80GB", "A100:80GB:8", "H200"])
def test_an_ambiguous_name_has_one(text: str) -> None:
    assert "taken as" in (parse_gpus(text).assumed_note or "")


@pytest.mark.parametrize(
    "text",
    ["L4:0", "L4:-1", "L4:8x0", "L4:1:2", "L4:99999", "L4:two", "A100:96GB", "", ":8", "L4:"],
)
def test_bad_counts_and_forms(text: str) -> None:
    with pytest.raises(SpecError, match=r"gpus"):
        parse_gpus(text)


def test_unknown_device() -> None:
    with pytest.raises(UnknownDevice) as caught:
        parse_gpus("RTX409:8")
    assert caught.value.exit_code == 2
    assert caught.value.nearest == "RTX4090"
    with pytest.raises(UnknownDevice) as caught:
        parse_gpus("\N{ROCKET}")
    assert caught.value.nearest is None


@given(st.text())
def test_any_text_is_an_answer_or_a_sizing_error(text: str) -> None:
    with contextlib.suppress(SizingError):
        assert parse_gpus(text).per_node >= 1


def test_family() -> None:
    ids = [row.id for row in accelerator_family("A100")]
    assert ids == ["A100-40GB-SXM", "A100-80GB-SXM", "A100-40GB-PCIe", "A100-80GB-PCIe"]
    assert [row.id for row in accelerator_family("A10")] == ["A10"]
    # Whole parts of a name only.
    assert [row.id for row in accelerator_family("H20")] == ["H20-96GB"]
    assert parse_gpus("H20").assumed_note is None
    assert [row.id for row in accelerator_family("NVIDIA H200")] == [
        "H200-141GB-SXM",
        "H200-141GB-NVL",
    ]


@pytest.mark.parametrize("name", ["nvidia-tesla-a100", "NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"])
def test_clouds_and_torch_name_one_row(name: str) -> None:
    assert parse_gpus(name).accelerator.id == "A100-40GB-SXM"
    assert parse_gpus(f"{name}:8").per_node == 8
