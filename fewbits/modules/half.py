"""A whole module in 16 bits: parameters and buffers, and the long products computed with them.

Between its products a module's numbers stay in float32, and so do short products: rounding them costs most of the
accuracy that 16 bits lose, and keeping them costs next to no time. As in mixed precision training (Micikevicius et al.
2018, arXiv:1710.03740), what is stored is narrow and what is added up is wide.
"""

from __future__ import annotations

import copy
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fewbits.errors import InputError
from fewbits.modules.survey import check
from fewbits.planning.recipe import Recipe

DTYPES: dict[Literal["fp16", "bf16"], torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
MISSING = re.compile(
    r"not implemented for '(Half|BFloat16)'|dtype:? (Half|BFloat16)|low precision dtypes not supported"
    r"|\((CPU)?(Half|BFloat16)",
    re.I,
)
"""What torch says where a function has no kernel for 16 bits."""
BY_OUTPUT = {F.linear, F.conv1d, F.conv2d, F.conv3d}
"""Products whose weight has an output's terms behind its first axis."""
BY_INPUT = {
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.mm,
    Tensor.bmm,
}
"""Products whose weight, the second factor, has an output's terms along its last axis but one."""
WHOLE = {
    *(F.embedding, F.embedding_bag, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(F.multi_head_attention_forward, F.scaled_dot_product_attention),
    *(getattr(torch, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")),
    *(getattr(torch, name) for name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")),
}
"""Functions that are products of stored values within, or read them only: in 16 bits as they are."""
PRODUCTS = BY_OUTPUT | BY_INPUT | WHOLE
NORMS = {F.batch_norm, F.group_norm, F.instance_norm, F.layer_norm, F.rms_norm}
TERMS = 128
"""As many products added up are a long product. Shorter ones gain no time in 16 bits on a CPU, and rounding what goes
through MobileViT's costs as much accuracy as all of its weights do."""
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
    """Let a module stored in 16 bits take and give another type of floats."""
    setattr(module, HALF, next(name for name, one in DTYPES.items() if one == dtype))
    module.register_forward_pre_hook(_CastIn(before, dtype), with_kwargs=True)
    module.register_forward_hook(_CastOut(before, dtype))
    notes: list[str] = []
    setattr(module, NOTES, notes)
    scope = _Scope(dtype, notes)
    for one in module.modules():
        if one is module or any(
            one.children()
        ):  # which may be called by itself, as generate() calls an encoder
            one.register_forward_pre_hook(scope.enter)
            one.register_forward_hook(scope.leave, always_call=True)
        if isinstance(one, nn.RNNBase):  # which compares the types of its inputs with its weights'
            one.register_forward_pre_hook(_Cast(torch.float32, dtype), with_kwargs=True)
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
    """Floats of one type become another."""

    def __init__(self, before: torch.dtype, after: torch.dtype) -> None:
        self.before, self.after = before, after

    def one(self, value: Any) -> Any:
        """A value that is cast if it is a tensor of the type, alone or in a list or tuple."""
        if isinstance(value, Tensor):
            return value.to(self.after) if value.dtype == self.before else value
        return type(value)(map(self.one, value)) if type(value) in (list, tuple) else value

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """A function's arguments."""
        return [self.one(value) for value in args], {name: self.one(value) for name, value in kwargs.items()}

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(self.one, (args, kwargs))


class _CastIn(_Cast):
    """A module's own inputs become float32; all of it is in 16 bits where it is compiled, past the scope's mode."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        cast = self if torch.compiler.is_compiling() else _Cast(self.before, torch.float32)
        return tree_map(cast.one, (args, kwargs))


class _CastOut(_Cast):
    """A module's own outputs become what its inputs were."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(
            _Cast(torch.float32, self.before).one, tree_map(_Cast(self.after, self.before).one, output)
        )


class _Scope:
    """Puts what a module calls under :class:`_LongProducts`, once for all modules within it."""

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
            self.local.mode = _LongProducts(self.dtype, self._note)
            self.local.mode.__enter__()
        self.local.depth = depth + 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling():
            return output
        self.local.depth -= 1
        if self.local.depth:
            return output
        self.local.mode.__exit__(None, None, None)
        return tree_map(_channels_first, output)

    def _note(self, function: str) -> None:
        name = str(self.dtype).removeprefix("torch.")
        note = f"{function} has no {name} kernel on this device: computed in float32"
        if note not in self.notes:
            self.notes.append(note)


class _LongProducts(TorchFunctionMode):
    """Computes long products in 16 bits, all else in float32, and in float32 too what has no kernel for 16 bits."""

    def __init__(self, dtype: torch.dtype, note: Callable[[str], None]) -> None:
        super().__init__()
        self.dtype, self.note = dtype, note
        self.widen, self.narrow = _Cast(dtype, torch.float32), _Cast(torch.float32, dtype)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NORMS:
            args, kwargs = self.widen.call(args, kwargs)
        elif func in PRODUCTS and (stored := self._stored(args, kwargs)):
            if func is F.conv2d and args:
                args = [_channels_last(args[0]), *args[1:]]
            cast = self.narrow if _terms(func, stored) >= TERMS else self.widen
            return self.widen.one(self._tried(func, *cast.call(args, kwargs)))
        return self._tried(func, args, kwargs)

    def _stored(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        return [one for one in _floats_among(args, kwargs) if one.dtype == self.dtype]

    def _tried(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """As it is, which is in float32 where PyTorch brings types together; asking each call first would take time."""
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if "view size is not compatible" in str(error):  # as it is with channels first
                return func(args[0].contiguous(), *args[1:], **kwargs)
            mixed = 0 < len(self._stored(args, kwargs)) < len(_floats_among(args, kwargs))
            if not mixed and MISSING.search(str(error)) is None:
                raise
        if mixed and _in_place(func):
            cast = self.narrow if args[0].dtype == self.dtype else self.widen
            others, kwargs = cast.call(args[1:], kwargs)
            return func(args[0], *others, **kwargs)
        if not mixed:
            self.note(getattr(func, "__name__", str(func)))
        wide_args, wide_kwargs = self.widen.call(args, kwargs)
        result = func(*wide_args, **wide_kwargs)
        return args[0].copy_(result) if _in_place(func) else result


def _floats_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors in float that a function is given, alone or in lists."""
    found = []
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found += [one for one in argument if isinstance(one, Tensor)]
    return [one for one in found if one.is_floating_point()]


def _terms(func: Any, stored: Sequence[Tensor]) -> float:
    """How many products are added up for each number of a function's output, by its weight: the last matrix stored."""
    matrices = [one for one in stored if one.ndim > 1]
    if func in WHOLE or not matrices:
        return math.inf
    return matrices[-1][0].numel() if func in BY_OUTPUT else matrices[-1].shape[-2]


def _channels_last(image: Tensor) -> Tensor:
    """An image with its channels beside each other in memory: PyTorch's CPU convolutions are far slower otherwise."""
    return image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image


def _channels_first(value: Any) -> Any:
    """Undoes it, for callers who never asked for it."""
    last = (
        isinstance(value, Tensor)
        and value.ndim == 4
        and value.is_contiguous(memory_format=torch.channels_last)
    )
    return value.contiguous() if last else value


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
