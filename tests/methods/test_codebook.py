"""Codebooks weighted by what their entries are multiplied with."""

import pytest
import torch

from fewbits.methods.codebook import with_one_codebook, with_weighted_codebook
from fewbits.numerics import quantize


def case(seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 48, generator=draw) * torch.logspace(-1, 0, 48)
    inputs = torch.randn(256, 48, generator=draw) * torch.logspace(0.5, -1.5, 48)
    return weight, inputs


def test_the_output_is_closer_than_with_every_weight_counting_the_same():
    weight, inputs = case()
    plain = quantize(weight, "codebook4", search="mse")
    weighted = with_weighted_codebook(plain, weight, inputs.square().mean(0))
    noise = [float((inputs @ (q.dequantize() - weight).T).square().sum()) for q in (plain, weighted)]
    assert noise[1] < 0.5 * noise[0]


@pytest.mark.parametrize("energy", [torch.zeros(48), torch.ones(48), torch.tensor([0.0] * 47 + [1.0])])
def test_inputs_that_no_sample_reaches(energy):
    weight, _ = case()
    q = with_weighted_codebook(quantize(weight, "codebook4", search="mse"), weight, energy)
    assert q.error(weight).sqnr_db > 12


def test_few_different_weights_are_kept_exactly():
    weight = torch.tensor([[0.0, 1.0, 2.0, 1.0] * 16])
    q = with_weighted_codebook(quantize(weight, "codebook4", search="mse"), weight, torch.ones(64))
    assert torch.equal(q.dequantize(), weight)


def test_one_codebook_for_layers_of_different_size_serves_each():
    weights, inputs = zip(*(case(seed) for seed in range(3)), strict=True)
    weights = [weight * size for weight, size in zip(weights, (1.0, 0.5, 1.5), strict=True)]
    plain = [quantize(weight, "codebook4", search="mse") for weight in weights]
    energies = [x.square().mean(0) for x in inputs]
    shared = with_one_codebook(plain, weights, energies)
    assert all(torch.equal(one.codebook, shared[0].codebook) for one in shared)

    def noise(found):
        parts = zip(inputs, found, weights, strict=True)
        return [
            float((x @ (q.dequantize() - w).T).square().sum() / (x @ w.T).square().sum()) for x, q, w in parts
        ]

    nearest = [quantize(weight, "int4", search="mse") for weight in weights]
    assert max(noise(shared)) < 0.5 * max(noise(nearest))
    alike = with_one_codebook(plain, weights, [None] * 3)
    assert max(noise(shared)) < max(noise(alike))
