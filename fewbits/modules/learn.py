"""Codes of a module's weights found against data: rounded so that they make up for each other, then learned together.

Three passes, each on the module as it is called, whatever it is made of:

1. Tables: gradients of the outputs tell in which directions an error of a row counts, and rows are rounded against
   their second moment. It holds for rows that no sample looks up as well.
2. Linear layers, in the order in which they are run and a few at a time: each is rounded against what the quantized
   ones before it give (Frantar et al. 2023, "GPTQ", arXiv:2210.17323).
3. All together: weights, steps, norms and biases learn until the module gives what it gave in float, in its outputs
   and behind each of its repeated blocks. No labels are needed. Source: Liu et al. 2023, "LLM-QAT" (arXiv:2305.17888)
   for learning from the float model alone; Esser et al. 2020 (arXiv:1902.08153) for steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fewbits.errors import InputError
from fewbits.methods.gptq import FLOOR, best_floor, compensated, damped
from fewbits.methods.learned import Learned, LearnedLevels, LearnedShift
from fewbits.methods.reconstruction import Spent, copied, descent, restore
from fewbits.modules.inputs import calls
from fewbits.numerics import QTensor
from fewbits.numerics.codebook import midpoints
from fewbits.numerics.levels import decode_levels

SAMPLES = 32  # of one call are run at a time
ROUNDED_ON = 16  # calls tell what meets a weight
WAVES = 6  # times that the module is run to see what the quantized layers before give
JUDGED = 4  # calls tell whether learning has helped
Call = tuple[tuple[Any, ...], dict[str, Any]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Learnt:
    """What came of it: weights by name as codes, and parameters that stay floats, as they are now."""

    codes: Mapping[str, QTensor]
    floats: Mapping[str, Tensor]


def learned(
    module: nn.Module,
    codes: Mapping[str, QTensor],
    data: Any,
    spent: Spent | None,
    *,
    narrow: bool = False,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Learnt:
    """Better codes for a module's weights.

    Args:
        module: in float; its mode is eval while it is run, and it is left as it was.
        codes: of its weights by name, rounded to nearest. Those of a format without known levels stay as they are, and
            so do steps until all learn together.
        data: see :func:`fewbits.modules.inputs.calls`; calls of many samples are cut.
        spent: on learning together; None: nothing.
        narrow: compute in bfloat16 while learning, which some CPUs do several times as fast.
        seed: of the order of calls.
        progress: called with a stage, what is done of it and how much there is.

    Raises:
        InputError: no data, or data that forward does not take.
    """
    given = list(_pieces(calls(data)))
    if not given:
        raise InputError(
            "there is no data in data; give a tensor, a tuple or dict of arguments, or batches of them"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(given), generator=generator).tolist()
    few = [given[number] for number in order[:ROUNDED_ON]]
    state = _State(module, codes)
    with _quiet(module):
        met = _round_tables(state, few, narrow, generator, progress)
        _round_linear(state, met, few, narrow, progress)
        if spent is not None:
            return _together(state, _learnable(state, met), given, spent, narrow, generator, progress)
    return Learnt(state.codes, {})


class _State:
    """A module with some weights as codes, run as if they were there."""

    def __init__(self, module: nn.Module, codes: Mapping[str, QTensor]) -> None:
        self.module, self.codes = module, dict(codes)
        self.floats = {name: value.detach() for name, value in module.named_parameters()}
        self.now = {name: self.floats[name] for name in codes}

    def run(self, call: Call, replaced: Mapping[str, Any]) -> Any:
        """What the module gives with these tensors for its parameters. Raises InputError where forward raises."""
        args, kwargs = call
        try:
            return functional_call(self.module, dict(replaced), args, kwargs)
        except _Enough:
            raise
        except Exception as error:  # whatever forward raises
            why = (str(error).splitlines() or [""])[0]
            raise InputError(f"forward raised on the data: {type(error).__name__}: {why}") from error

    def settle(self, name: str, q: QTensor) -> None:
        """From now on the module is run with these codes."""
        self.codes[name] = q
        self.now[name] = q.dequantize().to(self.floats[name].dtype)


class _Enough(Exception):
    """All that is wanted of this run has been seen."""


@dataclass
class _Watch(TorchFunctionMode):
    """Looks at what meets weights; ``names`` of the tensors that stand for them, by id.

    Attributes:
        moments: sums of products of rows, each row of the same energy, by weight and by halves of the samples.
        number: of the call.
        wanted: weights whose moments are summed; behind the last of them the run ends.
        tables: rows that were looked up, as leaves with gradients; None: they are left alone.
        met: all weights that a product or a table was asked of, in that order.
    """

    names: Mapping[int, str]
    wanted: frozenset[str] = frozenset()
    moments: dict[str, Tensor] = field(default_factory=dict)
    number: int = 0
    tables: list[tuple[str, Tensor]] | None = None
    met: dict[str, Callable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = self.names.get(id(args[1])) if len(args) > 1 else None
        if name is None or func not in (functional.linear, functional.embedding):
            return func(*args, **kwargs)
        self.met.setdefault(name, func)
        if name in self.wanted:
            self._add(name, args[0])
        result = func(*args, **kwargs)
        if self.tables is not None and func is functional.embedding:
            result = result.detach().requires_grad_()
            self.tables.append((name, result))
        if self.wanted and self.wanted <= self.met.keys():
            raise _Enough
        return result

    def _add(self, name: str, value: Tensor) -> None:
        with torch._C.DisableTorchFunction(), torch.autocast("cpu", enabled=False):
            rows = functional.normalize(value.detach().float(), dim=-1, eps=1e-15)
            _add(self.moments, name, rows, self.number)


def _add(moments: dict[str, Tensor], name: str, rows: Tensor, number: int) -> None:
    """Count rows, float32 [samples, ..., k], into [2, k, k]: every other sample into one half.

    Of a call of one sample the half goes by its ``number``.
    """
    rows = torch.atleast_2d(rows)
    halves = [rows[(number + half) % 2 :: 2].reshape(-1, rows.shape[-1]) for half in (0, 1)]
    found = torch.stack([half.T @ half for half in halves])
    moments[name] = found if name not in moments else moments[name].add_(found)


def _round_tables(
    state: _State, few: Sequence[Call], narrow: bool, generator: torch.Generator, progress: Progress
) -> dict[str, Callable]:
    """Rows of tables, by what an error of theirs does to the outputs; and which weights are met, in their order."""
    moments: dict[str, Tensor] = {}
    met: dict[str, Callable] = {}
    for number, call in enumerate(few):
        progress("tables", number, len(few))
        watch = _Watch({id(value): name for name, value in state.now.items()}, tables=[])
        with torch.enable_grad(), _precision(narrow), watch:
            outputs = _floats(state.run(call, state.now))
        met |= {name: func for name, func in watch.met.items() if name not in met}
        assert watch.tables is not None
        leaves = [rows for _, rows in watch.tables]
        if not leaves or not any(one.requires_grad for one in outputs):
            continue
        total = torch.stack(
            [
                (one * torch.randn(one.shape, generator=generator).to(one.device)).sum()
                for one in outputs
                if one.requires_grad
            ]
        ).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        for (name, _), gradient in zip(watch.tables, gradients, strict=True):
            if gradient is not None:
                _add(moments, name, gradient.float(), number)
    for name in state.codes:
        if name in moments:
            _round(state, name, moments[name])
        elif met.get(name) is not functional.linear:
            state.settle(name, state.codes[name])
    return met


def _round_linear(
    state: _State, met: Mapping[str, Callable], few: Sequence[Call], narrow: bool, progress: Progress
) -> None:
    """Weights of linear layers, in waves, each by what meets it in the module as it is by then."""
    names = [name for name, func in met.items() if func is functional.linear]
    size = -(-len(names) // WAVES)
    for at in range(0, len(names), max(size, 1)):
        progress("rounding", at, len(names))
        wave = frozenset(names[at : at + size])
        moments: dict[str, Tensor] = {}
        for number, call in enumerate(few):
            watch = _Watch({id(value): name for name, value in state.now.items()}, wave, moments, number)
            with suppress(_Enough), torch.no_grad(), _precision(narrow), watch:
                state.run(call, state.now)
        for name, moment in moments.items():
            _round(state, name, moment)


def _round(state: _State, name: str, halves: Tensor) -> None:
    """One weight by what meets its columns, float32 [2, columns, columns] by halves of the samples; or to nearest."""
    q, moment = state.codes[name], halves.sum(dim=0)
    levels = levels_of(q)
    plain = levels is None or q.layout.channel_axis != 0 or len(q.layout.shape) != 2
    # Nothing but zeros reaches it, or what does is no number.
    if plain or not bool(torch.isfinite(moment).all()) or not float(moment.diagonal().sum()):
        state.settle(name, q)
        return
    assert q.scale is not None and levels is not None
    middles = midpoints(levels)
    shape = (q.layout.channels, q.layout.groups, q.layout.length)
    steps = q.layout.spread(q.scale).expand(shape).reshape(q.layout.shape)

    def nearest(places: Tensor) -> Tensor:
        return levels[torch.bucketize(places, middles, out_int32=True)]

    values, energy = state.floats[name].float(), float(moment.diagonal().mean())
    one, other = halves / energy
    judged = float(min(one.diagonal().sum(), other.diagonal().sum())) > 0
    floor = best_floor(values, (one, other), steps, nearest) if judged else FLOOR
    found = compensated(values, damped(moment / energy, floor=floor), steps, nearest)
    codes = torch.searchsorted(levels, found).add_(q.qtype.qmin).to(q.codes.dtype)
    state.settle(name, replace(q, codes=codes))


def _learnable(state: _State, met: Mapping[str, Callable]) -> list[str]:
    """All weights but tables larger than any of the others: most of their rows would learn nothing."""
    tables = {name for name in state.codes if met.get(name) is functional.embedding}
    largest = max((state.floats[name].numel() for name in state.codes if name not in tables), default=0)
    return [name for name in state.codes if name not in tables or state.floats[name].numel() <= largest]


def _together(
    state: _State,
    names: Sequence[str],
    given: Sequence[Call],
    spent: Spent,
    narrow: bool,
    generator: torch.Generator,
    progress: Progress,
) -> Learnt:
    """Learn these weights, norms and biases on what the float module gives; undone where it is no better for it."""
    weights = _learned_weights(state, names)
    shifts = _learned_floats(state)
    everything: list[Learned] = [*weights.values(), *shifts.values()]
    order: list[int] = []

    def replaced() -> dict[str, Tensor]:
        return {**state.now, **{name: one(state.floats[name]) for name, one in (weights | shifts).items()}}

    with _Blocks(state) as blocks:

        def loss(call: Call, narrow: bool) -> Tensor:
            with torch.no_grad(), _precision(narrow):
                target = blocks.run(call, state.floats)
            with _precision(narrow):
                found = blocks.run(call, replaced())
            return torch.stack(
                [_distance(*pair) for pair in zip(found, target, strict=True) if pair[1]]
            ).mean()

        def next_loss() -> Tensor:
            if not order:
                order.extend(torch.randperm(len(given), generator=generator).tolist())
            return loss(given[order.pop()], narrow)

        def judged() -> float:
            with torch.no_grad():
                return sum(float(loss(call, narrow=False)) for call in given[:: -(-len(given) // JUDGED)])

        before, start = judged(), copied(everything)
        with torch.enable_grad():
            for number, _ in enumerate(descent(next_loss, everything, spent)):
                progress("learn", number + 1, spent.steps)
        if not judged() < before:
            restore(everything, start)
    with torch.no_grad():
        codes = {**state.codes, **{name: one.rounded() for name, one in weights.items()}}
        floats = {name: one.values.detach().to(state.floats[name].dtype) for name, one in shifts.items()}
    return Learnt(codes, floats)


def _learned_weights(state: _State, names: Iterable[str]) -> dict[str, LearnedLevels]:
    found = {}
    for name in names:
        q = state.codes[name]
        levels = levels_of(q)
        if levels is not None:
            found[name] = LearnedLevels(state.floats[name].float(), q, levels)
    return found


def _learned_floats(state: _State) -> dict[str, LearnedShift]:
    """Gains and biases."""
    found = {}
    for name, value in state.floats.items():
        if name not in state.codes and value.dim() == 1 and value.is_floating_point():
            unit = value.float().square().mean().sqrt().clamp(min=1e-3).expand_as(value)
            found[name] = LearnedShift(value.float(), unit)
    return found


class _Blocks:
    """What a module gives, and what each of its repeated blocks gives on the way."""

    def __init__(self, state: _State) -> None:
        self._state, self._stack = state, ExitStack()
        self._seen: list[Tensor] = []
        self._lists = [one for one in state.module.modules() if isinstance(one, nn.ModuleList)]

    def __enter__(self) -> _Blocks:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen.extend(_floats(output)[:1])

        for one in self._lists:
            for block in one:
                self._stack.callback(block.register_forward_hook(keep).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, call: Call, replaced: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Float tensors: of the blocks in the order of their runs, and the outputs."""
        self._seen = []
        outputs = _floats(self._state.run(call, replaced))
        return self._seen, outputs


def levels_of(q: QTensor) -> Tensor | None:
    """The ascending levels, in steps, of the codes of a fixed codebook or of a few bits without zero points."""
    row = q.qtype
    if (
        q.scale is None
        or q.zero_point is not None
        or q.free_zero_point is not None
        or q.tensor_scale is not None
    ):
        return None
    if row.kind == "int" and row.bits < 8:
        return torch.arange(row.qmin, row.qmax + 1, dtype=torch.float32, device=q.codes.device)
    if row.levels is not None:
        return decode_levels(torch.arange(len(row.levels), device=q.codes.device), row)
    return None


def _distance(found: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Energy of each difference, relative to the target's, on average."""
    pairs = [(a.float(), b.float()) for a, b in zip(found, target, strict=True)]
    return torch.stack([(a - b).square().sum() / b.square().sum().clamp(min=1e-30) for a, b in pairs]).mean()


def _floats(output: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(output)
    return [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]


def _precision(narrow: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext()


def _pieces(given: Iterable[Call]) -> Iterator[Call]:
    """Calls of at most SAMPLES samples each, where all their tensors have as many."""
    for args, kwargs in given:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        sizes = {len(one) for one in leaves if isinstance(one, Tensor) and one.dim()}
        size = sizes.pop() if len(sizes) == 1 else 0
        for at in range(0, max(size, 1), SAMPLES):
            cut = [
                one[at : at + SAMPLES] if size > SAMPLES and isinstance(one, Tensor) and one.dim() else one
                for one in leaves
            ]
            piece = pytree.tree_unflatten(cut, spec)
            yield tuple(piece[0]), dict(piece[1])


@contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """Without dropout; every submodule is in its own mode again afterwards."""
    modes = [(one, one.training) for one in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for one, training in modes:
            one.training = training
