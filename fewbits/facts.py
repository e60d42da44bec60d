"""What is measured of a model and a CPU before anything is run: what advice follows from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from fewbits.engines.cpu import Cpu
from fewbits.models.model import Model
from fewbits.planning.model_info import LayerInfo, LayerKind
from fewbits.report.record import Count, MaybeCount, Number, Record

OPEN_SIZE = 128  # elements that an open axis is taken to have, where it is not that of the samples
INT8 = {"amx_int8": "AMX", "vnni": "VNNI", "i8mm": "int8 matrix products", "dotprod": "dot products"}


class Facts(Record):
    """What a model is made of, and what the CPU multiplies 8-bit codes with.

    Attributes:
        size_bytes: of the file.
        bytes_by_kind: share of the file that the weights of convolutions, linear layers and so on take.
        multiplications: of all layers, for one sample; None where a shape follows from the data.
        multiplications_by_kind: shares of them; empty where they are not known.
        open_axes: of inputs, other than that of the samples, by name; each is counted with ``open_size`` elements.
        rows: that meet a linear layer's weights for one sample: the median over these weights; None without any.
        operators: how many the model has.
        largest_weight: in magnitude; None without weights.
        int8: the CPU's instructions for products of 8-bit codes.
        adds_pairs: such products are added in pairs in 16 bits, so that weights get 7 bits.
    """

    size_bytes: Count
    bytes_by_kind: dict[str, Number]
    multiplications: MaybeCount
    multiplications_by_kind: dict[str, Number]
    open_axes: tuple[str, ...]
    open_size: Count
    rows: Number
    operators: Count
    largest_weight: Number
    int8: tuple[str, ...]
    adds_pairs: bool

    def share(self, *kinds: LayerKind) -> float:
        """Of the multiplications, by layers of those kinds; where they are not known, of the weights that multiply."""
        if self.multiplications is not None:
            return sum(self.multiplications_by_kind.get(kind) or 0.0 for kind in kinds)
        weights = {kind: share or 0.0 for kind, share in self.bytes_by_kind.items() if kind != "embedding"}
        return sum(weights.get(kind, 0.0) for kind in kinds) / (sum(weights.values()) or 1.0)


def gather(model: Model, stored: int, largest_weight: float | None, machine: Cpu) -> Facts:
    """The facts; ``stored``: bytes of the file that the weights of layers take."""
    layers = model.info.layers
    work = model.multiplications(OPEN_SIZE)
    known = {layer.name: count for layer in layers if (count := work[layer.name]) is not None}
    total = sum(known.values()) if len(known) == len(layers) else 0
    by_kind: Counter[str] = Counter()
    params: Counter[str] = Counter()
    for layer in layers:
        by_kind[layer.kind] += known.get(layer.name, 0)
    kind_of = {weight.name: (layer.kind, weight.params) for layer in layers for weight in layer.weights}
    for kind, count in kind_of.values():
        params[kind] += count
    share = stored / max(1, model.size_bytes * params.total())
    return Facts(
        size_bytes=model.size_bytes,
        bytes_by_kind={kind: share * count for kind, count in params.most_common()},
        multiplications=total or None,
        multiplications_by_kind={k: count / total for k, count in by_kind.most_common() if total and count},
        open_axes=_open_axes(model),
        open_size=OPEN_SIZE,
        rows=_rows(layers, known),
        operators=sum(model.operators().values()),
        largest_weight=largest_weight,
        int8=tuple(word for name, word in INT8.items() if name in machine.isa),
        adds_pairs=machine.adds_pairs,
    )


def _open_axes(model: Model) -> tuple[str, ...]:
    named = (axis for one in model.info.inputs for axis in one.shape[1:] if isinstance(axis, str))
    return tuple(dict.fromkeys(named))


def _rows(layers: Sequence[LayerInfo], known: Mapping[str, int]) -> float | None:
    """The median over the weights of linear layers of how many rows meet them for one sample."""
    linear = sorted(
        (known[layer.name] / layer.params, layer.params)
        for layer in layers
        if layer.kind == "linear" and layer.params and layer.name in known
    )
    half = sum(params for _, params in linear) / 2
    for rows, params in linear:
        half -= params
        if half <= 0:
            return rows
    return None
