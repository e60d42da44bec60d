"""Learned codebooks: the optimum on small inputs, the Lloyd-Max figures, hard cases."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from fewbits.numerics import quantize
from fewbits.numerics.kmeans import learn
from fewbits.numerics.rows import Points, Rows


def optimum(values: np.ndarray, weights: np.ndarray, entries: int) -> float:
    """The least weighted squared error of any clustering: plain dynamic programming over sorted values."""
    order = np.argsort(values)
    v, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    v = v - v.mean()
    count = len(v)
    cost = np.zeros((count + 1, count + 1))
    for first in range(count):
        mean, mass, spread = 0.0, 0.0, 0.0
        for last in range(first, count):
            mass += w[last]
            step = v[last] - mean
            mean += step * w[last] / mass
            spread += w[last] * step * (v[last] - mean)
            cost[first, last + 1] = spread
    best = np.full(count + 1, np.inf)
    best[0] = 0
    least = np.inf
    for _ in range(entries):
        best = np.array([np.min(best[: end + 1] + cost[: end + 1, end]) for end in range(count + 1)])
        least = min(least, best[count])
    return float(least)


def error_of(values: np.ndarray, weights: np.ndarray, book: np.ndarray) -> float:
    distance = (values[:, None].astype(np.float64) - book[None].astype(np.float64)) ** 2
    return float((distance.min(axis=1) * weights).sum())


def test_two_thousand_small_inputs_reach_the_optimum():
    random = np.random.default_rng(0)
    for number in range(2000):
        count, entries = int(random.integers(1, 28)), int(random.integers(1, 9))
        match number % 4:
            case 0:
                values = random.standard_normal(count)
            case 1:
                values = random.integers(-5, 6, count).astype(float)
            case 2:
                values = random.standard_cauchy(count) * 10.0 ** random.integers(-20, 20)
            case _:
                values = 1000 + random.standard_normal(count) * 1e-2
        values = values.astype(np.float32)
        weights = np.ones(count) if number % 2 else random.integers(1, 50, count)
        points = Points(torch.from_numpy(values).view(1, 1, -1), torch.tensor(weights).float().view(1, 1, -1))
        book = learn(points, entries).view(-1).numpy()
        assert (np.diff(book) > 0).all()
        assert len(book) <= entries
        least = max(optimum(values, weights, entries), 0.0)
        # Entries are float32: each may be off by half a unit in the last place.
        rounding = (weights * (np.abs(values).max() * 2.0**-23) ** 2).sum()
        assert error_of(values, weights, book) <= least * (1 + 1e-6) + rounding


def test_rows_are_solved_one_by_one():
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    together = quantize(x, "codebook3", channel_axis=0, group_size=48)
    assert together.codebook.shape == (40, 2, 8)
    for channel in range(40):
        for group in range(2):
            part = x[channel, group * 48 : (group + 1) * 48].numpy()
            least = optimum(part, np.ones(48), 8)
            book = together.codebook[channel, group].numpy()
            assert error_of(part, np.ones(48), book) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize(("bits", "figure"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
@pytest.mark.parametrize("count", [200_000, 2_000_000])
def test_lloyd_max_on_a_gaussian(bits, figure, count):
    """Max 1960, table I. The short row is its quantiles, so that sampling noise does not count."""
    if count == 200_000:
        share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        x = (torch.special.ndtri(share)).float()
    else:
        x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    q = quantize(x * 0.02, f"codebook{bits}")
    relative = q.error(x * 0.02).mse / float((x.double() * 0.02).square().mean())
    assert relative == pytest.approx(figure, rel=0.01)


@pytest.mark.parametrize("kind", ["gauss", "cauchy", "clumps", "offset", "integers", "uniform"])
@pytest.mark.parametrize("entries", [4, 16])
def test_long_rows_are_near_the_optimum(kind, entries):
    """Within 0.1 % of the optimum of the 600,000 values, for shapes that fool histograms."""
    random = np.random.default_rng(5)
    count = 600_000
    values = {
        "gauss": lambda: random.standard_normal(count),
        "cauchy": lambda: random.standard_cauchy(count),
        "clumps": lambda: random.choice([0.0, 1.0, 1e4], count) + random.standard_normal(count) * 1e-2,
        "offset": lambda: 1 + random.standard_normal(count) * 1e-4,
        "integers": lambda: random.integers(-1000, 1000, count),
        "uniform": lambda: random.random(count),
    }[kind]().astype(np.float32)
    q = quantize(torch.from_numpy(values), f"codebook{entries.bit_length() - 1}")
    got = np.sqrt(q.error(torch.from_numpy(values)).mse)
    # The optimum of values merged into cells is at least this far from that of the values themselves.
    ascending = np.sort(values).astype(np.float64)
    gaps = np.diff(ascending, prepend=ascending[0])
    share = np.cumsum(np.minimum(gaps, np.quantile(gaps, 0.9999)) ** (2 / 3) + 1e-30)
    _, cell = np.unique((share / share[-1] * 399).astype(int), return_inverse=True)
    weights = np.bincount(cell).astype(float)
    means = np.bincount(cell, ascending) / weights
    moved = np.sqrt(((ascending - means[cell]) ** 2).mean())
    merged = np.sqrt(max(optimum(means, weights, entries), 0) / count)
    assert got <= (merged + moved) * 1.001
    exact = learn(
        Points(
            torch.from_numpy(means).float().view(1, 1, -1), torch.from_numpy(weights).float().view(1, 1, -1)
        ),
        entries,
    )
    refined = np.sqrt(error_of(values, np.ones(count), exact.view(-1).numpy()) / count)
    assert got <= refined * 1.001


def test_few_values_are_exact():
    x = torch.tensor([0.1, -3.0, 7.5, 1e-30, 2.0])[torch.randint(0, 5, (1000, 700))]
    q = quantize(x, "codebook3")
    assert torch.equal(q.dequantize(), x)
    assert q.codebook.numel() == 5
    rows = torch.stack([torch.ones(64), torch.arange(64.0)])
    q = quantize(rows, "codebook6", channel_axis=0)
    assert torch.equal(q.dequantize(), rows)
    assert (q.codebook.diff(dim=-1) > 0).all()


def test_weight_sharing_with_many_entries():
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(3))
    errors = [quantize(x, f"codebook{bits}").error(x).sqnr_db for bits in (4, 5, 6, 7, 8)]
    # Each bit halves the step: 6 dB, a little less for few entries.
    assert all(5.3 < more - less < 6.3 for less, more in pairwise(errors))
    assert quantize(x, "codebook8").codebook.shape == (256,)


def test_a_long_row_is_summed_up_by_cells():
    x = torch.randn(1, 1, 1_000_000, generator=torch.Generator().manual_seed(0))
    points = Rows(x).points
    assert float(points.weights.sum()) == 1_000_000
    assert points.values.numel() < 10_000
    mean = float((points.values.double() * points.weights).sum() / 1e6)
    assert mean == pytest.approx(float(x.double().mean()), abs=1e-7)
    assert float(points.values.max()) == float(x.max())
    assert float(points.values.min()) == float(x.min())
