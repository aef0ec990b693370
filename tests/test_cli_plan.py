"""`rigsize plan` on shipped profiles: nothing is traced."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from rigsize.cli import run
from rigsize.plan.memory import Memory
from rigsize.plan.records import Candidate, Confirmation

ASKED = (
    *("plan", "xlm-roberta-base", "--offline", "--task", "masked-lm", "--use", "pre-training"),
    *("--max-length", "128", "--global-batch", "256", "--precision", "amp-bf16"),
    *("--recipe", "lean", "--recompute", "none", "--offload", "none"),
)
TEXTS = ("--examples", "100000")
L4 = ("--gpu", "L4", "--provider", "gcp", "--max-gpus", "4")

Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    """(exit code, stdout, stderr) of a plan."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run((*ASKED, *arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_plans_by_the_contract(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(*TEXTS, *L4, "--json")
    assert code == 0
    document: dict[str, Any] = json.loads(out)
    plans = document["plans"]
    labels = [label for plan in plans for label in plan["labels"]]
    assert {"cheapest", "fastest", "smallest"} <= set(labels)
    front = [p for p in plans if "front" in p["labels"]]
    hours = [p["time"]["hours"]["p50"] for p in front]
    usd = [p["cost"]["usd"]["p50"] for p in front]
    assert hours == sorted(hours, reverse=True)
    assert usd == sorted(usd)
    for plan in plans:
        assert plan["gpus"] == plan["per_node"] * plan["nodes"]
        assert plan["plan"]["global_batch"] == 256
        assert plan["cost"]["price_date"]
        lines = sum(line["seconds"]["p50"] for line in plan["time"]["lines"])
        assert plan["time"]["hours"]["p50"] == pytest.approx(lines / 3600)
        rate = plan["cost"]["usd_per_hour"]
        assert plan["cost"]["usd"]["p50"] == pytest.approx(rate * lines / 3600)
    for plan in plans:
        _check_parts(plan)
    candidates = [r for r in document["rejected"] if r["of"] == "candidates"]
    searched = document["searched"]
    chosen = sum("front" in plan["labels"] for plan in plans)
    assert sum(r["count"] for r in candidates) + chosen == searched["candidates"]
    assert searched["replays"] <= 20
    # The command of a named plan asks `estimate` for the same bytes.
    cheapest = next(plan for plan in plans if "cheapest" in plan["labels"])
    assert run([*shlex.split(cheapest["command"])[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["memory"]["device_peak_bytes"] == cheapest["memory"]["device_peak_bytes"]


def _check_parts(plan: dict[str, Any]) -> None:
    """Memory, host, time and cost as `estimate --json` has them; a null has its reason."""
    memory, time, cost = plan["memory"], plan["time"], plan["cost"]
    named = plan["labels"] != ["front"]
    if named:
        assert sum(row["bytes"] for row in memory["ledger"]) == memory["device_peak_bytes"]
        assert memory["peak_moment"]
        assert sum(row["bytes"] for row in plan["host"]["ledger"]) == plan["host"]["peak_bytes"]
    assert time["run_hours"] == time["hours"]
    assert time["bound_by"]
    assert time["run_bound_by"]
    assert {line["basis"] for line in time["lines"]} <= {"derived", "assumed", "measured"}
    assert time["counts"]["examples"] == 100_000
    assert [line["name"] for line in cost["lines"]] == [line["name"] for line in time["lines"]]
    for share in ("p10", "p90"):
        assert (time["hours"][share] is None) == (not named)
        assert (cost["usd"][share] is None) == (not named)
    total = sum(line["usd"]["p50"] for line in cost["lines"])
    assert cost["usd"]["p50"] == pytest.approx(total)
    _check_nulls({key: plan[key] for key in ("memory", "host", "time", "cost")})


def _check_nulls(value: object) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            assert one is not None or f"{key}_unknown_reason" in value, key
            _check_nulls(one)
    elif isinstance(value, list):
        for one in value:
            _check_nulls(one)


def test_nobody_meets_the_limits(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, *L4, "--max-price", "0.001", "--json")
    assert code == 3
    document = json.loads(out)
    assert document["met"] is False
    (nearest,) = document["plans"]
    assert nearest["labels"] == ["nearest"]
    assert "over --max-price" in nearest["misses"][0]
    assert any(r["class"] == "over_price" for r in document["rejected"])
    code, out, _ = ran(*TEXTS, *L4, "--max-hours", "0.001")
    assert code == 3
    assert "no plan meets the limits; the nearest:" in out
    assert "over --max-hours" in out


def test_a_command_asks_for_its_own_machine(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of the cheapest L4 nor of the other region: the same hours, bytes and USD."""
    file, out_ = tmp_path / "my labs.csv", tmp_path / "plan.json"
    head = "provider,instance,gpu_name,gpu_count,host_ram_gib,region,on_demand_usd_h,spot_usd_h"
    rows = ("lab,big box,L4,1,512,north/west,9,3", "lab,big box,L4,1,64,south,5,2")
    file.write_text("\n".join((head, *rows)) + "\n")
    words = ("--offers", str(file), "--provider", "lab", "--region", "north", "--spot")
    code, out, _ = ran(*TEXTS, *words, "--max-gpus", "2", "--json")
    assert code == 0
    plans = json.loads(out)["plans"]
    assert {plan["nodes"] for plan in plans} == {1, 2}
    for plan in plans:
        assert plan["host_memory_bytes"] == 512 * 2**30
        assert "--host-memory" not in plan["command"]
        assert "--provider lab --offer 'big box' --region north/west " in plan["command"]
        assert run([*shlex.split(plan["command"])[1:], "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["cost"]["instance"] == "big box"
        assert again["cost"]["usd_per_hour"] == plan["cost"]["usd_per_hour"] == 3 * plan["nodes"]
        assert again["cost"]["usd"]["p50"] == pytest.approx(plan["cost"]["usd"]["p50"])
        assert again["time"]["run_hours"]["p50"] == pytest.approx(plan["time"]["hours"]["p50"])
        if plan["labels"] != ["front"]:
            peak = again["memory"]["device_peak_bytes"]
            assert peak == plan["memory"]["device_peak_bytes"]
    # What `emit` writes keeps the machine's own memory.
    assert f"--host-memory {512 * 2**30}B" in plans[0]["emit_command"]
    out_.write_text(out)
    launch = tmp_path / "launch"
    assert run(("emit", "--plan", str(out_), "--pick", "1", "--out", str(launch))) == 0
    assert f'host_memory = "{512 * 2**30}B"' in (launch / "rigsize.toml").read_text()


def test_host_memory_that_nobody_states(ran: Ran, tmp_path: Path) -> None:
    file = tmp_path / "labs.csv"
    head = "provider,instance,gpu_name,gpu_count,host_ram_gib,on_demand_usd_h"
    words = (*TEXTS, "--offers", str(file), "--provider", "lab", "--max-gpus", "1")
    for size, warned in (("", True), ("512", False)):
        file.write_text(f"{head}\nlab,box,L4,1,{size},1\n")
        text = " ".join(ran(*words)[1].split())
        assert (" a node, not checked: this offer states none" in text) == warned
    assert "a node; --host-memory checks it" in " ".join(ran(*TEXTS, "--own", "L4:1")[1].split())


def test_own_machines_cost_nothing(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, "--own", "L4:2", "--host-memory", "64GiB", "--json")
    assert code == 0
    plans = json.loads(out)["plans"]
    assert {plan["provider"] for plan in plans} == {"own"}
    assert {plan["cost"]["usd"]["p50"] for plan in plans} == {0.0}
    fastest = next(plan for plan in plans if "fastest" in plan["labels"])
    assert fastest["gpus"] == 2
    # Nothing is cheaper than nothing.
    assert not any("cheapest" in plan["labels"] for plan in plans)


def test_own_machines_cost_their_energy(ran: Ran) -> None:
    power = ("--own", "L4:2", "--power-price", "0.3")
    code, out, _ = ran(*TEXTS, *power, "--json")
    assert code == 0
    plans = json.loads(out)["plans"]
    cheapest = next(plan for plan in plans if "cheapest" in plan["labels"])
    for plan in plans:
        cost, hours = plan["cost"], plan["time"]["hours"]
        # An L4's limit is 72 W, of which 75 % are used: 0.054 kWh an hour at 0.3 USD.
        assert cost["usd_per_hour"] == pytest.approx(plan["gpus"] * 0.0162)
        assert cost["usd"]["p50"] == pytest.approx(plan["gpus"] * 0.0162 * hours["p50"])
        # Low and high are of the energy: 40 % of the limit for the shortest run, 100 % the longest.
        assert cost["usd"]["p90"] == pytest.approx(plan["gpus"] * 0.0216 * hours["p90"])
        assert cost["usd_per_kwh"] == 0.3
        assert cost["price_date"] == date.today().isoformat()
        assert cost["source"].startswith("--power-price 0.3 USD a kWh: 75% of the cards' power")
        assert cost["usd"]["p50"] >= cheapest["cost"]["usd"]["p50"]
    code, out, _ = ran(*TEXTS, *power)
    assert "prices, as of: own " in out
    assert " old: " not in out
    # With a price there is a limit to it.
    code, out, _ = ran(*TEXTS, *power, "--max-price", "0.000001", "--json")
    assert code == 3
    assert "over --max-price" in json.loads(out)["plans"][0]["misses"][0]


def test_own_cards(ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards, out_ = tmp_path / "cards.csv", tmp_path / "plan.json"
    head = "id,software_stack,arch,memory_driver_mib,memory_bw_gbs,sm_count,fp32_tflops,bf16_tflops"
    cards.write_text(f"{head}\nLab-B40,cuda,sm_90,49140,1500,120,80,320\n")
    code, out, _ = ran(*TEXTS, "--own", "Lab-B40:1", "--accelerators", str(cards), "--json")
    assert code == 0
    (plan, *_) = json.loads(out)["plans"]
    assert plan["gpu"] == "Lab-B40"
    assert plan["memory"]["capacity_bytes"] == int(49140 * 2**20 * 0.985)
    # Its command, and what `emit` makes of it, name the file.
    assert run([*shlex.split(plan["command"])[1:], "--time", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["memory"]["device_peak_bytes"] == plan["memory"]["device_peak_bytes"]
    out_.write_text(out)
    launch = tmp_path / "launch"
    assert run(("emit", "--plan", str(out_), "--pick", "1", "--out", str(launch))) == 0
    assert f'accelerators = "{cards}"' in (launch / "rigsize.toml").read_text()
    assert run(("estimate", "--offline", "--spec", str(launch / "rigsize.toml"))) == 0
    # Without a power limit its energy has no price.
    power = ("--power-price", "0.2", "--accelerators", str(cards))
    code, _, err = ran(*TEXTS, "--own", "Lab-B40:1", *power)
    assert code == 2
    assert "power-price: nobody published the power limit of Lab-B40, got 0.2" in err


def test_own_machines_are_followed_over_their_gpus(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, "--own", "L4:2x2", "--scaling", "--json")
    assert code == 0
    points = json.loads(out)["scaling"]
    assert [(point["gpus"], point["nodes"]) for point in points] == [(1, 1), (2, 1), (4, 2)]
    assert points[0]["efficiency"] == 1.0
    assert points[0]["lost_to"] == ""
    assert points[-1]["lost_to"]
    for point in points:
        assert 0 < point["steps_hours"] < point["hours"]
    code, out, _ = ran(*TEXTS, "--own", "L4:2x2", "--scaling")
    assert code == 0
    assert "from 1 nodes" not in out
    assert "1 epoch, global batch 256" in out
    assert "assumed: 100 Gbit/s between nodes" in out


SLOW = "provider,instance,gpu_name,gpu_count,on_demand_usd_h,network_gbit_s"


def test_the_network_of_an_offer_counts(ran: Ran, tmp_path: Path) -> None:
    """Two machines that differ in it alone have hours of their own."""
    file = tmp_path / "labs.csv"
    file.write_text(f"{SLOW}\nlab,fast,L4,1,9,400\nlab,slow,L4,1,0.1,1\n")
    words = (*TEXTS, "--offers", str(file), "--provider", "lab", "--max-gpus", "2")
    code, out, _ = ran(*words, "--parallel", "ddp", "--json")
    assert code == 0
    plans = json.loads(out)["plans"]
    cheapest, fastest = (
        next(plan for plan in plans if label in plan["labels"]) for label in ("cheapest", "fastest")
    )
    assert (fastest["instance"], fastest["network_bytes_per_s"]) == ("fast", 50e9)
    assert (cheapest["instance"], cheapest["network_bytes_per_s"]) == ("slow", 0.125e9)
    # 1.1 GB of gradients at 0.125 GB/s are 9 s a step, of which there are 391.
    slow, fast = (plan["time"]["hours"]["p50"] for plan in (cheapest, fastest))
    assert slow > 391 * 8 / 3600 + fast / 2
    assert "--network 400 " in fastest["command"]
    assert not any("100 Gbit/s" in line for line in fastest["time"]["assumptions"])


def test_the_network_of_own_machines(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    own = (*TEXTS, "--own", "L4:1x2", "--parallel", "ddp", "--scaling")
    hours = {}
    for rate in ("1", "400"):
        code, out, _ = ran(*own, "--network", rate, "--json")
        assert code == 0
        document = json.loads(out)
        assert document["scaling"][-1]["network_known"] is True
        hours[rate] = document["scaling"][-1]["hours"]
    assert hours["1"] > hours["400"]
    assert "100 Gbit/s between nodes" not in ran(*own, "--network", "400")[1]
    # The command asks `estimate` for the same hours.
    fastest = next(plan for plan in document["plans"] if "fastest" in plan["labels"])
    assert run([*shlex.split(fastest["command"])[1:], "--time", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["time"]["step_s"]["p50"] == pytest.approx(fastest["time"]["step_s"]["p50"])


@pytest.fixture
def histogram(tmp_path: Path) -> Path:
    """10,000 texts of 20 tokens on average, the longest of 97."""
    path = tmp_path / "lengths.json"
    path.write_text("[[8, 4000], [16, 3000], [41, 2900], [97, 100]]")
    return path


def test_lengths_of_texts_count(
    ran: Ran, histogram: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--own", "L4:2")
    code, out, _ = ran(*own, "--histogram", str(histogram), "--json")
    assert code == 0
    document = json.loads(out)
    # 4,000 x 8 + 3,000 x 16 + 2,900 x 41 + 100 x 97 = 208,600 tokens in 10,000 texts.
    assert document["texts"] == {"mean_tokens": 20.86, "longest_tokens": 97}
    assert document["workload"]["examples"] == 10_000
    full = json.loads(ran("--examples", "10000", *own, "--json")[1])
    fastest, slower = (
        next(plan for plan in found["plans"] if "fastest" in plan["labels"])
        for found in (document, full)
    )
    assert fastest["time"]["hours"]["p50"] < slower["time"]["hours"]["p50"]
    assert not any("takes max-length" in line for line in fastest["time"]["assumptions"])
    # Its command asks `estimate` for the same bytes, of the longest texts, and the same hours.
    assert run([*shlex.split(fastest["command"])[1:], "--time", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["memory"]["device_peak_bytes"] == fastest["memory"]["device_peak_bytes"]
    assert again["time"]["run_hours"]["p50"] == pytest.approx(fastest["time"]["hours"]["p50"])
    text = ran(*own, "--histogram", str(histogram))[1]
    assert "10,000 texts of 21 tokens on average, the longest of 97" in " ".join(text.split())


def test_padded_texts_are_only_counted(ran: Ran, histogram: Path) -> None:
    words = ("--own", "L4:1", "--padding", "fixed", "--histogram", str(histogram))
    code, out, _ = ran(*words, "--loss", "all", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["workload"]["examples"] == 10_000
    assert document["texts"]["mean_tokens"] is None
    assert "--histogram" not in document["plans"][0]["command"]


def test_nothing_fits(ran: Ran) -> None:
    own = ("--own", "L4:1", "--headroom", "75%")
    code, out, _ = ran(*TEXTS, *own, "--json")
    assert code == 3
    document = json.loads(out)
    (nearest,) = document["plans"]
    assert nearest["labels"] == ["nearest"]
    memory = nearest["memory"]
    assert memory["high_bytes"] > memory["capacity_bytes"]
    assert memory["verdict"] == "does_not_fit"
    assert "the card needs up to" in nearest["misses"][0]
    assert nearest["time"]["hours"]["p50"] > 0
    fitting = [edit for edit in document["edits"] if edit["verdict"] != "does_not_fit"]
    assert fitting
    assert fitting[0]["device_peak_bytes"] < memory["device_peak_bytes"]
    code, out, _ = ran(*TEXTS, *own)
    assert code == 3
    assert "no plan: it fits none of these machines; the nearest:" in out
    assert "It would fit with" in out


def test_the_host_is_what_does_not_fit(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, "--own", "L4:2", "--host-memory", "1GiB", "--json")
    assert code == 3
    (nearest,) = json.loads(out)["plans"]
    (miss,) = nearest["misses"]
    assert miss.startswith("the host needs up to ")
    assert nearest["host"]["peak_bytes"] > 2**30
    assert nearest["memory"]["high_bytes"] < nearest["memory"]["capacity_bytes"]


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        (("--gpu", "TPU-v4"), "nothing is planned on TPU-v4: trains through torch_xla"),
        (("--gpu", "cpu"), "nothing is planned on cpu: its hours are not known"),
        (("--gpu", "K80"), "nothing is planned on K80: PyTorch on it: no (dropped with CUDA 12)"),
        (("--gpu", "T4", "--provider", "lambda"), "lambda offers no T4; "),
        (
            ("--gpu", "A100-80GB", "--provider", "lambda", "--max-gpus", "4"),
            "the smallest such machine has 8 GPUs, more than --max-gpus",
        ),
    ],
)
def test_there_is_no_machine(wishes: tuple[str, ...], why: str, ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, *wishes, "--json")
    assert code == 3
    document = json.loads(out)
    assert document["plans"] == []
    assert document["notes"][0].startswith(why)
    assert ran(*TEXTS, *wishes)[1].count("no plan: ") == 1


def test_the_card_lacks_the_precision(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, "--own", "T4:1")
    assert code == 3
    assert "no plan: no way to run it is left, for the reasons below" in out
    assert "9 candidates: the card does not compute in the precision" in out


def test_offers_above_max_gpus_are_counted(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, *L4, "--json")
    assert code == 0
    dropped = [r for r in json.loads(out)["rejected"] if r["class"] == "too_many_gpus"]
    assert [r["of"] for r in dropped] == ["offers"]
    assert "(--max-gpus): 8 or more" in dropped[0]["reason"]


def test_what_is_said_of_a_zero_plan(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, "--own", "L4:2", "--parallel", "zero3", "--precision", "bf16")
    assert code == 0
    assert "assumed: DeepSpeed's hooks as timed on a CPU" in " ".join(out.split())
    assert out.count("`rigsize train` does not run ZeRO") == 1


def test_at_most_is_no_less_than_a_replay_says(
    ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    wishes = ("--examples", "100000000", "--gpu", "L4", "--provider", "gcp")
    plans = json.loads(ran(*wishes, "--json")[1])["plans"]
    concluded = [plan for plan in plans if plan["memory"].get("at_most_bytes") is not None]
    assert concluded
    for plan in concluded:
        assert plan["labels"] == ["front"]
        words = plan["command"].replace(" --time ", " --no-time ")
        assert run([*shlex.split(words)[1:], "--json"]) == 0
        replayed = json.loads(capsys.readouterr().out)["memory"]
        assert replayed["high_bytes"] <= plan["memory"]["at_most_bytes"]
    assert "<= " in ran(*wishes)[1]


def test_a_fact_that_a_replay_contradicts(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is said to fit: what is named must fit by a replay of its own nonetheless."""
    arguments = (*TEXTS, "--own", "L4:1", "--global-batch", "4096", "--json")
    honest = json.loads(ran(*arguments)[1])["plans"]
    asked: list[Candidate] = []

    def lie(memory: Memory, candidate: Candidate) -> Confirmation:
        asked.append(candidate)
        return Confirmation(fits=True, replayed=False, at_most_bytes=1)

    monkeypatch.setattr(Memory, "_by_facts", lie)
    monkeypatch.setattr(Memory, "over_bytes", lambda memory, candidate: 0)
    code, out, _ = ran(*arguments)
    plans = json.loads(out)["plans"]
    assert code == 0
    assert max(candidate.micro_batch for candidate in asked) > plans[0]["plan"]["micro_batch"]
    assert [plan["command"] for plan in plans] == [plan["command"] for plan in honest]
    assert {plan["memory"]["verdict"] for plan in plans} == {"fits"}


def test_text_shows_what_was_searched_and_how_it_scales(ran: Ran) -> None:
    code, out, _ = ran(*TEXTS, *L4, "--scaling")
    assert code == 0
    assert "cheapest" in out
    assert "rigsize estimate xlm-roberta-base" in out
    assert "efficiency against the fewest GPUs" in out
    assert "searched " in out
    assert "replays" in out


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ((), "examples"),
        ((*TEXTS, "--provider", "nobody"), "provider"),
        ((*TEXTS, "--gpu", "H1000"), "gpus"),
        ((*TEXTS, "--allow", "adaptors"), "allow"),
        ((*TEXTS, "--grad-accum", "4"), "grad-accum"),
        ((*TEXTS, "--max-price", "-1"), "max-price"),
        ((*TEXTS, "--max-hours", "soon"), "max-hours"),
        ((*TEXTS, "--max-gpus", "0"), "max-gpus"),
        ((*TEXTS, "--offers", "nowhere.csv"), "offers"),
        ((*TEXTS, "--gpu", "L4:8"), "gpu"),
        ((*TEXTS, "--region", ""), "region"),
        ((*TEXTS, "--max-length", "auto"), "max-length"),
        ((*TEXTS, "--max-length", "100000"), "max-length"),
        ((*TEXTS, "--headroom", "100%"), "headroom"),
        ((*TEXTS, "--headroom", "500GiB"), "headroom"),
        ((*TEXTS, "--own", "L4:2", "--headroom", "23GiB"), "headroom"),  # of 23,034 MiB
        ((*TEXTS, "--max-hours", "inf"), "max-hours"),
        ((*TEXTS, "--own", "T4:0"), "own"),
        ((*TEXTS, "--own", "T5:8"), "own"),
        ((*TEXTS, "--global-batch", "1000001"), "global-batch"),
        ((*TEXTS, "--batch-size", "300"), "batch-size"),  # of 256 texts
        ((*TEXTS, "--batch-size", "100"), "batch-size"),  # 300 are 17 % more
        ((*TEXTS, "--own", "L4:2", "--host-memory", "0GiB"), "host-memory"),
        ((*TEXTS, "--own", "K80"), "own"),
        ((*TEXTS, "--host-memory", "64GiB"), "host-memory"),
        ((*TEXTS, "--own", "L4:2", "--provider", "gcp"), "provider"),
        ((*TEXTS, "--own", "L4:2", "--spot"), "spot"),
        ((*TEXTS, "--own", "L4:2", "--max-price", "10"), "max-price"),
        ((*TEXTS, "--power-price", "0.3"), "power-price"),
        ((*TEXTS, "--network", "400"), "network"),
        (("--histogram", "nowhere.json"), "histogram"),
        (("--data", "nowhere.jsonl"), "data"),
        (("--data", "d.jsonl", "--histogram", "h.json"), "histogram"),
        ((*TEXTS, "--own", "L4:1x2", "--network", "-1"), "network"),
        ((*TEXTS, "--own", "L4:2", "--power-price", "-1"), "power-price"),
        ((*TEXTS, "--own", "L4:2", "--power-price", "nan"), "power-price"),
        ((*TEXTS, "--own", "TPU-v4:4"), "own"),
        ((*TEXTS, "--own", "cpu"), "own"),
    ],
)
def test_bad_input(given: tuple[str, ...], field: str, ran: Ran) -> None:
    code, out, err = ran(*given)
    assert (code, out) == (2, "")
    assert err.startswith(f"rigsize: {field}: ")
    assert err.count("\n") == 1
    assert "got None" not in err


def test_what_is_wrong_is_said(ran: Ran) -> None:
    _, _, err = ran(*TEXTS, "--max-hours", "inf")
    assert err == "rigsize: max-hours: not finite, got 'inf'\n"
    # L4: 23,034 MiB less what the driver keeps; no other card counts, though B200 has more.
    _, _, err = ran(*TEXTS, "--gpu", "L4", "--headroom", "100GiB")
    assert "headroom: leaves nothing of any card, got '100GiB'; allowed: less than 2" in err
    assert err.rstrip().endswith("GiB, what L4 has")


def test_a_row_of_the_offers_is_named(ran: Ran, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("provider,instance,gpu_name,gpu_count,on_demand_usd_h\nme,box,L4,1,-2\n")
    code, _, err = ran(*TEXTS, "--offers", str(file))
    assert code == 2
    assert "row 2, column on_demand_usd_h: negative" in err
