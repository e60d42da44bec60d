"""Codebooks of weights, with more entries where an error costs more.

Source: Kim et al. 2023, "SqueezeLLM: Dense-and-Sparse Quantization" (arXiv:2306.07629): k-means weighted by the
diagonal of the Hessian. Here it is that of the layer's own output, whose diagonal is the energy of the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbits.numerics import QTensor, quantize_with_codebook
from fewbits.numerics.kmeans import learn
from fewbits.numerics.rows import Points

LEAST = 0.01  # of the mean energy is what an input counts at least: samples that follow may reach it


def with_weighted_codebook(q: QTensor, values: Tensor, energy: Tensor) -> QTensor:
    """The same representation with a codebook in which every element counts as much as what it is multiplied with.

    Args:
        q: codes of a learned codebook for the whole tensor.
        values: float32, the weight, in the shape of the codes.
        energy: float32, broadcasts against ``values``: mean square of the input that each element meets.
    """
    points = Points(values.reshape(1, 1, -1), _counted(energy, values).reshape(1, 1, -1))
    book = learn(points, q.qtype.qmax + 1).reshape(-1)
    return quantize_with_codebook(values, q.qtype, book, name=q.name)


def with_one_codebook(
    several: Sequence[QTensor], values: Sequence[Tensor], energies: Sequence[Tensor | None]
) -> list[QTensor]:
    """Weights of several layers as codes of one codebook, in which every layer counts the same.

    An element counts as much as what it is multiplied with, relative to the energy of its layer's output.
    Source: Han et al. 2016, "Deep Compression" (arXiv:1510.00149), section 3, for sharing weights by k-means.

    Args:
        several: codes of learned codebooks of one format, each of its whole tensor.
        values: float32, the weights.
        energies: float32, broadcast against the weights, as for :func:`with_weighted_codebook`; None where all count
            the same.
    """
    counted = []
    for value, energy in zip(values, energies, strict=True):
        each = torch.ones_like(value) if energy is None else _counted(energy, value)
        counted.append((each / (each * value.square()).sum().clamp(min=1e-30)).reshape(-1))
    pooled = torch.cat([value.reshape(-1) for value in values])
    weights = torch.cat(counted)
    points = Points(pooled.reshape(1, 1, -1), (weights / weights.mean()).reshape(1, 1, -1))
    row = several[0].qtype
    book = learn(points, row.qmax + 1).reshape(-1)
    return [
        quantize_with_codebook(value, row, book, name=q.name)
        for q, value in zip(several, values, strict=True)
    ]


def _counted(energy: Tensor, values: Tensor) -> Tensor:
    """How much each element counts, in the shape of the values; their mean is about 1."""
    mean = float(energy.mean())
    return (energy.clamp(min=LEAST * mean + 1e-30) / (mean + 1e-30)).expand_as(values)
