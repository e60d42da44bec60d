"""ONNX operators in torch, with gradients: what :mod:`fewbits.models.onnx.network` runs a graph with.

A table from operator to a function of the node's attributes and inputs (an input left out is None). Semantics are
those of opset 13 and later, by https://onnx.ai/onnx/operators; what is not in the table is not run. Tests hold every
entry against the node cases that ship with onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewbits.models.network import UnsupportedError

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]

OPERATORS: dict[str, Operator] = {}

READS_NUMBERS = frozenset(
    (
        *(
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Split",
            "Slice",
            "Pad",
            "Tile",
            "Expand",
            "Range",
            "ConstantOfShape",
        ),
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"),
    )
)
"""Operators whose further inputs are shapes, axes and the like: these may stay on the CPU, whatever runs on."""


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def add(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _elementwise(**functions: Callable[..., Tensor]) -> None:
    for name, function in functions.items():
        OPERATORS[name] = lambda a, *inputs, function=function: function(*inputs)


_elementwise(
    Abs=torch.abs,
    Add=torch.add,
    And=torch.logical_and,
    Ceil=torch.ceil,
    Cos=torch.cos,
    Equal=torch.eq,
    Erf=torch.erf,
    Exp=torch.exp,
    Floor=torch.floor,
    Greater=torch.gt,
    GreaterOrEqual=torch.ge,
    HardSwish=functional.hardswish,
    Identity=lambda x: x,
    IsNaN=torch.isnan,
    Less=torch.lt,
    LessOrEqual=torch.le,
    Log=torch.log,
    MatMul=torch.matmul,
    Mul=torch.mul,
    Neg=torch.neg,
    Not=torch.logical_not,
    Or=torch.logical_or,
    PRelu=lambda x, slope: torch.where(x < 0, x * slope, x),
    Pow=lambda x, y: torch.pow(x, y.to(x.dtype)),
    Reciprocal=torch.reciprocal,
    Relu=torch.relu,
    Round=torch.round,
    Sigmoid=torch.sigmoid,
    Sign=torch.sign,
    Sin=torch.sin,
    Softplus=functional.softplus,
    Sqrt=torch.sqrt,
    Sub=torch.sub,
    Tanh=torch.tanh,
    Where=torch.where,
    Max=lambda *values: _reduced(torch.maximum, values),
    Min=lambda *values: _reduced(torch.minimum, values),
    Sum=lambda *values: _reduced(torch.add, values),
    Range=lambda start, limit, delta: torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype
    ),
    Tile=lambda x, repeats: x.repeat(repeats.tolist()),
    Expand=lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
)


def _reduced(function: Callable[[Tensor, Tensor], Tensor], values: tuple[Tensor, ...]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = function(result, value)
    return result


@_operator("Div")
def _div(a: Attributes, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


@_operator("Cast")
def _cast(a: Attributes, x: Tensor) -> Tensor:
    import onnx_ir as ir

    names = {"FLOAT": "float32", "DOUBLE": "float64", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
    name = ir.DataType(a["to"]).name
    if name not in names:
        raise UnsupportedError(f"Cast to {name}")
    return x.to(getattr(torch, names[name]))


@_operator("Clip")
def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


@_operator("LeakyRelu")
def _leaky_relu(a: Attributes, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, a.get("alpha", 0.01))


@_operator("Elu")
def _elu(a: Attributes, x: Tensor) -> Tensor:
    return functional.elu(x, a.get("alpha", 1.0))


@_operator("HardSigmoid")
def _hard_sigmoid(a: Attributes, x: Tensor) -> Tensor:
    return (x * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1)


@_operator("Gelu")
def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=a.get("approximate", "none"))


@_operator("Softmax")
def _softmax(a: Attributes, x: Tensor) -> Tensor:
    return torch.softmax(x, a.get("axis", -1))


@_operator("LogSoftmax")
def _log_softmax(a: Attributes, x: Tensor) -> Tensor:
    return torch.log_softmax(x, a.get("axis", -1))


@_operator("Gemm")
def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA") else x
    product = x @ (weight.T if a.get("transB") else weight) * a.get("alpha", 1.0)
    return product if bias is None else product + bias * a.get("beta", 1.0)


@_operator("Conv")
def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.dim() - 2
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    x, pads = _padded(a, x, axes)
    strides, dilations = a.get("strides", (1,) * axes), a.get("dilations", (1,) * axes)
    return convolve(x, weight, bias, tuple(strides), pads, tuple(dilations), a.get("group", 1))


@_operator("ConvTranspose")
def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.dim() - 2
    if "output_shape" in a or a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("ConvTranspose with output_shape or auto_pad")
    convolve = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[
        axes - 1
    ]
    strides, dilations = (tuple(a.get(name, (1,) * axes)) for name in ("strides", "dilations"))
    more, pads = tuple(a.get("output_padding", (0,) * axes)), tuple(a.get("pads", (0,) * 2 * axes))
    whole = convolve(x, weight, bias, strides, 0, more, a.get("group", 1), dilations)
    for axis, size in enumerate(whole.shape[2:]):  # pads are what is cut off
        whole = whole.narrow(axis + 2, pads[axis], size - pads[axis] - pads[axes + axis])
    return whole


@_operator("AveragePool")
def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = tuple(a["kernel_shape"])
    axes = len(kernel)
    if any(one != 1 for one in a.get("dilations", ())) or a.get("ceil_mode"):
        raise UnsupportedError("AveragePool with dilations, or that rounds up")
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1]
    strides = tuple(a.get("strides", (1,) * axes))
    padded, _ = _padded(a, x, axes, always=True)
    result = pool(padded, kernel, strides)
    if padded is x or a.get("count_include_pad"):
        return result
    inside, _ = _padded(a, torch.ones_like(x[:1, :1]), axes, always=True)
    return result / pool(inside, kernel, strides)


@_operator("MaxPool")
def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = tuple(a["kernel_shape"])
    axes = len(kernel)
    if a.get("ceil_mode") or a.get("storage_order"):
        raise UnsupportedError("MaxPool that rounds up")
    x, _ = _padded(a, x, axes, fill=-torch.inf, always=True)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
    return pool(x, kernel, tuple(a.get("strides", (1,) * axes)), 0, tuple(a.get("dilations", (1,) * axes)))


def _padded(
    a: Attributes, x: Tensor, axes: int, fill: float = 0.0, always: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """The input, padded where the layer cannot do that by itself, and the padding that is left to it."""
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError(f"auto_pad {a['auto_pad']}")
    pads = tuple(a.get("pads", (0,) * 2 * axes))
    if pads[:axes] == pads[axes:] and not always:
        return x, pads[:axes]
    if any(pads):
        both = [one for axis in reversed(range(axes)) for one in (pads[axis], pads[axes + axis])]
        x = functional.pad(x, both, value=fill)
    return x, (0,) * axes


@_operator("GlobalAveragePool")
def _global_average_pool(a: Attributes, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@_operator("GlobalMaxPool")
def _global_max_pool(a: Attributes, x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@_operator("LayerNormalization")
def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.dim()
    normal = functional.layer_norm(x, x.shape[axis:], eps=a.get("epsilon", 1e-5)) * scale
    return normal if bias is None else normal + bias


@_operator("BatchNormalization")
def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if a.get("training_mode"):
        raise UnsupportedError("BatchNormalization in training mode")
    return functional.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _reduction(name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> None:
    @_operator(name)
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = a.get("axes") if axes is None else axes.tolist()
        if not given and a.get("noop_with_empty_axes"):
            return x
        return function(x, tuple(given or range(x.dim())), bool(a.get("keepdims", 1)))


_reduction("ReduceMean", lambda x, axes, keep: x.mean(dim=axes, keepdim=keep))
_reduction("ReduceSum", lambda x, axes, keep: x.sum(dim=axes, keepdim=keep))
_reduction("ReduceMax", lambda x, axes, keep: x.amax(dim=axes, keepdim=keep))
_reduction("ReduceMin", lambda x, axes, keep: x.amin(dim=axes, keepdim=keep))
_reduction("ReduceL2", lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep).sqrt())
_reduction("ReduceSumSquare", lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep))


@_operator("Shape")
def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")], dtype=torch.int64)


@_operator("Reshape")
def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    if not a.get("allowzero"):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


@_operator("Transpose")
def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(tuple(a.get("perm", reversed(range(x.dim())))))


@_operator("Flatten")
def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    rows = x.shape[: axis + x.dim() if axis < 0 else axis].numel()
    return x.reshape(rows, -1)


@_operator("Squeeze")
def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


@_operator("Unsqueeze")
def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(one % rank for one in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


@_operator("Concat")
def _concat(a: Attributes, *values: Tensor) -> Tensor:
    return torch.cat(values, dim=a["axis"])


@_operator("Split")
def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), dim=axis)
    if "num_outputs" not in a:
        raise UnsupportedError("Split without sizes")
    return torch.split(x, -(-x.shape[axis] // a["num_outputs"]), dim=axis)


@_operator("Slice")
def _slice(
    a: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    along = list(range(starts.numel())) if axes is None else axes.tolist()
    by = [1] * starts.numel() if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), by, strict=True):
        size = x.shape[axis]
        past_the_front = step < 0 and end < -size  # in Python no number stands for that
        where = range(size)[slice(start, None if past_the_front else end, step)]
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(where.start, where.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(where), dtype=torch.int64, device=x.device))
    return x


@_operator("Pad")
def _pad(
    a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    along = list(range(x.dim())) if axes is None else [one % x.dim() for one in axes.tolist()]
    ends = dict(zip(along, zip(*pads.view(2, -1).tolist(), strict=True), strict=True))
    mode = a.get("mode", "constant")
    if mode != "constant" and any(sum(ends.get(axis, (0,))) for axis in range(x.dim() - 2)):
        raise UnsupportedError(f"Pad {mode} of more than the last two axes")
    modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}
    if mode not in modes:
        raise UnsupportedError(f"Pad {mode}")
    last = x.dim() if mode == "constant" else min(2, x.dim())
    both = [one for axis in reversed(range(x.dim() - last, x.dim())) for one in ends.get(axis, (0, 0))]
    if mode != "constant":
        return functional.pad(x, both, mode=modes[mode])
    return functional.pad(x, both, value=0.0 if value is None else value.item())


@_operator("Gather")
def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.dim()
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1).long()
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        found = functional.embedding(flat, x)
    else:
        found = x.index_select(axis, flat)
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@_operator("GatherElements")
def _gather_elements(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@_operator("GatherND")
def _gather_nd(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    batch = a.get("batch_dims", 0)
    shape = indices.shape[:batch]
    rows = shape.numel()
    places = indices.reshape(rows, -1, indices.shape[-1])
    first = torch.arange(rows, device=indices.device).reshape(-1, 1).expand(places.shape[:2])
    found = x.reshape(rows, *x.shape[batch:])[(first, *places.unbind(-1))]
    return found.reshape(*indices.shape[:-1], *found.shape[2:])


@_operator("ConstantOfShape")
def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value = torch.zeros(1) if "value" not in a else torch.from_numpy(a["value"].numpy().copy())
    return value.expand(tuple(shape.tolist())).clone() if shape.numel() else value.reshape(())
