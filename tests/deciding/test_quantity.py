"""Numbers as Kubernetes writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.sizes import format_bytes, parse_bytes, parse_plain_bytes
from coordinator.kube.quantity import format_duration, format_percent


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        pytest.param(5, 5, id="an integer is bytes"),
        pytest.param("0", 0, id="nothing"),
        pytest.param("500M", 500_000_000, id="M is decimal"),
        pytest.param("10Gi", 10 << 30, id="Gi is binary"),
        pytest.param("1.5Ti", 3 << 39, id="a fraction of a binary unit"),
        pytest.param(".5Ki", 512, id="no digit before the point"),
        pytest.param("1.k", 1000, id="no digit after the point"),
        pytest.param("1e3", 1000, id="an exponent"),
        pytest.param("12E6", 12_000_000, id="E before digits is an exponent"),
        pytest.param("1E", 10**18, id="E alone is exa"),
        pytest.param("100m", 1, id="a fraction of a byte rounds up"),
        pytest.param("1n", 1, id="nano rounds up to one"),
        pytest.param("+7", 7, id="a plus sign"),
    ],
)
def test_parse(quantity: int | str, expected: int) -> None:
    assert parse_bytes(quantity) == expected


@pytest.mark.parametrize(
    "junk", ["", "banana", "1 Gi", "1GiB", "Gi", "-1", "1e99", "0x10", "1_000", True, None, 1.5, []]
)
def test_what_is_not_a_quantity_is_refused(junk: object) -> None:
    with pytest.raises(ValueError):
        parse_bytes(junk)  # type: ignore[arg-type]  # that it is refused is the point


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1Ki"),
        (1536, "1.5Ki"),
        (16_428_000_000, "15.2Gi"),
        ((1 << 30) - 1, "1023Mi"),
        (1 << 60, "1Ei"),
    ],
)
def test_format_bytes(count: int, expected: str) -> None:
    assert format_bytes(count) == expected


@given(st.integers(0, 1 << 62))
def test_a_formatted_size_is_a_quantity_and_never_exceeds_the_count(count: int) -> None:
    assert count * 0.9 <= parse_bytes(format_bytes(count)) <= count


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.2, "1s"),
        (59, "59s"),
        (60, "1m"),
        (250, "4m10s"),
        (3599.5, "1h"),
        (7500, "2h5m"),
        (100_000, "1d3h"),
        (86_400 * 30, "30d"),
    ],
)
def test_format_duration(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@pytest.mark.parametrize(
    ("done", "total", "expected"), [(0, 0, "100%"), (0, 9, "0%"), (999, 1000, "99%"), (9, 9, "100%"), (10, 9, "100%")]
)
def test_a_percentage_is_rounded_down_so_that_100_means_all(done: int, total: int, expected: str) -> None:
    assert format_percent(done, total) == expected


PLAIN = {"0": 0, "17": 17, "5k": 5000, "5K": 5000, "512Mi": 512 << 20, "10G": 10_000_000_000, "3Ti": 3 << 40}


@pytest.mark.parametrize("text", PLAIN)
def test_a_size_in_a_setting_is_a_whole_number_with_a_suffix(text: str) -> None:
    assert parse_plain_bytes(text) == PLAIN[text]


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.5", "1e3", "1E", "1m", "1 Mi", "mi", "9" * 30, "9999999999T"])
def test_no_other_quantity_is_a_size_in_a_setting(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size such as 512Mi|is out of range"):
        parse_plain_bytes(text)
