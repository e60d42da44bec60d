"""The front door: a tensor in, a QTensor out, its parameters fitted or given, or none at all."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import Grid, code_range, encode_affine, truncate
from fewbits.numerics.assembly import assembled, encoded, layout_for
from fewbits.numerics.checks import naming, not_finite, refuse_nan, require_floating, require_shape
from fewbits.numerics.codebook import check_books, nearest
from fewbits.numerics.coders import coder_for
from fewbits.numerics.floats import Rounding, encode_float
from fewbits.numerics.layout import Layout, RowBlock, block_size, layout_of
from fewbits.numerics.levels import encode_levels, tensor_scale_of
from fewbits.numerics.parameters import Parameters
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.qtype import QType, find
from fewbits.numerics.rows import Rows
from fewbits.numerics.search import Search


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

    One set of parameters serves the tensor, an index of ``channel_axis``, or ``group_size`` neighbours within
    either; a block format has its own group size. Arithmetic is float32. ``name`` is how errors call the
    tensor.

    ``search`` "minmax" is the plain rule of the row: the whole range, the closed form of binary and ternary
    (TWN), k-means of a learned codebook. "mse" is least squared error for every row. The other searches, and
    ``symmetric``, ``qmin`` and ``qmax``, are of int and uint rows; ``symmetric`` None means symmetric for
    signed codes, asymmetric for unsigned ones.

    Raises InputError for an unknown row or search, a setting the row has not, a group size that does not
    divide, an empty tensor, and NaN or infinity in it.
    """
    with naming(name):
        row = find(qtype)
        layout = layout_for(x, row, channel_axis, group_size)
        x = x.detach()
        tensor_scale = _tensor_scale(x, row)
        coder = coder_for(row, search, symmetric, qmin, qmax, tensor_scale)
        values = layout.split(x)
        codes = layout.empty_rows(row.code_dtype, x.device)
        fitted = []
        for block in layout.row_blocks(block_size(x)):
            rows = Rows(values[block])
            if not rows.finite:
                raise not_finite(x)
            fit = coder(rows)
            fitted.append(fit.parameters)
            for part in rows.parts:
                codes[block][..., part] = fit.encode(rows.part(part))
        return assembled(codes, row, layout, Parameters.joined(fitted), name, tensor_scale)


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
    tensor_scale: Tensor | None = None,
    name: str | None = None,
) -> QTensor:
    """Quantize with parameters that are given: ``clamp(round(x / scale) + zero_point, qmin, qmax)``.

    For int and uint rows, and for narrow floats (which saturate) and fixed codebooks, which have no zero
    point. ``scale`` and ``zero_point`` (integers) have the parameter shape, ``()``, ``(channels,)``,
    ``(groups,)`` or ``(channels, groups)``. ``qmin`` and ``qmax`` default to all the codes of the row, as in
    ONNX QuantizeLinear. ``tensor_scale`` is of two-level rows (nvfp4). Infinities saturate.

    Raises InputError for NaN, and for parameters of another shape or out of range.
    """
    with naming(name):
        row = find(qtype)
        layout = layout_for(x, row, channel_axis, group_size)
        x = x.detach()
        refuse_nan(x)
        scales = _given(torch.as_tensor(scale, dtype=torch.float32, device=x.device), "scale", layout)
        zeros = None
        if row.kind == "int":
            codes = code_range(row, False, qmin, qmax)
            if zero_point is not None:
                zeros = _given(_integers(torch.as_tensor(zero_point, device=x.device)), "zero_point", layout)

            def encode(part: Tensor, block: RowBlock) -> Tensor:
                grid = Grid(scales[block], None if zeros is None else zeros[block])
                return encode_affine(part.float(), grid, codes)

        elif zero_point is not None or qmin is not None or qmax is not None:
            raise InputError(
                f"zero_point, qmin and qmax are of int and uint rows; {row.name} has its own levels"
            )
        elif row.float_format is None and row.levels is None:
            raise InputError(
                f"{row.name} has no levels known in advance; give int, float or fixed codebook rows"
            )
        else:

            def encode(part: Tensor, block: RowBlock) -> Tensor:
                return encode_levels(part.float() / scales[block], row)

        parameters = Parameters(scales, zeros)
        return assembled(encoded(x, row, layout, encode), row, layout, parameters, name, tensor_scale)


def quantize_with_codebook(
    x: Tensor,
    qtype: str | QType,
    codebook: Tensor,
    *,
    channel_axis: int | None = None,
    group_size: int | None = None,
    name: str | None = None,
) -> QTensor:
    """Quantize to the nearest entry of given codebooks, halfway to the lower one.

    ``qtype`` is a learned codebook row. ``codebook`` is float, of the parameter shape plus an axis of
    ascending entries. Raises InputError for NaN, and for a codebook of another shape, with too many entries,
    or with entries that are repeated, out of order or not finite.
    """
    with naming(name):
        row = find(qtype)
        if row.kind != "codebook" or row.levels is not None:
            raise InputError(
                f"a codebook is given to a learned codebook row, such as 'codebook4'; got {row.name!r}"
            )
        layout = layout_for(x, row, channel_axis, group_size)
        x = x.detach()
        books = codebook.detach().to(x.device, torch.float32)
        check_books(books, layout.parameter_shape, row.qmax + 1)
        refuse_nan(x)
        books = books.reshape(layout.channels, layout.groups, -1)
        shared = nearest(books) if layout.channels * layout.groups == 1 else None

        def encode(part: Tensor, block: RowBlock) -> Tensor:
            return (shared or nearest(books[block]))(part.float())

        parameters = Parameters(codebook=books)
        return assembled(encoded(x, row, layout, encode), row, layout, parameters, name)


def cast(
    x: Tensor,
    qtype: str | QType,
    *,
    saturate: bool = True,
    rounding: Rounding = "nearest",
    name: str | None = None,
) -> QTensor:
    """Convert to the row's own numbers, without a scale; any shape, floating dtype and device.

    Floats: what is too large saturates (ONNX ``saturate=1``) or follows the format, to infinity or NaN
    (IEEE 754, ml_dtypes); NaN is converted. ``rounding`` is of the magnitude; "up" and "down" are for e8m0
    scales. Ints: the fraction is dropped; what is too large saturates, or else keeps its low bits, as with
    ONNX Cast; NaN is an error.

    Raises InputError for a row that is neither, and for an empty tensor.
    """
    with naming(name):
        row = find(qtype)
        require_floating(x)
        layout = layout_of(tuple(x.shape), None, None)
        x = x.detach()
        if row.kind == "float":

            def encode(part: Tensor, _: RowBlock) -> Tensor:
                return encode_float(part, row, saturate=saturate, rounding=rounding)

        elif row.kind == "int":
            refuse_nan(x)

            def encode(part: Tensor, _: RowBlock) -> Tensor:
                return truncate(part, row, saturate=saturate)

        else:
            raise InputError(f"{row.name} has no numbers without a scale; cast to a float, int or uint row")
        return assembled(encoded(x, row, layout, encode), row, layout, Parameters(), name)


def _tensor_scale(x: Tensor, row: QType) -> Tensor | None:
    """The second-level scale of a row that has one, float32 of shape ()."""
    if not row.tensor_scale:
        return None
    largest = torch.maximum(x.amax(), -x.amin()).float()
    if not bool(torch.isfinite(largest)):
        raise not_finite(x)
    return tensor_scale_of(largest, row)


def _integers(zero_point: Tensor) -> Tensor:
    if zero_point.is_floating_point():
        raise InputError(f"zero points are integers, got {zero_point.dtype}")
    return zero_point.int()


def _given(parameter: Tensor, word: str, layout: Layout) -> Tensor:
    """A given parameter as (channels, groups, 1)."""
    require_shape(parameter, word, layout.parameter_shape)
    return layout.spread(parameter.detach())
