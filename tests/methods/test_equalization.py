"""Equalization: the same function in float, and less noise where rounding shares a step among uneven channels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fewbits.methods.equalization import (
    LARGEST_RATIO,
    Grid,
    absorbed,
    balance,
    find_equalization,
    grouped,
    seen_of,
)
from fewbits.methods.smooth_quant import fake_quantize
from fewbits.numerics import quantize

W8A8 = Grid(127, 127, (True, True), 255)
PER_TENSOR = Grid(127, 127, (False, False), 255)


class Pair:
    """A pointwise convolution, a ReLU and a convolution behind it, with channels up to ``spread`` times as large."""

    def __init__(self, seed, spread=1.0, groups=16, bias=0.0):
        draw = torch.Generator().manual_seed(seed)
        self.groups = groups
        self.x = torch.randn(32, 8, 6, 6, generator=draw)
        sizes = spread ** torch.rand(16, generator=draw)
        self.first = torch.randn(16, 8, 1, 1, generator=draw) * sizes[:, None, None, None]
        self.bias = (torch.randn(16, generator=draw) + bias) * sizes
        self.second = torch.randn(16, 16 // groups, 3, 3, generator=draw)
        self.second /= (sizes.reshape(groups, 1, -1).expand(-1, 16 // groups, -1)).reshape(16, -1, 1, 1)
        self.later = torch.zeros(16)

    def between(self):
        return functional.conv2d(self.x, self.first, self.bias).relu()

    def output(self, hidden=None, second=None):
        hidden = self.between() if hidden is None else hidden
        return functional.conv2d(
            hidden, self.second if second is None else second, self.later, groups=self.groups
        )

    def found(self, grid=W8A8, data=True, shiftable=True):
        seen = seen_of(self.between(), 1) if data else None
        return find_equalization(self.first.flatten(1), grouped(self.second, 16), seen, grid, shiftable)

    def equalized(self, found):
        other = Pair.__new__(Pair)
        other.__dict__.update(self.__dict__)
        other.first = self.first / found.divisor[:, None, None, None]
        other.bias = (self.bias - found.shift) / found.divisor
        parts = grouped(self.second, 16) * found.divisor.reshape(self.groups, 1, -1, 1)
        moved = grouped(self.second, 16) * found.shift.reshape(self.groups, 1, -1, 1)
        other.second = parts.reshape(self.second.shape)
        other.later = self.later + moved.sum(dim=(2, 3)).reshape(-1)
        return other

    def rounded(self, grid):
        """Everything rounded to nearest, in int8 with the steps that the grid says."""
        weights = [
            quantize(weight, "int8", channel_axis=0 if alone else None).dequantize()
            for weight, alone in zip((self.first, self.second), grid.alone, strict=True)
        ]
        hidden = functional.conv2d(self.x, weights[0], self.bias).relu()
        hidden = fake_quantize(hidden, 0.0, float(hidden.max()), 256)
        return self.output(hidden, weights[1])


def lost(expected, got):
    return float((expected - got).square().sum() / expected.square().sum())


@pytest.mark.parametrize("groups", [16, 4, 1])
@pytest.mark.parametrize("grid", [W8A8, PER_TENSOR])
def test_uneven_channels_lose_far_less_than_by_rounding_to_nearest(grid, groups):
    pair = Pair(0, spread=300.0, groups=groups)
    found = pair.found(grid)
    expected = pair.output()
    before, after = lost(expected, pair.rounded(grid)), lost(expected, pair.equalized(found).rounded(grid))
    assert after < before / 10
    assert before / after / found.gain == pytest.approx(
        1, abs=0.8
    )  # as many times less as was foretold, roughly


def test_weights_alone_tell_enough_for_one_step_for_all_weights():
    pair = Pair(1, spread=300.0)
    grid = Grid(127, 127, (False, False), None)
    found = pair.found(grid, data=False)
    expected = pair.output()
    assert lost(expected, pair.equalized(found).rounded(grid)) < lost(expected, pair.rounded(grid)) / 10


def test_even_channels_are_left_alone():
    assert Pair(2).found() is None
    assert Pair(2).found(Grid(127, 127, (True, True), None), data=False) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(5, 1e4), st.sampled_from([1, 4, 16]), st.floats(0, 8))
def test_the_function_stays_what_it_was(seed, spread, groups, bias):
    pair = Pair(seed, spread, groups, bias)
    found = pair.found()
    if found is not None:
        assert (found.divisor > 0).all()
        assert float(found.divisor.max() / found.divisor.min()) <= LARGEST_RATIO * 1.01
        torch.testing.assert_close(pair.equalized(found).output(), pair.output(), rtol=1e-3, atol=1e-3)


def test_high_biases_are_absorbed_where_channels_always_exceed_them():
    pair = Pair(3, spread=30.0, groups=16, bias=30.0)
    found = pair.found()
    assert found.gain > 2 * pair.found(shiftable=False).gain
    assert (found.shift <= pair.between().amin(dim=(0, 2, 3))).all()
    assert found.shift.max() > 0
    expected = pair.output()
    plain, absorbing = (pair.equalized(pair.found(shiftable=one)) for one in (False, True))
    assert lost(expected, absorbing.rounded(W8A8)) < lost(expected, plain.rounded(W8A8)) / 2


def test_a_channel_that_is_sometimes_zero_has_nothing_to_absorb():
    seen = seen_of(Pair(0).between(), 1)
    assert not absorbed(seen).any()


def test_both_layers_reach_equally_far():
    pair = Pair(4, spread=100.0)
    first, second = pair.first.flatten(1), grouped(pair.second, 16)
    divisor = balance(first, second)
    made, read = (first / divisor[:, None]).abs().amax(dim=1), second.flatten(1).abs().amax(dim=1) * divisor
    torch.testing.assert_close(made / read, (made / read)[:1].expand(16))


@pytest.mark.parametrize("data", [True, False])
def test_channels_that_are_dead_keep_their_size(data):
    pair = Pair(5, spread=300.0)
    pair.first[3], pair.bias[3] = 0, 0
    pair.second[7] = 0
    found = pair.found(PER_TENSOR, data=data)
    assert torch.isfinite(found.divisor).all()
    assert found.divisor[3] == 1
    torch.testing.assert_close(pair.equalized(found).output(), pair.output(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("data", [True, False])
def test_nothing_but_zeros(data):
    pair = Pair(6)
    pair.first, pair.bias, pair.second = (
        torch.zeros_like(one) for one in (pair.first, pair.bias, pair.second)
    )
    assert pair.found(PER_TENSOR, data=data) is None


def test_a_single_sample_says_too_little():
    pair = Pair(7, spread=300.0)
    seen = seen_of(pair.between()[:1, :, :1, :1], 1)
    assert find_equalization(pair.first.flatten(1), grouped(pair.second, 16), seen, W8A8, True) is None
