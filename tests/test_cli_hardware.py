import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rigsize.cli import run
from rigsize.hardware.offers import cache_file

Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_one_card(ran: Ran) -> None:
    code, out, err = ran("gpus", "A100:80GB")
    assert (code, err) == (0, "")
    assert "taken as A100-80GB-SXM" in out
    for text in ("grade V2", "79.25 GiB", "312 TFLOP/s", "USD a GPU-hour on demand"):
        assert text in out
    found = json.loads(ran("gpus", "L4", "--json")[1])
    assert found["capacity_bytes"] == int(22.03 * 2**30)
    assert found["usd_per_gpu_hour"]["low"] <= found["usd_per_gpu_hour"]["high"]
    assert found["assumed"] is None


def test_two_dies_are_two_devices(ran: Ran) -> None:
    assert "one product is 2 devices" in ran("gpus", "MI250X")[1]


def test_unverified_and_not_for_rent(ran: Ran) -> None:
    out = ran("gpus", "RTX-PRO-6000-WS")[1]
    assert "unverified" in out
    assert "no offer with a price" in out


def test_alternatives_have_no_number_for_training(ran: Ran) -> None:
    out = ran("gpus", "Groq-LPU")[1]
    assert "not a PyTorch training target" in out
    assert "discontinued" in ran("gpus", "IPU")[1]
    assert "Cerebras-WSE3" in ran("gpus")[1]


def test_unknown_card(ran: Ran) -> None:
    code, _, err = ran("gpus", "H1000")
    assert code == 2
    assert "did you mean" in err
    assert err.count("\n") == 1


def test_here_without_a_driver(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rigsize.hardware.here._through_nvml", lambda: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = ran("gpus", "--here")
    assert (code, out) == (5, "")
    assert err.count("\n") == 1
    assert ran("gpus", "L4", "--here")[0] == 2


def test_offers(ran: Ran) -> None:
    code, out, err = ran("offers")
    assert (code, err) == (0, "")
    assert "cheapest price on demand per GPU first" in out
    assert "14 slices of a GPU are left out" in out
    found = json.loads(ran("offers", "--json", "--fractional")[1])
    assert found["searched"] == len(found["offers"]) == 260
    for offer in found["offers"]:
        assert offer["source"]
        assert offer["usd_per_hour"] or offer["usd_per_hour_unknown_reason"]
        assert offer["stale"] or offer["price_date"]


def test_a_name_covers_its_variants_and_may_name_a_count(ran: Ran) -> None:
    found = json.loads(ran("offers", "--gpu", "A100:8", "--json")[1])
    assert {o["gpu"] for o in found["offers"]} == {
        "A100-40GB-SXM", "A100-80GB-SXM", "A100-80GB-PCIe",
    }  # fmt: skip
    assert {o["gpu_count"] for o in found["offers"]} == {8}
    assert any("A100:8 covers" in note for note in found["notes"])
    only = json.loads(ran("offers", "--gpu", "A100:40GB", "--provider", "AWS", "--json")[1])
    assert [o["instance"] for o in only["offers"]] == ["p4d.24xlarge"]
    assert ran("offers", "--gpu", "A100:8", "--count", "4")[0] == 2


def test_a_region_that_no_offer_names_is_said(ran: Ran) -> None:
    out = " ".join(ran("offers", "--region", "us-eest-1", "--limit", "1")[1].split())
    assert "no offer names the region us-eest-1, did you mean us-east-1?" in out
    for region in ("us-east-1", "US-EAST-1"):
        assert "no offer names" not in ran("offers", "--region", region, "--limit", "1")[1]


def test_nothing_found_says_what_is_nearest(ran: Ran) -> None:
    code, out, _ = ran("offers", "--gpu", "H200", "--max-price", "0.5")
    assert code == 3
    text = " ".join(out.split())
    assert "no offer meets all of it; without --max-price:" in text
    assert "H200-141GB-SXM" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--provider", "awz"), "did you mean aws?"),
        (("--count", "0"), "not a number from 1"),
        (("--count", "two"), "not a number"),
        (("--max-price", "-1"), "not a number from 0"),
        (("--region", " "), "region: no name"),
        (("--max-price", "nan"), "not a number from 0"),
        (("--limit", "x"), "not a number"),
        (("--gpu", "A1000"), "did you mean"),
        (("--gpu", "L4:8x2"), "of one machine"),
        (("refrech",), "did you mean refresh?"),
        (("--from", "x"), "belongs to `offers refresh`"),
        (("--offers", "no-such.csv"), "cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], expected: str, ran: Ran) -> None:
    code, out, err = ran("offers", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_own_machines(ran: Ran, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("provider,instance,gpu_name,gpu_count,on_demand_usd_h\nlab,box,L40S,2,0.4\n")
    found = json.loads(ran("offers", "--offers", str(mine), "--provider", "lab", "--json")[1])
    assert [(o["instance"], o["usd_per_gpu_hour"]) for o in found["offers"]] == [("box", 0.2)]
    mine.write_text("provider,instance,gpu_name,gpu_count,on_demand_usd_h\nlab,box,L40S,2,-4\n")
    code, _, err = ran("offers", "--offers", str(mine))
    assert code == 2
    assert "mine.csv row 2, column on_demand_usd_h: negative" in err


def test_a_known_network_is_shown(ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    head = "provider,instance,gpu_name,gpu_count,network_gbit_s"
    path.write_text(f"{head}\nlab,fast,L4,1,400\nlab,slow,L4,1,\n")
    mine = ("offers", "--offers", str(path), "--provider", "lab")
    assert "Gbit/s" in ran(*mine)[1]
    fast, slow = json.loads(ran(*mine, "--json")[1])["offers"]
    assert fast["network_bytes_per_s"] == 50e9
    assert slow["network_bytes_per_s"] is None
    assert slow["network_bytes_per_s_unknown_reason"] == "the source does not say"
    assert "Gbit/s" not in ran("offers", "--gpu", "L4")[1]


CARDS = "id,name,aliases,software_stack,arch,memory_driver_mib,bf16_tflops,tdp_w,source\n"
B40 = "Lab-B40,Lab B40,b40,cuda,sm_90,49140,320,300,our datasheet\n"


def test_own_cards(ran: Ran, tmp_path: Path) -> None:
    cards, offers = tmp_path / "cards.csv", tmp_path / "mine.csv"
    cards.write_text(CARDS + B40)
    own = ("--accelerators", str(cards))
    found = json.loads(ran("gpus", "b40", *own, "--json")[1])
    assert (found["id"], found["source"], found["grade"]) == ("Lab-B40", "our datasheet", "R")
    assert "Lab B40, sm_90" in ran("gpus", "b40", *own)[1]
    listed = json.loads(ran("gpus", *own, "--json")[1])["accelerators"]
    assert [row["id"] for row in listed][-1] == "Lab-B40"
    offers.write_text("provider,instance,gpu_name,gpu_count,on_demand_usd_h\nlab,box,b40,2,4\n")
    rented = json.loads(ran("offers", "--offers", str(offers), "--gpu", "b40", *own, "--json")[1])
    assert [offer["usd_per_gpu_hour"] for offer in rented["offers"]] == [2.0]
    # They are those of one command.
    code, _, err = ran("gpus", "b40")
    assert code == 2
    assert "no such accelerator" in err
    cards.write_text(CARDS + B40.replace("320", "-1"))
    code, _, err = ran("gpus", *own)
    assert code == 2
    assert err.startswith("rigsize: accelerators: cards.csv row 2, column bf16_tflops: negative")
    # A row that is wrong leaves the others alone.
    assert ran("gpus", "L4")[0] == 0


def test_refresh_from_a_folder_is_kept(ran: Ran, tmp_path: Path) -> None:
    storage = pytest.importorskip("gpuhunt._internal.storage")
    row = "gpu_1x_a10,us-east-1,0.11,30,214.7,1,A10,24,False,,nvidia,,x86,{}"
    header = ",".join(storage.CATALOG_V2_FIELDS)
    (tmp_path / "lambdalabs.csv").write_text(f"{header}\n{row}\n")
    code, out, err = ran("offers", "refresh", "--from", str(tmp_path), "--gpu", "A10")
    assert (code, err) == (0, "")
    assert "refreshed: 1 offers of lambda" in " ".join(out.split())
    found = json.loads(ran("offers", "--gpu", "A10", "--json")[1])["offers"]
    assert (found[0]["provider"], found[0]["usd_per_hour"]) == ("lambda", 0.11)
    assert "aws" in {o["provider"] for o in json.loads(ran("offers", "--json")[1])["offers"]}


def test_refresh_without_network_answers_from_the_snapshot(ran: Ran, tmp_path: Path) -> None:
    pytest.importorskip("gpuhunt")
    code, out, err = ran("offers", "refresh", "--from", (tmp_path / "none").as_uri())
    assert code == 0
    assert err.startswith("rigsize: not refreshed, the prices at hand answer: ")
    assert err.count("\n") == 1
    assert "of 260 offers" in out
    assert not cache_file().exists()


def test_figures_of_two_dies_say_whose_they_are(ran: Ran) -> None:
    out = " ".join(ran("gpus", "MI250X")[1].split())
    assert "128 GB HBM2e, all 2 devices" in out
    assert "3,277 GB/s, all 2 devices" in out
    assert json.loads(ran("gpus", "MI250X", "--json")[1])["devices_per_product"] == 2
    assert "all 2" not in ran("gpus", "L4")[1]


def test_the_nearest_card_is_of_the_family(ran: Ran) -> None:
    err = ran("gpus", "a100-sxm")[2]
    assert "did you mean A100-" in err
    assert "GB-SXM?" in err
