"""Codes of a module's weights found against data: rounded so that they make up for each other's errors.

Two passes, each on the module as it is called, whatever it is made of:

1. Tables in fewer than 8 bits: gradients of the outputs tell in which directions an error of a row counts, and rows are
   rounded against their second moment. It holds for rows that no sample looks up as well.
2. Linear layers and convolutions, in the order in which they are run and a few at a time: each is rounded against what
   the quantized ones before it give (Frantar et al. 2023, "GPTQ", arXiv:2210.17323). No gradients are needed. Learned
   codebooks get more entries where an error costs more (Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fewbits.methods.codebook import with_one_codebook, with_weighted_codebook
from fewbits.methods.gptq import FLOOR, best_floor, compensated, damped
from fewbits.methods.patches import MAX_PATCHES, patches
from fewbits.modules.attention import Watch
from fewbits.modules.functional import FUNCTIONS
from fewbits.modules.running import Call, Enough, Progress, State, floats_of, precision
from fewbits.numerics import QTensor
from fewbits.numerics.codebook import midpoints
from fewbits.numerics.levels import decode_levels
from fewbits.planning.model_info import ConvGeometry

WAVES = 6  # times at least that the module is run to see what the quantized layers before give
WAVE_BYTES = 1 << 29  # of second moments are held at a time, or those of one layer
TABLES = (functional.embedding, functional.embedding_bag)
_PRODUCTS = {func: index for func, (index, call) in FUNCTIONS.items() if call.kind == "linear"}
_PRODUCTS |= dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm), 1)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d)
_GIVEN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass
class Met:
    """What was found of the data while rounding; names of weights.

    Attributes:
        fixed: their codebooks stay as they are.
        by: what function asked for each weight first, in the order of their runs.
        reached: all that anything at all was done with.
        zeros: nothing but zeros reaches them.
        broken: NaN or infinity reaches them.
        dependent: what reaches them has a second moment that is not positive definite.
        plain: they are in a format that cannot make up for errors, and are rounded to nearest.
    """

    fixed: frozenset[str] = frozenset()
    by: dict[str, Callable] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    zeros: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    dependent: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)


def compensate(
    state: State,
    few: Sequence[Call],
    narrow: bool,
    generator: torch.Generator,
    progress: Progress,
    fixed: frozenset[str] = frozenset(),
) -> Met:
    """Round the weights of a module, in place, so that it gives what it gave in float as closely as codes can.

    Args:
        state: the module with its weights rounded to nearest; their steps stay.
        few: calls that tell what meets a weight.
        narrow: run it in bfloat16.
        generator: of directions in which outputs are probed, for tables.
        progress: called with a stage, what is done of it and how much there is.
        fixed: weights whose codebooks stay as they are.
    """
    found = Met(fixed)
    _round_tables(state, found, few, narrow, generator, progress)
    _round_products(state, found, few, narrow, progress)
    return found


def share(state: State) -> list[str]:
    """One codebook for all weights that are codes of a learned one of the same format; their names."""
    kinds: dict[str, list[str]] = {}
    for name, q in state.codes.items():
        if has_book(q):
            kinds.setdefault(q.qtype.name, []).append(name)
    for names in kinds.values():
        values = [state.floats[name].float() for name in names]
        one = with_one_codebook([state.codes[name] for name in names], values, [None] * len(names))
        state.codes.update(zip(names, one, strict=True))
    return [name for names in kinds.values() for name in names]


def has_book(q: QTensor) -> bool:
    """Whether the codes are of one learned codebook of the whole tensor."""
    return q.codebook is not None and q.codebook.dim() == 1


@dataclass
class _Weights(Watch):
    """Looks at what meets weights; ``names`` of the tensors that stand for them, by id.

    Attributes:
        moments: sums of products of rows, by weight and by halves of the samples, [2, groups, k, k].
        number: of the call, of how many.
        wanted: weights whose moments are summed; behind the last of them the run ends.
        tables: rows that were looked up, as leaves with gradients; None: they are left alone.
        met: all weights that a product or a table was asked of, and by which function, in that order.
        reached: all that anything at all was done with.
    """

    names: Mapping[int, str]
    wanted: frozenset[str] = frozenset()
    moments: dict[str, Tensor] = field(default_factory=dict)
    number: tuple[int, int] = (0, 1)
    tables: list[tuple[str, Tensor]] | None = None
    met: dict[str, Callable] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def called(self, func: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name = self._name(func, args, kwargs)
        if name is None:
            if getattr(func, "__name__", "") != "__get__":  # which asks for a shape, not for numbers
                self.reached.update(self.names[id(one)] for one in args if id(one) in self.names)
            return func(*args, **kwargs)
        # A weight may be read both as it lies and turned; it is rounded for the first.
        if self.met.setdefault(name, func) is func and name in self.wanted:
            with torch._C.DisableTorchFunction(), torch.autocast("cpu", enabled=False):
                self._add(name, func, args, kwargs)
        result = func(*args, **kwargs)
        if self.tables is not None and func is functional.embedding:
            result = result.detach().requires_grad_()
            self.tables.append((name, result))
        if self.wanted and self.wanted <= self.met.keys():
            raise Enough
        return result

    def _name(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """The weight that a function is asked of."""
        place = _PRODUCTS.get(func, 1 if func in TABLES or func in _CONVOLUTIONS else None)
        if place is None:
            return None
        weight = args[place] if len(args) > place else kwargs.get("weight")
        return self.names.get(id(weight))

    def _add(self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        number, count = self.number
        if func in _PRODUCTS:
            value = args[_PRODUCTS[func] - 1] if args else kwargs["input"]
            rows = functional.normalize(value.detach().float(), dim=-1, eps=1e-15)
            _add(self.moments, name, rows, number)
        elif func in _CONVOLUTIONS:
            given = dict(zip(_GIVEN, args, strict=False)) | dict(kwargs)
            kernel = tuple(given["weight"].shape[2:])
            geometry, value = _geometry(given, kernel), given["input"].detach().float()
            samples = value if value.dim() == 2 + len(kernel) else value[None]
            for half, some in enumerate(_halves(samples, number)):
                if len(some):
                    found = patches(some, kernel, geometry)
                    assert found is not None
                    # An odd distance does not fall in step with the rows of an image.
                    some_of = found[:, :: found.shape[1] * count // MAX_PATCHES | 1]
                    _sum(self.moments, name, half, some_of)


def _geometry(given: Mapping[str, Any], kernel: Sequence[int]) -> ConvGeometry:
    """How a convolution that was called with these arguments moves over its input."""

    def each(name: str, usual: int) -> tuple[int, ...]:
        value = given.get(name, usual)
        return (
            (value,) * len(kernel) if isinstance(value, int) else tuple(value) * (len(kernel) // len(value))
        )

    dilations, padding = each("dilation", 1), given.get("padding", 0)
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]
        pads = (*(one // 2 for one in reach), *(one - one // 2 for one in reach))
    else:
        pads = (0,) * 2 * len(kernel) if padding == "valid" else each("padding", 0) * 2
    return ConvGeometry(each("stride", 1), pads, dilations, given.get("groups", 1))


def _halves(samples: Tensor, number: int) -> list[Tensor]:
    """Every other sample, first axis, and the others; of a call of one sample the half goes by its ``number``."""
    return [samples[(number + half) % 2 :: 2] for half in (0, 1)]


def _add(moments: dict[str, Tensor], name: str, rows: Tensor, number: int) -> None:
    """Count rows, float32 [samples, ..., k], by halves of the samples."""
    for half, some in enumerate(_halves(torch.atleast_2d(rows), number)):
        _sum(moments, name, half, some.reshape(1, -1, rows.shape[-1]))


def _sum(moments: dict[str, Tensor], name: str, half: int, rows: Tensor) -> None:
    """Add rows, float32 [groups, n, k], to one half."""
    if name not in moments:
        groups, _, k = rows.shape
        moments[name] = rows.new_zeros(2, groups, k, k)
    moments[name][half] += rows.mT @ rows


def _round_tables(
    state: State,
    found: Met,
    few: Sequence[Call],
    narrow: bool,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Rows of tables, by what an error of theirs does to the outputs; and which weights are met, in their order."""
    moments: dict[str, Tensor] = {}
    names = {id(value): name for name, value in state.now.items()}
    for number, call in enumerate(few):
        progress("tables", number, len(few))
        watch = _Weights(names)
        with torch.no_grad(), precision(narrow), watch:
            state.run(call, state.now)
        found.by.update((name, func) for name, func in watch.met.items() if name not in found.by)
        found.reached |= watch.reached
    coarse = {
        name
        for name, func in found.by.items()
        if func is functional.embedding and state.codes[name].qtype.bits < 8
    }
    for number, call in enumerate(few if coarse else ()):
        progress("tables", number, len(few))
        watch = _Weights({key: name for key, name in names.items() if name in coarse}, tables=[])
        with torch.enable_grad():
            with precision(narrow), watch:
                outputs = floats_of(state.run(call, state.now))
            assert watch.tables is not None
            for name, gradient in _gradients(outputs, watch.tables, generator):
                _add(moments, name, gradient.float(), number)
    for name in state.codes:
        if name in moments:
            _round(state, found, name, moments[name])
        elif name not in found.by or found.by[name] in TABLES:
            state.settle(name, state.codes[name])


def _gradients(
    outputs: Sequence[Tensor], tables: Sequence[tuple[str, Tensor]], generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Of a random direction in the outputs, for rows that were looked up."""
    outputs = [one for one in outputs if one.requires_grad]
    if not tables or not outputs:
        return
    total = torch.stack(
        [(one * torch.randn(one.shape, generator=generator).to(one.device)).sum() for one in outputs]
    ).sum()
    gradients = torch.autograd.grad(total, [rows for _, rows in tables], allow_unused=True)
    for (name, _), gradient in zip(tables, gradients, strict=True):
        if gradient is not None:
            yield name, gradient


def _round_products(state: State, found: Met, few: Sequence[Call], narrow: bool, progress: Progress) -> None:
    """Weights of linear layers and convolutions, in waves, each by what meets it in the module as it is by then."""
    names = [name for name, func in found.by.items() if func not in TABLES]
    done = 0
    for wave in _waves(state, names):
        progress("rounding", done, len(names))
        done += len(wave)
        moments: dict[str, Tensor] = {}
        for number, call in enumerate(few):
            now = {id(value): name for name, value in state.now.items()}
            watch = _Weights(now, frozenset(wave), moments, (number, len(few)))
            with suppress(Enough), torch.no_grad(), precision(narrow), watch:
                state.run(call, state.now)
        for name in wave:
            if name in moments:
                _round(state, found, name, moments.pop(name))


def _waves(state: State, names: Sequence[str]) -> Iterator[list[str]]:
    """Names in their order, a few at a time: no more than a share of them, and than memory is allowed for."""
    most = -(-len(names) // WAVES)
    wave: list[str] = []
    held = 0
    for name in names:
        shape, axis = state.infos[name].shape, state.infos[name].channel_axis
        needed = 8 * (state.floats[name].numel() // shape[axis]) ** 2
        if wave and (len(wave) == most or held + needed > WAVE_BYTES):
            yield wave
            wave, held = [], 0
        wave.append(name)
        held += needed
    if wave:
        yield wave


@dataclass(frozen=True)
class _Grid:
    """The levels of a format, in steps: the nearest of some numbers, and the codes of levels."""

    nearest: Callable[[Tensor], Tensor]
    codes: Callable[[Tensor], Tensor]


def _grid_of(q: QTensor) -> _Grid | None:
    """None where levels are not the same for all of the codes: with zero points, in narrow floats."""
    row = q.qtype
    if q.zero_point is not None or q.free_zero_point is not None or q.tensor_scale is not None:
        return None
    if row.kind in ("int", "ternary"):
        # Symmetric codes mirror, but below 8 bits the lowest one counts too much to be left out.
        low = row.qmin + int(row.kind == "int" and row.bits >= 8)
        return _Grid(lambda places: places.round_().clamp_(low, row.qmax), lambda levels: levels)
    if q.codebook is not None:
        if not has_book(q):
            return None
        levels = q.codebook
    elif row.levels is not None:
        levels = decode_levels(torch.arange(len(row.levels), device=q.codes.device), row)
    else:
        return None
    middles = midpoints(levels)
    return _Grid(
        lambda places: levels[torch.bucketize(places, middles, out_int32=True)],
        lambda some: torch.searchsorted(levels, some).add_(row.qmin),
    )


def _round(state: State, found: Met, name: str, halves: Tensor) -> None:
    """One weight by what meets its columns, float32 [2, groups, k, k] by halves of the samples; or to nearest."""
    q, moment = state.codes[name], halves.sum(dim=0)
    energy = moment.diagonal(dim1=1, dim2=2)
    if not bool(torch.isfinite(moment).all()):
        found.broken.append(name)
    elif not bool(energy.any()):
        found.zeros.append(name)
    elif _grid_of(q) is None:
        found.plain.append(name)
    else:
        if _dependent(moment):
            found.dependent.append(name)
        tried = [q]
        # Of a depthwise layer each channel is an output by itself, and loud ones must not take the codebook.
        if has_book(q) and name not in found.fixed and len(moment) == 1:
            each = _per_element(state, name, energy)
            tried.append(with_weighted_codebook(q, state.floats[name].float(), each))
        rounded = [_compensated(state, name, one, halves / energy.mean()) for one in tried]
        q = min(rounded, key=lambda one: _error(state, name, one, moment)) if len(rounded) > 1 else rounded[0]
    state.settle(name, q)


def _error(state: State, name: str, q: QTensor, moment: Tensor) -> float:
    """Energy of what rounding brings into a layer's output, by the second moment of what meets it, [groups, k, k]."""
    difference = state.rows(name, q.dequantize() - state.floats[name].float()).unflatten(0, (len(moment), -1))
    return float(((difference @ moment) * difference).sum())


def _dependent(moment: Tensor) -> bool:
    """Whether what reaches a weight hangs together, by its second moment [groups, k, k]; zeros do not count."""
    silent = (moment.diagonal(dim1=1, dim2=2) == 0).float()
    return bool(torch.linalg.cholesky_ex(moment + torch.diag_embed(silent)).info.any())


def _per_element(state: State, name: str, energy: Tensor) -> Tensor:
    """What is known of columns, float32 [groups, k], in the shape of the weight."""
    channels = state.infos[name].shape[state.infos[name].channel_axis]
    return state.shaped(name, energy.repeat_interleave(channels // len(energy), dim=0))


def _compensated(state: State, name: str, q: QTensor, halves: Tensor) -> QTensor:
    """The codes of one weight, group after group, in the steps that it has."""
    grid, layout, groups = _grid_of(q), q.layout, halves.shape[1]
    assert grid is not None
    scale = q.codes.new_ones(layout.parameter_shape, dtype=torch.float32) if q.scale is None else q.scale
    each = layout.spread(scale).expand(layout.channels, layout.groups, layout.length)
    values, steps = (
        state.rows(name, one).unflatten(0, (groups, -1))
        for one in (state.floats[name].float(), layout.join(each))
    )
    energies = halves.diagonal(dim1=2, dim2=3).sum(dim=2)  # [2, groups]
    loudest = int(energies.amin(dim=0).argmax())
    floor = FLOOR
    if float(energies[:, loudest].min()) > 0:
        one, other = halves[:, loudest]
        floor = best_floor(values[loudest], (one, other), steps[loudest], grid.nearest)
    rows = [
        compensated(value, damped(moment, floor=floor), step, grid.nearest)
        for value, moment, step in zip(values, halves.sum(dim=0), steps, strict=True)
    ]
    codes = state.shaped(name, grid.codes(torch.cat(rows))).to(q.codes.dtype)
    return replace(q, codes=codes)
