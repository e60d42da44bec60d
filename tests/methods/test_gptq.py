"""Compensated rounding: against every rounding there is, against solving for each column in turn, and to nearest."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.methods.gptq import damped_moment, round_with_compensation
from fewbits.numerics import quantize


def problem(seed, rows=16, columns=24, samples=400):
    """Weights [rows, columns], inputs that move together as a layer's do, and a step for each row."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=rng) + 2 * torch.randn(1, columns, generator=rng)
    inputs = torch.randn(samples, columns, generator=rng) @ mixing / columns**0.5
    weight = torch.randn(rows, columns, generator=rng)
    return weight, inputs, weight.abs().amax(dim=1)


def nearest(weight, scale, limit):
    return (weight / scale[:, None]).round().clamp(-limit, limit)


def lost(weight, codes, scale, covariance):
    """Squared error of the outputs about their mean, which the bias makes up for, per row."""
    error = (weight - codes * scale[:, None]).double()
    return torch.einsum("ri,ij,rj->r", error, covariance.double(), error)


def one_by_one(weight, covariance, scale, limit):
    """The same rounding by its definition: round a column, then solve for the best of those not yet rounded."""
    left = (weight / scale[:, None]).double().numpy()
    c = covariance.double().numpy()
    order = list(torch.argsort(covariance.diagonal(), descending=True).numpy())
    codes = np.zeros_like(left)
    while order:
        column = order.pop(0)
        codes[:, column] = np.clip(np.round(left[:, column]), -limit, limit)
        error = left[:, column] - codes[:, column]
        if order:
            share = np.linalg.solve(c[np.ix_(order, order)], c[order, column])
            left[:, order] += error[:, None] * share
    return codes


@pytest.mark.parametrize("columns", [1, 5, 31, 32, 33, 64, 100])
def test_it_is_solving_for_the_columns_that_are_left(columns):
    weight, inputs, scale = problem(columns, columns=columns)
    covariance = damped_moment(inputs, 0.01, centered=True)
    codes = round_with_compensation(weight, covariance, (scale / 7)[:, None], -7, 7)
    expected = one_by_one(weight, covariance, scale / 7, 7)
    # A value halfway between two codes may go either way in float32, and what follows with it.
    same = (codes.numpy() == expected).all(axis=1)
    assert same.mean() >= 0.85


@pytest.mark.parametrize("limit", [3, 7, 127])
@pytest.mark.parametrize("columns", [4, 8, 16, 24, 40, 64])
def test_examples_lose_less_than_by_rounding_to_nearest(columns, limit):
    """No row loses more, and all together lose much less."""
    ratios = []
    for seed in range(30):
        weight, inputs, scale = problem(seed, columns=columns)
        covariance = damped_moment(inputs, 0.0, centered=True)
        codes = round_with_compensation(weight, covariance, (scale / limit)[:, None], -limit, limit)
        assert torch.equal(codes, codes.round())
        assert codes.abs().max() <= limit
        plain = lost(weight, nearest(weight, scale / limit, limit), scale / limit, covariance)
        mine = lost(weight, codes, scale / limit, covariance)
        assert (mine <= plain * (1 + 1e-4)).all()
        ratios.append(float(mine.sum() / plain.sum()))
    assert np.mean(ratios) < (0.6 if columns >= 16 else 0.9)


def test_tiny_cases_come_close_to_the_best_of_all_roundings():
    """Four columns of codes -2 to 2: all 625 roundings are tried."""
    every = torch.tensor(list(itertools.product(range(-2, 3), repeat=4)), dtype=torch.float32)
    best_of_all = compensated = plain = 0.0
    optimal = 0
    for seed in range(60):
        weight, inputs, scale = problem(seed, rows=1, columns=4)
        covariance = damped_moment(inputs, 0.0, centered=True)
        step = scale / 2
        codes = round_with_compensation(weight, covariance, step[:, None], -2, 2)
        losses = lost(weight.expand(len(every), 4), every, step.expand(len(every)), covariance)
        mine = float(lost(weight, codes, step, covariance))
        least = float(losses.min())
        assert mine >= least * (1 - 1e-9)
        optimal += mine <= least * (1 + 1e-6)
        best_of_all += least
        compensated += mine
        plain += float(lost(weight, nearest(weight, step, 2), step, covariance))
    assert optimal >= 25
    assert compensated - best_of_all < 0.35 * (plain - best_of_all)


def test_inputs_that_do_not_move_together_leave_nothing_to_make_up_for():
    weight, _, scale = problem(0)
    covariance = torch.diag(torch.linspace(0.1, 3, weight.shape[1]))
    codes = round_with_compensation(weight, covariance, (scale / 7)[:, None], -7, 7)
    assert torch.equal(codes, nearest(weight, scale / 7, 7))


def test_the_order_of_columns_changes_nothing():
    weight, inputs, scale = problem(0)
    covariance = damped_moment(inputs, 0.01, centered=True)
    codes = round_with_compensation(weight, covariance, (scale / 7)[:, None], -7, 7)
    turned = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
    again = round_with_compensation(
        weight[:, turned], covariance[turned][:, turned], (scale / 7)[:, None], -7, 7
    )
    assert (again == codes[:, turned]).float().mean() > 0.97


def test_what_goes_in_is_left_alone():
    weight, inputs, scale = problem(0)
    before = [one.clone() for one in (weight, inputs, scale)]
    covariance = damped_moment(inputs, 0.01, centered=True)
    kept = covariance.clone()
    round_with_compensation(weight, covariance, scale[:, None], -7, 7)
    assert all(
        torch.equal(*pair) for pair in zip([*before, kept], [weight, inputs, scale, covariance], strict=True)
    )


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 2))
def test_covariance_is_numpys_with_noise_on_its_diagonal(seed, noise):
    _, inputs, _ = problem(seed, columns=12)
    expected = np.cov(inputs.double().numpy().T, bias=True)
    got = damped_moment(inputs, noise, centered=True).double().numpy()
    floor = 0.01 * np.diag(expected).mean()
    np.testing.assert_allclose(got, expected + max(noise, floor) * np.eye(12), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(5, 8), torch.ones(5, 8), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))],
)
def test_inputs_that_say_little_still_give_a_rounding(inputs):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    scale = weight.abs().amax(dim=1) / 7
    codes = round_with_compensation(weight, damped_moment(inputs, 0.0, centered=True), scale[:, None], -7, 7)
    assert torch.isfinite(codes).all()
    if not inputs.std() > 0:
        assert torch.equal(codes, nearest(weight, scale, 7))


def test_groups_of_columns_have_steps_of_their_own():
    weight, inputs, _ = problem(3, columns=64)
    weight = weight * torch.tensor([1.0, 20.0, 0.1, 3.0]).repeat_interleave(16)
    q = quantize(weight, "int3", channel_axis=0, group_size=16, search="mse")
    steps = q.layout.spread(q.scale).expand(-1, -1, 16).reshape(weight.shape)
    covariance = damped_moment(inputs, 0.0, centered=True)
    # In units of the steps, it is the same problem as with one step for a row.
    alone = round_with_compensation(weight[:1], covariance, steps[:1], -3, 3)
    in_steps = covariance * steps[0] * steps[0][:, None]
    assert torch.equal(
        alone, round_with_compensation(weight[:1] / steps[:1], in_steps, torch.ones(1, 1), -3, 3)
    )
    codes = round_with_compensation(weight, covariance, steps, -3, 3)
    error = (codes * steps - weight).double()
    plain = (q.dequantize() - weight).double()
    mine, nearest_ones = (
        torch.einsum("ri,ij,rj->r", one, covariance.double(), one) for one in (error, plain)
    )
    assert mine.sum() < 0.6 * nearest_ones.sum()
