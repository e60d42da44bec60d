"""What becomes of every tensor of a checkpoint: kept, cast or quantized; decided before a weight is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbits.errors import InputError
from fewbits.models.checkpoint.folder import Checkpoint, some
from fewbits.models.checkpoint.form import ROWS, Form, Held, Part
from fewbits.models.checkpoint.layers import Layers
from fewbits.models.checkpoint.stored import DTYPES, FLOATS, Entry, Shard
from fewbits.numerics import find
from fewbits.planning.model_info import LayerInfo
from fewbits.planning.recipe import Assignment
from fewbits.planning.scheme import Scheme

SLICE = 1 << 22
"""Elements worked on at a time: some MB. A slice costs 1 to 2 ms however small it is."""

CASTS = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}


@dataclass(frozen=True)
class Slice:
    """Rows of a tensor that are worked on at a time."""

    start: int
    stop: int


@dataclass(frozen=True)
class TensorPlan:
    """One stored tensor.

    Attributes:
        source: the file it lies in, and ``entry``: where.
        target: the file it goes to, relative to the directory.
        parts: what it is stored as; its first part tells of a tensor that is kept or cast.
        layer: the layer that it is the weight of, if of any; its weight has the name it is stored under.
        scheme: how it is quantized; None where it is kept or cast.
        why: for the weight of a layer that stays in float: the reason.
        names: all names that it has in the model.
    """

    source: Path
    entry: Entry
    target: Path
    parts: tuple[Part, ...]
    layer: LayerInfo | None = None
    scheme: Scheme | None = None
    why: str | None = None
    names: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes it will take."""
        return sum(part.nbytes for part in self.parts)

    @property
    def cast(self) -> bool:
        """Whether it changes its dtype, without a scale."""
        return self.scheme is None and self.parts[0].dtype != self.entry.dtype

    def slices(self) -> Iterator[Slice]:
        """Its rows in turn; all at once where they share something."""
        rows = self.rows
        step = rows
        together = self.scheme is not None and (
            self.scheme.per == "tensor" or self._across or find(self.scheme.qtype).tensor_scale
        )
        if rows and not together:
            columns = max(1, math.prod(self.entry.shape) // rows)
            step = max(ROWS, SLICE // columns // ROWS * ROWS)
        for start in range(0, rows, max(1, step)):
            yield Slice(start, min(start + step, rows))

    @property
    def rows(self) -> int:
        """Its first axis; 1 where it has none."""
        return self.entry.shape[0] if self.entry.shape else 1

    @property
    def held(self) -> Held:
        """What a file's header is told of it."""
        assert self.layer is not None and self.scheme is not None
        return Held(self.names, self.layer.weights[0], self.entry.dtype, self.scheme)

    @property
    def _across(self) -> bool:
        return self.layer is not None and self.layer.weights[0].channel_axis != 0


@dataclass(frozen=True)
class CheckpointPlan:
    """A whole directory.

    Attributes:
        recipe: by name.
        form: the format of quantized weights; None where there are none.
        tensors: in the order they are read.
        dropped: tied tensors that are stored once, by name, with the name they are stored under.
        config: ``config.json`` as it will be.
        notes: what a user should know of the decisions.
    """

    recipe: str
    form: Form | None
    tensors: tuple[TensorPlan, ...]
    dropped: Mapping[str, str]
    config: Mapping[str, Any]
    notes: tuple[str, ...]


def plan_tensors(
    checkpoint: Checkpoint,
    layers: Layers,
    assigned: Iterable[Assignment],
    form: Form | None,
    reasons: Mapping[str, str],
    dropped: Mapping[str, str],
) -> tuple[TensorPlan, ...]:
    """Every tensor's part in the plan.

    Args:
        checkpoint: what there is.
        layers: what its tensors are.
        assigned: what the recipe says of each layer.
        form: the format of quantized weights.
        reasons: layers by name that the format leaves in float, and why.
        dropped: tensors that are not stored.

    Raises:
        InputError: nothing would change; or a format with names of its own cannot name a tensor.
    """
    said = {a.layer.weights[0].name: a for a in assigned}
    whole = _whole_cast(said.values())
    names = _names(checkpoint, layers, form, dropped)
    plans = []
    for shard in checkpoint.shards:
        at = shard.path.relative_to(checkpoint.path)
        target = at if form is None else at.with_name(form.file(at.name))
        for entry in shard.entries:
            if entry.name not in dropped:
                assignment = said.get(entry.name)
                plans.append(
                    _tensor(shard, entry, target, names[entry.name], assignment, form, reasons, whole)
                )
    if not any(plan.scheme is not None or plan.cast for plan in plans):
        raise InputError(_nothing_done(checkpoint, plans))
    return tuple(plans)


def _names(
    checkpoint: Checkpoint, layers: Layers, form: Form | None, dropped: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """All names of every tensor, the first that which it is stored under."""
    apart = {one for pair in layers.tied.items() if pair[0] not in dropped for one in pair}
    if form is None or not form.own_names:
        return {name: (name,) for name in layers.names}
    found = {name: names[:1] if name in apart else names for name, names in layers.names.items()}
    first = [names[0] for name, names in found.items() if name not in dropped]
    if twice := [name for name, count in Counter(first).items() if count > 1]:
        raise InputError(
            f"{checkpoint.path}: stores apart what its class merges into {some(twice)}, which {form.name}' own format "
            "cannot hold; take a recipe in one scheme of integers, such as w4_g128"
        )
    return found


def _whole_cast(assigned: Iterable[Assignment]) -> str | None:
    """The dtype that all of the checkpoint's floats take: where every layer gets the same narrower float."""
    schemes = {a.weights.qtype if a.weights is not None else None for a in assigned}
    (one, *more) = schemes
    return None if more or one is None else CASTS.get(one)


def _tensor(
    shard: Shard,
    entry: Entry,
    target: Path,
    names: tuple[str, ...],
    said: Assignment | None,
    form: Form | None,
    reasons: Mapping[str, str],
    whole: str | None,
) -> TensorPlan:
    layer = None if said is None else _called(said.layer, names[0])
    scheme = None if said is None else said.weights
    why = None if layer is None else reasons.get(layer.name)
    if layer is not None and scheme is None and why is None:
        why = "the recipe keeps it in float"
    if layer is not None and scheme is not None and why is None and not scheme.is_float:
        assert form is not None
        parts = form.parts(layer.weights[0], entry.dtype, scheme)
        if sum(part.nbytes for part in parts) < entry.nbytes:
            return TensorPlan(shard.path, entry, target, parts, layer, scheme, names=names)
        why = "too small to gain anything"
    dtype = entry.dtype
    if entry.dtype in FLOATS and scheme is not None and scheme.is_float and why is None:
        dtype = _narrower(CASTS[scheme.qtype], dtype)
    elif entry.dtype in FLOATS and whole is not None:
        dtype = _narrower(whole, dtype)
    return TensorPlan(
        shard.path, entry, target, (_as_it_is(entry, names[0], dtype),), layer, None, why, names
    )


def _called(layer: LayerInfo, name: str) -> LayerInfo:
    """The layer with its weight under another name."""
    return replace(layer, weights=(replace(layer.weights[0], name=name),))


def _narrower(wanted: str, dtype: str) -> str:
    return wanted if DTYPES[wanted].itemsize < DTYPES[dtype].itemsize else dtype


def _as_it_is(entry: Entry, name: str, dtype: str) -> Part:
    rows = entry.shape[0] if entry.shape else 1
    bits = DTYPES[dtype].itemsize * 8
    return Part(name, dtype, entry.shape, math.prod(entry.shape) // max(rows, 1) * bits)


def _nothing_done(checkpoint: Checkpoint, plans: Sequence[TensorPlan]) -> str:
    whys = sorted({plan.why for plan in plans if plan.why is not None})
    why = "; ".join(whys) or "they have as few bits already"
    return f"{checkpoint.path}: this recipe changes none of its tensors ({why}); take another recipe"


def new_config(config: Mapping[str, Any], plans: Sequence[TensorPlan], form: Form | None) -> dict[str, Any]:
    """``config.json`` with what tells how to load the new weights."""
    layers = [(plan.layer, plan.scheme) for plan in plans if plan.layer is not None]
    if any(plan.scheme is not None for plan in plans):
        assert form is not None
        widest = _widest(plan.entry.dtype for plan in plans)
        # Left to itself transformers takes the dtype of the first tensor, which may be codes.
        named = config if _says_dtype(config) else _with_dtype(config, widest)
        return {**named, **form.config(layers)}
    return _with_dtype(config, _widest(plan.parts[0].dtype for plan in plans))


def _widest(dtypes: Iterable[str]) -> str:
    """The widest float, by torch's name: narrower ones can be brought to it without rounding."""
    widest = max((dtype for dtype in dtypes if dtype in FLOATS), key=lambda dtype: DTYPES[dtype].itemsize)
    return str(DTYPES[widest]).removeprefix("torch.")


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config, and those within it, with the dtype that their weights have now."""
    made = {
        key: _with_dtype(value, dtype) if isinstance(value, dict) and _says_dtype(value) else value
        for key, value in config.items()
    }
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    return made | dict.fromkeys(keys, dtype)


def _says_dtype(config: Mapping[str, Any]) -> bool:
    return "dtype" in config or "torch_dtype" in config
