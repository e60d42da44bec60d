"""Steps of sums: clear of ties, and hardly another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.methods.near_ties import Grid, clear_step, float32_error, margin

steps = st.floats(0.01, 0.05).map(lambda x: float(np.float32(x)))


def grid(scale, zero_point=0, bits=8):
    return Grid(float(np.float32(scale)), int(zero_point), 0, 2**bits - 1)


def in_float32(first, second, total):
    """Codes of the sums as an engine computes them, with the zero points in one constant; [codes, codes]."""
    ratios = [np.float32(one.scale) / np.float32(total.scale) for one in (first, second)]
    codes = [np.arange(one.low, one.high + 1, dtype=np.float32) for one in (first, second)]
    fixed = np.float32(total.zero_point) - (
        ratios[0] * np.float32(first.zero_point) + ratios[1] * np.float32(second.zero_point)
    )
    places = ratios[0] * codes[0][:, None] + (ratios[1] * codes[1][None] + fixed)
    return np.clip(np.rint(places), total.low, total.high)


def exactly(first, second, total):
    places = (first.values[:, None] + second.values[None]) / total.scale
    return np.clip(np.rint(places) + total.zero_point, total.low, total.high)


def test_engines_round_sums_alike():
    draw = np.random.default_rng(0)
    before = after = 0
    for _ in range(150):
        first, second, total = (grid(draw.uniform(0.01, 0.05), draw.integers(0, 256)) for _ in range(3))
        cleared = replace(total, scale=clear_step(first, second, total))
        before += (in_float32(first, second, total) != exactly(first, second, total)).sum()
        after += (in_float32(first, second, cleared) != exactly(first, second, cleared)).sum()
    assert before >= 30, before
    assert after <= before / 10, (before, after)


@settings(max_examples=20, deadline=None)
@given(steps, steps, steps, st.integers(0, 255), st.integers(0, 255))
def test_a_clear_step_is_hardly_another_and_stays(a, b, c, zero_a, zero_b):
    first, second, total = grid(a, zero_a), grid(b, zero_b), grid(c)
    cleared = replace(total, scale=clear_step(first, second, total))
    assert cleared.scale == np.float32(cleared.scale) == pytest.approx(c, rel=1e-3)
    assert margin(first, second, cleared) >= margin(first, second, total)
    if margin(first, second, cleared) >= float32_error(first, second, cleared):
        assert clear_step(first, second, cleared) == cleared.scale


def test_a_pair_next_to_the_middle_is_left_behind():
    # The steps of a trained net's first residual sum: 27 and 35 of them are 59.49999 of the total.
    first, second = grid(0.0187611635774374, 157), grid(0.02203400805592537)
    total = grid(0.021474653854966164)
    assert margin(first, second, total) < 1e-5
    cleared = replace(total, scale=clear_step(first, second, total))
    assert margin(first, second, cleared) > 4e-5
    assert cleared.scale == pytest.approx(total.scale, rel=1e-4)


def test_codes_of_sixteen_bits_keep_their_step():
    wide = grid(1e-4, bits=16)
    assert clear_step(wide, wide, grid(2e-4, bits=16)) == grid(2e-4).scale
