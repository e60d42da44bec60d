"""Resolve a recipe into a Plan: every code, scale and zero point, from the weights and what was observed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from math import prod

import numpy as np
import torch

from fewbits.errors import InputError
from fewbits.methods.awq import find_protection
from fewbits.methods.bias_correction import analytic_shift, mean_of_clipped
from fewbits.methods.codebook import with_one_codebook, with_weighted_codebook
from fewbits.methods.equalization import grouped
from fewbits.methods.gptq import (
    FLOOR,
    damped,
    equal_rows,
    find_floor,
    round_with_compensation,
    second_moment,
    undetermined,
)
from fewbits.methods.patches import patches
from fewbits.methods.range_search import search
from fewbits.methods.rounding import round_weight
from fewbits.methods.smooth_quant import Smoothing, fake_quantize, find_smoothing
from fewbits.numerics import QTensor, find
from fewbits.planning.model_info import LayerInfo, WeightInfo
from fewbits.planning.plan import (
    ActivationPlan,
    BiasPlan,
    Edge,
    Evidence,
    LayerPlan,
    Placement,
    Plan,
    Scaling,
    Site,
    WeightPlan,
)
from fewbits.planning.recipe import Assignment, Recipe
from fewbits.planning.scheme import Scheme
from fewbits.planning.stats import Stats
from fewbits.planning.target import SAFE_CODE, Target

SMALLEST_SCALE = float(
    np.finfo(np.float32).tiny
)  # a smaller bias scale is denormal; engines flush it to zero
LARGEST_CODE = 2**31 - 1
# Compensating takes time with the cube of a layer's width, in inputs per output.
SEARCHED_COLUMNS = (
    2304  # damping is searched for; in 8 bits wider layers are rounded to nearest, which hardly shows there
)
MAX_COLUMNS = 4608  # takes 14 seconds and 0.5 GB; wider layers are rounded to nearest

Weights = Callable[[str], np.ndarray]


def decide(
    recipe: Recipe,
    assigned: Iterable[Assignment],
    placement: Placement,
    stats: Stats | None,
    target: Target,
    weights: Weights,
) -> Plan:
    """Turn rules into numbers.

    Args:
        recipe: for its switches.
        assigned: what its rules say of each layer.
        placement: which activations are quantized, for static layers.
        stats: what was observed of them; None where no layer is static, and weights are rounded to nearest.
        target: the engine that the plan is for.
        weights: gives a constant of the model, float32, by name.

    Raises:
        InputError: a static layer without observed ranges.
    """
    by_node = {a.layer.node: a for a in assigned}
    sites, unbounded = _bounded(placement.sites, stats, target)
    if unbounded and target.integer_only:
        node, why = min(unbounded.items())
        raise InputError(
            f"recipe {recipe.name!r}: what {node!r} reads {why}, so no range holds it; leave it in float with "
            "--float-fallback, mask with a finite number in the model, or calibrate with data that reaches it"
        )
    default = next((a.activations for a in by_node.values() if a.activations is not None), None)
    activations = []
    for site in sites:
        assert stats is not None and default is not None
        readers = [by_node[edge.node] for edge in (*site.readers, *site.through) if edge.node in by_node]
        scheme = next((a.activations for a in readers if a.activations is not None), default)
        smooth = recipe.smooth and not target.codes_throughout
        smoothing = _smoothing(site, readers, scheme, stats, target, weights) if smooth else None
        activations.append(_activation(site, scheme, stats, smoothing))
    inputs = {
        (edge.node, edge.index): plan
        for plan in activations
        for edge in (*plan.site.readers, *plan.site.through)
    }
    uses = Counter(weight.name for a in by_node.values() for weight in a.layer.weights)
    alone = {name for name, count in uses.items() if count == 1}  # one table for all readers, not one each
    compensated = alone if recipe.compensate and stats is not None else set()
    scalings: tuple[Scaling, ...] = ()
    if recipe.protect and stats is not None and not target.codes_throughout:
        scalings = tuple(_scalings(by_node.values(), alone, stats, target, weights))
    divisors = {edge.node: scaling.divisor for scaling in scalings for edge in scaling.readers}
    divisors |= {node: plan.smoothing for (node, _), plan in inputs.items() if plan.smoothing is not None}
    multiplied = {weight.name for a in by_node.values() if a.activations for weight in a.layer.weights}
    narrowed = multiplied if target.saturates else set()
    plans = tuple(
        LayerPlan(a.layer.name, a.layer.op, node, float_reason=f"its input {unbounded[node]}")
        if node in unbounded
        else _layer(a, compensated, narrowed, inputs, divisors, stats, target, weights)
        for node, a in by_node.items()
    )
    if recipe.share:
        plans = tuple(_shared(plans, by_node, divisors, stats))
    if recipe.correct and stats is None:
        plans = tuple(_corrected(plan, by_node[plan.node].layer, weights) for plan in plans)
    return Plan(recipe.name, target, plans, tuple(activations), recipe.io, scalings)


def _bounded(sites: Sequence[Site], stats: Stats | None, target: Target) -> tuple[list[Site], dict[str, str]]:
    """The sites that a range can hold, and by the nodes that read the others what is wrong with what they read."""
    kept: list[Site] = []
    unbounded: dict[str, str] = {}
    for site in sites:
        why = None if site.fixed_range is not None or stats is None else _no_range(stats, site, target)
        if why is None:
            kept.append(site)
        else:
            unbounded |= {edge.node: why for edge in (*site.readers, *site.through)}
    return kept, unbounded


def _no_range(stats: Stats, site: Site, target: Target) -> str | None:
    seen = stats.tensors.get(site.range_of)
    if seen is None:
        return "is reached by no sample"
    if not seen.finite:
        return "is NaN or infinite for some samples"
    if seen.histogram.minimum == seen.histogram.maximum == 0 and not target.integer_only:
        return "is zero for every sample"
    return None


def _smoothing(
    site: Site, readers: list[Assignment], scheme: Scheme, stats: Stats, target: Target, weights: Weights
) -> Smoothing | None:
    """A divisor for an activation that only linear layers read; it is kept only where it helps."""
    linear = all(a.layer.kind == "linear" and a.activations is not None for a in readers)
    if (
        not site.divisible
        or site.through
        or site.range_of != site.tensor
        or not linear
        or len(readers) != len(site.readers)
    ):
        return None
    seen = stats[site.tensor]
    if seen.examples is None or seen.channel_low is None or seen.channel_high is None:
        return None
    rows, low, high = map(torch.from_numpy, (seen.examples, seen.channel_low, seen.channel_high))
    matrices = [_matrix(a.layer, weights) for a in readers]
    return find_smoothing(rows, low, high, matrices, _rounding(readers[0], target), _levels(scheme))


def _matrix(layer: LayerInfo, weights: Weights) -> torch.Tensor:
    """A linear layer's weight, float32 [inputs, outputs]."""
    info = layer.weights[0]
    matrix = torch.from_numpy(weights(info.name))
    return matrix if info.group_axis == 0 else matrix.T


def _rounding(a: Assignment, target: Target) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gives a weight [inputs, outputs] as it is after rounding as a layer's rule says."""
    scheme = a.weights
    assert scheme is not None

    def rounded(matrix: torch.Tensor) -> torch.Tensor:
        info = WeightInfo("", tuple(matrix.shape), 1, 0)
        return _quantize(matrix, scheme, info, target, target.saturates).dequantize()

    return rounded


def _scalings(
    assigned: Iterable[Assignment], alone: Set[str], stats: Stats, target: Target, weights: Weights
) -> Iterator[Scaling]:
    """What protects weights that large activations meet, for each activation that linear layers read in float."""
    readers: dict[tuple[str, Scheme], list[Assignment]] = {}
    for a in assigned:
        able = a.layer.kind == "linear" and a.layer.inside is None and a.layer.inputs and not a.activations
        if able and a.weights is not None and not a.weights.is_float and a.layer.weights[0].name in alone:
            readers.setdefault((a.layer.inputs[0], a.weights), []).append(a)
    for (tensor, _), found in readers.items():
        seen = stats.tensors.get(tensor)
        if seen is None or seen.examples is None or not seen.finite:
            continue
        matrices = [_matrix(a.layer, weights) for a in found]
        divisor = find_protection(torch.from_numpy(seen.examples), matrices, _rounding(found[0], target))
        if divisor is not None:
            edges = tuple(Edge(a.layer.node, 0) for a in found)
            yield Scaling(tensor, edges, divisor.numpy())


def _activation(site: Site, scheme: Scheme, stats: Stats, smoothing: Smoothing | None) -> ActivationPlan:
    levels, lowest = _levels(scheme), find(scheme.qtype).qmin
    if site.fixed_range is not None:
        low, high = site.fixed_range
    elif smoothing is not None:
        low, high = smoothing.low, smoothing.high
    else:
        # What nothing in the model reads is a result of it, whose largest values are what somebody asks for.
        kind = scheme.range if site.readers or site.through else "minmax"
        low, high = search(kind, stats[site.range_of].histogram, levels)
    if scheme.symmetric:
        scale = max(-low, high) / (levels // 2 - 1)
        zero_point = lowest + levels // 2
    else:
        scale = (high - low) / (levels - 1)
        zero_point = lowest + min(max(round(-low / max(scale, SMALLEST_SCALE)), 0), levels - 1)
    divisor = None if smoothing is None or smoothing.divisor is None else smoothing.divisor.numpy()
    return ActivationPlan(site, scheme.qtype, max(scale, SMALLEST_SCALE), zero_point, divisor)


def _layer(
    a: Assignment,
    compensated: Set[str],
    narrowed: Set[str],
    inputs: Mapping[tuple[str, int], ActivationPlan],
    divisors: Mapping[str, np.ndarray],
    stats: Stats | None,
    target: Target,
    weights: Weights,
) -> LayerPlan:
    layer = a.layer
    if a.weights is None and a.activations is None:
        return LayerPlan(layer.name, layer.op, layer.node, float_reason="the recipe keeps it in float")
    activation = next((plan for (node, _), plan in inputs.items() if node == layer.node), None)
    if target.codes_throughout and layer.kind == "embedding" and activation is not None:
        return LayerPlan(layer.name, layer.op, layer.node, (_table(layer, activation, weights),))
    if not layer.weights and activation is None:
        why = "products of two activations are no faster on codes"
        return LayerPlan(layer.name, layer.op, layer.node, float_reason=why)
    plans = []
    for info in layer.weights:
        assert a.weights is not None
        values = weights(info.name)
        if layer.node in divisors:
            shape = [1] * values.ndim
            shape[info.group_axis] = -1
            values = values * divisors[layer.node].reshape(shape)
        narrow = info.name in narrowed
        codes = None
        if not a.weights.is_float:
            codes = _quantize(torch.from_numpy(values), a.weights, info, target, narrow)
        on_codes = target.codes_throughout and activation is not None
        if codes is not None and codes.nbytes >= values.nbytes and not on_codes:
            return LayerPlan(layer.name, layer.op, layer.node, float_reason="too small to gain anything")
        plans.append(WeightPlan(info.name, a.weights, codes, values))
    activations, note = a.activations, a.note
    if activations is not None and activations.dynamic and not target.takes_dynamic(layer.op):
        activations, note = (
            None,
            f"weights only: {target.engine} gains nothing by codes of what {layer.op} reads",
        )
    shift = evidence = None
    if plans and plans[0].codes is not None and plans[0].name in compensated:
        assert stats is not None
        seen = input_rows(layer, activation, divisors.get(layer.node), stats)
        unused = None if layer.kind == "embedding" else _uncompensated(layer, plans[0].codes)
        evidence = Evidence(unused)
        if unused is None and seen is not None:
            narrow = plans[0].name in narrowed
            plans[0], shift, evidence = _compensate(
                a, plans[0], plans[0].codes, activation, seen, target, narrow
            )
    bias = None
    if layer.bias is not None and plans and plans[0].codes is not None and activation is not None:
        values = weights(layer.bias) if shift is None else weights(layer.bias) + shift
        plans[0], bias = with_bias(layer, plans[0], values, activation, target)
    return LayerPlan(
        layer.name,
        layer.op,
        layer.node,
        tuple(plans),
        activations,
        bias,
        note=note,
        inside=layer.inside is not None,
        evidence=evidence,
    )


def _shared(
    plans: Sequence[LayerPlan],
    by_node: Mapping[str, Assignment],
    divisors: Mapping[str, np.ndarray],
    stats: Stats | None,
) -> Iterator[LayerPlan]:
    """The layers, with one codebook for all weights that are codes of a learned one of the same format."""
    kinds: dict[str, dict[str, tuple[WeightPlan, torch.Tensor | None]]] = {}
    for plan in plans:
        for weight in plan.weights:
            if weight.codes is not None and weight.codes.codebook is not None:
                layer = by_node[plan.node].layer
                inputs = None if stats is None else input_rows(layer, None, divisors.get(plan.node), stats)
                energy = None if inputs is None else _per_element(inputs[0].square().mean(dim=1), layer)
                kinds.setdefault(weight.codes.qtype.name, {})[weight.name] = weight, energy
    found: dict[str, QTensor] = {}
    for members in kinds.values():
        codes = [weight.codes for weight, _ in members.values() if weight.codes is not None]
        values = [torch.from_numpy(weight.values) for weight, _ in members.values()]
        one = with_one_codebook(codes, values, [energy for _, energy in members.values()])
        found |= dict(zip(members, one, strict=True))
    for plan in plans:
        weights = tuple(replace(one, codes=found.get(one.name, one.codes)) for one in plan.weights)
        yield replace(plan, weights=weights)


def _corrected(plan: LayerPlan, layer: LayerInfo, weights: Weights) -> LayerPlan:
    """The layer with a bias that makes up for what rounding does to the mean of its output, by a batch norm's word."""
    like = layer.expected
    if (
        like is None
        or layer.bias is None
        or not plan.weights
        or plan.weights[0].codes is None
        or plan.dynamic
    ):
        return plan
    mean, weight, codes = torch.from_numpy(like.mean), plan.weights[0], plan.weights[0].codes
    assert codes is not None
    exact, rounded = (
        grouped(one, len(mean)) for one in (torch.from_numpy(weight.values), codes.dequantize())
    )
    shift = analytic_shift(
        exact, rounded, mean_of_clipped(mean, torch.from_numpy(like.std), like.low, like.high)
    )
    return replace(plan, bias=BiasPlan(layer.bias, weights(layer.bias) + shift.numpy(), None))


def _table(layer: LayerInfo, activation: ActivationPlan, weights: Weights) -> WeightPlan:
    """An embedding's rows in the codes that what reads them takes: one scale for all."""
    info, qtype = layer.weights[0], find(activation.qtype)
    signed = find(f"int{qtype.bits}")
    zero_point = activation.zero_point - qtype.qmin + signed.qmin
    values = weights(info.name)
    codes = np.round(values.astype(np.float64) / np.float32(activation.scale)) + zero_point
    stored = torch.from_numpy(codes.clip(signed.qmin, signed.qmax)).to(signed.code_dtype)
    scale = torch.tensor(activation.scale, dtype=torch.float32)
    offset = torch.tensor(zero_point, dtype=torch.int32)
    q = QTensor(stored, signed, scale, offset, name=info.name)
    return WeightPlan(info.name, Scheme(signed.name, symmetric=False), q, values)


def _uncompensated(layer: LayerInfo, q: QTensor) -> str | None:
    """Why a layer's weights, with codes ``q``, cannot make up for each other's errors; None where they can."""
    if layer.inside is not None:
        return "nothing is observed inside a body"
    if layer.kind == "conv" and len(layer.weights[0].shape) > 4:
        return "a convolution has more than two axes of space"
    if layer.kind not in ("conv", "linear") or (layer.kind == "conv" and layer.geometry is None):
        return f"inputs of such a {layer.op} are not kept"
    if q.zero_point is not None or q.free_zero_point is not None:
        return "codes have a zero point"
    return "codes are signs" if q.qtype.kind == "binary" else None


def _compensate(
    a: Assignment,
    plan: WeightPlan,
    q: QTensor,
    activation: ActivationPlan | None,
    inputs: tuple[torch.Tensor, torch.Tensor],
    target: Target,
    narrow: bool,
) -> tuple[WeightPlan, np.ndarray | None, Evidence]:
    """Round the weight, whose codes are ``q``, against what was seen of the layer's input (see :func:`input_rows`).

    And the mean error that is left, float32 [channels], where the bias is written anew and can take it.
    """
    info = a.layer.weights[0]
    exact, rounded = inputs
    matrix = torch.from_numpy(plan.values).movedim(info.channel_axis, 0)
    groups, _, columns = exact.shape
    rows = matrix.reshape(groups, -1, columns)
    silent = _silent(exact, a.layer)
    if q.codebook is not None:

        def output_error(found: QTensor) -> float:
            levels = found.dequantize().movedim(info.channel_axis, 0).reshape(rows.shape)
            return float((exact @ (levels - rows).transpose(1, 2)).square().sum())

        energy = _per_element(exact.square().mean(dim=1), a.layer)
        weighted = with_weighted_codebook(q, torch.from_numpy(plan.values), energy)
        best = min(weighted, q, key=output_error)  # off the diagonal, it may lose
        return replace(plan, codes=best), None, Evidence(silent=silent)
    if q.scale is None:
        return plan, None, Evidence(silent=silent)
    layout = q.layout
    one_each = layout.spread(q.scale).expand(layout.channels, layout.groups, layout.length)
    steps = one_each.reshape(len(matrix), -1).reshape(rows.shape)
    noise = 0.0 if activation is None else activation.scale**2 / 12
    centered = activation is not None and a.layer.bias is not None
    codes = q.codes.movedim(info.channel_axis, 0).reshape(rows.shape).float()
    widest = SEARCHED_COLUMNS if q.qtype.bits >= 8 else MAX_COLUMNS
    evidence = Evidence(f"more than {widest:,} inputs take too long in {q.qtype.bits} bits", silent=silent)
    if columns <= widest:
        seen = [equal_rows(x) for x in exact] if a.layer.kind == "linear" else list(exact)
        assert a.weights is not None
        low, high = code_limits(a.weights, target, narrow)
        assert low is not None and high is not None
        floor = FLOOR
        if columns <= SEARCHED_COLUMNS:
            floor = find_floor(rows[0], seen[0], steps[0], (low, high), noise, centered)
        moments = [second_moment(x, centered) for x in seen]
        short = any(
            undetermined(moment + torch.outer(x.mean(dim=0), x.mean(dim=0)) if centered else moment)
            for x, moment in zip(seen, moments, strict=True)
        )
        codes = torch.stack(
            [
                round_with_compensation(row, damped(moment, noise, floor), step, low, high)
                for row, moment, step in zip(rows, moments, steps, strict=True)
            ]
        )
        evidence = Evidence(damped=short, silent=silent)
    if a.layer.kind == "linear":
        rounded = exact  # what clipping takes from a few large tokens must not be given to all
    left = exact @ rows.transpose(1, 2) - rounded @ (codes * steps).transpose(1, 2)
    shaped = codes.reshape(matrix.shape).movedim(0, info.channel_axis).to(q.codes.dtype).contiguous()
    return replace(plan, codes=replace(q, codes=shaped)), left.mean(dim=1).reshape(-1).numpy(), evidence


def _silent(inputs: torch.Tensor, layer: LayerInfo) -> int:
    """How many of a layer's inputs, float32 [groups, n, columns], are zero in every row."""
    taps = prod(layer.weights[0].shape[2:]) if layer.kind == "conv" else 1
    spoken = inputs.any(dim=1).reshape(len(inputs), -1, taps).any(dim=2)
    return int((~spoken).sum())


def _per_element(columns: torch.Tensor, layer: LayerInfo) -> torch.Tensor:
    """What is known of each column of a layer's products, float32 [groups, columns], in the shape of its weight."""
    info = layer.weights[0]
    channels = info.shape[info.channel_axis]
    rest = [size for axis, size in enumerate(info.shape) if axis != info.channel_axis]
    each = columns.repeat_interleave(channels // len(columns), dim=0)
    return each.reshape(channels, *rest).movedim(0, info.channel_axis)


def input_rows(
    layer: LayerInfo, activation: ActivationPlan | None, divisor: np.ndarray | None, stats: Stats
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What the weight is multiplied with, float32 [groups, n, columns]: as it is, and as it is after quantization."""
    source = next(iter(layer.inputs), None)  # a table may be looked up at constant places
    if source is None or source not in stats.tensors:
        return None
    seen = stats[source]
    if seen.examples is None or not seen.finite:
        return None
    x = torch.from_numpy(seen.examples)
    if divisor is not None:
        x = x / torch.from_numpy(divisor)
    quantized = x if activation is None else _as_codes(x, activation)
    if layer.kind == "linear":
        return x[None], quantized[None]
    if layer.geometry is None:
        return None
    if layer.geometry.channels_last:
        x, quantized = x.movedim(-1, 1), quantized.movedim(-1, 1)
    kernel = layer.weights[0].shape[2:]
    exact, rounded = (patches(one, kernel, layer.geometry) for one in (x, quantized))
    return None if exact is None or rounded is None else (exact, rounded)


def _as_codes(x: torch.Tensor, activation: ActivationPlan) -> torch.Tensor:
    levels = 1 << find(activation.qtype).bits
    lowest = -(activation.zero_point - find(activation.qtype).qmin) * activation.scale
    return fake_quantize(x, lowest, lowest + (levels - 1) * activation.scale, levels)


def with_bias(
    layer: LayerInfo, plan: WeightPlan, values: np.ndarray, activation: ActivationPlan, target: Target
) -> tuple[WeightPlan, BiasPlan | None]:
    """How a static layer's bias, float32 [channels], is represented, and its weight with room for that.

    It becomes int32 codes with the scale of the layer's products where the layer adds it itself, that scale is a
    normal number, and the codes fit. None where it stays as it is.
    """
    bias = _bias(layer, plan, values, activation, target)
    if bias is not None and bias.scale is None and layer.op != "MatMul":
        plan = _with_room(plan, layer.weights[0], bias, activation)
        if target.codes_throughout:
            bias = _bias(layer, plan, values, activation, target)
    return plan, bias


def _bias(
    layer: LayerInfo, plan: WeightPlan, values: np.ndarray, activation: ActivationPlan, target: Target
) -> BiasPlan | None:
    assert layer.bias is not None and plan.codes is not None and plan.codes.scale is not None
    scale = np.float32(activation.scale) * plan.codes.scale.numpy()
    if target.codes_throughout and not scale.ndim:
        scale = np.full(values.shape, scale)
    if values.shape != scale.shape:
        return None
    codes = np.abs(values / np.maximum(scale, SMALLEST_SCALE))
    exact = layer.op != "MatMul" and (scale >= SMALLEST_SCALE).all() and (codes < LARGEST_CODE).all()
    return BiasPlan(layer.bias, values.astype(np.float32), scale if exact else None)


def _with_room(plan: WeightPlan, info: WeightInfo, bias: BiasPlan, activation: ActivationPlan) -> WeightPlan:
    """Larger steps for channels with next to no weights, so that their products' scale can hold their bias.

    ONNX Runtime brings a float bias to int32 by itself, in that scale, whether it fits or not.
    """
    q = plan.codes
    assert q is not None and q.scale is not None
    needed = np.maximum(np.abs(bias.values) / (LARGEST_CODE // 2), 2 * SMALLEST_SCALE) / activation.scale
    scale = torch.maximum(q.scale, torch.from_numpy(needed.astype(np.float32)))
    shape = [1] * q.codes.dim()
    shape[info.channel_axis] = -1
    fresh = (torch.from_numpy(plan.values) / scale.reshape(shape)).round().clamp(q.qtype.qmin, q.qtype.qmax)
    if q.qtype.kind == "binary":
        fresh = q.codes  # there is no code for next to nothing
    kept = (scale == q.scale).reshape(shape)
    return replace(
        plan, codes=replace(q, scale=scale, codes=torch.where(kept, q.codes, fresh.to(q.codes.dtype)))
    )


def _quantize(
    values: torch.Tensor, scheme: Scheme, info: WeightInfo, target: Target, narrow: bool
) -> QTensor:
    low, high = code_limits(scheme, target, narrow) if find(scheme.qtype).kind == "int" else (None, None)
    return round_weight(values, scheme, info.channel_axis, info.name, qmin=low, qmax=high)


def code_limits(scheme: Scheme, target: Target, narrow: bool) -> tuple[int | None, int | None]:
    """The lowest and the highest code of a weight; None where codes are no multiples of a step.

    Symmetric codes mirror, but below 8 bits the lowest one counts too much to be left out.
    ``narrow``: no two products of 8-bit codes with activations may add up to more than 16 bits hold.
    """
    row = find(scheme.qtype)
    if row.kind in ("ternary", "binary"):
        return row.qmin, row.qmax
    if row.kind != "int":
        return None, None
    if narrow and scheme.qtype == "int8":
        return -SAFE_CODE, SAFE_CODE
    mirrored = scheme.symmetric and (row.bits >= 8 or target.codes_throughout)
    return row.qmin + int(mirrored), row.qmax


def _levels(scheme: Scheme) -> int:
    return 1 << find(scheme.qtype).bits
