"""What is in a model, and what fewer bits could give; engines read it, nothing is run and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.advice import AIMS, Advice, Aim, Technique, Unsuited, advise, unsuited
from fewbits.candidates import drafts
from fewbits.engines.cpu import Cpu, cpu
from fewbits.engines.engine import Engine, available
from fewbits.errors import EngineError, InputError
from fewbits.facts import INT8, Facts, gather
from fewbits.models.model import Model, open_model
from fewbits.numerics import find, packed_size
from fewbits.planning.model_info import LayerInfo, TensorInfo, WeightInfo
from fewbits.planning.recipe import PRESETS, Assignment, Recipe, ResolvedRecipe, assign
from fewbits.planning.scheme import Scheme
from fewbits.planning.target import Target
from fewbits.report import words
from fewbits.report.record import Count, MaybeCount, Number, Record
from fewbits.tables import plain_table, short

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FLOAT_BYTES, HALF_BYTES = 4, 2
NARROWEST = 4  # bits of a code in a file that engines read; what has fewer lies in as many
FEW_BITS = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "float8e4m3fn", "float8e5m2", "float4e2m1")
SHOWN_LAYERS = 20
SHOWN_OPERATORS = 16
SHOWN_REASON = 140  # characters


class Port(Record):
    """An input or output: name, NumPy dtype, and shape with dynamic axes by name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class LayerReport(Record):
    """The weights of one layer, as the folded model holds them.

    Attributes:
        shape: of the layer's first weight.
        bytes: of its weights in float32.
        minimum, maximum: of its weights.
        abs_mean: mean magnitude.
        outlier_ratio: the largest magnitude over the mean one; where it is large, few outliers set the step of
            everything that shares a scale with them. None where all weights are zero.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    params: Count
    bytes: Count
    minimum: Number
    maximum: Number
    abs_mean: Number
    outlier_ratio: Number


class Gain(Record):
    """What installed engines gain by a recipe on this CPU, in words."""

    engines: tuple[str, ...]
    what: str


class CouldGive(Record):
    """What one preset would make of the file.

    Attributes:
        size_bytes: by the arithmetic of codes and scales, without the operators that are added; None where the
            preset does not fit the model.
        size_ratio: over the file's size.
        needs: what the user has to give.
        gains: which engines gain what.
        why_not: why the preset does not fit the model, or is not worth trying.
    """

    recipe: str
    description: str
    size_bytes: MaybeCount
    size_ratio: Number
    needs_data: bool
    needs: str
    gains: tuple[Gain, ...] = ()
    why_not: str | None = None


class Inspection(Record):
    """What :func:`inspect` found.

    Attributes:
        size_bytes: of the file and its external data.
        operators: how often each occurs once constants are folded, the most frequent first.
        bytes_by_dtype: of the file's constants, by ONNX's name in lower case.
        layers: those with weights in float, in the order of the graph.
        share_in_layers: of ``size_bytes`` that lies in their weights.
        few_bits_bytes: of constants that have 8 bits or fewer already.
        cpu: this machine's CPU and what it has for few-bit arithmetic.
        could_give: for each preset, what the file would weigh.
        facts: what advice follows from.
        advice: what suits each aim.
        unsuited: the presets that have little to work on.
        cannot_read: the installed engines that refuse the file, and why.
    """

    path: str
    format: str
    opset: MaybeCount
    params: Count
    size_bytes: Count
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: dict[str, Count]
    bytes_by_dtype: dict[str, Count]
    layers: tuple[LayerReport, ...]
    share_in_layers: Number
    few_bits_bytes: Count
    cpu: str
    could_give: tuple[CouldGive, ...]
    facts: Facts
    advice: tuple[Advice, ...]
    unsuited: tuple[Unsuited, ...]
    cannot_read: dict[str, str]

    def to_json(self, indent: int | None = 2) -> str:
        """The record as JSON text without NaN or infinity."""
        return self.model_dump_json(indent=indent)

    def show(self, console: Console) -> None:
        """Print it; of many layers only those with the most bytes."""
        from rich.text import Text

        def line(text: str, style: str = "") -> None:
            console.print(Text(text, style=style))

        opset = "" if self.opset is None else f" opset {self.opset}"
        line(self.path, "bold")
        line(f"{self.format}{opset}, {words.count(self.params)} parameters, {words.size(self.size_bytes)}")
        for what, ports in (("in ", self.inputs), ("out", self.outputs)):
            for port in ports:
                line(f"  {what}  {port.name} {port.dtype}[{', '.join(map(str, port.shape))}]")
        line(f"operators: {_operators(self.operators)}")
        total = sum(self.bytes_by_dtype.values()) or 1
        kinds = ", ".join(
            f"{k} {words.size(v)} ({words.share(v / total)})" for k, v in self.bytes_by_dtype.items()
        )
        line(f"constants: {kinds or 'none'}")
        share = words.share(self.share_in_layers)
        line(f"{len(self.layers)} layers with weights in float hold {share} of the file")
        if self.few_bits_bytes:
            few = words.size(self.few_bits_bytes)
            line(f"{few} of its constants have 8 bits or fewer already", "yellow")
        if self.layers:
            largest = sorted(self.layers, key=lambda layer: -layer.bytes)
            console.print(_layer_table(largest[:SHOWN_LAYERS], console.width))
            if len(largest) > SHOWN_LAYERS:
                rest = sum(layer.bytes for layer in largest[SHOWN_LAYERS:])
                line(
                    f"and {len(largest) - SHOWN_LAYERS} more with {words.size(rest)} (--json lists all)\n",
                    "dim",
                )
        line("What fewer bits could give, by arithmetic (fewbits compress measures it):", "bold")
        console.print(_could_give_table(self.could_give))
        line(self.cpu, "dim")
        for engine, why in self.cannot_read.items():
            line(f"{engine} is out: {why}", "yellow")
        if self.advice:
            line("\nWhat suits it here, as far as that can be told without running it:", "bold")
            console.print(_advice_table(self.advice))
        for other in self.unsuited:
            line(f"not {other.recipe}: {_cut(other.why)}", "dim")


def inspect(model_path: str | Path, prefer: Aim | None = None) -> Inspection:
    """Look into a model: operators, layers, bytes per dtype, ranges, what each preset could give, and what suits it.

    Args:
        model_path: the file.
        prefer: advise on this aim only: ``speed``, ``size`` or ``quality``.

    Raises:
        InputError: a missing, unreadable or unsupported file; NaN or Inf in a weight; an aim that does not exist.
    """
    if prefer is not None and prefer not in AIMS:
        raise InputError(f"prefer is {prefer!r}; allowed are {', '.join(AIMS)}")
    model = open_model(Path(model_path))
    info, machine = model.info, cpu()
    by_dtype = dict(model.bytes_by_dtype())
    layers = tuple(layer for layer in info.layers if layer.weights)
    stored = _stored(layers, by_dtype)
    few = sum(size for dtype, size in by_dtype.items() if dtype in FEW_BITS)
    reports = tuple(_layer(model, layer) for layer in layers)
    engines, cannot_read = _readers(model)
    could_give = _could_give(model, max(0, model.size_bytes - stored), few > stored, engines, machine)
    facts = gather(model, stored, _largest(reports), machine)
    sizes = {one.recipe: one.size_ratio for one in could_give if one.size_ratio and not one.why_not}
    advice = advise(info, facts, sizes, engines, machine)
    return Inspection(
        path=str(model_path),
        format=model.format,
        opset=model.opset,
        params=model.params,
        size_bytes=model.size_bytes,
        inputs=tuple(map(_port, info.inputs)),
        outputs=tuple(map(_port, info.outputs)),
        operators=dict(model.operators()),
        bytes_by_dtype=by_dtype,
        layers=reports,
        share_in_layers=stored / model.size_bytes,
        few_bits_bytes=few,
        cpu=machine.describe(),
        could_give=could_give,
        facts=facts,
        advice=tuple(one for one in advice if prefer in (None, one.aim)),
        cannot_read=cannot_read,
        unsuited=unsuited(info, facts, engines, machine),
    )


def _readers(model: Model) -> tuple[dict[str, Engine], dict[str, str]]:
    """The installed engines that can read the file, and why the others cannot."""
    found, errors = available(model.format), {}
    for name, engine in list(found.items()):
        try:
            engine.check(model.path)
        except EngineError as error:
            del found[name]
            errors[name] = str(error)
    return found, errors


def _largest(layers: Iterable[LayerReport]) -> float | None:
    """The largest magnitude of all weights."""
    ends = [abs(end) for layer in layers for end in (layer.minimum, layer.maximum) if end is not None]
    return max(ends, default=None)


def _port(info: TensorInfo) -> Port:
    return Port(name=info.name, dtype=info.dtype, shape=info.shape)


def _layer(model: Model, layer: LayerInfo) -> LayerReport:
    arrays = [array for weight in layer.weights if (array := model.weight(weight.name)).size]
    magnitude = sum(float(np.abs(array).sum(dtype=np.float64)) for array in arrays) / max(1, layer.params)
    low = min((float(array.min()) for array in arrays), default=math.nan)
    high = max((float(array.max()) for array in arrays), default=math.nan)
    return LayerReport(
        name=layer.name,
        op=layer.op,
        shape=layer.weights[0].shape,
        params=layer.params,
        bytes=FLOAT_BYTES * layer.params,
        minimum=low,
        maximum=high,
        abs_mean=magnitude,
        outlier_ratio=max(-low, high) / magnitude if magnitude else None,
    )


def _distinct(layers: Iterable[LayerInfo]) -> dict[str, WeightInfo]:
    """Weights by name: one that several layers share lies in the file once."""
    return {weight.name: weight for layer in layers for weight in layer.weights}


def _stored(layers: Sequence[LayerInfo], by_dtype: dict[str, int]) -> int:
    """Bytes that the layers' weights take in the file as it is.

    Folding turns weights that are stored in 16 bits with a Cast into float32: what the file's float32 constants
    cannot hold of them is counted at half, as far as its 16-bit constants reach.
    """
    wide = FLOAT_BYTES * sum(weight.params for weight in _distinct(layers).values())
    halves = by_dtype.get("float16", 0) + by_dtype.get("bfloat16", 0)
    widened = min(max(0, wide - by_dtype.get("float", 0)), 2 * halves)
    return wide - widened // 2


def _could_give(
    model: Model, rest: int, packed: bool, engines: Mapping[str, Engine], machine: Cpu
) -> tuple[CouldGive, ...]:
    """``rest`` is what the file weighs without its layers' weights; ``packed``: most have few bits already."""
    recipes = tuple(ResolvedRecipe(recipe) for recipe in PRESETS.values())
    worth, _ = drafts(recipes, model.info, engines, machine, has_data=True)
    found = []
    for recipe in PRESETS.values():
        size = why_not = None
        gains: dict[str, list[str]] = {}
        try:
            assigned = assign(recipe, model.info)
        except InputError as error:
            why_not = str(error).removeprefix(f"recipe {recipe.name!r}: ")
        else:
            size = rest + _weights_bytes(assigned)
            why_not = "most of its weights have 8 bits or fewer already" if packed else None
            for draft in worth:
                if draft.recipe.name == recipe.name and not packed:
                    gainers = gains.setdefault(_gain(recipe, assigned, draft.target, machine), [])
                    if draft.target.engine not in gainers:
                        gainers.append(draft.target.engine)
            if not gains and not packed:
                why_not = _refused(recipe, model, engines, machine)
        found.append(
            CouldGive(
                recipe=recipe.name,
                description=recipe.description,
                size_bytes=size,
                size_ratio=None if size is None else size / model.size_bytes,
                needs_data=recipe.needs_data,
                needs=_needs(recipe),
                gains=tuple(Gain(engines=tuple(names), what=what) for what, names in gains.items()),
                why_not=why_not,
            )
        )
    return tuple(found)


def _refused(recipe: Recipe, model: Model, engines: Mapping[str, Engine], machine: Cpu) -> str | None:
    """Why none of the engines runs a recipe; None where one does, and only gains nothing by it."""
    try:
        drafts((ResolvedRecipe(recipe),), model.info, engines, machine, has_data=True)
    except InputError as error:
        return str(error).removeprefix(f"recipe {recipe.name!r}: ")
    return None


def _needs(recipe: Recipe) -> str:
    if recipe.needs_data:
        return "needs calibration data (--data FILE)"
    return "needs no data, closer with some" if recipe.uses_data else "needs no data"


def _weights_bytes(assigned: Sequence[Assignment]) -> int:
    """Bytes of all layers' weights as a recipe has them; a layer that would not shrink stays in float."""
    sizes: dict[str, int] = {}
    for a in assigned:
        plain = {weight.name: FLOAT_BYTES * weight.params for weight in a.layer.weights}
        scheme = a.weights
        if scheme is not None:
            coded = {weight.name: stored_bytes(weight, scheme) for weight in a.layer.weights}
            if scheme.is_float or all(coded[name] < plain[name] for name in coded):
                sizes.update(coded)
                continue
        sizes.update(plain)
    return sum(sizes.values())


def stored_bytes(weight: WeightInfo, scheme: Scheme) -> int:
    """Bytes of a weight's codes in an engine's file, with their scales and zero points, or of its narrower floats."""
    bits = max(find(scheme.qtype).bits, NARROWEST)
    codes = packed_size(weight.params, bits)
    if scheme.is_float:
        return codes
    channels = 1 if scheme.per == "tensor" else weight.shape[weight.channel_axis]
    groups = 1 if scheme.group_size is None else weight.params // channels // scheme.group_size
    zero_points = 0 if scheme.symmetric else packed_size(channels * groups, bits)
    return codes + FLOAT_BYTES * channels * groups + zero_points


def _gain(recipe: Recipe, assigned: Sequence[Assignment], target: Target, machine: Cpu) -> str:
    """What an engine gains on this CPU, as its capability table says."""
    if any(a.activations is not None and find(a.activations.qtype).bits < 8 for a in assigned):
        return "smaller; activations of fewer than 8 bits are brought back to float, so not faster"
    if any(a.activations is not None for a in assigned):
        what = "smaller, and faster"
        if not recipe.needs_data:
            ops = [
                a.layer.op for a in assigned if a.activations is not None and target.takes_dynamic(a.layer.op)
            ]
            which = dict.fromkeys("LSTM" if op == "LSTM" else "linear layers" for op in ops)
            what = f"smaller; {' and '.join(which)} faster"
        have = [word for name, word in INT8.items() if name in machine.isa]
        if have:
            return f"{what} by {' and '.join(have)}"
        if target.saturates:
            return "smaller; int8 products without VNNI, for which weights get 7 bits"
        return "smaller; this CPU has no instructions for int8 products"
    packed = unpacked = 0
    for a in assigned:
        if a.weights is not None and a.layer.kind != "embedding":
            stays = a.layer.kind == "linear" and target.stays_packed(a.weights)
            packed, unpacked = packed + stays * a.layer.params, unpacked + (not stays) * a.layer.params
    if packed <= unpacked:
        return "a smaller file, unpacked at load, so not faster"
    what = "smaller in file and memory; faster where few rows meet large matrices"
    return f"{what}, or it may round activations to int8" if target.rounds_activations else what


def _operators(operators: dict[str, int]) -> str:
    shown = [f"{number} {op}" for op, number in list(operators.items())[:SHOWN_OPERATORS]]
    more = len(operators) - len(shown)
    return ", ".join(shown) + (f", and {more} kinds more" if more > 0 else "")


def _layer_table(layers: Sequence[LayerReport], width: int) -> Table:
    from rich.text import Text

    rows = [
        (
            layer.op,
            "x".join(map(str, layer.shape)),
            words.count(layer.params),
            words.size(layer.bytes),
            *(short(value) for value in (layer.minimum, layer.maximum, layer.abs_mean)),
            words.NOTHING if layer.outlier_ratio is None else f"{layer.outlier_ratio:.0f}",
        )
        for layer in layers
    ]
    heads = ("op", "shape", "params", "bytes", "min", "max", "mean |w|", "max/mean")
    taken = sum(max(len(text) for text in column) + 2 for column in zip(heads, *rows, strict=True))
    table = plain_table(("layer", "op"), heads[1:])
    for layer, row in zip(layers, rows, strict=True):
        table.add_row(*map(Text, (_tail(layer.name, max(12, width - taken - 2)), *row)))
    return table


def _tail(name: str, limit: int) -> str:
    """A name cut to ``limit`` characters from the front, since its tail tells layers apart."""
    return name if len(name) <= limit else f"\N{HORIZONTAL ELLIPSIS}{name[1 - limit :]}"


def _cut(reason: str) -> str:
    """A reason that may list every layer."""
    return reason if len(reason) <= SHOWN_REASON else f"{reason[: SHOWN_REASON - 1]}\N{HORIZONTAL ELLIPSIS}"


def _advice_table(advice: Sequence[Advice]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for one in advice:
        ways: list[tuple[str, Technique]] = [(one.aim, one.take)]
        if one.without_data is not None:
            ways.append(("without data", one.without_data))
        for lead, technique in ways:
            title = f"{technique.title}, {words.share(technique.size_ratio)} of the file"
            table.add_row(Text(lead), Text(title, style="bold"))
            for reason in technique.because:
                table.add_row("", Text(f"- {reason}"))
    return table


def _could_give_table(could_give: Sequence[CouldGive]) -> Table:
    from rich.text import Text

    table = plain_table(("recipe",), ("about", "of file"))
    table.add_column("needs", no_wrap=True)
    table.add_column("on this CPU", ratio=1)
    previous = None
    for one in could_give:
        gains = "\n".join(f"{', '.join(gain.engines)}: {gain.what}" for gain in one.gains)
        text = one.why_not or gains or "runs, but is not tried unless it is named"
        if one.why_not:
            text = _cut(one.why_not)
        cells = (
            one.recipe,
            words.size(one.size_bytes),
            words.share(one.size_ratio),
            "data" if one.needs_data else "no data",
            "the same" if text == previous else text,
        )
        table.add_row(*map(Text, cells), style="dim" if one.why_not else "")
        previous = text
    return table
