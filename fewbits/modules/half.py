"""A whole module in 16 bits: parameters and buffers, and what is computed with them."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fewbits.errors import InputError
from fewbits.modules.survey import check
from fewbits.planning.recipe import Recipe

DTYPES: dict[Literal["fp16", "bf16"], torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
MISSING = re.compile(
    r"not implemented for '(Half|BFloat16)'|dtype:? (Half|BFloat16)|low precision dtypes not supported"
    r"|\((CPU)?(Half|BFloat16)|same dtype|scalar type",
    re.I,
)
"""What torch says where a function has no kernel for 16 bits, or got float32 from one that had none."""
HALF = "fewbits_half"  # a module's attribute: the 16-bit type of all of it
NOTES = "fewbits_notes"  # a module's attribute: what was done otherwise than asked


def whole_dtype(recipe: Recipe) -> torch.dtype | None:
    """The 16-bit type that a recipe gives everything; None where it makes differences."""
    if len(recipe.rules) != 1 or recipe.rules[0].match != "*" or recipe.rules[0].activations is not None:
        return None
    weights = recipe.rules[0].weights
    found = {name: dtype for name, dtype in DTYPES.items() if weights is not None and name == weights.qtype}
    return next(iter(found.values()), None)


def halved(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in 16 bits that takes and gives what the original does.

    Raises:
        InputError: a module that cannot be quantized, or a value that the type cannot hold.
    """
    check(module)
    floats = _floats(module)
    if not floats:
        raise InputError("the module has nothing to store in fewer bits: no parameter or buffer in float")
    memo: dict[int, Any] = {id(value): _narrow(name, value, dtype) for name, value in floats}
    before = floats[0][1].dtype
    return cast_ends(copy.deepcopy(module, memo), dtype, before)


def dtype_of(module: nn.Module) -> Literal["fp16", "bf16"] | None:
    """The 16-bit type that :func:`halved` gave a module."""
    return getattr(module, HALF, None)


def cast_ends(module: nn.Module, dtype: torch.dtype, before: torch.dtype = torch.float32) -> nn.Module:
    """Let a module in 16 bits take and give another type of floats."""
    setattr(module, HALF, next(name for name, one in DTYPES.items() if one == dtype))
    module.register_forward_pre_hook(_Cast(before, dtype), with_kwargs=True)
    module.register_forward_hook(_CastBack(dtype, before))
    notes: list[str] = []
    setattr(module, NOTES, notes)
    fallback = _Fallback(dtype, notes)
    for one in module.modules():  # a part may be called by itself, as generate() calls an encoder
        one.register_forward_pre_hook(fallback.enter)
        one.register_forward_hook(fallback.leave, always_call=True)
    return module


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers in float, but for what a file does not hold: rotary frequencies need all their bits."""
    passing = {
        id(owner._buffers[name]) for owner in module.modules() for name in owner._non_persistent_buffers_set
    }
    buffers = ((name, value) for name, value in module.named_buffers() if id(value) not in passing)
    held = (*module.named_parameters(), *buffers)
    return [(name, value) for name, value in held if value.is_floating_point()]


def _narrow(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = value.detach().to(dtype)
    if bool((narrow.isinf() & value.isfinite()).any()):
        largest = float(value[value.isfinite()].abs().max())
        raise InputError(
            f"{name!r} holds {largest:.4g}, more than {torch.finfo(dtype).max:.0f}, the largest of "
            f"{str(dtype).removeprefix('torch.')}; use bf16"
        )
    return (
        nn.Parameter(narrow, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else narrow
    )


class _Cast:
    """Inputs of a float type become another."""

    def __init__(self, before: torch.dtype, after: torch.dtype) -> None:
        self.before, self.after = before, after

    def _one(self, value: Any) -> Any:
        return value.to(self.after) if isinstance(value, Tensor) and value.dtype == self.before else value

    def __call__(self, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        return tree_map(self._one, (args, kwargs))


class _CastBack(_Cast):
    """Outputs of a float type become another."""

    def __call__(self, module: nn.Module | None, args: Any, output: Any) -> Any:
        return tree_map(self._one, output)


class _Fallback:
    """Functions without a kernel for the 16-bit type are computed in float32, and noted."""

    def __init__(self, dtype: torch.dtype, notes: list[str]) -> None:
        self.dtype, self.notes = dtype, notes
        self.local = threading.local()

    def __getstate__(self) -> tuple[torch.dtype, list[str]]:
        return self.dtype, self.notes

    def __setstate__(self, state: tuple[torch.dtype, list[str]]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # whose code has kernels of its own
            return
        depth = getattr(self.local, "depth", 0)
        if not depth:
            self.local.mode = _WideWhereMissing(self.dtype, self._note)
            self.local.mode.__enter__()
        self.local.depth = depth + 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.local.depth -= 1
        if not self.local.depth:
            self.local.mode.__exit__(None, None, None)

    def _note(self, function: str) -> None:
        name = str(self.dtype).removeprefix("torch.")
        note = f"{function} has no {name} kernel on this device: computed in float32"
        if note not in self.notes:
            self.notes.append(note)


class _WideWhereMissing(TorchFunctionMode):
    """Computes in float32 what a 16-bit type has no kernel for."""

    def __init__(self, dtype: torch.dtype, note: Callable[[str], None]) -> None:
        super().__init__()
        self.dtype, self.note = dtype, note

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if MISSING.search(str(error)) is None:
                raise
        name = getattr(func, "__name__", str(func))
        self.note(name)
        wide, narrow = _Cast(self.dtype, torch.float32), _CastBack(torch.float32, self.dtype)
        wide_args, wide_kwargs = wide(None, args, kwargs)
        result = narrow(None, None, func(*wide_args, **wide_kwargs))
        in_place = name.endswith("_") and not name.endswith("__")
        return args[0].copy_(result) if in_place else result
