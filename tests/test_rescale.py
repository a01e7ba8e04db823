"""From predicted to expected loss: a line that is right where it can be, and never turns around."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import UsageError
from gemcut.plan import Measured
from gemcut.quantize.rescale import Rescale, pairs_of, rescale

losses = st.floats(1e-5, 1.0)
pairs = st.lists(st.tuples(losses, losses, st.floats(0, 0.1)), max_size=8)


@given(st.floats(0, 0.01), st.floats(0.1, 5), st.lists(losses, min_size=2, max_size=6, unique=True))
def test_a_line_is_found(floor, scale, predicted):
    """Whatever the standard errors are, if the files lie on one and differ at all."""
    if max(predicted) < 1.01 * min(predicted):
        return
    found = rescale([(p, floor + scale * p, 0.01 * p) for p in predicted])

    assert found.scale == pytest.approx(scale, rel=1e-3)
    assert found.floor == pytest.approx(floor, abs=1e-3 * scale * max(predicted))


@given(losses, losses, losses)
def test_a_single_file_gives_the_scale(predicted, measured, se):
    """And so do several of one prediction."""
    found = rescale([(predicted, measured, se)])

    assert 0 == found.floor
    assert found.expected(predicted) == pytest.approx(measured)
    assert found.scale == pytest.approx(rescale(3 * [(predicted, measured, se)]).scale)


@given(pairs, losses, losses)
def test_it_is_never_negative_and_never_turns_around(known, one, other):
    found = rescale(known)

    assert found.floor >= 0 and found.scale > 0
    assert (found.expected(one) < found.expected(other)) == (one < other) or one == pytest.approx(
        other
    )


@given(pairs, st.randoms())
def test_the_order_does_not_matter(known, random):
    shuffled = random.sample(known, len(known))

    one, other = rescale(known), rescale(shuffled)

    assert one.expected(0.1) == pytest.approx(other.expected(0.1), rel=1e-6)


@given(pairs, st.floats(0.1, 10))
def test_units_do_not_matter(known, unit):
    """Bits instead of nats give the same line in bits."""
    scaled = rescale([tuple(unit * each for each in pair) for pair in known])

    assert scaled.expected(0.1 * unit) == pytest.approx(unit * rescale(known).expected(0.1), 1e-3)


def test_surer_files_count_for_more():
    """The line passes nearer to what was measured well."""
    rough = rescale([(0.01, 0.02, 0.0), (0.1, 0.1, 0.05), (0.1, 0.2, 0.001)])

    assert rough.expected(0.1) == pytest.approx(0.2, rel=0.05)


def test_what_says_nothing_is_passed_over():
    """No files, none with a predicted loss, none with a measured one."""
    assert Rescale() == rescale([]) == rescale([(0.0, 0.001, 0.0)]) == rescale([(0.1, 0.0, 0.0)])
    assert 0.3 == Rescale().expected(0.3)
    whole = [Measured(0.2, 0.01, 0.1, "t", 8, "bf16"), Measured(0.3, 0.01, None, "t", 8, "bf16")]
    assert [(0.1, 0.2, 0.01)] == pairs_of(whole)


@pytest.mark.parametrize("pair", [(-0.1, 0.1, 0.1), (0.1, float("nan"), 0.1), (0.1, 0.1, -1.0)])
def test_numbers_that_are_none_are_refused(pair):
    with pytest.raises(UsageError, match="wanted a predicted and a measured loss"):
        rescale([pair])
