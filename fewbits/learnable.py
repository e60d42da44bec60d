"""A plan as quantizers that learn, standing between a network's tensors and its nodes; and a plan again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbits.decide import code_limits, with_bias
from fewbits.methods.learned import (
    Learned,
    LearnedBook,
    LearnedCodes,
    LearnedShift,
    LearnedStep,
    LearnedWeight,
    straight_through,
)
from fewbits.methods.near_ties import Grid, clear_step
from fewbits.models.model import Model
from fewbits.models.network import Network, Place
from fewbits.numerics import QTensor, cast, find
from fewbits.planning.plan import ActivationPlan, BiasPlan, LayerPlan, NormPlan, Plan, WeightPlan

LEARNED_KINDS = ("conv", "linear")  # the rows of a table depend on nothing but themselves


@dataclass(frozen=True)
class Kinds:
    """What stands before a weight, an activation and a bias; each is made as those of this module are.

    ``sign``: before a weight of which signs are left; None where those stay as they are.
    """

    codes: Callable[..., Any] = LearnedCodes
    book: Callable[..., Any] = LearnedBook
    sign: Callable[..., Any] | None = None
    step: Callable[..., Any] = LearnedStep
    shift: Callable[..., Any] = LearnedShift


class Learnable:
    """What a plan does to a network's tensors, with gradients.

    Weights that several layers read as the same codes stay one, and so do steps that several sites share.

    Args:
        model: what the plan is for.
        network: the same model in torch.
        plan: to begin with.
        kinds: of what learns.

    Attributes:
        reads: what stands before each place of the network, for :meth:`Network.run`.
    """

    def __init__(self, model: Model, network: Network, plan: Plan, kinds: Kinds = Kinds()) -> None:
        self._model, self._network, self._plan, self._kinds = model, network, plan, kinds
        self._infos = {layer.node: layer for layer in model.info.layers}
        self._inputs = inputs_of(plan.activations)
        on_codes = {weight.name for one in plan.layers if one.activations for weight in one.weights}
        self._narrowed = on_codes if plan.target.saturates else set[str]()
        self._weights: list[tuple[WeightPlan, LearnedWeight]] = []
        self._steps: dict[tuple[str, float, int], LearnedStep] = {}
        self._biases: dict[str, LearnedShift] = {}
        self._open: dict[Place, Learned] = {}
        self.reads: dict[Place, Callable[[Tensor], Tensor]] = {}
        for layer in plan.layers:
            for weight in layer.weights:
                self._add_weight(layer, weight)
            if self._codes(layer) is not None:
                self._add_bias(layer)
        for activation in plan.activations:
            self._add_activation(activation)
        for scaling in plan.scalings:
            divided = partial(_divided, torch.from_numpy(scaling.divisor))
            self.reads |= {(edge.node, edge.index): divided for edge in scaling.readers}
        self.reads |= reads_of(plan.norms, network)
        self._all = self.open(place[0] for place in self._open)

    @property
    def learned(self) -> dict[str, Any]:
        """All that learns, by the names of the tensors that it stands for; each once."""
        found: dict[str, Any] = {plan.name: one for plan, one in self._weights}
        found |= {self._infos[node].bias or "": one for node, one in self._biases.items()}
        return found | {tensor: one for (tensor, _, _), one in self._steps.items()}

    @property
    def nodes(self) -> tuple[str, ...]:
        """The layers whose weights learn, by their nodes."""
        return tuple(layer.node for layer in self._plan.layers if self._codes(layer) is not None)

    def open(self, nodes: Iterable[str]) -> tuple[Learned, ...]:
        """What learns before these nodes and has not been closed, each once."""
        wanted = set(nodes)
        found = {id(one): one for (node, _), one in self._open.items() if node in wanted}
        return tuple(found.values())

    def close(self, learned: Collection[Learned]) -> None:
        """These have learned enough."""
        closed = {id(one) for one in learned}
        self._open = {place: one for place, one in self._open.items() if id(one) not in closed}

    def settled(self) -> tuple[Learned, ...]:
        """All that learns, each once, with codes that stay as they are from now on."""
        for one in self._all:
            one.settle()
        return tuple(self._all)

    def plan(self) -> Plan:
        """The plan with what was learned."""
        activations = tuple(
            replace(one, scale=float(self._step(one).step.detach())) for one in self._plan.activations
        )
        inputs = inputs_of(activations)
        layers = tuple(self._learned_layer(layer, inputs.get(layer.node)) for layer in self._plan.layers)
        return replace(self._plan, layers=layers, activations=activations)

    def clear_ties(self) -> None:
        """Move steps of sums, by a part in 1,000 at most, to where no pair of codes is near a tie.

        Engines then round every sum as the plan's own arithmetic does; see :mod:`fewbits.methods.near_ties`.
        """
        plans = self._plan.activations
        by_place = {(edge.node, edge.index): one for one in plans for edge in one.site.readers}
        by_tensor = {one.site.range_of: one for one in plans}
        for found in self._network.sums():
            total = next((by_tensor[name] for name in found.results if name in by_tensor), None)
            if total is not None and all(place in by_place for place in found.places):
                first, second = (self._grid(by_place[place]) for place in found.places)
                self._step(total).move(clear_step(first, second, self._grid(total)))

    def _grid(self, plan: ActivationPlan) -> Grid:
        row = find(plan.qtype)
        return Grid(float(self._step(plan).step.detach()), plan.zero_point, row.qmin, row.qmax)

    def _add_weight(self, layer: LayerPlan, weight: WeightPlan) -> None:
        place = self._network.place(layer.node, weight.name)
        q = weight.codes
        if not self._learns(layer, weight):
            stored = cast(torch.from_numpy(weight.values), weight.scheme.qtype) if q is None else q
            fixed = stored.dequantize()
            self.reads[place] = lambda tensor: fixed
            return
        assert q is not None
        learned = next((one for plan, one in self._weights if _same(plan, weight)), None)
        if learned is None:
            values = torch.from_numpy(weight.values)
            low, high = code_limits(weight.scheme, self._plan.target, weight.name in self._narrowed)
            grid = None if low is None or high is None else (low, high)
            kinds = self._kinds
            codes = kinds.sign if q.qtype.kind == "binary" and kinds.sign is not None else kinds.codes
            learned = kinds.book(values, q) if grid is None else codes(values, q, *grid)
            self._weights.append((weight, learned))
        self._open[place] = self.reads[place] = learned

    def _learns(self, layer: LayerPlan, weight: WeightPlan) -> bool:
        q = weight.codes
        if self._infos[layer.node].kind not in LEARNED_KINDS or q is None:
            return False
        if q.codebook is not None:
            return q.codebook.dim() == 1 and not self._shared(weight)
        if q.zero_point is not None or q.free_zero_point is not None or q.scale is None:
            return False
        return q.qtype.kind in ("int", "ternary") or (
            q.qtype.kind == "binary" and self._kinds.sign is not None
        )

    def _shared(self, weight: WeightPlan) -> bool:
        """Another weight has the same codebook, so that none of them can learn it."""
        assert weight.codes is not None and weight.codes.codebook is not None
        mine = weight.codes.codebook
        books = (
            one.codes.codebook
            for layer in self._plan.layers
            for one in layer.weights
            if one.name != weight.name and one.codes is not None
        )
        return any(book is not None and torch.equal(book, mine) for book in books)

    def _codes(self, layer: LayerPlan) -> LearnedWeight | None:
        """The learned codes of a layer's weight."""
        if not layer.weights or not self._learns(layer, layer.weights[0]):
            return None
        return next(one for plan, one in self._weights if _same(plan, layer.weights[0]))

    def _add_bias(self, layer: LayerPlan) -> None:
        info = self._infos[layer.node]
        q = layer.weights[0].codes
        if info.bias is None or q is None:
            return
        values = self._model.weight(info.bias) if layer.bias is None else layer.bias.values
        if layer.node in self._inputs and layer.bias is None:
            return  # it cannot be written in the scale of the layer's products
        weight = torch.from_numpy(layer.weights[0].values).movedim(info.weights[0].channel_axis, 0)
        learned = self._kinds.shift(torch.from_numpy(values), weight.flatten(1).norm(dim=1))
        self._biases[layer.node] = learned
        place = self._network.place(layer.node, info.bias)
        self._open[place] = self.reads[place] = learned
        if layer.bias is not None and layer.bias.scale is not None:
            step, codes = self._step(self._inputs[layer.node]), self._codes(layer)
            assert codes is not None
            self.reads[place] = lambda tensor: _on_grid(learned(tensor), step.step.detach(), codes.scale)

    def _add_activation(self, plan: ActivationPlan) -> None:
        learned = self._step(plan)
        read: Callable[[Tensor], Tensor] = learned
        if plan.smoothing is not None:
            divisor = torch.from_numpy(plan.smoothing)
            read = lambda tensor: learned(tensor / divisor.to(tensor.device))  # noqa: E731 - one function for all readers
        for edge in plan.site.readers:
            self._open[edge.node, edge.index] = learned
            self.reads[edge.node, edge.index] = read

    def _step(self, plan: ActivationPlan) -> LearnedStep:
        key = plan.site.range_of, plan.scale, plan.zero_point
        row = find(plan.qtype)
        if key not in self._steps:
            self._steps[key] = self._kinds.step(plan.scale, plan.zero_point, row.qmin, row.qmax)
        return self._steps[key]

    def _learned_layer(self, layer: LayerPlan, activation: ActivationPlan | None) -> LayerPlan:
        learned = self._codes(layer)
        if learned is None:
            return layer
        weight, bias = replace(layer.weights[0], codes=_on_cpu(learned.rounded())), layer.bias
        if layer.node in self._biases:
            info = self._infos[layer.node]
            values = self._biases[layer.node].values.detach().cpu().numpy()
            if activation is not None:
                weight, bias = with_bias(info, weight, values, activation, self._plan.target)
            elif info.bias is not None:
                bias = BiasPlan(info.bias, values.astype(np.float32), None)
        return replace(layer, weights=(weight, *layer.weights[1:]), bias=bias)


def _divided(divisor: Tensor, tensor: Tensor) -> Tensor:
    return tensor / divisor.to(tensor.device)


def reads_of(norms: Collection[NormPlan], network: Network) -> dict[Place, Callable[[Tensor], Tensor]]:
    """What stands between batch norms and their statistics, by place."""
    places = {one.node: one.places for one in network.norms()} if norms else {}
    return {
        place: partial(_instead, torch.from_numpy(values))
        for norm in norms
        for place, values in zip(places[norm.node], (norm.mean, norm.variance), strict=True)
    }


def _instead(values: Tensor, tensor: Tensor) -> Tensor:
    return values.to(tensor.device)


def _on_cpu(q: QTensor) -> QTensor:
    scale = None if q.scale is None else q.scale.cpu()
    codebook = None if q.codebook is None else q.codebook.cpu()
    return replace(q, codes=q.codes.cpu(), scale=scale, codebook=codebook)


def _on_grid(bias: Tensor, step: Tensor, scale: Tensor | None) -> Tensor:
    """Whole numbers of the steps of a layer's products, with the gradient of the bias.

    They are the file's, whose step is a float32: so many steps that float32 would round one in a hundred to the next.
    """
    assert scale is not None
    step = step.float() * scale.float()
    codes = (bias.double() / step).round().to(bias.dtype)
    return straight_through(codes * step.to(bias.dtype), bias)


def inputs_of(activations: Collection[ActivationPlan]) -> Mapping[str, ActivationPlan]:
    """The quantized activation that each layer multiplies, by its node."""
    return {
        edge.node: activation
        for activation in activations
        for edge in (*activation.site.readers, *activation.site.through)
    }


def _same(a: WeightPlan, b: WeightPlan) -> bool:
    """One tensor in one representation."""
    if a is b:
        return True
    if a.name != b.name or a.codes is None or b.codes is None:
        return False
    parts = [(q.scale, q.codebook) for q in (a.codes, b.codes)]
    same = all(
        one is other or (one is not None and other is not None and torch.equal(one, other))
        for one, other in zip(*parts, strict=True)
    )
    return same and torch.equal(a.codes.codes, b.codes.codes)
