"""Codebooks of weights, with more entries where an error costs more.

Source: Kim et al. 2023, "SqueezeLLM: Dense-and-Sparse Quantization" (arXiv:2306.07629): k-means weighted by the
diagonal of the Hessian. Here it is that of the layer's own output, whose diagonal is the energy of the inputs.
"""

from __future__ import annotations

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
    counted = energy.clamp(min=LEAST * float(energy.mean()) + 1e-30) / (float(energy.mean()) + 1e-30)
    points = Points(values.reshape(1, 1, -1), counted.expand_as(values).reshape(1, 1, -1))
    book = learn(points, q.qtype.qmax + 1).reshape(-1)
    return quantize_with_codebook(values, q.qtype, book, name=q.name)
