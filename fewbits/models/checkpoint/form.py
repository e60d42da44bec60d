"""How a weight lies in a checkpoint: its parts, and where a slice of its rows lies in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fewbits.models.checkpoint.compiled import CompiledGroups
from fewbits.models.checkpoint.stored import nbytes
from fewbits.numerics import QTensor
from fewbits.planning.model_info import LayerInfo, WeightInfo
from fewbits.planning.scheme import Scheme

ROWS = 32
"""A slice of rows begins at a multiple of this, so that packed parts begin at whole words."""


@dataclass(frozen=True)
class Held:
    """A quantized weight in a file: the names it has in the model (more than one where it is tied), and what it was."""

    names: tuple[str, ...]
    weight: WeightInfo
    dtype: str
    scheme: Scheme


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

    @property
    def name(self) -> str:
        """As reports call it."""
        ...

    @property
    def own_names(self) -> bool:
        """Tensors are stored under their names in the model, whatever they were stored under."""
        ...

    def why_not(self, layer: LayerInfo, scheme: Scheme) -> str | None:
        """Why it cannot hold the layer's weight in that scheme; None where it can."""
        ...

    def parts(self, weight: WeightInfo, dtype: str, scheme: Scheme) -> tuple[Part, ...]:
        """What a weight that was stored as ``dtype`` is stored as; its codes come first."""
        ...

    def round(self, values: Tensor, weight: WeightInfo, dtype: str, scheme: Scheme) -> QTensor:
        """The codes of a slice, with parameters that it can store. InputError for NaN or infinity."""
        ...

    def encode(self, weight: WeightInfo, q: QTensor) -> Mapping[str, Tensor]:
        """The parts of a slice by name, each in its dtype."""
        ...

    def compiled(self, dtype: str, scheme: Scheme) -> CompiledGroups | None:
        """What does the same for weights stored as ``dtype`` in one compiled pass; None where nothing does."""
        ...

    def decode(
        self, weight: WeightInfo, dtype: str, scheme: Scheme, parts: Mapping[str, Tensor], rows: int
    ) -> tuple[QTensor, Tensor]:
        """A slice of ``rows`` read back: the codes with their parameters, and the weights as they will be loaded."""
        ...

    def file(self, name: str) -> str:
        """What it calls a file with weights that was called ``name``."""
        ...

    def config(self, layers: Sequence[tuple[LayerInfo, Scheme | None]]) -> Mapping[str, Any]:
        """Keys for ``config.json``, given every layer with its scheme (None: in float)."""
        ...

    def metadata(self, weights: Sequence[Held]) -> Mapping[str, str]:
        """What the header of a file says of the quantized weights in it."""
        ...
