"""Quantizers that learn: what they give, and their gradients."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.methods.learned import LearnedBook, LearnedCodes, LearnedShift, LearnedStep
from fewbits.numerics import quantize, quantize_with


def weight(rows=6, columns=20, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from([2, 3, 4, 8]), st.integers(0, 5))
@settings(deadline=None)
def test_codes_are_those_given_until_learning_begins(bits, seed):
    x = weight(seed=seed)
    q = quantize(x, f"int{bits}", channel_axis=0, search="mse")
    other = q.codes.roll(1, dims=1)
    learned = LearnedCodes(x, replace(q, codes=other), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    assert torch.equal(learned.codes.detach()[:, 0], other.float())
    assert torch.equal(learned.rounded().codes, other)
    assert torch.equal(learned(x).detach(), other * q.scale[:, None])
    learned.begin()
    nearest = quantize_with(x, f"int{bits}", q.scale, channel_axis=0)
    assert torch.equal(learned.rounded().codes, nearest.codes)


def test_a_weight_outside_of_the_codes_has_no_gradient_and_its_step_does():
    x = torch.tensor([[0.3, 5.0]])
    learned = LearnedCodes(x, quantize_with(x, "int2", torch.ones(1), channel_axis=0), -2, 1)
    learned.begin()
    learned(x).sum().backward()
    assert learned.parameters["places"].grad.tolist() == [[[1.0, 0.0]]]
    # By the paper's equation 3: round(v) - v inside, the last code outside.
    assert learned.parameters["stretch"].grad.item() == pytest.approx((0 - 0.3) + 1)


@given(
    st.floats(0.01, 3),
    st.sampled_from([("uint8", 0), ("uint8", 117), ("uint4", 5), ("int8", -3)]),
    st.integers(0, 9),
)
@settings(deadline=None)
def test_activations_are_what_their_codes_stand_for(step, kind, seed):
    qtype, zero_point = kind
    x = 8 * weight(seed=seed)
    q = quantize_with(x, qtype, torch.tensor(step), torch.tensor(zero_point))
    learned = LearnedStep(step, zero_point, q.qtype.qmin, q.qtype.qmax)
    got = learned(x)
    # A product in place of a quotient may fall on the other side of a tie.
    off = (got - q.dequantize()).abs() > 1e-5 * step
    assert off.float().mean() < 0.02
    assert (got - q.dequantize()).abs().max() <= step * 1.001


def test_a_step_is_moved_to_exactly_where_it_shall_be():
    learned = LearnedStep(0.37, 2, -8, 7)
    with torch.no_grad():
        learned.parameters["stretch"].fill_(0.3)
    learned.move(0.125)
    assert learned.step.item() == 0.125
    assert learned.step.requires_grad


def test_gradients_of_a_step_are_those_of_its_parts():
    x = (4 * weight()).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    step, low, high, zero = 0.37, -8, 7, 2
    learned = LearnedStep(step, zero, low, high)
    pull = weight(seed=1)
    (learned(x) * pull).sum().backward()
    size = torch.tensor(step, requires_grad=True)
    places = (twin / size).clamp(low - zero, high - zero)
    ((places + (places.round() - places).detach()) * size * pull).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(learned.parameters["stretch"].grad, size.grad * step, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero", [0, 15])
def test_the_ends_of_a_range_have_gradients(zero):
    x = (weight().relu() if zero == 0 else -weight().relu()).requires_grad_()
    LearnedStep(10.0, zero, 0, 15)(x).sum().backward()
    assert (x.detach() == 0).any()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_a_bias_moves_in_its_unit():
    learned = LearnedShift(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 0.0]))
    assert learned(torch.zeros(2)).tolist() == [1.0, 2.0]
    with torch.no_grad():
        learned.parameters["shift"] += 1
    assert learned.values.tolist() == [11.0, 2.0]


@given(st.integers(0, 5))
@settings(deadline=None)
def test_a_learned_book_gives_the_nearest_of_its_entries(seed):
    x = weight(seed=seed)
    q = quantize(x, "codebook4", search="mse")
    learned = LearnedBook(x, q)
    assert torch.equal(learned.rounded().codes, q.codes)
    assert torch.allclose(learned(x).detach(), q.dequantize(), atol=1e-6)
    learned.begin()
    learned(x).square().sum().backward()
    # A weight's gradient is what arrives at its entry; an entry's the sum of those of its weights.
    arrived = 2 * q.dequantize()
    unit = float(q.codebook.diff().median())
    assert torch.allclose(learned.parameters["places"].grad, arrived * unit, atol=1e-5)
    sums = torch.zeros(16).index_add_(0, q.codes.flatten().long(), arrived.flatten())
    assert torch.allclose(learned.parameters["entries"].grad, sums * unit, atol=1e-4)


def test_entries_that_pass_each_other_stay_a_codebook():
    x = weight()
    learned = LearnedBook(x, quantize(x, "codebook4", search="mse"))
    with torch.no_grad():
        learned.parameters["entries"][3] += 40
        learned.parameters["entries"][5] = learned.parameters["entries"][6]
    before = learned(x).detach()
    assert torch.allclose(learned.rounded().dequantize(), before, atol=1e-6)
