"""The Plan: every decision as data. It can be printed, saved, edited and applied; what applies it decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fewbits.planning.recipe import IO
from fewbits.planning.scheme import Scheme
from fewbits.planning.target import Target, WeightForm

if TYPE_CHECKING:
    from fewbits.numerics import QTensor

RECURRENT = frozenset(("LSTM", "GRU", "RNN"))


@dataclass(frozen=True)
class Edge:
    """One input of one node: the node's name and the input's position."""

    node: str
    index: int


@dataclass(frozen=True)
class Site:
    """A tensor that gets QuantizeLinear and DequantizeLinear, and the inputs that read the result.

    ``range_of`` names the tensor whose range it takes: itself, or the one that a layout operator hands on.
    ``fixed_range`` is set where the operator that makes the tensor bounds it (softmax, sigmoid, tanh).
    ``through`` are the inputs of layers that the result reaches through operators that only move values. ``divisible``
    says whether engines get it right where every channel is divided by a number of its own.
    """

    tensor: str
    readers: tuple[Edge, ...]
    range_of: str
    fixed_range: tuple[float, float] | None = None
    through: tuple[Edge, ...] = ()
    divisible: bool = True


@dataclass(frozen=True)
class Placement:
    """Where activations are quantized: sites in the order of the graph."""

    sites: tuple[Site, ...]


@dataclass(frozen=True)
class ActivationPlan:
    """A quantized activation: ``real = scale * (code - zero_point)``, divided by ``smoothing`` before.

    Attributes:
        site: where.
        qtype: format of the codes.
        scale, zero_point: one for the tensor.
        smoothing: float32 [channels] along the last axis, or None: what the activation is divided by, and the
            weights that meet it were multiplied with.
    """

    site: Site
    qtype: str
    scale: float
    zero_point: int
    smoothing: np.ndarray | None = None


@dataclass(frozen=True)
class Scaling:
    """An activation that stays float and is divided where some layers read it; their weights were multiplied before.

    ``divisor``: float32 [channels] along the last axis.
    """

    tensor: str
    readers: tuple[Edge, ...]
    divisor: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        """What its constants begin with; a tensor may be divided for some readers in one way, for others in another."""
        return f"{self.tensor}_for_{self.readers[0].node}"


@dataclass(frozen=True)
class WeightPlan:
    """A constant tensor in a new representation: codes with their scales, or a narrower float where ``codes`` is None.

    Attributes:
        name: the tensor's name in the model.
        scheme: how it is represented.
        codes: the rounded tensor; None for a narrower float.
        values: float32, what was rounded (after smoothing), which a narrower float is cast from.
    """

    name: str
    scheme: Scheme
    codes: QTensor | None
    values: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class BiasPlan:
    """A layer's bias by name: float32 values [channels], and for int32 codes their scale [channels], else None."""

    name: str
    values: np.ndarray = field(repr=False)
    scale: np.ndarray | None = field(repr=False)


@dataclass(frozen=True)
class NormPlan:
    """What a batch norm takes for the mean and the variance of its input: float32 [channels] each."""

    node: str
    mean: np.ndarray = field(repr=False)
    variance: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Evidence:
    """What data says of a layer whose weights a recipe wants to make up for each other's errors.

    Attributes:
        unused: why they do not; None where they do.
        damped: fewer rows were kept than there are inputs, or inputs hang together.
        silent: how many of its inputs are zero in all that was kept.
    """

    unused: str | None = None
    damped: bool = False
    silent: int = 0


@dataclass(frozen=True)
class LayerPlan:
    """One layer: what its weights, bias and activations become, or why it stays in float.

    ``node`` is the name of its node in the graph; ``inside`` says that it is in the body of a node. ``note`` is why its
    activations stay in float although the recipe says otherwise; ``evidence`` is None where no data was asked.
    """

    name: str
    op: str
    node: str
    weights: tuple[WeightPlan, ...] = ()
    activations: Scheme | None = None
    bias: BiasPlan | None = None
    float_reason: str | None = None
    note: str | None = None
    inside: bool = False
    evidence: Evidence | None = None

    @property
    def static(self) -> bool:
        """Its activations are quantized with ranges known in advance."""
        return self.activations is not None and not self.activations.dynamic

    @property
    def dynamic(self) -> bool:
        """Its activations are quantized with ranges taken from each of them as it comes."""
        return self.activations is not None and self.activations.dynamic

    @property
    def scheme(self) -> str:
        """In words, such as ``int8 per channel, inputs uint8 per tensor``."""
        if self.float_reason is not None:
            return "float"
        parts = [str(self.weights[0].scheme)] if self.weights else []
        if self.activations is not None:
            parts.append(f"inputs {self.activations}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """A recipe resolved for one model, one target and what was observed; ``io`` as in the recipe.

    ``scalings`` are of activations that stay float, ``norms`` of batch norms with statistics of the rounded model.
    """

    recipe: str
    target: Target
    layers: tuple[LayerPlan, ...]
    activations: tuple[ActivationPlan, ...]
    io: IO = "float"
    scalings: tuple[Scaling, ...] = ()
    norms: tuple[NormPlan, ...] = ()

    def form(self, layer: LayerPlan, weight: WeightPlan) -> WeightForm:
        """How the codes of a layer's weight are written for the target."""
        q = weight.codes
        if q is not None and q.free_zero_point is not None:
            return "cast_mul"  # DequantizeLinear has integer zero points only
        if layer.static:
            narrow = q is not None and q.qtype.bits < 8
            return "widen" if narrow and self._has_kernels(layer) else "dequantize"
        terms = None
        if layer.op in ("MatMul", "Gemm") and q is not None and q.channel_axis is not None:
            terms = q.codes.numel() // q.codes.shape[q.channel_axis]
        recurrent = layer.op in RECURRENT
        return self.target.weight_form(weight.scheme, terms, recurrent) or "dequantize"

    def _has_kernels(self, layer: LayerPlan) -> bool:
        """Whether the engine multiplies codes of the layer's activations."""
        return layer.activations is not None and layer.activations.qtype in ("int8", "uint8")

    @property
    def weights(self) -> Mapping[str, WeightPlan]:
        """Every constant that changes, by name."""
        return {weight.name: weight for layer in self.layers for weight in layer.weights}
