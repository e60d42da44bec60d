"""The front door: ``quantize`` and its siblings choose by the kind of the row."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import CodeRange, code_range, encode
from fewbits.numerics.checks import called, not_finite, require_floating
from fewbits.numerics.layout import block_size, layout_of
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.qtype import QType, find
from fewbits.numerics.search import Search, find_search


def quantize(
    x: Tensor,
    qtype: str | QType,
    *,
    channel_axis: int | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    search: str | Search = "minmax",
    qmin: int | None = None,
    qmax: int | None = None,
    name: str | None = None,
) -> QTensor:
    """Quantize a floating-point tensor of any shape and device to a row of the table.

    One set of parameters per tensor, per index of ``channel_axis``, or per ``group_size`` neighbours within
    either. ``symmetric``, ``qmin`` and ``qmax`` are of int rows (None: symmetric for signed, asymmetric for
    unsigned). Arithmetic is float32. ``name`` is how errors call the tensor.

    Raises InputError for an unknown row or search, a group size that does not divide, an empty tensor, and
    NaN or infinity in it.
    """
    row = find(qtype)
    require_floating(x, name)
    codes = code_range(row, symmetric, qmin, qmax)
    return _quantize_int(x.detach(), row, codes, find_search(search), channel_axis, group_size, name)


def quantize_with(
    x: Tensor,
    qtype: str | QType,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    channel_axis: int | None = None,
    group_size: int | None = None,
    qmin: int | None = None,
    qmax: int | None = None,
    name: str | None = None,
) -> QTensor:
    """Quantize with parameters that are given: ``clamp(round(x / scale) + zero_point, qmin, qmax)``.

    ``scale`` and ``zero_point`` have the parameter shape, ``()``, ``(channels,)``, ``(groups,)`` or
    ``(channels, groups)``. ``qmin`` and ``qmax`` default to all the codes of the row, as in ONNX
    QuantizeLinear. Infinities saturate. Raises InputError for NaN and for parameters of another shape.
    """
    row = find(qtype)
    require_floating(x, name)
    x = x.detach()
    layout = layout_of(tuple(x.shape), channel_axis, group_size, called(name))
    codes = code_range(row, False, qmin, qmax)
    scale = scale.detach().to(device=x.device, dtype=torch.float32)
    zero = None if zero_point is None else zero_point.to(device=x.device, dtype=torch.int32)
    for word, parameter in (("scale", scale), ("zero_point", zero)):
        if parameter is not None and tuple(parameter.shape) != layout.parameter_shape:
            raise InputError(
                f"{called(name)}: {word} has shape {tuple(parameter.shape)}, "
                f"the layout needs {layout.parameter_shape}"
            )
    if zero is not None and not bool(((zero >= row.qmin) & (zero <= row.qmax)).all()):
        raise InputError(
            f"{called(name)}: zero points go from {row.qmin} to {row.qmax} in {row.name}, "
            f"got {int(zero.min())} to {int(zero.max())}"
        )
    rows = layout.split(x)
    out = layout.empty_rows(row.code_dtype, x.device)
    scales = layout.spread(scale)
    zeros = None if zero is None else layout.spread(zero)
    nan = torch.zeros((), dtype=torch.bool, device=x.device)
    for block in layout.blocks(block_size(x)):
        part = rows[block].float()
        nan |= part.amax().isnan()
        encode(part, scales[block[:2]], None if zeros is None else zeros[block[:2]], codes, out[block])
    if bool(nan):
        raise not_finite(x, name)
    return QTensor(
        layout.join(out), row, scale, zero, channel_axis=layout.channel_axis, group_size=group_size, name=name
    )


def _quantize_int(
    x: Tensor,
    row: QType,
    codes: CodeRange,
    search: Search,
    channel_axis: int | None,
    group_size: int | None,
    name: str | None,
) -> QTensor:
    layout = layout_of(tuple(x.shape), channel_axis, group_size, called(name))
    rows = layout.split(x)
    out = layout.empty_rows(row.code_dtype, x.device)
    scale = torch.empty(layout.channels, layout.groups, 1, device=x.device)
    zero: Tensor | None = None
    finite = torch.ones((), dtype=torch.bool, device=x.device)
    for block in layout.row_blocks(block_size(x)):
        part = rows[block].float()
        low, high = part.amin(dim=-1, keepdim=True), part.amax(dim=-1, keepdim=True)
        finite &= (torch.isfinite(low) & torch.isfinite(high)).all()
        grid = search.grid(part, low, high, codes)
        scale[block] = grid.scale
        if grid.zero_point is not None:
            if zero is None:
                zero = torch.empty_like(scale, dtype=torch.int32)
            zero[block] = grid.zero_point
        encode(part, grid.scale, grid.zero_point, codes, out[block])
    if not bool(finite):
        raise not_finite(x, name)
    shape = layout.parameter_shape
    return QTensor(
        layout.join(out),
        row,
        scale.reshape(shape),
        None if zero is None else zero.reshape(shape),
        channel_axis=layout.channel_axis,
        group_size=group_size,
        name=name,
    )
