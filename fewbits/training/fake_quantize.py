"""Fake quantization with steps that are trained: what stands between a tensor and the layer that reads it.

Rounding passes its gradient straight through; a step gets that of Esser et al. 2020, "Learned Step Size Quantization"
(arXiv:1902.08153), here for the logarithm of what it began with, so that it stays positive and one rate suits all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fewbits.decide import SMALLEST_SCALE
from fewbits.methods.learned import fake_quantize, straight_through
from fewbits.numerics import QTensor
from fewbits.numerics.codebook import ascending, midpoints

CELL = 0.499  # of a step to each side of a code: what is rounded to it
PRUNED = 0.01  # of a weight's values are zero: more than by chance


def pruned(values: Tensor) -> bool:
    """Whether so many of a weight's values are zero that pruning made them so."""
    return float((values == 0).float().mean()) > PRUNED


class TrainedWeight(nn.Module):
    """A weight on a symmetric uniform grid, of three codes (ternary) or more.

    Args:
        values: float32, the weight.
        q: the plan's codes, with a scale and without a zero point; training begins with them.
        low, high: the codes allowed.

    Attributes:
        weight: float32 parameter, the values in the layout [channels, groups, length] of the codes.
        stretch: float32 parameter, the logarithm of what each step has been multiplied by.
        kept: bool, False where the weight came as zero, as pruning left it; it stays zero.
    """

    first: Tensor
    kept: Tensor

    def __init__(self, values: Tensor, q: QTensor, low: int, high: int) -> None:
        super().__init__()
        assert q.scale is not None
        self._q, self._low, self._high = q, low, high
        self.register_buffer("first", q.layout.spread(q.scale).clamp(min=SMALLEST_SCALE))
        codes, values = q.layout.split(q.codes).float(), q.layout.split(values)
        self.register_buffer("kept", values != 0)
        self.weight = nn.Parameter(self._started(values / self.first, codes) * self.first)
        self.stretch = nn.Parameter(torch.zeros_like(self.first))

    def _started(self, places: Tensor, codes: Tensor) -> Tensor:
        """Where training begins: in the cell of each code.

        Where the plan rounded another way, to make up for others, it is the middle of the code: at the border all of
        them would change their codes at once in the first step.
        """
        return torch.where((places - codes).abs() < CELL, places, codes)

    @property
    def _step(self) -> Tensor:
        """The step as it is now, with gradients scaled to suit the weights' (LSQ, section 2.2)."""
        count = self.weight.numel() / self.stretch.numel()
        return _stretched(self.first, self.stretch, (count * self._high) ** -0.5)

    @property
    def scale(self) -> Tensor:
        """The steps as they are now, in the shape of the codes' scale, without gradients."""
        return self._step.detach().reshape(self._q.layout.parameter_shape)

    def _codes(self, step: Tensor) -> Tensor:
        places = torch.where(self.kept, self.weight.float() / step, 0.0).clamp(self._low, self._high)
        return straight_through(places.round(), places)

    def forward(self, tensor: Tensor) -> Tensor:
        """What the codes stand for, in the shape of the weight, whatever ``tensor`` holds."""
        step = self._step
        joined: Tensor = self._q.layout.join(self._codes(step).to(self.weight.dtype) * step)
        return joined

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """The codes and steps as they are now."""
        codes = self._q.layout.join(self._codes(self._step)).to(self._q.codes.dtype)
        return replace(self._q, codes=codes, scale=self.scale)


class TrainedSign(TrainedWeight):
    """A weight of which the signs are left, times a step.

    Source: Hubara et al. 2016, "Binarized Neural Networks" (arXiv:1602.02830), section 1.3: the sign passes its
    gradient straight through where the weight is within a step of zero.
    """

    def _started(self, places: Tensor, codes: Tensor) -> Tensor:
        return places.clamp(-1, 1)

    def _codes(self, step: Tensor) -> Tensor:
        places = (self.weight.float() / step).clamp(-1, 1)
        return straight_through(torch.where(places >= 0, 1.0, -1.0), places)


class TrainedBook(nn.Module):
    """A weight whose values are shared: entries of a codebook, which are trained with it.

    Source: Han et al. 2016, "Deep Compression" (arXiv:1510.00149), section 3: an entry gets the gradients of all the
    weights that share it. Here a weight may also move on to the next entry.

    Args:
        values: float32, where training begins.
        q: the plan's codes, with a codebook for the whole tensor.

    Attributes:
        weight: float32 parameter, the values.
        entries: float32 parameter, those of the codebook, in any order.
        kept: bool, False where pruning left a zero; it stays zero.
        free: bool, False for the entry that is zero for their sake, and stays so.
    """

    scale = None
    kept: Tensor
    free: Tensor

    def __init__(self, values: Tensor, q: QTensor) -> None:
        super().__init__()
        assert q.codebook is not None
        self._q = q
        free = torch.ones_like(q.codebook, dtype=torch.bool)
        free[q.codebook.abs().argmin()] = not pruned(values)
        self.register_buffer("free", free)
        self.register_buffer("kept", (values != 0) | free.all())
        book = torch.where(free, q.codebook, 0.0)
        nearest = torch.bucketize(values, midpoints(book)) == q.codes
        self.weight = nn.Parameter(torch.where(nearest, values, book[q.codes.long()]))
        self.entries = nn.Parameter(book)

    @property
    def _book(self) -> Tensor:
        return torch.where(self.free, self.entries, 0.0).sort().values

    @property
    def _values(self) -> Tensor:
        return torch.where(self.kept, self.weight, 0.0)

    def forward(self, tensor: Tensor) -> Tensor:
        """The nearest entries, in the shape of the weight, whatever ``tensor`` holds."""
        book, values = self._book, self._values
        codes = torch.bucketize(values.detach(), midpoints(book.detach()))
        return book[codes] + values - values.detach()

    @torch.no_grad()
    def rounded(self) -> QTensor:
        """The codes and the codebook as they are now."""
        book = ascending(self._book.float()[None])[0]
        codes = torch.bucketize(self._values.float(), midpoints(book))
        return replace(self._q, codes=codes.to(self._q.codes.dtype), codebook=book)


class TrainedStep(nn.Module):
    """An activation on a uniform grid with one trained step and a fixed zero point.

    Args:
        step: the step to begin with.
        zero_point, low, high: integers; the code of zero, and the codes allowed.
    """

    first: Tensor

    def __init__(self, step: float, zero_point: int, low: int, high: int) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.zeros(()))
        self.register_buffer("first", torch.tensor(step))
        self._zero_point, self._low, self._high = zero_point, low, high

    @property
    def step(self) -> Tensor:
        """The step as it is now, float32 scalar with gradients."""
        return _stretched(self.first, self.stretch, 1.0)

    @torch.no_grad()
    def move(self, step: float) -> None:
        """It is this one from now on."""
        self.first.fill_(step)
        self.stretch.zero_()

    def forward(self, tensor: Tensor) -> Tensor:
        """The activation, any shape, as its codes stand for it."""
        steps = _stretched(self.first, self.stretch, (tensor.numel() * self._high) ** -0.5)
        return fake_quantize(tensor, steps, self._zero_point, self._low, self._high)


class TrainedBias(nn.Module):
    """A bias; ``unit`` is not needed here."""

    def __init__(self, values: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, tensor: Tensor) -> Tensor:
        """The bias, whatever ``tensor`` holds."""
        return self.values


def _stretched(first: Tensor, stretch: Tensor, by: float) -> Tensor:
    """A step as it is now, the float32 that the file holds, also of a module in float64; its gradient times ``by``."""
    return first.float() * straight_through(stretch, stretch * by).float().exp()
