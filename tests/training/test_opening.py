"""The schedule of the opening bias."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segattn.training import opening_bias


def test_four_steps_by_hand():
    assert [opening_bias(step, 4) for step in range(6)] == [-8.0, -6.0, -4.0, -2.0, None, None]


def test_no_opening_is_the_plain_rule_from_the_start():
    assert opening_bias(0, 0) is None


@settings(deadline=None)
@given(st.integers(1, 10_000), st.data())
def test_it_rises_by_the_same_amount_every_step_and_never_reaches_zero(steps, data):
    step = data.draw(st.integers(0, steps - 1))
    bias = opening_bias(step, steps)
    assert -8.0 <= bias < 0
    assert bias == pytest.approx(-8 + 8 * step / steps)
    assert opening_bias(steps + step, steps) is None
