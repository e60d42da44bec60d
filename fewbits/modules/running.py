"""A module run over data with some of its weights as codes, and what is asked of it on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fewbits.errors import InputError
from fewbits.numerics import QTensor
from fewbits.planning.model_info import WeightInfo

SAMPLES = 32  # of one call are run at a time
Call = tuple[tuple[Any, ...], dict[str, Any]]
Progress = Callable[[str, int, int], None]


class Enough(Exception):
    """All that is wanted of this run has been seen."""


class State:
    """A module with some weights as codes, run as if they were there.

    Args:
        module: in float; it is left as it was.
        codes: of its weights by name, rounded to nearest. Until they are settled it is run with the floats.
        infos: of the same weights.
    """

    def __init__(
        self, module: nn.Module, codes: Mapping[str, QTensor], infos: Mapping[str, WeightInfo]
    ) -> None:
        self.module, self.codes, self.infos = module, dict(codes), infos
        self.floats = {name: value.detach() for name, value in module.named_parameters()}
        self.now = {name: self.floats[name] for name in codes}

    def run(self, call: Call, replaced: Mapping[str, Any]) -> Any:
        """What the module gives with these tensors for its parameters. Raises InputError where forward raises."""
        args, kwargs = call
        try:
            return functional_call(self.module, dict(replaced), args, kwargs)
        except Enough:
            raise
        except Exception as error:  # whatever forward raises
            why = (str(error).splitlines() or [""])[0]
            raise InputError(f"forward raised on the data: {type(error).__name__}: {why}") from error

    def settle(self, name: str, q: QTensor) -> None:
        """From now on the module is run with these codes."""
        self.codes[name] = q
        self.now[name] = q.dequantize().to(self.floats[name].dtype)

    def rows(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in a weight's shape as [channels, columns]."""
        return tensor.movedim(self.infos[name].channel_axis, 0).flatten(1).contiguous()

    def shaped(self, name: str, rows: Tensor) -> Tensor:
        """The inverse: [channels, columns] in the weight's shape."""
        axis, shape = self.infos[name].channel_axis, self.infos[name].shape
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return rows.reshape(moved).movedim(0, axis).contiguous()


def floats_of(output: Any) -> list[Tensor]:
    """The float tensors of a nest."""
    leaves = pytree.tree_leaves(output)
    return [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]


def precision(narrow: bool) -> AbstractContextManager[Any]:
    """Products in bfloat16, which some CPUs do several times as fast."""
    return torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext()


def samples_of(call: Call) -> int | None:
    """How many samples a call has: the first axis of all its tensors; None where they differ."""
    sizes = {len(one) for one in pytree.tree_leaves(call) if isinstance(one, Tensor) and one.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def pieces(given: Iterable[Call]) -> Iterator[Call]:
    """Calls of at most SAMPLES samples each, where all their tensors have as many."""
    for args, kwargs in given:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        size = samples_of((args, kwargs)) or 0
        for at in range(0, max(size, 1), SAMPLES):
            cut = [
                one[at : at + SAMPLES] if size > SAMPLES and isinstance(one, Tensor) and one.dim() else one
                for one in leaves
            ]
            piece = pytree.tree_unflatten(cut, spec)
            yield tuple(piece[0]), dict(piece[1])


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Without dropout; every submodule is in its own mode again afterwards."""
    modes = [(one, one.training) for one in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for one, training in modes:
            one.training = training


def chosen(given: Sequence[Call], count: int, generator: torch.Generator) -> list[Call]:
    """Some of the calls, at random."""
    order = torch.randperm(len(given), generator=generator).tolist()
    return [given[number] for number in order[:count]]
