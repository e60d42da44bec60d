"""The front door: ``quantize`` and its siblings choose by the kind of the row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import Grid, code_range, encode_affine, nonzero, truncate
from fewbits.numerics.binary import best_ternary_threshold, ternary_threshold
from fewbits.numerics.checks import called, not_finite, require_floating
from fewbits.numerics.codebook import check_books, nearest
from fewbits.numerics.coders import Coder, Parameters, known_levels, learned_codebook, signs, ternary, uniform
from fewbits.numerics.floats import Rounding, encode_float
from fewbits.numerics.layout import Layout, RowBlock, block_size, layout_of
from fewbits.numerics.levels import encode_levels, largest_step, least_error_rule, spanning_rule
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.qtype import QType, find
from fewbits.numerics.sample import Sample
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
    row = find(qtype)
    layout = _layout(x, row, channel_axis, group_size, name)
    x = x.detach()
    tensor_scale = _tensor_scale(x, row, name)
    if row.kind == "int":
        coder = uniform(row, code_range(row, symmetric, qmin, qmax), find_search(search))
    else:
        if symmetric is False or qmin is not None or qmax is not None:
            raise InputError(
                f"symmetric, qmin and qmax are of int and uint rows; {row.name} has its own levels"
            )
        coder = _coder(row, search, tensor_scale)
    rows = layout.split(x)
    codes = layout.empty_rows(row.code_dtype, x.device)
    fitted = []
    for block in layout.row_blocks(block_size(x)):
        sample = Sample(rows[block])
        if not sample.finite:
            raise not_finite(x, name)
        fit = coder(sample)
        fitted.append(fit.parameters)
        for part in sample.parts:
            codes[block][..., part] = fit.encode(sample.part(part))
    return _assemble(codes, row, layout, Parameters.joined(fitted), name, tensor_scale)


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

    For int and uint rows, and for narrow floats (which saturate) and fixed codebooks, which have no zero
    point. ``scale`` and ``zero_point`` have the parameter shape, ``()``, ``(channels,)``, ``(groups,)`` or
    ``(channels, groups)``. ``qmin`` and ``qmax`` default to all the codes of the row, as in ONNX
    QuantizeLinear. Infinities saturate.

    Raises InputError for NaN, and for parameters of another shape or out of range.
    """
    row = find(qtype)
    layout = _layout(x, row, channel_axis, group_size, name)
    _refuse_nan(x, name)
    scales = _given(scale.detach().to(x.device, torch.float32), "scale", layout, name)
    if row.kind == "int":
        codes = code_range(row, False, qmin, qmax)
        zeros = None
        if zero_point is not None:
            zeros = _given(zero_point.to(x.device, torch.int32), "zero_point", layout, name)

        def encode(part: Tensor, block: RowBlock) -> Tensor:
            grid = Grid(scales[block], None if zeros is None else zeros[block])
            return encode_affine(part.float(), grid, codes)

    else:
        if zero_point is not None or qmin is not None or qmax is not None:
            raise InputError(
                f"zero_point, qmin and qmax are of int and uint rows; {row.name} has its own levels"
            )
        if row.float_format is None and row.levels is None:
            raise InputError(
                f"{row.name} has no levels known in advance; give int, float or fixed codebook rows"
            )
        zeros = None

        def encode(part: Tensor, block: RowBlock) -> Tensor:
            return encode_levels(part.float() / scales[block], row)

    return _assemble(_encode(x, row, layout, encode), row, layout, Parameters(scales, zeros), name)


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
    row = find(qtype)
    if row.kind != "codebook" or row.levels is not None:
        raise InputError(
            f"a codebook is given to a learned codebook row, such as 'codebook4'; got {row.name!r}"
        )
    layout = _layout(x, row, channel_axis, group_size, name)
    books = codebook.detach().to(x.device, torch.float32)
    if tuple(books.shape[:-1]) != layout.parameter_shape or books.dim() == 0:
        raise InputError(
            f"{called(name)}: codebook has shape {tuple(books.shape)}, "
            f"the layout needs {layout.parameter_shape} and an axis of entries"
        )
    check_books(books, row.qmax + 1, name)
    _refuse_nan(x, name)
    books = books.reshape(layout.channels, layout.groups, -1)
    shared = nearest(books) if layout.channels * layout.groups == 1 else None

    def encode(part: Tensor, block: RowBlock) -> Tensor:
        return (shared or nearest(books[block]))(part.float())

    return _assemble(_encode(x, row, layout, encode), row, layout, Parameters(codebook=books), name)


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
    row = find(qtype)
    require_floating(x, name)
    layout = layout_of(tuple(x.shape), None, None, called(name))
    if row.kind == "float":

        def encode(part: Tensor, _: RowBlock) -> Tensor:
            return encode_float(part, row, saturate=saturate, rounding=rounding)

    elif row.kind == "int":
        _refuse_nan(x, name)

        def encode(part: Tensor, _: RowBlock) -> Tensor:
            return truncate(part, row, saturate=saturate)

    else:
        raise InputError(f"{row.name} has no numbers without a scale; cast to a float, int or uint row")
    return _assemble(_encode(x, row, layout, encode), row, layout, Parameters(), name)


Encode = Callable[[Tensor, RowBlock], Tensor]


def _layout(
    x: Tensor, row: QType, channel_axis: int | None, group_size: int | None, name: str | None
) -> Layout:
    """The layout asked for, with the group size that a block format has of its own."""
    require_floating(x, name)
    if row.group_size is not None:
        if group_size not in (None, row.group_size):
            raise InputError(f"{row.name} has groups of {row.group_size}, got group_size {group_size}")
        group_size = row.group_size
    return layout_of(tuple(x.shape), channel_axis, group_size, called(name))


def _encode(x: Tensor, row: QType, layout: Layout, encode: Encode) -> Tensor:
    """Codes as rows, with an encoder that knows the parameters of every row."""
    rows = layout.split(x.detach())
    codes = layout.empty_rows(row.code_dtype, x.device)
    for block in layout.blocks(block_size(x)):
        codes[block] = encode(rows[block], block[:2])
    return codes


def _assemble(
    codes: Tensor,
    row: QType,
    layout: Layout,
    fitted: Parameters,
    name: str | None,
    tensor_scale: Tensor | None = None,
) -> QTensor:
    shape = layout.parameter_shape

    def shaped(parameter: Tensor | None) -> Tensor | None:
        return None if parameter is None else parameter.reshape(shape)

    book = fitted.codebook
    return QTensor(
        codes=layout.join(codes),
        qtype=row,
        scale=shaped(fitted.scale),
        zero_point=shaped(fitted.zero_point),
        free_zero_point=shaped(fitted.free_zero_point),
        codebook=None if book is None else book.reshape(*shape, book.shape[-1]),
        tensor_scale=tensor_scale,
        channel_axis=layout.channel_axis,
        group_size=layout.group_size,
        name=name,
    )


def _coder(row: QType, search: str | Search, tensor_scale: Tensor | None) -> Coder:
    """The coder of a row that is not uniform."""
    if search not in ("minmax", "mse"):
        raise InputError(f"search {search!r} is of int and uint rows; {row.name!r} takes 'minmax' or 'mse'")
    match row.kind:
        case "binary":
            return signs
        case "ternary":
            return ternary(ternary_threshold if search == "minmax" else best_ternary_threshold)
        case "codebook" if row.levels is None:
            return learned_codebook(row.qmax + 1)
        case _:
            rule = spanning_rule if search == "minmax" else least_error_rule
            return known_levels(row, rule(row, tensor_scale))


def _tensor_scale(x: Tensor, row: QType, name: str | None) -> Tensor | None:
    """The second-level scale of a row that has one, float32 of shape ()."""
    if not row.tensor_scale:
        return None
    largest = torch.maximum(x.amax(), -x.amin()).float()
    if not bool(torch.isfinite(largest)):
        raise not_finite(x, name)
    return nonzero(largest / largest_step(row), -largest, largest)


def _refuse_nan(x: Tensor, name: str | None) -> None:
    if bool(x.detach().amax().isnan()):
        raise not_finite(x, name)


def _given(parameter: Tensor, word: str, layout: Layout, name: str | None) -> Tensor:
    """A given parameter as (channels, groups, 1)."""
    if tuple(parameter.shape) != layout.parameter_shape:
        raise InputError(
            f"{called(name)}: {word} has shape {tuple(parameter.shape)}, "
            f"the layout needs {layout.parameter_shape}"
        )
    return layout.spread(parameter)
