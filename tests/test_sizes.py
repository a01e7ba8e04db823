"""Sizes: what people write is read exactly, and what is printed can be read back."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import UsageError
from gemcut.sizes import format_size, parse_context, parse_size

DECIMAL = {"": 1, "B": 1, "K": 10**3, "G": 10**9} | {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
UNITS = DECIMAL | BINARY

numbers = st.integers(0, 10**6)
spaces = st.sampled_from(["", " ", "  "])
cases = st.sampled_from([str, str.lower, str.upper])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12G", 12_000_000_000),
        ("14.5 GB", 14_500_000_000),
        ("5M", 5_000_000),
        ("5000000", 5_000_000),
        ("12GiB", 12_884_901_888),
        (" .5k ", 500),
        ("0", 0),
    ],
)
def test_a_size_is_read_as_documented(text, size):
    """The examples of the documentation hold."""
    assert size == parse_size(text)


@given(numbers, st.sampled_from(sorted(UNITS)), spaces, cases)
def test_units_are_read_in_any_case_and_with_spaces(number, unit, space, case):
    """A whole number times its unit, however it is written."""
    assert number * UNITS[unit] == parse_size(f"{number}{space}{case(unit)}")


@given(st.decimals(0, 1000, places=6), st.sampled_from(["K", "MB", "GiB", "TB"]))
def test_fractions_are_exact_and_rounded_down(number, unit):
    """No binary floating point comes between the text and the bytes."""
    exact = Fraction(number) * UNITS[unit]

    assert exact // 1 == parse_size(f"{number:f}{unit}")


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "12X", "1,5G", "1e9", "12 G B", "1.5", "1Ki", "٣G", "nan", "9" * 99]
)
def test_what_is_not_a_size_is_refused(text):
    """The error repeats the text and says what a size looks like."""
    with pytest.raises(UsageError, match="not a (size|whole number of bytes)"):
        parse_size(text)


@given(st.text())
def test_any_text_is_a_size_or_a_usage_error(text):
    """No text gives another exception or a negative size."""
    try:
        assert parse_size(text) >= 0
    except UsageError as error:
        assert "not a" in str(error)


@given(numbers, cases)
def test_a_context_counts_k_as_1024(number, case):
    """Only here does k mean 1024."""
    assert number == parse_context(str(number))
    assert number * 1024 == parse_context(f"{number}{case('k')}")


@pytest.mark.parametrize("text", ["", "k", "-1", "32kb", "32G", "1.5", "0.0001k", "9" * 99])
def test_what_is_not_a_context_is_refused(text):
    """Neither units of bytes nor fractions of a token."""
    with pytest.raises(UsageError, match="not a context length"):
        parse_context(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (999_994, "999.99 KB"),
        (999_995, "1.00 MB"),
        (5_071_872, "5.07 MB"),
        (14_523_000_000, "14.52 GB"),
        (-1_200_000_000, "-1.20 GB"),
        (10**15, "1000.00 TB"),
    ],
)
def test_a_size_is_printed_with_its_unit(size, text):
    """Decimal units and two decimals."""
    assert text == format_size(size)


@given(st.integers(0, 999_994 * 10**9))
def test_a_printed_size_reads_back_as_nearly_the_same(size):
    """At most half of the last printed digit is lost, and four digits never stand before it."""
    text = format_size(size)
    number, unit = text.split()

    assert Fraction(number) < 1000
    assert abs(parse_size(text) - size) <= Fraction(DECIMAL[unit], 200)
