"""What is refused at the door, in one line that names the tensor and the value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.qtype import QType


@contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Make every InputError raised within begin with the tensor's name, once."""
    called = "the tensor" if name is None else f"tensor {name!r}"
    try:
        yield
    except InputError as error:
        if str(error).startswith(called):
            raise
        raise InputError(f"{called}: {error}") from None


def require_floating(x: Tensor) -> None:
    """Raise InputError unless ``x`` is a tensor of floating-point numbers."""
    if not isinstance(x, Tensor):
        raise InputError(f"got a {type(x).__name__}; give a torch.Tensor")
    if not x.is_floating_point():
        raise InputError(f"dtype {x.dtype}; only floating-point tensors are quantized")


def require_shape(parameter: Tensor, word: str, shape: tuple[int, ...]) -> None:
    """Raise InputError unless a parameter has the shape that the layout gives it."""
    if tuple(parameter.shape) != shape:
        raise InputError(f"{word} has shape {tuple(parameter.shape)}, the layout needs {shape}")


def require_codes(codes: Tensor, row: QType, highest: int, what: str) -> None:
    """Raise InputError unless integers are from the lowest code of a row to ``highest``."""
    if codes.dtype == torch.uint16:  # which torch does not compare
        codes = codes.int()
    low, high = (int(end) for end in codes.aminmax())
    if low < row.qmin or high > highest:
        worst = low if low < row.qmin else high
        raise InputError(f"{what} {worst} is out of range; {row.name} goes from {row.qmin} to {highest} here")


def refuse_nan(x: Tensor) -> None:
    """Raise InputError for a NaN."""
    if bool(x.amax().isnan()):
        raise not_finite(x)


def not_finite(x: Tensor) -> InputError:
    """The error for a tensor known to hold a NaN or an infinity in float32: where, and which."""
    flat = x.reshape(-1)
    nan = flat.isnan()
    wrong = nan if bool(nan.any()) else ~torch.isfinite(flat.float())
    at = int(wrong.int().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), x.shape)) if x.dim() else ()
    return InputError(
        f"{flat[at].item()} at index {index}; only finite float32 values can be quantized, "
        f"remove it or mask it"
    )
