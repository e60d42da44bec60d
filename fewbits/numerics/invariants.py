"""The invariants of a QTensor, as its docstring states them; each broken one is an InputError."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.checks import require_codes, require_shape
from fewbits.numerics.codebook import check_books
from fewbits.numerics.floats import stored_scale
from fewbits.numerics.qtype import QType

if TYPE_CHECKING:
    from fewbits.numerics.qtensor import QTensor


def check(q: QTensor) -> None:
    """Raise InputError for the first invariant that does not hold."""
    _check_presence(q)
    _check_dtypes(q)
    shape = q.layout.parameter_shape
    for word in ("scale", "zero_point", "free_zero_point"):
        if (parameter := getattr(q, word)) is not None:
            require_shape(parameter, word, shape)
    if q.tensor_scale is not None:
        require_shape(q.tensor_scale, "tensor_scale", ())
        _check_scale(q.tensor_scale, "tensor_scale", lowest_is_zero=False)
    if q.scale is not None:
        _check_scale(q.scale, "scale", lowest_is_zero=q.qtype.kind == "binary")
        _check_stored(q.scale, q.qtype, q.tensor_scale)
    if q.free_zero_point is not None and not bool((finite := q.free_zero_point.isfinite()).all()):
        raise InputError(f"every free zero point is finite, got {float(q.free_zero_point[~finite][0])}")
    if q.zero_point is not None:
        require_codes(q.zero_point, q.qtype, q.qtype.qmax, "zero point")
    if q.codebook is not None:
        check_books(q.codebook, shape, q.qtype.qmax + 1)
    _check_codes(q)


def _check_presence(q: QTensor) -> None:
    """Which parts a row has, and which it has not."""
    row = q.qtype
    learned = row.kind == "codebook" and row.levels is None
    plain_cast = row.kind in ("int", "float") and q.channel_axis is None and q.group_size is None
    if learned and q.codebook is None:
        raise InputError(f"{row.name} needs a codebook")
    if not learned and q.codebook is not None:
        raise InputError(f"{row.name} has no codebook of its own to store")
    if learned and q.scale is not None:
        raise InputError(f"the entries of a {row.name} codebook are values; they have no scale")
    if q.scale is None and not learned and not plain_cast:
        raise InputError(f"{row.name} needs a scale")
    zero_points = [z for z in (q.zero_point, q.free_zero_point) if z is not None]
    if zero_points and (row.kind != "int" or q.scale is None):
        raise InputError(f"zero points are of scaled int and uint rows; {row.name} has none here")
    if len(zero_points) > 1:
        raise InputError("it has a zero_point or a free_zero_point, not both")
    if q.scale is not None and row.tensor_scale != (q.tensor_scale is not None):
        raise InputError(f"{row.name} {'needs a' if row.tensor_scale else 'has no'} tensor_scale")
    if q.scale is not None and row.group_size not in (None, q.group_size):
        raise InputError(f"{row.name} has groups of {row.group_size}, got group_size {q.group_size}")


def _check_dtypes(q: QTensor) -> None:
    wanted = {
        "codes": q.qtype.code_dtype,
        "scale": torch.float32,
        "zero_point": torch.int32,
        "free_zero_point": torch.float32,
        "codebook": torch.float32,
        "tensor_scale": torch.float32,
    }
    for word, dtype in wanted.items():
        part = getattr(q, word)
        if part is not None and part.dtype != dtype:
            raise InputError(f"{q.qtype.name} needs {word} of {dtype}, got {part.dtype}")
        if part is not None and part.device != q.codes.device:
            raise InputError(f"{word} is on {part.device}, the codes are on {q.codes.device}")


def _check_scale(scale: Tensor, word: str, *, lowest_is_zero: bool) -> None:
    # The closed form of a binary row of zeros is the scale 0.
    wrong = ~torch.isfinite(scale) | (scale < 0) | ((scale == 0) & (not lowest_is_zero))
    if bool(wrong.any()):
        raise InputError(f"every {word} is finite and positive, got {float(scale[wrong][0])}")


def _check_stored(scale: Tensor, row: QType, tensor_scale: Tensor | None) -> None:
    wrong = stored_scale(scale, row, tensor_scale) != scale
    if bool(wrong.any()):
        raise InputError(
            f"scale {float(scale[wrong][0])} is not a number of {row.scale_type}, "
            f"in which {row.name} stores scales; round it first"
        )


def _check_codes(q: QTensor) -> None:
    row = q.qtype
    highest = row.qmax if q.codebook is None else q.codebook.shape[-1] - 1
    if highest - row.qmin + 1 < 1 << torch.iinfo(row.code_dtype).bits:
        require_codes(q.codes, row, highest, "code")
    if row.kind == "binary" and bool((q.codes == 0).any()):
        raise InputError("binary codes are -1 and +1, got 0")
