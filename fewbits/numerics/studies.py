"""Small studies of what fewer bits cost, as a textbook would make them; each returns records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.numerics.api import quantize

_FLOATS = {4: ("fp4_e2m1",), 8: ("fp8_e4m3fn",)}
_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class DotProductError:
    """The error of a dot product of ``length`` terms against float64, relative to the sum of magnitudes.

    ``rounded`` has inputs in the format and sums in float32, as matrix units do; ``accumulated`` also keeps
    the running sum in the format. Both are root mean squares over the trials.
    """

    qtype: str
    length: int
    rounded: float
    accumulated: float


def dot_product_errors(
    lengths: Sequence[int] = (16, 64, 256, 1024, 4096), trials: int = 64, seed: int = 0
) -> list[DotProductError]:
    """Dot products of standard normal vectors in fp32, fp16 and bf16, for growing lengths."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for length in lengths:
        a, b = torch.randn(2, trials, length, generator=generator, dtype=torch.float64).unbind()
        exact = (a * b).sum(dim=-1)
        size = (a * b).abs().sum(dim=-1)
        for name, dtype in _TORCH.items():
            a_low, b_low = a.to(dtype), b.to(dtype)
            rounded = (a_low.float() * b_low.float()).sum(dim=-1)
            running = torch.zeros(trials, dtype=dtype)
            for product in (a_low * b_low).unbind(dim=-1):
                running = running + product
            errors = [float((((s.double() - exact) / size) ** 2).mean().sqrt()) for s in (rounded, running)]
            records.append(DotProductError(name, length, *errors))
    return records


@dataclass(frozen=True, slots=True)
class WeightHistogram:
    """Counts of a tensor's values in equal bins, before and after quantization.

    ``edges`` has one more element than the counts; ``distinct`` is how many values are left.
    """

    edges: Tensor
    before: Tensor
    after: Tensor
    distinct: int
    sqnr_db: float


def weight_histogram(x: Tensor, bits: int, bins: int = 200) -> WeightHistogram:
    """Quantize a tensor to ``bits`` bits over its whole range and count values before and after."""
    q = quantize(x, f"uint{bits}")
    after = q.dequantize()
    low, high = float(torch.minimum(x.min(), after.min())), float(torch.maximum(x.max(), after.max()))
    edges = torch.linspace(low, high, bins + 1)
    counts, counts_after = (torch.histc(values, bins, low, high) for values in (x.float(), after))
    return WeightHistogram(edges, counts, counts_after, after.unique().numel(), q.error(x).sqnr_db)


@dataclass(frozen=True, slots=True)
class SqnrPoint:
    """The signal-to-quantization-noise ratio of one kind of format at one width, in dB."""

    kind: str
    bits: int
    sqnr_db: float


def sqnr_against_bits(x: Tensor, bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)) -> list[SqnrPoint]:
    """Quantize a whole tensor in each kind of format at each width the kind has."""
    records = []
    for width in bits:
        settings = [
            ("int, whole range", f"int{width}", "minmax"),
            ("int, least error", f"int{width}", "mse"),
            ("learned codebook", f"codebook{width}", "minmax"),
        ]
        settings += [("powers of two", f"log{width}", "mse")] if width in (3, 4, 5) else []
        settings += [("float", name, "mse") for name in _FLOATS.get(width, ())]
        for kind, name, search in settings:
            records.append(SqnrPoint(kind, width, quantize(x, name, search=search).error(x).sqnr_db))
    return records
