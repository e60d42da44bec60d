"""Masks: how many weights they leave, and which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewbits.errors import InputError
from fewbits.methods.pruning import gradual_sparsity, magnitude_masks, n_of_m_mask

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS, SIDES = st.integers(0, 2**32), st.integers(1, 6)


def drawn(seed, *shape):
    """Small integers: many of them alike."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


@PATIENT
@given(SEEDS, SIDES, SIDES, st.floats(0, 0.99))
def test_the_smallest_of_all_go(seed, a, b, sparsity):
    weights = [drawn(seed, a, b), drawn(seed + 1, b), drawn(seed + 2, 2, a, b)]
    masks = magnitude_masks(weights, sparsity)
    sizes = torch.cat([one.abs().flatten() for one in weights])
    kept = torch.cat([one.flatten() for one in masks])
    assert [one.shape for one in masks] == [one.shape for one in weights]
    assert int((~kept).sum()) == round(sparsity * len(sizes))
    if bool(kept.any()) and not bool(kept.all()):
        assert sizes[~kept].max() <= sizes[kept].min()


@PATIENT
@given(SEEDS, st.sampled_from([(1, 2), (2, 4), (1, 3), (3, 5)]), st.integers(0, 2), SIDES, SIDES, SIDES)
def test_of_every_m_neighbours_the_n_largest_stay(seed, pattern, axis, a, b, c):
    n, m = pattern
    shape = [side * m if place == axis else side for place, side in enumerate((a, b, c))]
    weight = drawn(seed, *shape)
    kept = n_of_m_mask(weight, n, m, axis)
    assert kept.shape == weight.shape
    rows = weight.abs().movedim(axis, -1).reshape(-1, m)
    groups = kept.movedim(axis, -1).reshape(-1, m)
    assert bool((groups.sum(1) == n).all())
    assert torch.equal((rows * groups).sum(1), rows.sort(descending=True).values[:, :n].sum(1))


@PATIENT
@given(st.floats(0, 0.99), st.floats(0, 0.4), st.floats(0.5, 1))
def test_the_share_grows_from_nothing_to_all_of_it(final, begin, end):
    shares = [gradual_sparsity(done / 50, final, begin, end) for done in range(51)]
    assert shares == sorted(shares)
    assert gradual_sparsity(begin, final, begin, end) == 0
    assert gradual_sparsity(end, final, begin, end) == final
    # Equation 1 at half the way: 1 - (1/2)^3 of it.
    assert gradual_sparsity((begin + end) / 2, final, begin, end) == pytest.approx(final * 7 / 8)


def test_what_is_refused():
    weight = torch.ones(2, 6)
    with pytest.raises(InputError, match=r"sparsity is 1; .* from 0 to below 1"):
        magnitude_masks([weight], 1)
    with pytest.raises(InputError, match="4:2 is no pattern"):
        n_of_m_mask(weight, 4, 2)
    with pytest.raises(InputError, match=r"axis 1 of \[2, 6\] is not a multiple of 4"):
        n_of_m_mask(weight, 2, 4)
