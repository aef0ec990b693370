from __future__ import annotations

from typing import Any

import pytest

from rigsize.report.console import PLAIN_WIDTH, write
from rigsize.report.table import table_document, table_text
from rigsize.seed_hours import Reading, RowHours
from rigsize.seed_table import TableRow
from rigsize.steptime.step import Quantiles
from rigsize.units import GIB

CARDS = {16: "P100-16GB-PCIe", 40: "A100-40GB-PCIe"}


def row(**more: Any) -> TableRow:
    values: dict[str, Any] = {
        "table": "pre-training",
        "model": "FacebookAI/xlm-roberta-large",
        "training_type": "Single",
        "gpu": "A100-40GB",
        "num_gpus": 1,
        "micro_batch": 8,
        "accumulation": 1024,
        "published_size_class_gb": 16,
        "published_hours": 15.3,
        "published_host_gb": 12.0,
        "device_peak_bytes": 15 * GIB,
        "size_class_gb": 16,
        "size_class_card": "P100-16GB-PCIe",
        "own_card_class_gb": 24,
        "own_card_reserved_bytes": 14 * GIB,
        "margin_below_bytes": 7 * GIB,
        "margin_above_bytes": -GIB // 2,
        "verdict": "on_the_edge",
        "note": "a note",
    }
    return TableRow(**values | more)


UNANSWERED = row(
    **dict.fromkeys(
        "device_peak_bytes size_class_gb own_card_class_gb own_card_reserved_bytes"
        " margin_below_bytes margin_above_bytes".split()
    ),
    verdict="not_answered_yet",
    note="sharding is not answered yet",
    size_class_card="",
    num_gpus=2,
)


def test_the_row_is_the_contract() -> None:
    document = table_document([row()], "recipe", ("foot",), CARDS)
    (found,) = document["rows"]
    assert set(found) == set(
        "table model training_type gpu num_gpus micro_batch accumulation published predicted"
        " stated settings verdict note".split()
    )
    assert found["published"] == {"size_class_gb": 16, "hours": 15.3, "host_gb": 12.0}
    predicted = found["predicted"]
    assert predicted["device_peak_bytes"] == 15 * GIB
    assert predicted["size_class_gb"] == 16
    assert predicted["own_card_class_gb"] == 24
    assert predicted["hours"]["p50"] is None
    assert predicted["hours"]["p50_unknown_reason"]
    assert document["footnotes"] == ["foot"]
    assert document["size_class_cards"] == {"16": "P100-16GB-PCIe", "40": "A100-40GB-PCIe"}


def test_an_unanswered_row_says_why() -> None:
    predicted = table_document([UNANSWERED], "", (), {})["rows"][0]["predicted"]
    assert predicted["device_peak_bytes"] is None
    assert predicted["device_peak_bytes_unknown_reason"] == "sharding is not answered yet"


def test_the_smallest_class_has_no_margin_below() -> None:
    predicted = table_document([row(margin_below_bytes=None)], "", (), {})["rows"][0]["predicted"]
    assert predicted["margin_below_bytes_unknown_reason"] == "no smaller class"


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    write(table_text([row(), row(table="fine-tuning", note=""), UNANSWERED], "R", ("F",), CARDS))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.split("\n"))) <= PLAIN_WIDTH
    assert " 16 (own 24) " in text
    assert "on the edge [1]" in text
    assert "[2]" in text
    assert "[1] a note" in text
    assert "2 on the edge, 1 not answered yet." in text
    assert "recipe: R" in text
    assert "16 GB P100-16GB-PCIe" in text


# -- hours --------------------------------------------------------------------------------------


TIMED = row(hours=RowHours(published=15.3, plain=Quantiles(8, 10, 12), bound_by="compute", read=15))
TUNED = row(
    table="fine-tuning",
    published_hours=3.0,
    hours=RowHours(published=3.0, plain=Quantiles(0.04, 0.055, 0.07), bound_by="compute"),
)


def test_hours_stand_beside_the_articles(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = Reading(fixed_s=0.1, host_s_per_param=0.5e-9)
    write(table_text([TIMED, TUNED], "as stated", (), CARDS, fitted))
    text = capsys.readouterr().out
    assert max(map(len, text.split("\n"))) <= PLAIN_WIDTH
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "large 1 A100 Single 8 x 1,024 15.3 10 8 to 12 -35% 15 -2%" in lines
    # 3 hours read as 3 minutes are 0.05 h.
    assert "large 1 A100 Single 8 x 1,024 3 0.055 0.04 to 0.07 -98% 0.05 +10%" in lines
    assert "0.50 ns and 100 ms" in " ".join(text.split())


def test_what_is_fitted_is_marked_in_json() -> None:
    fitted = Reading(fixed_s=0.1, host_s_per_param=0.5e-9)
    found = table_document([TIMED], "", (), CARDS, fitted)["reading"]
    assert (found["fixed_s"], found["fitted_to"]) == (0.1, "the nine pre-training rows")
    assert table_document([TIMED], "", (), CARDS)["reading"] is None


def test_hours_in_json() -> None:
    first, second, third = table_document([TIMED, TUNED, UNANSWERED], "", (), CARDS)["rows"]
    assert first["predicted"]["hours"] == {"p10": 8, "p50": 10, "p90": 12}
    assert first["predicted"]["hours_by_reading"] == 15
    assert first["predicted"]["hours_by_reading_fitted"] is True
    assert second["predicted"]["hours_by_reading"] is None
    assert third["predicted"]["hours"]["p50"] is None
    assert third["predicted"]["hours"]["p50_unknown_reason"]
