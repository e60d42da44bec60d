"""What planning knows of a model: its inputs, outputs and the layers whose tensors can be represented anew."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fewbits.planning.equalization import Link

Dim = int | str
"""A size, or the name of a dynamic axis."""


@dataclass(frozen=True)
class TensorInfo:
    """A model's input or output: name, numpy dtype name, and shape with dynamic axes by name."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class WeightInfo:
    """A constant tensor of a layer.

    Attributes:
        name: the tensor's name in the model.
        shape: its shape as stored.
        channel_axis: the axis that keeps a scale of its own per channel (output features; rows of a table).
        group_axis: the axis along which groups run (the one summed over by the layer).
    """

    name: str
    shape: tuple[int, ...]
    channel_axis: int
    group_axis: int

    @property
    def params(self) -> int:
        """Number of elements."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution moves over its input; one number per axis of space, and two (begin, then end) for padding.

    ``channels_last`` says how the input lies: [n, *space, channels] instead of [n, channels, *space].
    """

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    channels_last: bool = False


@dataclass(frozen=True, eq=False)
class Expected:
    """What a layer's input is like by the batch norm before it: normal, then held between two ends.

    ``mean`` and ``std``, float32 [channels], are those before; the ends may be infinite.
    """

    mean: np.ndarray = field(repr=False)
    std: np.ndarray = field(repr=False)
    low: float
    high: float


LayerKind = Literal["conv", "linear", "matmul", "product", "embedding", "recurrent"]


@dataclass(frozen=True)
class LayerInfo:
    """One operator whose weights (or, for ``matmul``, two activations) can be quantized.

    Attributes:
        name: unique and readable; the module's path where the exporter recorded one.
        node: the graph node's own name.
        op: the operator's type in the source format.
        kind: what family it is of; ``matmul`` is a product of two activations, ``product`` one with a
            constant that is no [inputs, outputs] matrix on the right: on the left, or of more than two axes.
        weights: its constant tensors (one, or several for a recurrent layer; none for ``matmul``).
        bias: name of its constant bias, if it has one (for a MatMul: the constant of the Add that follows).
        inputs: names of the activations it multiplies.
        output: name of its result.
        geometry: for a convolution whose padding is known in advance.
        also: what ONNX calls the operator, where the source format has words of its own: rules match all.
        dynamic: it has kernels for activations that are quantized as they come; None: where it is linear.
        expected: what a convolution's input is like, where a batch norm of the model says so.
        inside: the operator in whose body it is (If, Loop or Scan): nothing is observed there.
    """

    name: str
    node: str
    op: str
    kind: LayerKind
    weights: tuple[WeightInfo, ...]
    bias: str | None
    inputs: tuple[str, ...]
    output: str
    geometry: ConvGeometry | None = None
    also: tuple[str, ...] = ()
    dynamic: bool | None = None
    inside: str | None = None
    expected: Expected | None = None

    @property
    def params(self) -> int:
        """Number of weight elements."""
        return sum(weight.params for weight in self.weights)


@dataclass(frozen=True)
class FloatOnly:
    """An operator without integer kernels: its type, the layer it is in, and which activations it cannot have."""

    op: str
    name: str
    qtypes: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A model as planning sees it.

    Attributes:
        inputs, outputs: of the whole.
        layers: what can be represented anew.
        in_codes: how many layers came quantized; they stay as they are and are not listed.
        float_only: operators that stand in the way of a file that computes on integers alone.
        signatures: names of the file's functions; all else here is about the first.
        links: pairs of layers between which channels may be rescaled.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[LayerInfo, ...]
    in_codes: int = 0
    float_only: tuple[FloatOnly, ...] = ()
    signatures: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()

    def layer(self, name: str) -> LayerInfo:
        """The layer of that name; KeyError where there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
