"""The real gpuhunt over a local folder in its v2 columns, and over a local mirror."""

import logging
import os
import zipfile
from datetime import date
from pathlib import Path

import pytest

from rigsize.errors import MeasurementFailed, SpecError
from rigsize.hardware.offers import Offer
from rigsize.hardware.offers_file import read_offers
from rigsize.hardware.offers_refresh import refresh

storage = pytest.importorskip("gpuhunt._internal.storage")

TODAY = date(2026, 11, 25)
ROWS = {
    "aws": [
        "p4d.24xlarge,us-east-1,20.0,96,1152,8,A100,40,False,,nvidia,,x86,{}",
        "p4d.24xlarge,us-east-1,8.0,96,1152,8,A100,40,True,,nvidia,,x86,{}",
        "p4d.24xlarge,eu-west-1,24.0,96,1152,8,A100,40,False,,nvidia,,x86,{}",
        "m7.large,us-east-1,0.1,2,8,0,,,False,,,,x86,{}",
        "new.xlarge,us-east-1,9.0,32,256,1,H100,80,False,,nvidia,,x86,{}",
        "old.xlarge,us-east-1,1.0,4,16,1,RTX2060,6,False,,nvidia,,x86,{}",
        "odd.xlarge,us-east-1,1.0,4,16,1,A100,64,False,,nvidia,,x86,{}",
        "broken,us-east-1,cheap,4,16,1,L4,24,False,,nvidia,,x86,{}",
    ],
    "azure": [
        "Standard_NC99ads_A100_v9,eastus,3.0,24,220,1,A100,80,False,,nvidia,,x86,{}",
        "Standard_ND99amsr_A100_v9,eastus,30.0,96,1900,8,A100,80,False,,nvidia,,x86,{}",
    ],
    "runpod": [
        "A100-SXM4,EU,1.5,8,117,1,A100,80,False,,nvidia,,x86,{}",
        "A100-SXM4,EU,1.5,8,117,1,A100,80,True,,nvidia,,x86,{}",
        "MI325X,EU,2.5,8,117,1,MI325X,288,False,,amd,,x86,{}",
    ],
    "lambdalabs": ["gpu_1x_a10,us-east-1,0.75,30,214.748365,1,A10,24,False,,nvidia,,x86,{}"],
    "gcp": ["tpu-x,us-central1,4.8,96,448,4,tpu-v5litepod-4,,False,,,,x86,{}"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "lists"
    made.mkdir()
    for provider, rows in ROWS.items():
        text = "\n".join([",".join(storage.CATALOG_V2_FIELDS), *rows])
        (made / f"{provider}.csv").write_text(text + "\n")
    return made


def by_instance(path: Path) -> dict[tuple[str, str], Offer]:
    return {(offer.instance, offer.region): offer for offer in read_offers(path)}


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "offers.csv"
    done = refresh(str(folder), out, TODAY)
    assert done.providers == ("aws", "azure", "gcp", "lambda", "runpod")
    assert done.missing == ()
    found = by_instance(out)
    assert len(found) == done.offers == 9
    # Both prices of one shape stand in one row, each region in its own.
    p4d = found["p4d.24xlarge", "us-east-1"]
    assert (p4d.usd_per_hour(), p4d.usd_per_hour(spot=True)) == (20.0, 8.0)
    assert p4d.accelerator.id == "A100-40GB-SXM"
    assert found["p4d.24xlarge", "eu-west-1"].usd_per_hour() == 24.0
    assert done.left_out == {"no row for RTX2060 with 6 GB": 1, "no row for A100 with 64 GB": 1}


def test_variants(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "offers.csv"
    refresh(str(folder), out, TODAY)
    ids = {name: offer.accelerator.id for (name, _), offer in by_instance(out).items()}
    assert ids["Standard_NC99ads_A100_v9"] == "A100-80GB-PCIe"
    assert ids["Standard_ND99amsr_A100_v9"] == "A100-80GB-SXM"
    assert ids["A100-SXM4"] == "A100-80GB-SXM"
    assert ids["MI325X"] == "MI325X"
    assert ids["tpu-x"] == "TPU-v5e"
    assumed = by_instance(out)["new.xlarge", "us-east-1"]
    assert assumed.note == "H100 is taken as H100-80GB-SXM"


def test_what_gpuhunt_is_known_to_get_wrong(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "offers.csv"
    refresh(str(folder), out, TODAY)
    found = by_instance(out)
    assert found["A100-SXM4", "EU"].usd_per_hour(spot=True) is None  # equal to on demand
    # 214.748365 GB / 1.073741824 = 200 GiB
    assert found["gpu_1x_a10", "us-east-1"].host_memory_gib == pytest.approx(200, abs=0.01)


def test_the_day_is_the_files(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.csv"):
        os.utime(file, (1.7e9, 1.7e9))  # 2023-11-14
    refresh(str(folder), tmp_path / "offers.csv", TODAY)
    assert {o.price_date for o in read_offers(tmp_path / "offers.csv")} == {"2023-11-14"}


def test_a_mirror(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the public bucket, through the same download code, from a local address."""
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", "/nowhere")
    mirror = tmp_path / "mirror"
    for provider in ("aws", "azure"):
        version = mirror / provider / "20261120-77"
        version.mkdir(parents=True)
        (mirror / provider / "version").write_text("20261120-77")
        with zipfile.ZipFile(version / "catalog.zip", "w") as archive:
            archive.write(folder / f"{provider}.csv", f"{provider}.csv")
    done = refresh(mirror.as_uri(), tmp_path / "offers.csv", TODAY)
    assert done.providers == ("aws", "azure")
    assert {o.price_date for o in read_offers(tmp_path / "offers.csv")} == {"2026-11-20"}
    assert os.environ["GPUHUNT_CATALOG_DIR"] == "/nowhere"


def test_no_network_is_one_error_and_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("gpuhunt").level
    out = tmp_path / "offers.csv"
    with pytest.raises(MeasurementFailed, match="no price list could be read") as caught:
        refresh((tmp_path / "none").as_uri(), out, TODAY)
    assert caught.value.exit_code == 5
    assert not out.exists()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("gpuhunt").level == level


@pytest.mark.parametrize(
    "row",
    [
        "x,us,inf,4,16,1,L4,24,False,,nvidia,,x86,{}",
        "x,us,nan,4,16,1,L4,24,False,,nvidia,,x86,{}",
        "x,us,-1,4,16,1,L4,24,False,,nvidia,,x86,{}",
        "x,us,1,-4,16,1,L4,24,False,,nvidia,,x86,{}",
        "x,us,1,4,-16,1,L4,24,False,,nvidia,,x86,{}",
        "x,us,1,4,16,99999,L4,24,False,,nvidia,,x86,{}",
    ],
)
def test_an_impossible_row_costs_only_itself(row: str, folder: Path, tmp_path: Path) -> None:
    text = "\n".join([",".join(storage.CATALOG_V2_FIELDS), row])
    (folder / "nebius.csv").write_text(text)
    done = refresh(str(folder), tmp_path / "offers.csv", TODAY)
    assert done.left_out["impossible figures"] == 1
    assert len(read_offers(tmp_path / "offers.csv")) == 9


def test_neither_a_folder_nor_an_address(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="neither a folder nor an address"):
        refresh(str(tmp_path / "none"), tmp_path / "offers.csv", TODAY)
    with pytest.raises(SpecError, match="neither a folder nor an address"):
        refresh("", tmp_path / "offers.csv", TODAY)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(MeasurementFailed, match="no offer of a known GPU"):
        refresh(str(tmp_path), tmp_path / "offers.csv", TODAY)


def test_a_file_of_something_else_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "oci.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "nebius.csv").write_text("a,b\n1,2\n")
    done = refresh(str(folder), tmp_path / "offers.csv", TODAY)
    assert set(done.missing) <= {"oci", "nebius"}
    assert "oci" in done.missing
    assert done.offers == 9
