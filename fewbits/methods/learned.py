"""Quantizers that learn: what is rounded, steps and codebooks get gradients.

Rounding passes its gradient straight through, so a weight may leave the two codes next to where it began, as in
Hubara et al. 2021, "Accurate Post Training Quantization with Small Calibration Sets" (arXiv:2006.10518). Steps get the
gradient of Esser et al. 2020, "Learned Step Size Quantization" (arXiv:1902.08153).

Everything is learned in a unit of its own (a weight in steps, a step as the logarithm of what it is multiplied by), so
that one rate suits all layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fewbits.numerics import QTensor
from fewbits.numerics.codebook import ascending, midpoints
from fewbits.numerics.floats import stored_scale

RATES = {"places": 0.05, "stretch": 0.003, "shift": 0.002, "entries": 0.01}
"""What one step of Adam moves at first: a weight by part of a code, a step by part of itself, a bias by part of the
norm of its channel's weights, an entry of a codebook by part of the usual distance to the next."""
CELL = (
    0.25  # of the shortest distance between levels is kept from the ends of a cell: no code changes at once
)


class Learned(Protocol):
    """Something that stands between a tensor and what reads it."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by the kind that its rate goes by; leaves that need gradients, changed in place."""
        ...

    def begin(self) -> None:
        """Leave what was there before for where learning begins."""
        ...

    def settle(self) -> None:
        """From now on codes stay as they are, and what they stand for goes on learning."""
        ...

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor as it is read, with gradients."""
        ...


class LearnedWeight(Learned, Protocol):
    """A weight on its way to codes."""

    @property
    def scale(self) -> Tensor | None:
        """The steps as they are now, in the shape of the codes' scale, without gradients; None with a codebook."""
        ...

    def rounded(self) -> QTensor:
        """The codes, and what is needed to read them, as they are now."""
        ...


class LearnedCodes:
    """A weight on its way to integer codes.

    Args:
        values: float32, the weight.
        q: the codes that it has until :meth:`begin`, with a scale and without a zero point.
        low, high: the codes allowed.
    """

    def __init__(self, values: Tensor, q: QTensor, low: int, high: int) -> None:
        assert q.scale is not None
        self._q, self._low, self._high = q, low, high
        self._values, self._step = q.layout.split(values), q.layout.spread(q.scale)
        self.parameters = {
            "places": q.layout.split(q.codes).float().requires_grad_(),
            "stretch": torch.zeros_like(self._step).requires_grad_(),
        }
        self._settled: Tensor | None = None

    def begin(self) -> None:
        """Move every weight from the middle of its code to where its value lies."""
        if self._settled is None:
            with torch.no_grad():
                self.parameters["places"].copy_(self._values / self._step)

    def settle(self) -> None:
        """Only the steps go on learning."""
        self._settled = self.codes.detach()
        self.parameters.pop("places", None)

    @property
    def codes(self) -> Tensor:
        """Integers in float32, [channels, groups, length], with gradients."""
        if self._settled is not None:
            return self._settled
        places = (self.parameters["places"] / self.parameters["stretch"].exp()).clamp(self._low, self._high)
        return straight_through(places.round(), places)

    @property
    def step(self) -> Tensor:
        """The step as it is now, float32, broadcasts against the codes, with gradients."""
        return self._step * self.parameters["stretch"].exp()

    @property
    def scale(self) -> Tensor:
        """The steps as they are now, in the shape of the codes' scale, without gradients."""
        return self.step.detach().reshape(self._q.layout.parameter_shape)

    def __call__(self, tensor: Tensor) -> Tensor:
        """What the codes stand for, in the shape of the weight, whatever ``tensor`` holds."""
        return self._q.layout.join(self.codes * self.step)

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """The codes and steps as they are now."""
        codes = self._q.layout.join(self.codes).to(self._q.codes.dtype)
        return replace(self._q, codes=codes, scale=self.scale)


class LearnedLevels:
    """A weight on its way to levels that are known: integers, or the entries of a fixed codebook.

    Args:
        values: float32, the weight.
        q: its codes, with a scale and without a zero point. Learning begins in their cells: a code may have been
            chosen to make up for others.
        levels: float32, ascending, one for each code.
    """

    def __init__(self, values: Tensor, q: QTensor, levels: Tensor) -> None:
        assert q.scale is not None
        self._q, self._unit = q, float(levels.diff().median())
        levels = levels / self._unit
        self._levels, self._middles = levels, midpoints(levels)
        self._step = q.layout.spread(q.scale) * self._unit
        codes = q.layout.split(q.codes).int() - q.qtype.qmin
        bottom, top = (
            torch.cat(ends) for ends in ((levels[:1], self._middles), (self._middles, levels[-1:]))
        )
        margin = CELL * float(levels.diff().min())
        places = q.layout.split(values) / self._step
        places = torch.minimum(
            torch.maximum(places, bottom[codes] + margin), top[codes] - margin
        ).contiguous()
        self.parameters = {
            "places": places.requires_grad_(),
            "stretch": torch.zeros_like(self._step).requires_grad_(),
        }
        self._places = places

    def begin(self) -> None:
        """It begins where it is."""

    def settle(self) -> None:
        """Only the steps go on learning."""
        self._places = self._places.detach()
        self.parameters.pop("places", None)

    def __call__(self, tensor: Tensor) -> Tensor:
        """What the codes stand for, in the shape of the weight, whatever ``tensor`` holds."""
        step = self._step * self.parameters["stretch"].exp()
        values: Tensor = _OnLevels.apply(self._places, step, self._levels, self._middles)
        return self._q.layout.join(values)

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """The codes and steps as they are now."""
        layout, row = self._q.layout, self._q.qtype
        codes = torch.bucketize(self._places, self._middles, out_int32=True) + row.qmin
        scale = stored_scale(self._step * self.parameters["stretch"].exp() / self._unit, row)
        scale = scale.reshape(layout.parameter_shape)
        return replace(self._q, codes=layout.join(codes.to(self._q.codes.dtype)), scale=scale)


class _OnLevels(torch.autograd.Function):
    """Rows, [channels, groups, length], on levels times a step for each, and their gradients in few passes."""

    @staticmethod
    def forward(ctx, places: Tensor, step: Tensor, levels: Tensor, middles: Tensor):  # type: ignore[no-untyped-def]
        # Comparing with each is several times as fast as searching.
        codes = torch.zeros_like(places, dtype=torch.uint8)
        for middle in middles.tolist():
            codes += places > middle
        found = levels.index_select(0, codes.view(-1).int()).view_as(places)
        ctx.save_for_backward((places >= levels[0]) & (places <= levels[-1]), found, step)
        return found * step

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        inside, found, step = ctx.saved_tensors
        of_step = (gradient * found).sum(dim=-1, keepdim=True)
        return (gradient * step).mul_(inside), of_step, None, None


class LearnedBook:
    """A weight on its way to the entries of a codebook, which are learned with it.

    Args:
        values: float32, the weight.
        q: codes of a learned codebook of the whole tensor, those it has until :meth:`begin`.
    """

    scale = None

    def __init__(self, values: Tensor, q: QTensor) -> None:
        assert q.codebook is not None
        self._values, self._q, self._book = values, q, q.codebook
        self._unit = float(q.codebook.diff().median()) if len(q.codebook) > 1 else 1.0
        self.parameters = {
            "places": (q.dequantize() / self._unit).requires_grad_(),
            "entries": torch.zeros_like(q.codebook).requires_grad_(),
        }
        self._settled: Tensor | None = None

    def begin(self) -> None:
        """Move every weight from its entry to where its value lies."""
        if self._settled is None:
            with torch.no_grad():
                self.parameters["places"].copy_(self._values / self._unit)

    def settle(self) -> None:
        """Only the entries go on learning."""
        if self._settled is None:
            q = self.rounded()
            assert q.codebook is not None
            self._settled, self._book = q.codes.long(), q.codebook
            self.parameters = {"entries": torch.zeros_like(q.codebook).requires_grad_()}

    def __call__(self, tensor: Tensor) -> Tensor:
        """The nearest entries, in the shape of the weight, whatever ``tensor`` holds."""
        book = self._book + self.parameters["entries"] * self._unit
        if self._settled is not None:
            return book[self._settled]
        book = book.sort().values
        weight = self.parameters["places"] * self._unit
        codes = torch.bucketize(weight.detach(), midpoints(book.detach()))
        # Both get the gradient: the weight may move on to the next entry, the entry to where it serves best.
        return book[codes] + weight - weight.detach()

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """The codes and the codebook as they are now."""
        settled = self._settled is not None
        values = self(self._values) if settled else self.parameters["places"] * self._unit
        book = ascending((self._book + self.parameters["entries"] * self._unit).sort().values[None])[0]
        codes = torch.bucketize(values, midpoints(book))
        return replace(self._q, codes=codes.to(self._q.codes.dtype), codebook=book)


class LearnedBookInCells(LearnedBook):
    """The same, for codes that were chosen to make up for others: learning begins in their cells."""

    def begin(self) -> None:
        """Move every weight towards where its value lies, and no code changes."""
        middles, codes = midpoints(self._book), self._q.codes.long()
        bottom = torch.cat((self._book[:1], middles))[codes]
        top = torch.cat((middles, self._book[-1:]))[codes]
        margin = CELL * (top - bottom)
        with torch.no_grad():
            values = torch.minimum(torch.maximum(self._values, bottom + margin), top - margin)
            self.parameters["places"].copy_(values / self._unit)


class LearnedStep:
    """An activation on a uniform grid with one step and a fixed zero point.

    Args:
        step: the step to begin with.
        zero_point, low, high: integers; the code of zero, and the codes allowed.
    """

    def __init__(self, step: float, zero_point: int, low: int, high: int) -> None:
        self._first, self._zero_point, self._low, self._high = step, zero_point, low, high
        self.parameters = {"stretch": torch.zeros(()).requires_grad_()}

    @property
    def step(self) -> Tensor:
        """The step as it is now, float32 scalar with gradients."""
        return self._first * self.parameters["stretch"].exp()

    @torch.no_grad()
    def move(self, step: float) -> None:
        """It is this one from now on."""
        self._first = step
        self.parameters["stretch"].zero_()

    def begin(self) -> None:
        """It begins where it is."""

    def settle(self) -> None:
        """It has no codes to keep."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """The activation, any shape, as its codes stand for it."""
        return fake_quantize(tensor, self.step, self._zero_point, self._low, self._high)


class LearnedShift:
    """A bias; ``unit``, float32 of its shape, is what one part of it is large against."""

    def __init__(self, values: Tensor, unit: Tensor) -> None:
        self._values, self._unit = values, unit
        self.parameters = {"shift": torch.zeros_like(values).requires_grad_()}

    @property
    def values(self) -> Tensor:
        """The bias as it is now, with gradients."""
        return self._values + self.parameters["shift"] * self._unit

    def begin(self) -> None:
        """It begins where it is."""

    def settle(self) -> None:
        """It has no codes to keep."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """The bias, whatever ``tensor`` holds."""
        return self.values


def fake_quantize(x: Tensor, step: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """A float32 tensor of any shape on a uniform grid, with gradients for itself and for the step (a scalar)."""
    result: Tensor = _FakeQuantize.apply(x, step, zero_point, low, high)
    return result


class _FakeQuantize(torch.autograd.Function):
    """A tensor on a uniform grid in one pass, and its gradients in few."""

    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, zero_point: int, low: int, high: int) -> Tensor:  # type: ignore[no-untyped-def]
        size = float(step)
        # The same numbers as torch's own operator, which takes ten times as long.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        places = (wide * (1 / size)).round_().clamp_(low - zero_point, high - zero_point)
        y = places.mul_(size).to(x.dtype)
        ctx.save_for_backward(x, y, step)
        ctx.ends = (low - zero_point) * size, (high - zero_point) * size
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        x, y, step = ctx.saved_tensors
        # Masks of bools are several times as slow. The ends themselves are inside, which this operator takes for out.
        bottom, top = (
            float(np.nextafter(np.float32(end), np.float32(far)))
            for end, far in zip(ctx.ends, (-np.inf, np.inf), strict=True)
        )
        inside = torch.ops.aten.hardtanh_backward(gradient, x, bottom, top)
        # Inside, rounding moved x by y - x, in proportion to the step; outside, y is a number of steps.
        of_step = ((gradient * y).sum() - (inside * x).sum()) / step
        return inside, of_step, None, None, None


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """``rounded``, to the last bit, with the gradient of ``x``."""
    return rounded.detach() + (x - x.detach())
