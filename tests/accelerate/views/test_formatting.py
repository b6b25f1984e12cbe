"""Formatting of numbers and texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.views.formatting import (
    describe_bounds,
    format_bytes,
    format_duration,
    format_psnr,
    format_significant,
    format_sqnr,
    join_words,
    printable,
)


@given(st.text())
def test_plain_text_is_one_printable_line_and_stays_as_it_is(text: str) -> None:
    line = printable(text)
    assert line.isprintable() and line == printable(line)


@given(st.floats(1e-6, 1e9))
def test_three_digits_above_one_and_two_below(value: float) -> None:
    assert float(format_significant(value).replace(",", "")) == pytest.approx(
        value, rel=0.0501 if value < 1 else 0.00501
    )


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0.00"), (0.0004, "0.0004"), (9.996, "10.0"), (99.96, "100"), (-3.14159, "-3.14")]
)
def test_digits_at_the_edges(value: float, expected: str) -> None:
    assert format_significant(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.9996, "1.00 s"), (99.96, "1 min 40 s"), (59.96, "60.0 s"), (3599.6, "1 h 0 min")]
)
def test_durations_at_the_edges(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


@given(st.integers(1024, 1 << 50))
def test_sizes_are_near_the_truth(count: int) -> None:
    number, unit = format_bytes(count).split()
    assert float(number.replace(",", "")) * 1024 ** "BKMG".index(unit[0]) == pytest.approx(count, rel=0.0051)


def test_what_is_beyond_decibels_is_told_in_words() -> None:
    assert [format_sqnr(value) for value in (999.0, -999.0, -3.21)] == ["equal", "none", "-3.2"]
    assert [format_psnr(value) for value in (99.0, 98.96)] == ["equal", "99.0"]


def test_every_bound_is_told_and_only_those_that_were_asked() -> None:
    assert describe_bounds(Bounds()) == ()
    descriptions = describe_bounds(Bounds(20.0, 21.5, 0.9, 2.0, 0.9, 3 << 30))
    assert descriptions == (
        "SQNR of at least 20 dB",
        "PSNR of at least 21.5 dB",
        "SSIM of at least 0.9",
        "score at most 2 points lower",
        "score of at least 90 %",
        "at most 3.00 GiB of memory",
    )
    assert describe_bounds(Bounds(min_sqnr=0.0)) == ("SQNR of at least 0 dB",)


def test_lists_of_any_length() -> None:
    assert [join_words(tuple("abc"[:count])) for count in range(4)] == ["", "a", "a and b", "a, b and c"]
