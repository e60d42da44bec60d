"""What rounding each layer costs: by a cheap proxy for all of them, and measured for the few that hurt most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fewbits.decide import input_rows
from fewbits.learnable import inputs_of
from fewbits.planning.model_info import LayerInfo
from fewbits.planning.plan import LayerPlan, Plan
from fewbits.planning.stats import Stats

ROWS = 256  # of what a layer reads tell what rounding does to its output
WORST = 2  # layers of what is saved are measured alone


@dataclass(frozen=True)
class LayerDamage:
    """What one recipe's rounding does to one layer.

    Attributes:
        layer, scheme: its name, and how it is represented, in words.
        sqnr_db: of the layer's own output where something was seen of its input, else of its weights; infinite where
            nothing is lost.
    """

    layer: str
    scheme: str
    sqnr_db: float


def damage(plan: Plan, infos: Sequence[LayerInfo], stats: Stats | None) -> tuple[LayerDamage, ...]:
    """The proxy for every layer with weights in the plan, in its order."""
    by_node, activations = {info.node: info for info in infos}, inputs_of(plan.activations)
    divisors = {edge.node: scaling.divisor for scaling in plan.scalings for edge in scaling.readers}
    divisors |= {node: one.smoothing for node, one in activations.items() if one.smoothing is not None}
    found = []
    for layer in plan.layers:
        if layer.weights:
            info = by_node[layer.node]
            known = stats is not None and info.kind in ("conv", "linear") and info.inside is None
            inputs = None
            if known and stats is not None:
                inputs = input_rows(info, activations.get(layer.node), divisors.get(layer.node), stats)
            found.append(LayerDamage(layer.name, layer.scheme, _sqnr_db(layer, info, inputs)))
    return tuple(found)


def _sqnr_db(layer: LayerPlan, info: LayerInfo, inputs: tuple[torch.Tensor, torch.Tensor] | None) -> float:
    signal = noise = 0.0
    for weight in layer.weights:
        exact = torch.from_numpy(weight.values)
        rounded = exact.half().float() if weight.codes is None else weight.codes.dequantize()
        if inputs is None:
            signal += float(exact.square().sum())
            noise += float((exact - rounded).square().sum())
            continue
        x, quantized = (one[:, :: -(-one.shape[1] // ROWS)] for one in inputs)
        rows = [
            one.movedim(info.weights[0].channel_axis, 0).reshape(len(x), -1, x.shape[2]).transpose(1, 2)
            for one in (exact, rounded)
        ]
        target = x @ rows[0]
        signal += float(target.square().sum())
        noise += float((quantized @ rows[1] - target).square().sum())
    return float(10 * np.log10(max(signal, 1e-30) / noise)) if noise else float("inf")


def only(plan: Plan, node: str) -> Plan:
    """The plan with one layer as it is and all others in float."""
    layers = tuple(
        layer if layer.node == node else LayerPlan(layer.name, layer.op, layer.node, float_reason="left out")
        for layer in plan.layers
    )
    activations = tuple(
        replace(one, site=replace(one.site, readers=readers, through=()))
        for one in plan.activations
        if (readers := tuple(edge for edge in one.site.readers if edge.node == node))
    )
    scalings = tuple(
        replace(one, readers=readers)
        for one in plan.scalings
        if (readers := tuple(edge for edge in one.readers if edge.node == node))
    )
    return replace(plan, layers=layers, activations=activations, scalings=scalings, norms=())


def worst(found: Sequence[LayerDamage]) -> tuple[str, ...]:
    """The names of the layers that lose most by the proxy."""
    lossy = sorted((one for one in found if np.isfinite(one.sqnr_db)), key=lambda one: one.sqnr_db)
    return tuple(one.layer for one in lossy[:WORST])


Damages = Mapping[str, tuple[LayerDamage, ...]]
"""By recipe."""
