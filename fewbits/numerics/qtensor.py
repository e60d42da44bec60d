"""QTensor: a quantized tensor as one record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.checks import naming
from fewbits.numerics.decoding import decode, decode_rows
from fewbits.numerics.floats import scale_row
from fewbits.numerics.invariants import check
from fewbits.numerics.layout import Layout, block_size, layout_of
from fewbits.numerics.packing import pack_codes, packed_size
from fewbits.numerics.parameters import Parameters
from fewbits.numerics.qtype import QType

_PARAMETERS = ("scale", "zero_point", "free_zero_point", "codebook")


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """How far a QTensor is from the tensor it came from.

    ``mean`` and ``max`` are of the absolute error, ``mse`` of its square; ``sqnr_db`` is
    10 log10(sum x^2 / sum (x - q)^2), infinite where nothing was lost.
    """

    mean: float
    max: float
    mse: float
    sqnr_db: float


@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes and what is needed to read them.

    Invariants, checked on construction:

    - ``codes`` has the shape of the tensor and ``qtype.code_dtype``; every code is within
      ``qtype.qmin..qmax`` (binary: -1 or +1; codebook: below the number of entries). All parts are on one
      device.
    - Parameters have the parameter shape of the layout: ``()``, ``(channels,)``, ``(groups,)`` or
      ``(channels, groups)``, whatever the channel axis is. A channel is one index of ``channel_axis``, its
      other axes flattened in order; groups are neighbours within a channel. A block format has its own
      group size.
    - ``scale`` (float32) is always the step: finite and positive (binary rows of zeros: 0), and a number of
      ``qtype.scale_type`` where the row has one. It is None only for a learned codebook, and for a plain cast
      of the whole tensor, whose codes are the values.
    - ``zero_point`` (int32, within ``qtype.qmin..qmax``) or ``free_zero_point`` (float32, finite, in code
      units, for grids whose zero need not be a code) are of int and uint rows; None is zero.
    - ``codebook`` (float32, the parameter shape plus one axis of ascending entries) is of learned codebooks.
    - ``tensor_scale`` (float32, shape ``()``) is of two-level formats (nvfp4): ``scale`` is a number of
      ``qtype.scale_type`` times it.
    """

    codes: Tensor
    qtype: QType
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    free_zero_point: Tensor | None = None
    codebook: Tensor | None = None
    tensor_scale: Tensor | None = None
    channel_axis: int | None = None
    group_size: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        with naming(self.name):
            check(self)

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.codes.shape

    @property
    def layout(self) -> Layout:
        """How the tensor is cut into channels and groups."""
        return layout_of(tuple(self.codes.shape), self.channel_axis, self.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes and their parameters.

        Scales count in their scale type and zero points in the width of a code; a zero point that is the
        same everywhere because the row is symmetric counts as well, since a file has to hold it.
        """
        size = packed_size(self.codes.numel(), self.qtype.bits)
        if self.scale is not None:
            width = 32 if self.qtype.scale_type is None else scale_row(self.qtype).bits
            size += packed_size(self.scale.numel(), width)
        if self.zero_point is not None:
            size += packed_size(self.zero_point.numel(), self.qtype.bits)
        for parameter in (self.free_zero_point, self.codebook, self.tensor_scale):
            size += 0 if parameter is None else 4 * parameter.numel()
        return size

    def packed(self) -> Tensor:
        """The codes as bytes, a 1-D uint8 tensor; see ``packing`` for the order."""
        return pack_codes(self.codes, self.qtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor the codes stand for, computed in float32 and given in ``dtype``."""
        return decode(self.codes, self.qtype, self.layout, self._parameters, dtype)

    def error(self, x: Tensor) -> QuantizationError:
        """Compare with the tensor this came from; raises InputError when the shapes differ."""
        with naming(self.name):
            if x.shape != self.shape:
                raise InputError(f"its shape is {tuple(self.shape)}; compared with {tuple(x.shape)}")
        layout = self.layout
        codes, rows = layout.split(self.codes), layout.split(x.detach())
        parameters = self._parameters
        compared = []
        for block in layout.blocks(block_size(x)):
            reference = rows[block].float()
            values = decode_rows(codes[block], self.qtype, parameters.at(block[:2]))
            difference = values.sub_(reference).abs_()
            noise, signal = difference.double().square_().sum(), reference.double().square_().sum()
            compared.append((difference.sum(dtype=torch.float64), noise, signal, difference.amax().double()))
        sums = torch.stack([torch.stack(parts) for parts in compared])
        absolute, noise, signal = sums[:, :3].sum(dim=0).tolist()
        largest = float(sums[:, 3].amax())
        sqnr = float("inf") if noise == 0 else 10 * float(torch.log10(torch.tensor(signal / noise)))
        count = x.numel()
        return QuantizationError(absolute / count, largest, noise / count, sqnr)

    @property
    def _parameters(self) -> Parameters:
        given = {name: getattr(self, name) for name in _PARAMETERS}
        return Parameters.spread(
            self.layout, {name: part for name, part in given.items() if part is not None}
        )
