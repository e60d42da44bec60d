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
    r"not implemented for 'Half'|dtype Half|low precision dtypes not supported|\(Half\{|same dtype|scalar type",
    re.I,
)
"""What torch says where a function has no kernel for float16, or got float32 from one that had none."""
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
    if dtype == torch.float16:
        notes: list[str] = []
        setattr(module, NOTES, notes)
        fallback = _Fallback(notes)
        for one in module.modules():  # a part may be called by itself, as generate() calls an encoder
            one.register_forward_pre_hook(fallback.enter)
            one.register_forward_hook(fallback.leave, always_call=True)
    return module


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    held = (*module.named_parameters(), *module.named_buffers())
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

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(self._one, (args, kwargs))


class _CastBack(_Cast):
    """Outputs of a float type become another."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(self._one, output)


class _Fallback:
    """Functions without a kernel for float16 on the CPU are computed in float32, and noted."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.local = threading.local()

    def __getstate__(self) -> list[str]:
        return self.notes

    def __setstate__(self, notes: list[str]) -> None:
        self.__init__(notes)  # type: ignore[misc]

    def enter(self, module: nn.Module, args: Any) -> None:
        depth = getattr(self.local, "depth", 0)
        if not depth and not torch.compiler.is_compiling():
            self.local.mode = _WideWhereMissing(self._note)
            self.local.mode.__enter__()
        self.local.depth = depth + 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.local.depth -= 1
        if not self.local.depth and getattr(self.local, "mode", None) is not None:
            mode, self.local.mode = self.local.mode, None
            mode.__exit__(None, None, None)

    def _note(self, function: str) -> None:
        note = f"{function} has no float16 kernel on this CPU: computed in float32"
        if note not in self.notes:
            self.notes.append(note)


class _WideWhereMissing(TorchFunctionMode):
    """Computes in float32 what float16 has no kernel for."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if MISSING.search(str(error)) is None:
                raise
        name = getattr(func, "__name__", str(func))
        self.note(name)
        wide_args, wide_kwargs = tree_map(_wide, (args, kwargs))
        result = tree_map(_half, func(*wide_args, **wide_kwargs))
        in_place = name.endswith("_") and not name.endswith("__")
        return args[0].copy_(result) if in_place else result


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _half(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
