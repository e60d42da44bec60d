"""Which channels of a module's tensors are one and the same, and so can only be removed together.

A module is exported by ``torch.export``, and its graph is walked once. Every index of every axis of every parameter is
a lane; operations join lanes: a convolution its weight's inputs with what it reads, a sum its two sides, and so on.
Lanes that meet an operation not listed here, a zero padding of channels, or the module's inputs and outputs are fixed.
So what is not understood is left alone.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewbits.errors import InputError
from fewbits.named import describe

FIXED = 0
Place = tuple[str, int]  # a parameter or buffer by name, and one of its axes


@dataclass(frozen=True)
class Lanes:
    """The channels of a tensor: along which axis they lie, and each one's lane."""

    axis: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """A layer that multiplies.

    Attributes:
        weight: by name; every element of it is used once at each position.
        positions: of its output, for one sample.
    """

    weight: str
    positions: int


@dataclass
class Dependencies:
    """Lanes that were joined, by the parameters that they go through.

    Attributes:
        shapes: of parameters and buffers, by name.
        products: in the order in which they are computed.
        producers: axes of weights along which layers make channels.
    """

    shapes: dict[str, tuple[int, ...]]
    products: list[Product] = field(default_factory=list)
    producers: dict[Place, None] = field(default_factory=dict)
    _places: dict[Place, range] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=lambda: [FIXED])

    def lanes(self, name: str, axis: int) -> tuple[int, ...]:
        """The lanes along an axis of a parameter or buffer."""
        if (name, axis) not in self._places:
            start, count = len(self._parents), self.shapes[name][axis]
            self._places[name, axis] = range(start, start + count)
            self._parents.extend(range(start, start + count))
        return tuple(self._places[name, axis])

    def root(self, lane: int) -> int:
        """The lane that stands for all that were joined with this one."""
        parents = self._parents
        while parents[lane] != lane:
            parents[lane] = lane = parents[parents[lane]]
        return lane

    def join(self, a: Sequence[int], b: Sequence[int]) -> None:
        """Make pairs of lanes one; the fixed one stands for all that are joined with it."""
        for one, other in zip(a, b, strict=True):
            one, other = sorted((self.root(one), self.root(other)))
            self._parents[other] = one

    def fix(self, lanes: Sequence[int]) -> None:
        """These stay."""
        self.join(lanes, [FIXED] * len(lanes))

    def roots(self) -> dict[Place, list[int]]:
        """For every axis that was looked at, what stands for each of its lanes."""
        return {place: [self.root(lane) for lane in lanes] for place, lanes in self._places.items()}


def walk(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Dependencies:
    """The dependencies of a module's channels, on inputs like these.

    Raises:
        InputError: the module has parametrizations, or cannot be exported.
    """
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            raise InputError(
                f"layer {name!r} is parametrized; bake() its masks before its channels are removed"
            )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it gives up, it prints the graph
            program = torch.export.export(module, arguments, named, strict=False)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be exported, which finding its channels needs: {describe(error)}"
        ) from error
    return _Walk(program).found


class _Walk:
    """Goes through a program's graph once."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        shapes = {name: tuple(value.shape) for name, value in program.state_dict.items()}
        self.found = Dependencies(shapes)
        self._lanes: dict[torch.fx.Node, Lanes] = {}
        for node in program.graph.nodes:
            if node.op == "call_function":
                self._visit(node)
            elif node.op == "output":
                self._fix_all(node)

    def _visit(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        if value is None or isinstance(value, (int, float)):  # a check, or a size
            return
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        # Operators that change a tensor in place are called like the others, with a line at the end.
        rule = _RULES.get(name.rstrip("_") if not name.startswith("_") else name)
        lanes = rule(self, node) if rule is not None and isinstance(value, Tensor) else None
        if lanes is None:
            self._fix_all(node)
        else:
            self._lanes[node] = lanes

    def _fix_all(self, node: torch.fx.Node) -> None:
        """All that a node reads stays as it is."""
        for source in node.all_input_nodes:
            if source in self._lanes:
                self.found.fix(self._lanes[source].ids)
            name = self._names.get(source.name)
            if name in self.found.shapes:
                for axis in range(len(self.found.shapes[name])):
                    self.found.fix(self.found.lanes(name, axis))

    def parameter(self, node: Any) -> str | None:
        """The name of the parameter or buffer that a node is."""
        name = self._names.get(node.name) if isinstance(node, torch.fx.Node) else None
        return name if name in self.found.shapes else None

    def of(self, node: Any) -> Lanes | None:
        """The lanes of what a node gives."""
        return self._lanes.get(node) if isinstance(node, torch.fx.Node) else None

    def take(self, node: Any, lanes: Lanes) -> None:
        """What a node gives has to have these lanes."""
        mine = self.of(node)
        if mine is not None and mine.axis == lanes.axis and len(mine.ids) == len(lanes.ids):
            self.found.join(mine.ids, lanes.ids)
        else:
            self.found.fix(lanes.ids)
            if mine is not None:
                self.found.fix(mine.ids)


Rule = Callable[[_Walk, torch.fx.Node], Lanes | None]
"""Joins lanes, and gives those of the node's result; None where they are not known, and all that it reads is fixed."""


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _argument(node: torch.fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _same(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    """What works on every channel by itself, and leaves axes where they are."""
    lanes = walk.of(node.args[0])
    return lanes if lanes is not None and _shape(node)[lanes.axis] == len(lanes.ids) else None


def _convolution(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    weight, bias = walk.parameter(node.args[1]), walk.parameter(_argument(node, 2, "bias"))
    groups = _argument(node, 6, "groups", 1)
    if weight is None or len(_shape(node)) != len(walk.found.shapes[weight]):
        return None
    made = walk.found.lanes(weight, 0)
    source = walk.of(node.args[0])
    if groups == 1:
        walk.take(node.args[0], Lanes(1, walk.found.lanes(weight, 1)))
    elif source is not None and source.axis == 1 and walk.found.shapes[weight][1] == 1:
        # Depthwise: a channel of the input makes one or several of the output.
        walk.found.join(made, [lane for lane in source.ids for _ in range(len(made) // groups)])
    else:
        return None
    walk.found.products.append(Product(weight, math.prod(_shape(node)[2:])))
    walk.found.producers[weight, 0] = None
    return _with_bias(walk, bias, Lanes(1, made))


def _transposed_convolution(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    weight, bias = walk.parameter(node.args[1]), walk.parameter(_argument(node, 2, "bias"))
    if weight is None or _argument(node, 6, "groups", 1) != 1:
        return None
    walk.take(node.args[0], Lanes(1, walk.found.lanes(weight, 0)))
    walk.found.products.append(Product(weight, math.prod(_shape(node.args[0])[2:])))
    walk.found.producers[weight, 1] = None
    return _with_bias(walk, bias, Lanes(1, walk.found.lanes(weight, 1)))


def _linear(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    weight, bias = walk.parameter(node.args[1]), walk.parameter(_argument(node, 2, "bias"))
    if weight is None:
        return None
    last = len(_shape(node)) - 1
    walk.take(node.args[0], Lanes(last, walk.found.lanes(weight, 1)))
    walk.found.products.append(Product(weight, math.prod(_shape(node)[1:-1])))
    walk.found.producers[weight, 0] = None
    return _with_bias(walk, bias, Lanes(last, walk.found.lanes(weight, 0)))


def _with_bias(walk: _Walk, bias: str | None, lanes: Lanes) -> Lanes:
    if bias is not None:
        walk.found.join(lanes.ids, walk.found.lanes(bias, 0))
    return lanes


def _norm(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    """Batch norm, and PReLU: numbers for each channel."""
    lanes = walk.of(node.args[0])
    if lanes is None or lanes.axis != 1:
        return None
    for one in node.args[1:5]:
        name = walk.parameter(one)
        if name is not None and walk.found.shapes[name] == (len(lanes.ids),):
            walk.found.join(lanes.ids, walk.found.lanes(name, 0))
    return lanes


def _elementwise(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    """Two tensors, one of which may be broadcast, a parameter, or a number."""
    both = [one for one in node.args[:2] if isinstance(one, torch.fx.Node)]
    rank = len(_shape(node))
    known = [(one, walk.of(one)) for one in both]
    moved = [
        Lanes(lanes.axis + rank - len(_shape(one)), lanes.ids) for one, lanes in known if lanes is not None
    ]
    wide = next((lanes for lanes in moved if len(lanes.ids) > 1), moved[0] if moved else None)
    if wide is None or len(wide.ids) != _shape(node)[wide.axis]:
        return None
    for one, lanes in known:
        shape = _shape(one)
        axis = wide.axis - rank + len(shape)
        if axis < 0 or shape[axis] == 1:
            if lanes is not None:  # one channel for all of them, or channels along another axis
                walk.found.fix(lanes.ids)
            continue
        name = walk.parameter(one)
        if lanes is not None and lanes.axis == axis:
            walk.found.join(lanes.ids, wide.ids)
        elif name is not None:
            walk.found.join(walk.found.lanes(name, axis), wide.ids)
        else:
            return None
    return wide


def _concatenated(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    parts = node.args[0]
    dim = int(_argument(node, 1, "dim", 0)) % len(_shape(node))
    assert isinstance(parts, (list, tuple))
    known = [walk.of(part) for part in parts]
    axis = next((lanes.axis for lanes in known if lanes is not None), None)
    if axis is None or any(lanes is not None and lanes.axis != axis for lanes in known):
        return None
    ids = [
        lanes.ids if lanes is not None else (FIXED,) * _shape(part)[axis]
        for part, lanes in zip(parts, known, strict=True)
    ]
    if dim == axis:
        return Lanes(axis, tuple(lane for part in ids for lane in part))
    for other in ids[1:]:
        walk.found.join(ids[0], other)
    return Lanes(axis, ids[0])


def _padded(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    lanes, amounts = walk.of(node.args[0]), node.args[1]
    if lanes is None:
        return None
    assert isinstance(amounts, (list, tuple))
    place = 2 * (len(_shape(node)) - 1 - lanes.axis)
    front, back = amounts[place : place + 2] if len(amounts) > place else (0, 0)
    if not isinstance(front, int) or not isinstance(back, int) or min(front, back) < 0:
        return None
    return Lanes(lanes.axis, (FIXED,) * front + lanes.ids + (FIXED,) * back)


def _reshaped(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    """Channels that stay an axis, or are flattened together with what is behind them."""
    lanes = walk.of(node.args[0])
    if lanes is None:
        return None
    before, after, axis = _shape(node.args[0]), _shape(node), lanes.axis
    if before[:axis] != after[:axis] or len(after) <= axis:
        return None
    if after[axis] == before[axis]:
        return lanes
    behind = math.prod(before[axis + 1 :])
    if len(after) == axis + 1 and after[axis] == before[axis] * behind:
        return Lanes(axis, tuple(lane for lane in lanes.ids for _ in range(behind)))
    return None


def _permuted(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    lanes = walk.of(node.args[0])
    if lanes is None:
        return None
    rank = len(_shape(node))
    if "transpose" in str(node.target):
        order = list(range(rank))
        a, b = (int(one) % rank for one in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    else:
        order = [int(one) % rank for one in node.args[1]]  # type: ignore[union-attr, arg-type]
    return Lanes(order.index(lanes.axis), lanes.ids)


def _reduced(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    """Means and the like over other axes; axes that vanish."""
    lanes = walk.of(node.args[0])
    if lanes is None:
        return None
    rank = len(_shape(node.args[0]))
    given = _argument(node, 1, "dim")
    if given is None:
        return None
    gone = {int(one) % rank for one in (given if isinstance(given, (list, tuple)) else [given])}
    if lanes.axis in gone:
        return None
    left = len(_shape(node)) != rank
    return Lanes(lanes.axis - (sum(one < lanes.axis for one in gone) if left else 0), lanes.ids)


def _unsqueezed(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    lanes = walk.of(node.args[0])
    if lanes is None:
        return None
    place = int(node.args[1]) % len(_shape(node))  # type: ignore[arg-type]
    return Lanes(lanes.axis + (place <= lanes.axis), lanes.ids)


def _sliced(walk: _Walk, node: torch.fx.Node) -> Lanes | None:
    """Parts along other axes; a part of the channels is fixed, its numbers stand in the code."""
    lanes = walk.of(node.args[0])
    dim = int(_argument(node, 1, "dim", 0))
    if lanes is None or (
        dim % len(_shape(node)) == lanes.axis and _shape(node)[lanes.axis] != len(lanes.ids)
    ):
        return None
    return lanes


_ALONE = (
    "relu hardtanh relu6 silu gelu sigmoid tanh hardswish hardsigmoid leaky_relu elu softplus mish dropout clone "
    "contiguous to _to_copy detach alias neg abs exp square sqrt clamp clamp_min pow max_pool2d avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest2d "
    "upsample_bilinear2d feature_dropout lift_fresh_copy"
)
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ALONE.split(), _same),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("batch_norm", "prelu"), _norm),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _elementwise),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "squeeze"), _reduced),
    **dict.fromkeys(("pad", "constant_pad_nd"), _padded),
    **dict.fromkeys(("flatten", "view", "reshape", "_unsafe_view"), _reshaped),
    **dict.fromkeys(("permute", "transpose"), _permuted),
    **dict.fromkeys(("cat", "concat"), _concatenated),
    "linear": _linear,
    "unsqueeze": _unsqueezed,
    "slice": _sliced,
}
