"""Masks: how many weights they leave, and which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fewbits.errors import InputError
from fewbits.methods.pruning import gradual_sparsity, magnitude_masks, n_of_m_mask

VALUES = st.floats(-8, 8, width=16)
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=VALUES)


@given(st.lists(MATRICES, min_size=1, max_size=3), st.floats(0, 0.99))
def test_the_smallest_of_all_go(matrices, sparsity):
    weights = [torch.from_numpy(one) for one in matrices]
    masks = magnitude_masks(weights, sparsity)
    sizes = torch.cat([one.abs().flatten() for one in weights])
    kept = torch.cat([one.flatten() for one in masks])
    assert [one.shape for one in masks] == [one.shape for one in weights]
    assert int((~kept).sum()) == round(sparsity * len(sizes))
    if bool(kept.any()) and not bool(kept.all()):
        assert sizes[~kept].max() <= sizes[kept].min()


@given(st.data())
def test_of_every_m_neighbours_the_n_largest_stay(data):
    m = data.draw(st.integers(2, 5))
    n = data.draw(st.integers(1, m - 1))
    axis = data.draw(st.integers(0, 2))
    shape = [data.draw(st.integers(1, 4)) for _ in range(3)]
    shape[axis] *= m
    weight = torch.from_numpy(data.draw(arrays.arrays(np.float32, tuple(shape), elements=VALUES)))
    kept = n_of_m_mask(weight, n, m, axis)
    assert kept.shape == weight.shape
    rows = weight.abs().movedim(axis, -1).reshape(-1, m)
    groups = kept.movedim(axis, -1).reshape(-1, m)
    assert bool((groups.sum(1) == n).all())
    assert torch.equal((rows * groups).sum(1), rows.sort(descending=True).values[:, :n].sum(1))


@given(st.floats(0, 0.99), st.floats(0, 0.4), st.floats(0.5, 1), st.lists(st.floats(0, 1), min_size=2))
def test_the_share_grows_from_nothing_to_all_of_it(final, begin, end, places):
    shares = [gradual_sparsity(done, final, begin, end) for done in sorted(places)]
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
