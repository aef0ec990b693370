import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigsize.errors import SpecError
from rigsize.units import (
    GIB,
    MIB,
    format_bandwidth,
    format_bytes,
    format_count,
    format_duration,
    format_flops,
    format_network,
    format_usd,
    parse_bytes,
    parse_count,
    parse_duration,
    plural,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * MIB // 2, "1.5 MiB"),
        (512 * MIB, "0.50 GiB"),
        (GIB * 1194 // 100, "11.94 GiB"),
        (-GIB, "-1.00 GiB"),
    ],
)
def test_format_bytes(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("512MiB", 2**29),
        ("1.5GiB", 3 * 2**29),
        ("4096B", 4096),
    ],
)
def test_parse_bytes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GiB", "24 parsecs", "9" * 30, "9999999TiB"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(SpecError, match="fail-over"):
        parse_bytes(text, "fail-over")


@given(st.integers(min_value=0, max_value=2**59))
def test_bytes_with_unit_b_come_back(num_bytes: int) -> None:
    assert parse_bytes(f"{num_bytes}B") == num_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (10_000, "10.0 k"),
        (278_045_955, "278 M"),
        (10_712_994_816, "10.7 B"),
        (1_234_000, "1.23 M"),
        (1_040_000_000_000, "1.04 T"),
    ],
)
def test_format_count(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("text", "count"), [("10000", 10_000), ("10_000", 10_000), ("10k", 10_000), ("1.5M", 1_500_000)]
)
def test_parse_count(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.431, "431 ms"),
        (12.34, "12.3 s"),
        (245, "4 min 5 s"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (2 * 86400 + 3 * 3600 + 59, "2 d 3 h"),
        (math.inf, "unknown"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("usd", "text"), [(0.0, "0.00"), (0.0123, "0.012"), (0.44, "0.44"), (1234.5, "1,234.50")]
)
def test_format_usd(usd: float, text: str) -> None:
    assert format_usd(usd) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 nodes"), (1, "1 node"), (2, "2 nodes"), (1024, "1,024 nodes")]
)
def test_plural(count: int, text: str) -> None:
    assert plural(count, "node") == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15min", 900), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "90", "h", "1h!", "-5s", "5 fortnights"])
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        parse_duration(text)


def test_rates() -> None:
    assert format_bandwidth(3350e9) == "3,350 GB/s"
    assert format_flops(19.5e12) == "19.5 TFLOP/s"
    assert format_network(12.5e9) == "100 Gbit/s"
    assert format_network(400e9) == "3,200 Gbit/s"
