"""Sizes, durations and permission bits as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.quantities import format_size, parse_duration, parse_permissions, parse_size, shown


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (8388608, 8388608),
        ("8388608", 8388608),
        ("1 B", 1),
        ("8 MiB", 8 << 20),
        ("8MiB", 8 << 20),
        (" 8  MiB ", 8 << 20),
        ("1.5 KiB", 1536),
        ("1 GB", 10**9),
        ("2 TiB", 2 << 40),
    ],
)
def test_sizes(written: object, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        -1,
        1.0,
        True,
        None,
        "",
        "MiB",
        "-1 MiB",
        "8 Mib",
        "8 M",
        "0.3 B",
        "1e3",
        "1 MiB x",
        2**63,
        "9 EiB",
        "٣ MiB",
    ],
)
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes"):
        parse_size(written)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_size_reads_back_as_it_was_shown(size: int) -> None:
    assert parse_size(format_size(size).replace("bytes", "B")) == size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (5, 5),
        (0, 0),
        (0.25, 0.25),
        ("5", 5),
        ("5 s", 5),
        ("5s", 5),
        ("250 ms", 0.25),
        ("2 min", 120),
        ("1.5 h", 5400),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [-1, True, None, "", "s", "5 m", "5 S", "-5 s", float("nan"), float("inf"), 10**12, "9999 years"],
)
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="must be a number of seconds"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "bits"), [("0644", 0o644), ("755", 0o755), ("0o700", 0o700), ("0000", 0)]
)
def test_permissions(written: object, bits: int) -> None:
    assert parse_permissions(written) == bits


@pytest.mark.parametrize("written", [644, 0o644, "", "0", "688", "4755", "rwxr-xr-x", None, "0644\n"])
def test_what_is_no_permissions(written: object) -> None:
    with pytest.raises(ValueError, match="must be permission bits in quotes"):
        parse_permissions(written)


def test_a_long_value_is_cut_where_it_is_quoted() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert shown("a\nb") == '"a\\nb"'
