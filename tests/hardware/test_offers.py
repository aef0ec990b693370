import csv
import dataclasses
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SizingError, SpecError
from rigsize.hardware import accelerator_family, find_accelerator, load_accelerators
from rigsize.hardware.dates import first_day
from rigsize.hardware.offers import (
    Offer,
    Wanted,
    cache_file,
    load_catalogue,
    packaged_offers,
    select,
)
from rigsize.hardware.offers_file import COLUMNS, read_offers, write_offers

TODAY = date(2026, 11, 25)
OFFERS = packaged_offers()
HEADER = "provider,instance,gpu_name,gpu_count,host_ram_gib,on_demand_usd_h,snapshot_date"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def offer_of(instance: str, offers: tuple[Offer, ...] = OFFERS) -> Offer:
    (found,) = [offer for offer in offers if offer.instance == instance]
    return found


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


# -- the snapshot -------------------------------------------------------------------------------


def test_the_snapshot_is_whole() -> None:
    assert len(OFFERS) == 260
    keys = [(offer.provider, offer.instance, offer.region) for offer in OFFERS]
    assert len(set(keys)) >= 258  # two cards are listed by two sources
    assert {"aws", "azure", "gcp", "lambda", "runpod", "nebius"} <= {o.provider for o in OFFERS}


@pytest.mark.parametrize("offer", OFFERS, ids=lambda o: f"{o.provider}-{o.instance}")
def test_every_price_has_a_source_and_a_date(offer: Offer) -> None:
    assert offer.source.strip()
    assert offer.accelerator in load_accelerators()
    assert "is taken as" not in offer.note  # the snapshot names exact ids
    assert (age := offer.age_days(TODAY)) is None or age >= 0
    if offer.price_date == "":
        assert "undated" in offer.note
    price, spot = offer.usd_per_hour(), offer.usd_per_hour(spot=True)
    per_gpu = offer.usd_per_gpu_hour()
    assert per_gpu is None or 0.05 < per_gpu < 40
    assert spot is None or price is None or 0 < spot < price


def test_nothing_comes_from_the_package_under_the_agpl() -> None:
    assert not any("AGPL" in offer.source for offer in OFFERS)
    notice = Path(str(read_offers.__code__.co_filename)).parent / "data" / "OFFERS-LICENCE.md"
    text = notice.read_text(encoding="utf-8")
    # 70 shapes are SpareCores', under CC BY-SA 4.0, which asks for attribution.
    assert sum("SpareCores" in offer.source for offer in OFFERS) == 70
    assert "CC BY-SA 4.0" in text
    assert "sparecores.com" in text


def test_slices_are_slices() -> None:
    slices = [offer for offer in OFFERS if offer.fractional]
    assert len(slices) == 14
    assert all(offer.devices == 0 for offer in slices)
    assert {"g6f.xlarge", "Standard_NV6ads_A10_v5"} <= {offer.instance for offer in slices}


def test_hand_read_rows() -> None:
    p4d = offer_of("p4d.24xlarge")
    assert (p4d.accelerator.id, p4d.gpu_count, p4d.vcpus) == ("A100-40GB-SXM", 8, 96)
    assert p4d.host_memory_gib == 1152
    # 21.957642 / 8 = 2.74 USD, the figure that is quoted for an AWS A100-40GB.
    assert p4d.usd_per_gpu_hour() == pytest.approx(2.745, abs=0.005)
    assert p4d.link == "NVLink3/NVSwitch"
    assert offer_of("g6.48xlarge").link == "PCIe"
    assert offer_of("g6.xlarge").link == "one device"
    # 16 chips of 4 devices each.
    assert offer_of("trn2.48xlarge").devices == 64


def test_no_source_states_the_network_of_a_listed_machine() -> None:
    assert {offer.network_gbit_per_s for offer in OFFERS} == {None}


# -- asking -------------------------------------------------------------------------------------


def test_cheapest_first_per_gpu_hour_and_unpriced_last() -> None:
    prices = [offer.usd_per_gpu_hour() for offer in select(OFFERS, Wanted())]
    known = [price for price in prices if price is not None]
    assert known == sorted(known)
    assert prices[len(known) :] == [None] * (len(prices) - len(known))


def test_filters() -> None:
    l4 = select(OFFERS, Wanted(accelerators=(find_accelerator("L4"),), gpu_count=8))
    assert {offer.instance for offer in l4} == {"g6.48xlarge", "g2-standard-96"}
    assert all(o.usd_per_hour() <= 1 for o in select(OFFERS, Wanted(max_usd_per_hour=1)))  # type: ignore[operator]
    assert all(o.usd_per_hour(spot=True) for o in select(OFFERS, Wanted(spot=True)))
    assert all(not o.fractional for o in select(OFFERS, Wanted()))
    # Lambda has one price in all regions; Crusoe names two in one cell.
    assert {o.provider for o in select(OFFERS, Wanted(region="EU"))} >= {"crusoe", "lambda"}
    assert "azure" not in {o.provider for o in select(OFFERS, Wanted(region="us-east-1"))}


def test_only_whole_shapes() -> None:
    """AWS sells A100s by eight: nobody gets two of them there."""
    a100 = accelerator_family("A100-40GB")
    two = select(OFFERS, Wanted(accelerators=a100, gpu_count=2))
    assert "aws" not in {offer.provider for offer in two}
    assert offer_of("gpu_2x_a100", two).usd_per_hour() == pytest.approx(3.98)


def test_a_linear_price_is_multiplied() -> None:
    one = offer_of("1x-A100-80GB-PCIe-community")
    assert one.max_multiple == 8
    wanted = Wanted(accelerators=(one.accelerator,), provider="runpod", gpu_count=4)
    four = offer_of("1x-A100-80GB-PCIe-community", select(OFFERS, wanted))
    assert four.gpu_count == four.devices == 4
    assert four.usd_per_hour() == pytest.approx(4 * 1.19)
    assert four.usd_per_gpu_hour() == pytest.approx(1.19)
    assert select(OFFERS, dataclasses.replace(wanted, gpu_count=9)) == ()


@given(
    wanted=st.builds(
        Wanted,
        provider=st.sampled_from([None, "aws", "lambda", "runpod"]),
        gpu_count=st.sampled_from([None, 1, 2, 8]),
        max_usd_per_hour=st.sampled_from([None, 0.5, 5.0]),
        spot=st.booleans(),
        region=st.sampled_from([None, "us-east-1", "eu"]),
        fractional=st.booleans(),
    ),
    name=st.sampled_from(["provider", "gpu_count", "max_usd_per_hour", "region"]),
)
def test_a_wish_less_never_finds_less(wanted: Wanted, name: str) -> None:
    fewer = select(OFFERS, wanted)
    more = select(OFFERS, dataclasses.replace(wanted, **{name: None}))  # type: ignore[arg-type]
    assert len(fewer) <= len(more)


@pytest.mark.parametrize(
    ("text", "day"),
    [("2026-06-18", date(2026, 6, 18)), ("2026-06", date(2026, 6, 1)), ("2025", date(2025, 1, 1))],
)
def test_a_coarse_date_counts_from_its_first_day(text: str, day: date) -> None:
    assert first_day(text) == day


def test_stale_after_ninety_days() -> None:
    # 2026-08-27 + 90 days = 2026-11-25.
    offer = dataclasses.replace(OFFERS[0], price_date="2026-08-27")
    assert not offer.is_stale(TODAY)
    assert dataclasses.replace(offer, price_date="2026-08-26").is_stale(TODAY)
    assert dataclasses.replace(offer, price_date="").is_stale(TODAY)


# -- own rows -----------------------------------------------------------------------------------


def test_own_rows_come_on_top(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "lab,node1,A100:80GB,4,512,3.5,2026-11-01",
        "lab,node2,L40S,8,,,",
        "lab,free,L4,1,64,0,2026-11-01",
    )
    offers = load_catalogue(path, TODAY).offers
    assert len(offers) == len(OFFERS) + 3
    node = offer_of("node1", offers)
    assert node.accelerator.id == "A100-80GB-SXM"
    assert "is taken as A100-80GB-SXM" in node.note
    assert (node.region, node.source, node.usd_per_gpu_hour()) == ("any", "mine.csv", 0.875)
    assert offer_of("node2", offers).usd_per_hour() is None
    assert offer_of("free", offers).usd_per_hour() == 0


def test_the_network_of_own_machines(tmp_path: Path) -> None:
    rows = ("lab,a,L4,1,64,1,2026-11-01,400", "lab,b,L4,1,64,1,2026-11-01,")
    path = written(tmp_path, *rows, header=HEADER + ",network_gbit_s")
    offers = read_offers(path, today=TODAY)
    # 400 Gbit/s are 50 GB/s; an empty cell is not known.
    assert [offer.network_bytes_per_s for offer in offers] == [50e9, None]


def test_an_own_price_replaces_the_listed_one(tmp_path: Path) -> None:
    header = HEADER + ",region"
    row = "AWS,p4d.24xlarge,A100-40GB-SXM,8,1152,11.0,2026-11-01,us-east-1"
    offers = load_catalogue(written(tmp_path, row, header=header), TODAY).offers
    assert len(offers) == len(OFFERS)
    assert offer_of("p4d.24xlarge", offers).usd_per_hour() == 11.0


BAD_ROWS = {
    "negative": ("a,b,L4,1,64,-1,2026-01-01", "row 2, column on_demand_usd_h: negative"),
    "future": ("a,b,L4,1,64,1,2026-11-26", "row 2, column snapshot_date: in the future"),
    "no number": ("a,b,L4,1,64,cheap,", "row 2, column on_demand_usd_h: not a number"),
    "nan": ("a,b,L4,1,64,nan,", "row 2, column on_demand_usd_h: not a number up to"),
    "no network": ("a,b,L4,1,64,1,,0", "column network_gbit_s: 0; empty where it is not known"),
    "no such network": ("a,b,L4,1,64,1,,1e7", "column network_gbit_s: not a number up to 1e+06"),
    "no date": ("a,b,L4,1,64,1,yesterday", "column snapshot_date: not a date"),
    "no such day": ("a,b,L4,1,64,1,2026-02-30", "column snapshot_date: not a date"),
    "no provider": (",b,L4,1,64,1,", "column provider: empty"),
    "no gpus": ("a,b,L4,0,64,1,", "column gpu_count: neither a whole number nor"),
    "one and a half": ("a,b,L4,1.5,64,1,", "column gpu_count: neither a whole number nor"),
    "unknown gpu": ("a,b,A1000,1,64,1,", "column gpu_name: no such accelerator"),
    "a count": ("a,b,L4:8,1,64,1,", "column gpu_name: a count belongs into gpu_count"),
    "short": ("a,b,L4,1", "more or fewer cells"),
    "long": ("a,b,L4,1,64,1,,x", "more or fewer cells"),
    "quote": ('a,"b,L4,1,64,1,', "no CSV"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_name_the_row_and_the_column(name: str, tmp_path: Path) -> None:
    row, expected = BAD_ROWS[name]
    header = HEADER + ",network_gbit_s" if "network" in name else HEADER
    with pytest.raises(SizingError) as caught:
        read_offers(written(tmp_path, row, header=header), today=TODAY)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_machine_twice_is_refused(tmp_path: Path) -> None:
    rows = ("lab,box,L4,1,64,1,", "LAB,box,L4,1,64,2,")
    with pytest.raises(SpecError, match="row 3, column instance: there already"):
        read_offers(written(tmp_path, *rows), today=TODAY)


def test_a_price_is_never_minus_nothing(tmp_path: Path) -> None:
    (offer,) = read_offers(written(tmp_path, "lab,box,L4,1,64,-0,"), today=TODAY)
    assert str(offer.usd_per_hour()) == "0.0"


def test_a_device_without_an_end() -> None:
    with pytest.raises(SpecError, match="too large"):
        read_offers(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "the file is empty"),
        (HEADER.encode(), "a header and no row"),
        (b"provider,instance,gpu_name\na,b,L4\n", "the column is missing"),
        (b"provider,instance,gpu_name,gpu_count,prize\n", "no such column"),
        (b"provider,provider,instance,gpu_name,gpu_count\n", "there twice"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
    ],
)
def test_bad_files(text: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(text)
    with pytest.raises(SpecError, match=expected):
        read_offers(path, today=TODAY)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            read_offers(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    with (Path(str(read_offers.__code__.co_filename)).parent / "data" / "cloud_offers.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    write_offers(rows, tmp_path / "deep" / "again.csv")
    assert read_offers(tmp_path / "deep" / "again.csv") == OFFERS


# -- refreshed rows -----------------------------------------------------------------------------


def test_a_refreshed_provider_replaces_its_rows_whole() -> None:
    header = {"provider": "lambda", "instance": "gpu_1x_a10", "gpu_name": "A10", "gpu_count": 1}
    write_offers([header | {"on_demand_usd_h": 0.5, "snapshot_date": "2026-11-25"}], cache_file())
    found = load_catalogue(None, TODAY)
    assert found.warnings == ()
    assert [o.usd_per_hour() for o in found.offers if o.provider == "lambda"] == [0.5]
    assert len([o for o in found.offers if o.provider == "aws"]) == 94


def test_a_broken_cache_is_one_line() -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text("half a fi")
    found = load_catalogue(None, TODAY)
    assert len(found.offers) == len(OFFERS)
    (warning,) = found.warnings
    assert "left out" in warning
