"""A weight rounded as a scheme says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewbits.numerics import QTensor, QType, Search, cast, find, quantize
from fewbits.planning.scheme import Scheme


def round_weight(
    values: Tensor,
    scheme: Scheme,
    channel_axis: int,
    name: str,
    row: QType | None = None,
    search: str | Search = "mse",
    **codes: Any,
) -> QTensor:
    """Codes of a weight, float of any shape, one scale for the tensor, for each channel or each group of it.

    Args:
        values: the weight.
        scheme: how it is represented; narrow floats without a scale are cast.
        channel_axis: what a channel is.
        name: of the weight, for messages.
        row: the scheme's format, where its scales are stored in another type than the table says.
        search: how a range of least error is looked for, where the scheme wants one.
        codes: ``qmin`` and ``qmax``, where not all codes of the format may be used.

    Raises:
        InputError: NaN or infinity in it; a group size that does not divide; a setting that the format has not.
    """
    if scheme.is_float:
        return cast(values, scheme.qtype, name=name)
    row = row or find(scheme.qtype)
    return quantize(
        values,
        row,
        channel_axis=None if scheme.per == "tensor" else channel_axis,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric if row.kind == "int" else None,
        search=search if scheme.range == "mse" else scheme.range,
        name=name,
        **codes,
    )
