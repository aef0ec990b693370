"""`rigsize estimate` with hours and prices: flags, reasons, refusals, the JSON contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rigsize import cli_time
from rigsize.cli import run
from rigsize.cli_job import parse_job
from rigsize.cli_settings import Settings
from rigsize.errors import TraceFailed
from rigsize.program.work import Work
from tests.report import hand_made
from tests.steptime.test_run_lines import work_of

Ran = Callable[..., tuple[int, str, str]]
BASE = ("estimate", "xlm-roberta-base", "--offline", "--max-length", "128", "--batch-size", "16")
TUNED = (*BASE, "--examples", "1000", "--epochs", "3", "--time")
HEADER = "provider,instance,gpu_name,gpu_count,on_demand_usd_h,spot_usd_h,snapshot_date\n"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ran:
    """The command on a hand-made profile and the work of an invented layer, stored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("rigsize.estimate.find_profile", hand_made.find_profile)

    def invented(
        _source: object, _workload: object, _strategy: object, _gpu: object, point: Any
    ) -> Work:
        return work_of(point["B"], point["S"])

    monkeypatch.setattr("rigsize.steptime.run_time.work_for", invented)
    monkeypatch.setattr("rigsize.steptime.run_time.stored_work", lambda *_: "there")

    def go(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return go


@pytest.fixture
def offers(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(HEADER + "lab,node,A100-40GB-SXM,1,0.10,0.05,2026-11-01\n", encoding="utf-8")
    return path


def document(ran: Ran, *arguments: str) -> Any:
    code, out, _ = ran(*arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_hours_and_price_of_a_run(ran: Ran, offers: Path) -> None:
    found = document(ran, *TUNED, "--offers", str(offers))
    time, cost = found["time"], found["cost"]
    names = ["training", "warm-up", "checkpoints", "start-up", "download", "data"]
    assert [line["name"] for line in time["lines"]] == names
    assert time["counts"]["updates"] == time["counts"]["micro_steps"] == 3 * 63
    training = time["lines"][0]["seconds"]
    assert time["epoch_hours"]["p50"] == pytest.approx(training["p50"] / 3 / 3600)
    assert training["p10"] <= training["p50"] <= training["p90"]
    assert (cost["provider"], cost["price_date"]) == ("lab", "2026-11-01")
    for bound in ("p10", "p50", "p90"):
        assert cost["usd"][bound] == pytest.approx(0.1 * time["run_hours"][bound])
        whole = sum(line["usd"][bound] for line in cost["lines"])
        assert cost["usd"][bound] == pytest.approx(whole)
    words = found["command"].split()
    assert words[words.index("--examples") + 1] == "1000"
    assert {"--time", "--offers", "--epochs"} <= set(words)


def test_what_is_stored_is_timed_unasked(ran: Ran) -> None:
    code, out, err = ran(*BASE)
    assert (code, err) == (0, "")
    assert "time: a step " in out
    assert "--time: its interval and parts" in " ".join(out.split())
    found = document(ran, *BASE)
    assert found["time"]["step_s"]["p50"] > 0
    assert found["time"]["step_s"]["p10"] is None
    assert found["cost"]["usd_unknown_reason"] == "not asked for: --time"


def test_a_number_of_texts_asks_for_hours(ran: Ran) -> None:
    code, out, err = ran(*BASE, "--examples", "1000")
    assert (code, err) == (0, "")
    assert "of the run" in out
    assert "of a step" not in out  # its parts: with --time
    found = document(ran, *BASE, "--examples", "1000")
    assert found["time"]["step_s"]["p10"] < found["time"]["step_s"]["p50"]
    assert found["cost"]["usd"]["p50"] > 0


def test_asked_without_texts_there_is_a_step(ran: Ran) -> None:
    assert "no hours: no number of texts" in ran(*BASE, "--time")[1]


def test_what_is_not_stored_is_not_traced_unasked(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rigsize.steptime.run_time.stored_work", lambda *_: None)
    code, out, _ = ran(*BASE)
    assert code == 0
    assert "--time traces it, once" in out
    found = document(ran, *BASE)
    assert found["time"]["step_s"] is None
    assert "--time" in found["time"]["step_s_unknown_reason"]
    assert document(ran, *BASE, "--time")["time"]["step_s"]["p50"] > 0


def test_time_may_be_left_out(ran: Ran) -> None:
    assert "left out: --no-time" in ran(*BASE, "--no-time")[1]


def test_evaluation_takes_texts_from_training(ran: Ran) -> None:
    found = document(ran, *TUNED, "--eval-share", "0.2", "--save-minutes", "0")
    assert found["time"]["counts"]["examples"] == 800
    names = [line["name"] for line in found["time"]["lines"]]
    assert "evaluation" in names
    assert "checkpoints" not in names


def test_lengths_make_batches_shorter(ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    path.write_text("[[20, 900], [128, 100]]", encoding="utf-8")
    padded = document(ran, *TUNED, "--padding", "dynamic")
    found = document(ran, *BASE, "--time", "--padding", "dynamic", "--histogram", str(path))
    assert found["time"]["counts"]["examples"] == 1000
    # Of 16 texts at least one is long in 1 - C(900, 16) / C(1000, 16) = 82 % of batches.
    positions = found["time"]["counts"]["tokens"] / found["time"]["counts"]["micro_steps"] / 16
    assert positions == pytest.approx(20 + 108 * 0.82, abs=1)
    assert padded["time"]["counts"]["tokens"] > found["time"]["counts"]["tokens"]


def test_texts_of_a_file_are_counted_under_fixed_padding(ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "hello\n" * 40, encoding="utf-8")
    found = document(ran, *BASE, "--time", "--data", str(path))
    assert found["time"]["counts"]["examples"] == 40
    assert "--examples 40" in found["command"]
    assert any(line.startswith("examples 40: the texts of --data") for line in found["assumptions"])
    said = document(ran, *BASE, "--time", "--data", str(path), "--examples", "7")
    assert said["time"]["counts"]["examples"] == 7


def test_a_histogram_counts_texts_under_fixed_padding(ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "lengths.json"
    path.write_text("[[20, 900], [128, 100]]", encoding="utf-8")
    found = document(ran, *BASE, "--time", "--histogram", str(path))
    assert found["time"]["counts"]["examples"] == 1000
    assert found["time"]["counts"]["tokens"] == 63 * 16 * 128


@pytest.mark.parametrize("flag", ["data", "histogram"])
@pytest.mark.parametrize("padding", ["fixed", "dynamic"])
@pytest.mark.parametrize("more", [(), ("--examples", "7"), ("--time",)])
def test_a_missing_file_is_a_mistake_always(
    ran: Ran, tmp_path: Path, flag: str, padding: str, more: tuple[str, ...]
) -> None:
    missing = str(tmp_path / "none.csv")
    code, out, err = ran(*BASE, "--padding", padding, f"--{flag}", missing, *more)
    assert (code, out) == (2, "")
    assert missing[:60] in err  # a long path is cut


def test_inference_has_rates_and_a_price_a_million(ran: Ran, offers: Path) -> None:
    found = document(ran, *BASE, "--use", "inference", "--offers", str(offers))
    rate = found["time"]["rates"]["texts_per_s"]["p50"]
    assert rate == pytest.approx(16 / found["time"]["step_s"]["p50"])
    million = found["cost"]["usd_per_million"]["texts"]["p50"]
    assert million == pytest.approx(0.1 / 3600 / rate * 1e6)
    assert found["cost"]["usd"] is None


def test_spot_and_buying(ran: Ran, offers: Path) -> None:
    flags = ("--offers", str(offers), "--spot", "--own-price", "1000", "--power-price", "0")
    found = document(ran, *TUNED, *flags)
    assert found["cost"]["spot"] is True
    assert found["cost"]["usd_per_hour"] == 0.05
    assert found["cost"]["break_even"]["hours"] == pytest.approx(20_000)
    assert "cheaper after 20,000 hours" in ran(*TUNED, *flags)[1]


def test_what_has_no_time_has_memory_all_the_same(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = document(ran, *TUNED, "--gpus", "cpu")
    assert on_cpu["memory"]["allocated_peak_bytes"] > 0
    assert on_cpu["time"]["step_s"] is None
    assert on_cpu["time"]["step_s_unknown_reason"]

    def refused(*_: object) -> Work:
        raise TraceFailed("model", "xlm-roberta", "the interpreter died")

    monkeypatch.setattr("rigsize.steptime.run_time.work_for", refused)
    found = document(ran, *TUNED)
    assert found["memory"]["allocated_peak_bytes"] > 0
    assert "the interpreter died" in found["time"]["step_s_unknown_reason"]
    assert found["cost"]["usd"] is None


def test_a_card_that_nobody_offers_has_a_time(ran: Ran) -> None:
    found = document(ran, *TUNED, "--gpus", "V100-32GB-PCIe:16")
    assert found["time"]["run_hours"]["p50"] > 0
    assert found["cost"]["usd"] is None
    assert "nobody in the catalogue" in found["cost"]["usd_unknown_reason"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--own-price", "-1"), "own-price: negative"),
        (("--own-price", "much"), "own-price: not a number"),
        (("--power-price", "1e99"), "power-price"),
        (("--eval-share", "1"), "eval-share: not a share"),
        (("--save-minutes", "-5"), "save-minutes: negative"),
        (("--provider", "lambada"), "did you mean lambda"),
        (("--offer", "gpu_1x_a10000"), "offer: no such instance"),
        (("--region", "nowhere"), "region: no offers of it"),
        (("--offers", "missing.csv"), "offers: cannot be read"),
    ],
)
def test_wrong_flags_are_one_line(ran: Ran, flags: tuple[str, str], words: str) -> None:
    code, out, err = ran(*BASE, *flags)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("lab,node,A100-40GB-SXM,1,-1,,2026-11-01", "row 2, column on_demand_usd_h: negative"),
        ("lab,node,A100-40GB-SXM,1,1,,2999-11-01", "row 2, column snapshot_date: in the future"),
        ("lab,node,A100-40GB-SXM,1,x,,", "row 2, column on_demand_usd_h: not a number"),
    ],
)
def test_prices_that_are_refused(ran: Ran, tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{HEADER}{row}\n", encoding="utf-8")
    code, _, err = ran(*BASE, "--offers", str(path))
    assert code == 2
    assert words in err


def test_an_old_price_warns_where_prices_are_asked_for(ran: Ran, tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text(f"{HEADER}lab,node,A100-40GB-SXM,1,0.1,,2020-01\n", encoding="utf-8")
    code, out, err = ran(*TUNED, "--offers", str(path))
    assert code == 0
    assert "price of 2020-01" in " ".join(out.split())
    assert "warning: the price is of 2020-01, more than 90 days old" in err


@pytest.fixture
def small_host(tmp_path: Path) -> Path:
    """A machine with the card and hardly any memory beside it."""
    path = tmp_path / "small.csv"
    header = HEADER.strip() + ",host_ram_gib\n"
    row = "lab,tiny,A100-40GB-SXM,1,0.10,,2026-11-01,2\n"
    path.write_text(header + row, encoding="utf-8")
    return path


def test_the_offered_machine_has_to_hold_the_run(ran: Ran, small_host: Path) -> None:
    words = (*BASE, "--offers", str(small_host), "--offer", "tiny", "--json")
    code, out, _ = ran(*words)
    found = json.loads(out)
    assert found["fit"]["host_capacity_bytes"] == 2 * 2**30
    assert any("that of lab tiny" in line for line in found["assumptions"])
    given = ran(*words, "--host-memory", "2GiB")
    assert (code, found["fit"]) == (given[0], json.loads(given[1])["fit"])
    large = json.loads(ran(*words, "--host-memory", "1TiB")[1])
    assert large["fit"]["host_capacity_bytes"] == 2**40
    assert large["fit"]["verdict"] != found["fit"]["verdict"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--provider", "lambda", "--gpus", "L4"), "lambda has no L4"),
        (("--offer", "gpu_1x_a10", "--gpus", "A10:2"), "gpu_1x_a10 has no 2 A10 in a machine"),
    ],
)
def test_a_filter_too_narrow_leaves_the_memory(
    ran: Ran, flags: tuple[str, ...], words: str
) -> None:
    found = document(ran, *TUNED, *flags)
    assert found["memory"]["allocated_peak_bytes"] > 0
    assert words in found["cost"]["usd_unknown_reason"]


def test_a_switch_on_and_off_is_refused(ran: Ran) -> None:
    code, out, err = ran(*BASE, "--time", "--no-time")
    assert (code, out) == (2, "")
    assert "time: on and off" in err


def test_an_empty_name_of_a_file_of_offers(ran: Ran) -> None:
    assert "offers: no file named" in ran(*BASE, "--offers", "")[2]


def test_a_card_without_a_torch_of_today_says_whose_time_it_is(ran: Ran) -> None:
    assert "PyTorch on K80: no (dropped" in " ".join(ran(*TUNED, "--gpus", "K80")[1].split())
    assert document(ran, *TUNED, "--gpus", "K80")["time"]["notes"]
    assert document(ran, *TUNED)["time"]["notes"] == []


@pytest.mark.parametrize(
    ("origin", "downloads"),
    [("bundled", True), ("hub", True), ("hub-cache", False), ("folder", False), ("config", False)],
)
def test_what_lies_here_is_not_downloaded(origin: Any, downloads: bool) -> None:
    settings = Settings({"model": "xlm-roberta-base", "offline": True})
    job = parse_job(settings)
    job = replace(job, source=replace(job.source, origin=origin, path="somewhere"))
    assert cli_time._around(settings, job, 0).downloads is downloads


@pytest.fixture
def two_labs(tmp_path: Path) -> Path:
    """A machine whose network is known, and one whose is not."""
    path = tmp_path / "labs.csv"
    header = HEADER.strip() + ",network_gbit_s\n"
    rows = ("fast,box,A100-40GB-SXM,1,0.10,,2026-11-01,400", "slow,node,A100-40GB-SXM,1,0.10,,,")
    path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    return path


DDP = ("--parallel", "ddp", "--gpus", "A100-40GB:1x2")


def test_the_network_of_a_machine_is_taken(ran: Ran, two_labs: Path) -> None:
    words = (*TUNED, *DDP, "--offers", str(two_labs))
    fast = document(ran, *words, "--provider", "fast")
    assert "network 400 Gbit/s: that of fast box" in fast["assumptions"]
    given = document(ran, *words, "--provider", "slow", "--network", "400")
    assert fast["time"]["step_s"] == given["time"]["step_s"]
    assert "--network 400 " in given["command"] + " "
    assumed = document(ran, *words, "--provider", "slow")
    assert assumed["time"]["step_s"]["p50"] > fast["time"]["step_s"]["p50"]
    hundred = document(ran, *words, "--provider", "fast", "--network", "100")
    assert hundred["time"]["step_s"]["p50"] == assumed["time"]["step_s"]["p50"]


def test_a_network_of_one_machine_has_no_effect(ran: Ran) -> None:
    code, _, err = ran(*TUNED, "--network", "400")
    assert code == 0
    assert "--network has no effect: all is on one machine" in err
