"""What a module's layers read, seen while it runs over data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbits.errors import InputError
from fewbits.methods.range_search import search
from fewbits.modules.attention import Watch
from fewbits.modules.inputs import calls
from fewbits.modules.static import STATIC, StaticProducts
from fewbits.numerics import find, scale_zero_point
from fewbits.planning.scheme import Scheme
from fewbits.planning.stats import Histogram, HistogramBuilder

Range = tuple[float, float]
RANGE = "fewbits_range"  # a tensor's attribute: between what its values lie, whatever the data
MOST_VALUES = 1 << 20  # of one input are counted; its extremes are exact

_FIXED: dict[Callable, Range] = {
    **dict.fromkeys(
        (torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, functional.sigmoid), (0.0, 1.0)
    ),
    **dict.fromkeys((torch.softmax, Tensor.softmax, functional.softmax), (0.0, 1.0)),
    **dict.fromkeys((torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, functional.tanh), (-1.0, 1.0)),
}
_MOVES: frozenset[Callable] = frozenset(
    (
        *(torch.reshape, torch.flatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze),
        *(Tensor.reshape, Tensor.view, Tensor.flatten, Tensor.transpose, Tensor.permute, Tensor.contiguous),
        *(Tensor.squeeze, Tensor.unsqueeze, Tensor.expand, Tensor.t, Tensor.__getitem__, torch.t),
        *(functional.dropout, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
    )
)
"""Functions that give values of their input, or means of them: they stay in its range."""


@dataclass(frozen=True)
class Observed:
    """What was seen of the inputs that meet one weight: counts, and the range where it is known beforehand."""

    histogram: Histogram
    fixed: Range | None


@dataclass
class _Seen:
    histogram: HistogramBuilder = field(default_factory=HistogramBuilder)
    ranges: set[Range | None] = field(default_factory=set)


class _Inputs(Watch):
    """Looks at what functions get beside the weights of interest."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.seen: dict[str, _Seen] = {}

    def called(self, func: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func in STATIC and len(args) > 1 and id(args[1]) in self.names:
            self._add(self.names[id(args[1])], args[0])
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if func in _FIXED:
                setattr(result, RANGE, _FIXED[func])
            elif func in _MOVES and (known := getattr(args[0], RANGE, None)) is not None:
                setattr(result, RANGE, known)
        return result

    def _add(self, name: str, value: Tensor) -> None:
        seen = self.seen.setdefault(name, _Seen())
        with torch._C.DisableTorchFunction():
            flat = value.detach().float().reshape(-1)
            if not flat.numel():
                return
            low, high = (float(end) for end in flat.aminmax())
            if not low > -torch.inf or not high < torch.inf:
                raise InputError(
                    f"what meets {name!r} is NaN or infinite for some of the data; clean it or exclude the layer"
                )
            step = -(-flat.numel() // MOST_VALUES) | 1  # an odd distance does not fall in step with rows
            seen.histogram.add(flat[::step].cpu().numpy(), low, high)
        seen.ranges.add(getattr(value, RANGE, None))


def observe(module: nn.Module, names: Mapping[int, str], data: Any) -> dict[str, Observed]:
    """Run a module over data in eval mode and count what meets its weights, in fixed memory.

    Args:
        module: in float.
        names: of the parameters of interest, by their ids.
        data: see :func:`fewbits.modules.inputs.calls`.

    Raises:
        InputError: no data, data that forward does not take, or a NaN or infinity that meets a weight.
    """
    watch = _Inputs(names)
    modes = [(one, one.training) for one in module.modules()]
    count = 0
    try:
        module.eval()
        with torch.no_grad():
            for args, kwargs in calls(data):
                count += 1
                try:
                    with watch:
                        module(*args, **kwargs)
                except InputError:
                    raise
                except Exception as error:  # whatever forward raises
                    raise InputError(
                        f"forward raised on the data: {type(error).__name__}: {_first(error)}"
                    ) from error
    finally:
        for one, training in modes:
            one.training = training
    if not count:
        raise InputError(
            "there is no data in data; give a tensor, a tuple or dict of arguments, or batches of them"
        )
    return {
        name: Observed(seen.histogram.build(), next(iter(seen.ranges)) if len(seen.ranges) == 1 else None)
        for name, seen in watch.seen.items()
    }


def static_products(scheme: Scheme, seen: Observed) -> StaticProducts:
    """The scale and zero point for what was seen, or for the range that is known."""
    row = find(scheme.qtype)
    low, high = seen.fixed or search(scheme.range, seen.histogram, 1 << row.bits)
    scale, zero_point = scale_zero_point(torch.tensor(low), torch.tensor(high), row)
    assert zero_point is not None
    return StaticProducts(float(scale), int(zero_point))


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
