"""Weights of functional calls: what a module's own forward does with its own parameters, found by tracing it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional

from fewbits.modules.kinds import GATHERED, NO_CONVOLUTION, TURNED, Part
from fewbits.planning.model_info import LayerKind

LARGEST_REASON = 120  # characters


@dataclass(frozen=True)
class Call:
    """A functional call that multiplies with a parameter.

    Attributes:
        op: its name.
        kind: its family.
        part: the parameter's axes.
        also: other names, by which the rules of a recipe may call it.
        not_dynamic, not_static: as of a layer (:class:`fewbits.modules.kinds.Kind`).
    """

    op: str
    kind: LayerKind
    part: Part
    also: tuple[str, ...] = ()
    not_dynamic: str | None = None
    not_static: str | None = None


_ROWS, _COLUMNS = Part("*", 0, 1), Part("*", 1, 0)
_LINEAR = Call("linear", "linear", _ROWS, ("Linear", "MatMul", "Gemm"))
_MATMUL = Call("matmul", "linear", _COLUMNS, ("Linear", "MatMul", "Gemm"), TURNED, TURNED)


def _convolution(name: str) -> Call:
    return Call(name, "conv", _ROWS, ("Conv",), NO_CONVOLUTION)


def _transposed(name: str) -> Call:
    return Call(name, "conv", _COLUMNS, ("ConvTranspose",), NO_CONVOLUTION)


def _gathered(name: str, layer: str) -> Call:
    return Call(name, "embedding", _ROWS, (layer, "Gather"), GATHERED, GATHERED)


FUNCTIONS: dict[Callable, tuple[int, Call]] = {
    functional.linear: (1, _LINEAR),
    functional.embedding: (1, _gathered("embedding", "Embedding")),
    functional.embedding_bag: (1, _gathered("embedding_bag", "EmbeddingBag")),
    torch.matmul: (1, _MATMUL),
    torch.mm: (1, _MATMUL),
    operator.matmul: (1, _MATMUL),
    torch.addmm: (2, _MATMUL),
    **{one: (1, _convolution(one.__name__)) for one in (torch.conv1d, torch.conv2d, torch.conv3d)},
    **{
        one: (1, _transposed(one.__name__))
        for one in (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
    },
}
"""By torch's function: which of its arguments the parameter is, and what it is then."""
_METHODS = {"matmul": _MATMUL, "mm": _MATMUL}
_TRANSPOSES = ("t", "transpose", "T", "mT")


class _OwnForward(fx.Tracer):
    """Traces one forward; the modules that it calls stay calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def own_parameters(module: nn.Module) -> Iterator[str]:
    """Names of parameters of two axes or more that a module holds itself, or in lists and dicts of its own."""
    for name, value in module._parameters.items():
        if value is not None and value.dim() > 1 and value.is_floating_point():
            yield name
    for name, child in module._modules.items():
        if isinstance(child, (nn.ParameterList, nn.ParameterDict)):
            yield from (f"{name}.{inner}" for inner in own_parameters(child))


def calls(module: nn.Module, names: list[str]) -> tuple[dict[str, Call], str | None]:
    """What the module's forward multiplies with parameters of those names; and why that cannot be told, if so."""
    try:
        graph = _OwnForward().trace(module)
    except Exception as error:  # whatever the forward does with what stands for its inputs
        lines = str(error).splitlines() or [type(error).__name__]
        return {}, f"its forward cannot be traced: {lines[0][:LARGEST_REASON]}"
    found: dict[str, Call] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in names:
            for user, index, transposed in _uses(node, False):
                call = _call(user, index)
                if call is not None:
                    found.setdefault(node.target, _turned(call) if transposed else call)
    return found, None


def _uses(node: fx.Node, transposed: bool) -> Iterator[tuple[fx.Node, int, bool]]:
    """Who reads a value, and as which argument; through transposition."""
    for user in node.users:
        for index, value in enumerate((*user.args, *user.kwargs.values())):
            if value is node:
                turns = user.op == "call_method" and user.target in _TRANSPOSES
                turns |= user.target is getattr and user.args[1] in _TRANSPOSES
                if turns:
                    yield from _uses(user, not transposed)
                else:
                    yield user, index, transposed


def _call(user: fx.Node, index: int) -> Call | None:
    if user.op == "call_method":
        return _METHODS.get(str(user.target)) if index == 1 else None
    if user.op != "call_function":
        return None
    place, call = FUNCTIONS.get(user.target, (None, None))  # type: ignore[arg-type]
    named = list(user.kwargs)
    by_name = index >= len(user.args) and named[index - len(user.args)] in ("weight", "other", "mat2")
    return call if index == place or by_name else None


def _turned(call: Call) -> Call:
    part = _ROWS if call.part == _COLUMNS else _COLUMNS
    return replace(call, part=part, not_dynamic=TURNED, not_static=TURNED)
