"""Biases that make up for what rounded weights do to the mean output, by the word of the batch norm before a layer.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721),
section 4.2. No data is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fewbits.methods.bias_correction import analytic_shift, mean_of_clipped
from fewbits.methods.equalization import grouped
from fewbits.numerics import QTensor

_CLIPS: dict[object, tuple[float, float]] = {
    **dict.fromkeys((nn.ReLU, functional.relu, torch.relu, torch.relu_, "relu", "relu_"), (0.0, math.inf)),
    **dict.fromkeys((nn.ReLU6, functional.relu6), (0.0, 6.0)),
}
_PASSES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


@torch.no_grad()
def corrected(module: nn.Module, codes: Mapping[str, QTensor]) -> tuple[dict[str, Tensor], str | None]:
    """New biases, or running means of the batch norms behind layers without one, by name; and why there are none.

    Args:
        module: in float.
        codes: of its weights by name. Layers that are linear or convolutions, are called once and read a batch norm's
            result, as it is or rectified, are corrected. Padding is left out of account.
    """
    if not any(isinstance(one, _BatchNorm) for one in module.modules()):
        return {}, None
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:  # whatever the forward does with what stands for its inputs
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            {},
            f"biases stay: which layers read a batch norm cannot be told, forward cannot be traced: {why}",
        )
    called = Counter(node.target for node in graph.nodes if node.op == "call_module")
    found: dict[str, Tensor] = {}
    for node in graph.nodes:
        q = codes.get(f"{node.target}.weight") if node.op == "call_module" else None
        if q is None or called[node.target] > 1 or not node.args:
            continue
        layer = module.get_submodule(node.target)
        mean = _mean_before(module, node.args[0])
        if mean is None or not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        if len(mean) != inputs:
            continue
        before, after = (grouped(one.float(), inputs) for one in (layer.weight, q.dequantize()))
        shift = analytic_shift(before, after, mean)
        if layer.bias is not None:
            found[f"{node.target}.bias"] = layer.bias + shift.to(layer.bias)
        elif (norm := _norm_behind(module, node)) is not None and called[norm] == 1:
            running = module.get_buffer(f"{norm}.running_mean")
            found[f"{norm}.running_mean"] = running - shift.to(running)
    return found, None


def _norm(module: nn.Module, node: object) -> _BatchNorm | None:
    """The batch norm that a node calls, if it has known statistics."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    found = module.get_submodule(str(node.target))
    return found if isinstance(found, _BatchNorm) and found.running_mean is not None else None


def _mean_before(module: nn.Module, node: object) -> Tensor | None:
    """The mean of each channel of a batch norm's result, held between two ends or not; None for anything else."""
    low, high = -math.inf, math.inf
    while isinstance(node, fx.Node):
        norm = _norm(module, node)
        if norm is not None:
            if norm.weight is None:
                return None
            return mean_of_clipped(norm.bias.float(), norm.weight.float().abs(), low, high)
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        ends = _CLIPS.get(node.target if layer is None else type(layer))
        if ends is not None:
            low, high = max(low, ends[0]), min(high, ends[1])
        elif not isinstance(layer, _PASSES):
            return None
        node = node.args[0] if node.args else None
    return None


def _norm_behind(module: nn.Module, node: fx.Node) -> str | None:
    """The batch norm that alone reads a node."""
    users = list(node.users)
    return str(users[0].target) if len(users) == 1 and _norm(module, users[0]) is not None else None
