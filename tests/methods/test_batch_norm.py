"""Statistics of batch norms, moved as rounding moves what they read."""

import torch

from fewbits.methods.batch_norm import LEAST, moved_statistics


def test_they_become_those_of_what_is_read_behind_rounded_layers():
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(64, 5, 4, 4, generator=draw)
    rounded = 1.5 * exact + 0.5 * torch.randn(exact.shape, generator=draw) + 1
    variance, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
    got = moved_statistics(exact, rounded, mean, variance)
    torch.testing.assert_close(got[0], rounded.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(got[1], rounded.var(dim=(0, 2, 3), correction=0))


def test_what_rounding_leaves_alone_stays_as_it_was_trained():
    mean, variance = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    few = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]]])  # the second channel is dead
    for got, trained in zip(moved_statistics(few, few, mean, variance), (mean, variance), strict=True):
        assert torch.equal(got, trained)
    assert torch.equal(moved_statistics(few, few + 1, mean, variance)[1], variance)
    vanished = moved_statistics(few, few * 0, mean, variance)[1]
    assert torch.equal(vanished, variance * torch.tensor([LEAST, 1]))
