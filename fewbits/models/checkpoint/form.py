"""How a weight lies in a checkpoint: its parts, and where a slice of its rows lies in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fewbits.models.checkpoint.stored import nbytes
from fewbits.numerics import QTensor, QType
from fewbits.planning.model_info import LayerInfo, WeightInfo
from fewbits.planning.scheme import Scheme

ROWS = 32
"""A slice of rows begins at a multiple of this, so that packed parts begin at whole words."""


@dataclass(frozen=True)
class Part:
    """A tensor that a weight is stored as.

    Attributes:
        name: in the file.
        dtype, shape: as a safetensors header has them.
        row_bits: bits for each row of the weight; None for what is written once.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_bits: int | None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return nbytes(self.dtype, self.shape)

    def span(self, start: int, stop: int, rows: int) -> tuple[int, int]:
        """The first byte, and the number of bytes, of rows ``start`` to ``stop`` of the weight's ``rows``."""
        if self.row_bits is None:
            return 0, self.nbytes
        first = start * self.row_bits // 8
        return first, (self.nbytes if stop == rows else stop * self.row_bits // 8) - first


class Form(Protocol):
    """A format of quantized weights. It keeps no state; tensors are slices of whole rows."""

    name: str

    def why_not(self, layer: LayerInfo, scheme: Scheme) -> str | None:
        """Why it cannot hold the layer's weight in that scheme; None where it can."""
        ...

    def parts(self, weight: WeightInfo, dtype: str, scheme: Scheme) -> tuple[Part, ...]:
        """What a weight that was stored as ``dtype`` is stored as."""
        ...

    def row(self, dtype: str, scheme: Scheme) -> QType:
        """The format of the codes, with the type that scales are stored in."""
        ...

    def encode(self, weight: WeightInfo, q: QTensor) -> Mapping[str, Tensor]:
        """The parts of a slice by name, each contiguous and in its dtype."""
        ...

    def decode(
        self, weight: WeightInfo, dtype: str, scheme: Scheme, parts: Mapping[str, Tensor], rows: int
    ) -> tuple[QTensor, Tensor]:
        """A slice of ``rows`` read back: the codes with their parameters, and the weights as they will be loaded."""
        ...

    def config(self, layers: Sequence[tuple[LayerInfo, Scheme | None]]) -> Mapping[str, Any]:
        """What ``config.json`` says of it, given every layer with its scheme (None: in float)."""
        ...
