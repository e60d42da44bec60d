"""Which kind of quantization covers which layer: a table made of what the code goes by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fewbits.modules.functional import FUNCTIONS, Call
from fewbits.modules.kinds import KINDS, Kind

COVERED = "yes"
NO_WEIGHT = "it has no weight"
TWO_ACTIVATIONS = "products of two activations stay in float"
FEW = "of one axis: a few bytes, and what they scale is in float"


@dataclass(frozen=True)
class Coverage:
    """One layer or call; each field None where that kind covers it, else the reason.

    Attributes:
        layer: its class, or the function.
        weight_only: its weights become codes.
        dynamic: codes are multiplied with activations that are quantized as they come.
        static: they are multiplied with activations whose ranges are known in advance.
    """

    layer: str
    weight_only: str | None = None
    dynamic: str | None = None
    static: str | None = None


def coverage() -> Iterator[Coverage]:
    """All rows: layers, calls with parameters of a module's own, and what stays in float."""
    calls = dict.fromkeys(call for _, call in FUNCTIONS.values())
    kinds: tuple[Kind | Call, ...] = (*KINDS, *calls)
    for kind in kinds:
        yield Coverage(_name(kind), None, kind.not_dynamic, kind.not_static)
    for name in ("scaled_dot_product_attention", "matmul of two activations"):
        yield Coverage(name, NO_WEIGHT, TWO_ACTIVATIONS, TWO_ACTIVATIONS)
    yield Coverage("LayerNorm, BatchNorm, biases", FEW, FEW, FEW)


def markdown() -> str:
    """The table as it stands in the documentation."""
    lines = ["| layer or call | weight-only | dynamic | static |", "|---|---|---|---|"]
    for row in coverage():
        cells = (f"`{row.layer}`", *(why or COVERED for why in (row.weight_only, row.dynamic, row.static)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _name(kind: Kind | Call) -> str:
    return f"functional.{kind.op}" if isinstance(kind, Call) else kind.op
