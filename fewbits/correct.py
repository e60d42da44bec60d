"""Correct a plan layer after layer: biases, so that each layer gives on average what it gave in float; batch norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fewbits.decide import with_bias
from fewbits.learnable import Learnable, inputs_of, reads_of
from fewbits.methods.batch_norm import moved_statistics
from fewbits.methods.bias_correction import empirical_shift
from fewbits.models.model import Model
from fewbits.models.network import Network, UnsupportedError
from fewbits.planning.model_info import LayerInfo
from fewbits.planning.plan import ActivationPlan, BiasPlan, LayerPlan, NormPlan, Plan
from fewbits.planning.target import Target
from fewbits.samples import Samples

SAMPLES = 256
ACTIVATION_BYTES = 1 << 28  # of what is compared are held at most


@dataclass(frozen=True)
class Corrected:
    """A plan, and the energy of its error relative to that of the model's outputs: as it came, and corrected."""

    plan: Plan
    before: float
    after: float


@torch.no_grad()
def corrected(model: Model, plan: Plan, samples: Samples) -> Corrected | None:
    """The plan with the mean error of each layer's output taken out of its bias; None where no bias can take it.

    Each layer reads what the rounded and corrected layers before it give. Codes stay as they are, and so does a layer
    without a bias. A residual network may be no better for it: what a rectifier held at zero is then let through. So
    the plan stays as it came where the outputs are not closer.

    Args:
        model: what the plan is for.
        plan: its static biases are written anew, others are written as floats.
        samples: the first SAMPLES of them are used, or as many as memory allows.

    Raises:
        UnsupportedError: a part of the model cannot be run in torch, or not sample by sample.
    """
    infos = {layer.node: layer for layer in model.info.layers}
    layers, activations = {layer.node: layer for layer in plan.layers}, inputs_of(plan.activations)
    movable = {node for node, one in layers.items() if _may_shift(one, infos[node], activations.get(node))}
    outputs = {
        node: info.output
        for node, info in infos.items()
        if info.kind in ("conv", "linear") and not info.inside
    }
    if not movable & set(outputs):
        return None
    network = model.network()
    given = _bounded(network, tuple(outputs.values()), samples)
    exact = network.run(given, (*outputs.values(), *network.outputs), {})
    reads = dict(Learnable(model, network, plan).reads)
    before = _error(exact, network.run(given, network.outputs, reads))
    for node, output in outputs.items():
        info = infos[node]
        rounded = network.run(given, [output], reads)[output]
        if node in movable:
            assert info.bias is not None
            axis = 1 if info.kind == "conv" else -1
            shift = empirical_shift(exact[output], rounded, axis)
            bias = model.weight(info.bias)
            layers[node] = shifted(layers[node], info, activations.get(node), bias, shift, plan.target)
            place = network.place(node, info.bias)
            reads[place] = partial(_plus, reads.get(place), shift)
            if place[0] == node:  # else the bias is added behind what the layer gives
                rounded = rounded + shift.reshape(-1, *[1] * (rounded.dim() - 2 if axis == 1 else 0))
        given[output] = rounded
    after = _error(exact, network.run(given, network.outputs, reads))
    if after < before:
        plan = replace(plan, layers=tuple(layers[layer.node] for layer in plan.layers))
    return Corrected(plan, before, after)


@torch.no_grad()
def reestimated(model: Model, plan: Plan, samples: Samples) -> Corrected | None:
    """The plan with statistics of batch norms as they are behind the rounded layers; None without a batch norm.

    One that follows a convolution is part of it and is none any more. Each reads what the rounded layers and the norms
    before it give. The plan stays as it came where the outputs are not closer.

    Args:
        model: what the plan is for.
        plan: with what layers it has.
        samples: as for :func:`corrected`.

    Raises:
        UnsupportedError: a part of the model cannot be run in torch, or not sample by sample.
    """
    network = model.network()
    norms = network.norms()
    if not norms:
        return None
    tensors = tuple(one.tensor for one in norms)
    given = _bounded(network, tensors, samples)
    exact = network.run(given, (*tensors, *network.outputs), {})
    reads = dict(Learnable(model, network, plan).reads)
    before = _error(exact, network.run(given, network.outputs, reads))
    found = []
    for norm in norms:
        given[norm.tensor] = network.run(given, [norm.tensor], reads)[norm.tensor]
        trained = [torch.from_numpy(model.weight(name)).float() for name in (norm.mean, norm.variance)]
        mean, variance = moved_statistics(exact[norm.tensor], given[norm.tensor], *trained)
        found.append(NormPlan(norm.node, mean.numpy(), variance.numpy()))
        reads |= reads_of(found[-1:], network)
    after = _error(exact, network.run(given, network.outputs, reads))
    return Corrected(replace(plan, norms=tuple(found)) if after < before else plan, before, after)


def _error(exact: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> float:
    pairs = [(exact[name], tensor) for name, tensor in got.items() if tensor.is_floating_point()]
    signal = sum(float(one.square().sum()) for one, _ in pairs)
    return sum(float((one - other).square().sum()) for one, other in pairs) / max(signal, 1e-30)


def shifted(
    layer: LayerPlan,
    info: LayerInfo,
    activation: ActivationPlan | None,
    bias: np.ndarray,
    shift: Tensor,
    target: Target,
) -> LayerPlan:
    """The layer with a shift, float32 [channels], added to its bias; ``bias`` is the one it has in the model."""
    assert info.bias is not None
    values = (bias if layer.bias is None else layer.bias.values) + shift.numpy()
    if activation is None:
        return replace(layer, bias=BiasPlan(info.bias, values, None))
    weight, written = with_bias(info, layer.weights[0], values, activation, target)
    return replace(layer, weights=(weight, *layer.weights[1:]), bias=written)


def _may_shift(layer: LayerPlan, info: LayerInfo, activation: ActivationPlan | None) -> bool:
    """Whether its bias is written anew: one of codes times codes is only where it fits their steps."""
    if info.bias is None or not layer.weights or layer.weights[0].codes is None or layer.dynamic:
        return False
    return activation is None or layer.bias is not None


def _plus(read: Callable[[Tensor], Tensor] | None, shift: Tensor, tensor: Tensor) -> Tensor:
    return (tensor if read is None else read(tensor)) + shift


def _bounded(network: Network, outputs: Sequence[str], samples: Samples) -> dict[str, Tensor]:
    """As many samples as these tensors fit in memory for."""
    if not samples.intake.plain:
        raise UnsupportedError("an input that does not have the samples along its first axis")
    count = samples.batch or 2
    inputs = {name: torch.from_numpy(array) for name, array in samples.first(max(SAMPLES, count)).items()}
    few = {name: tensor[:count] for name, tensor in inputs.items()}
    found = network.run(few, outputs, {})
    for name, tensor in found.items():
        if not tensor.dim() or len(tensor) != len(next(iter(few.values()))):
            raise UnsupportedError(f"tensor {name!r} does not have the samples along its first axis")
    each = sum(tensor.nbytes for tensor in found.values()) // count
    most = count if samples.batch is not None else max(count, ACTIVATION_BYTES // max(each, 1))
    return {name: tensor[:most] for name, tensor in inputs.items()}
