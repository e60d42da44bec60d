"""What is refused at the door, in one line that names the tensor and the value."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.errors import InputError


def called(name: str | None) -> str:
    """How an error calls a tensor."""
    return "the tensor" if name is None else f"tensor {name!r}"


def require_floating(x: Tensor, name: str | None) -> None:
    """Raise InputError unless ``x`` is a tensor of floating-point numbers."""
    if not isinstance(x, Tensor):
        raise InputError(f"{called(name)} is a {type(x).__name__}; give a torch.Tensor")
    if not x.is_floating_point():
        raise InputError(f"{called(name)} has dtype {x.dtype}; only floating-point tensors are quantized")


def not_finite(x: Tensor, name: str | None) -> InputError:
    """The error for a tensor known to hold a NaN or an infinity in float32: where, and which."""
    flat = x.detach().reshape(-1)
    nan = flat.isnan()
    wrong = nan if bool(nan.any()) else ~torch.isfinite(flat.float())
    at = int(wrong.int().argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), x.shape)) if x.dim() else ()
    return InputError(
        f"{called(name)} holds {flat[at].item()} at index {index}; "
        f"only finite float32 values can be quantized, remove it or mask it"
    )
