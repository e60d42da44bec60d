"""fewbits' own format: any row of the format table, the parts of each weight as :mod:`fewbits.numerics.files` has them.

Such a file is one of :mod:`fewbits.modules.files`. transformers does not read it, and finds none that it would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewbits.methods.rounding import round_weight
from fewbits.models.checkpoint.form import Held, Part
from fewbits.models.checkpoint.stored import DTYPES
from fewbits.numerics import QTensor, QType, find, packed_size, unpack
from fewbits.numerics.files import description_of, restored_parameters, stored_parts
from fewbits.numerics.layout import Layout, layout_of
from fewbits.planning.model_info import LayerInfo, WeightInfo
from fewbits.planning.scheme import Scheme

STEM = "fewbits"
"""Takes the place of ``model`` in the names of files, lest transformers take them for floats."""


Described = Mapping[tuple[str, ...], tuple[dict[str, object], str]]
"""Weights by all their names in the model: each one's description (of numerics.files), and the dtype it was of."""


@dataclass(frozen=True)
class Coded:
    """See :class:`fewbits.models.checkpoint.form.Form`.

    Attributes:
        header: what the header of a module's file says of such weights.
    """

    header: Callable[[Described], Mapping[str, str]]
    name: str = "fewbits"
    own_names: bool = True

    def why_not(self, layer: LayerInfo, scheme: Scheme) -> str | None:
        """See :meth:`Form.why_not`: it holds all."""
        return None

    def parts(self, weight: WeightInfo, dtype: str, scheme: Scheme) -> tuple[Part, ...]:
        """See :meth:`Form.parts`."""
        row, layout = find(scheme.qtype), _layout(weight, scheme, weight.shape)
        shape, count = layout.parameter_shape, math.prod(layout.parameter_shape)
        per_row = layout.groups if layout.channel_axis == 0 else 0
        columns = math.prod(weight.shape[1:])

        def part(name: str, dtype: str, shape: tuple[int, ...], row_bits: int | None) -> Part:
            return Part(f"{weight.name}.{name}", dtype, shape, row_bits)

        codes = part(
            "codes",
            "U8",
            (packed_size(layout.channels * layout.groups * layout.length, row.bits),),
            columns * row.bits,
        )
        if _learned(row):
            entries = row.qmax + 1
            return codes, part("codebook", "F32", (*shape, entries), per_row * entries * 32)
        scale = "F32" if row.scale_type is None else {8: "U8", 16: "U16"}[find(row.scale_type).bits]
        found = [codes, part("scale", scale, shape, per_row * DTYPES[scale].itemsize * 8)]
        if scheme.range == "half_quadratic":
            found.append(part("free_zero_point", "F32", shape, per_row * 32))
        elif row.kind == "int" and not (scheme.symmetric and row.signed):
            found.append(part("zero_point", "U8", (packed_size(count, row.bits),), per_row * row.bits))
        if row.tensor_scale:
            found.append(part("tensor_scale", "F32", (), None))
        return tuple(found)

    def round(self, values: Tensor, weight: WeightInfo, dtype: str, scheme: Scheme) -> QTensor:
        """See :meth:`Form.round`; a learned codebook is filled up, as its size was promised before it was learned."""
        q = round_weight(values, scheme, weight.channel_axis, weight.name)
        if q.codebook is None or (missing := q.qtype.qmax + 1 - q.codebook.shape[-1]) == 0:
            return q
        last = q.codebook[..., -1:]
        unused = last + last.abs().clamp(min=1.0) * torch.arange(1, missing + 1)
        return replace(q, codebook=torch.cat([q.codebook, unused], dim=-1))

    def encode(self, weight: WeightInfo, q: QTensor) -> Mapping[str, Tensor]:
        """See :meth:`Form.encode`."""
        return {f"{weight.name}.{part}": value for part, value in stored_parts(q).items()}

    def compiled(self, dtype: str, scheme: Scheme) -> None:
        """See :meth:`Form.compiled`."""
        return None

    def decode(
        self, weight: WeightInfo, dtype: str, scheme: Scheme, parts: Mapping[str, Tensor], rows: int
    ) -> tuple[QTensor, Tensor]:
        """See :meth:`Form.decode`."""
        row, layout = find(scheme.qtype), _layout(weight, scheme, (rows, *weight.shape[1:]))
        given = {name.removeprefix(f"{weight.name}."): value for name, value in parts.items()}
        q = QTensor(
            codes=unpack(given["codes"], row, layout.shape),
            qtype=row,
            channel_axis=layout.channel_axis,
            group_size=layout.group_size,
            name=weight.name,
            **restored_parameters(row, layout, given),
        )
        return q, q.dequantize(DTYPES[dtype])

    def file(self, name: str) -> str:
        """See :meth:`Form.file`."""
        return own_file(name)

    def config(self, layers: Sequence[tuple[LayerInfo, Scheme | None]]) -> Mapping[str, Any]:
        """See :meth:`Form.config`; the files say all."""
        return {}

    def metadata(self, weights: Sequence[Held]) -> Mapping[str, str]:
        """See :meth:`Form.metadata`."""
        return self.header(
            {
                held.names: (
                    description_of(
                        find(held.scheme.qtype), _layout(held.weight, held.scheme, held.weight.shape)
                    ),
                    str(DTYPES[held.dtype]).removeprefix("torch."),
                )
                for held in weights
            }
        )


def own_file(name: str) -> str:
    """What a file is called in this format that was called ``name``."""
    return f"{STEM}{name.removeprefix('model')}" if name.startswith("model") else f"{STEM}-{name}"


def _layout(weight: WeightInfo, scheme: Scheme, shape: tuple[int, ...]) -> Layout:
    return layout_of(shape, None if scheme.per == "tensor" else weight.channel_axis, scheme.group_size)


def _learned(row: QType) -> bool:
    return row.kind == "codebook" and row.levels is None
