"""Which elements share one set of parameters: per tensor, per channel, or per group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from fewbits.errors import InputError

_CPU_BLOCK = 1 << 19  # few enough for the cache, many enough for the threads torch splits them among
_DEVICE_BLOCK = 1 << 24  # an accelerator wants few, large launches

RowBlock = tuple[slice, slice]
Block = tuple[slice, slice, slice]


def block_size(x: Tensor) -> int:
    """Elements of ``x`` worked on at a time; a multiple of 8, so that packed blocks meet at whole bytes."""
    return _CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK


@dataclass(frozen=True, slots=True)
class Layout:
    """The cut of a tensor into channels, groups and elements.

    A channel is one index of ``channel_axis`` (the whole tensor where it is None) with its other axes
    flattened in order; a group is ``group_size`` neighbours of a channel (all of it where it is None).
    Parameters have the shape ``()``, ``(channels,)``, ``(groups,)`` or ``(channels, groups)``: the axes that
    were asked for.
    """

    shape: tuple[int, ...]
    channel_axis: int | None
    group_size: int | None
    channels: int
    groups: int
    length: int

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The shape of scale and zero point."""
        channels = () if self.channel_axis is None else (self.channels,)
        groups = () if self.group_size is None else (self.groups,)
        return channels + groups

    def split(self, x: Tensor) -> Tensor:
        """``x`` as (channels, groups, length); a view wherever the strides allow one."""
        if self.channel_axis is not None:
            x = x.movedim(self.channel_axis, 0)
        return x.reshape(self.channels, self.groups, self.length)

    def join(self, rows: Tensor) -> Tensor:
        """The inverse of ``split``: contiguous, in the shape of the tensor."""
        if self.channel_axis is None:
            return rows.reshape(self.shape)
        axis = self.channel_axis
        moved = (self.shape[axis], *self.shape[:axis], *self.shape[axis + 1 :])
        return rows.reshape(moved).movedim(0, axis).contiguous()

    def empty_rows(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialized rows, (channels, groups, length), to fill and ``join``."""
        return torch.empty((self.channels, self.groups, self.length), dtype=dtype, device=device)

    def spread(self, parameter: Tensor) -> Tensor:
        """A parameter as (channels, groups, 1), ready to meet rows."""
        return parameter.reshape(self.channels, self.groups, 1)

    def row_blocks(self, size: int) -> Iterator[RowBlock]:
        """Blocks of whole rows, (channels, groups) slices, of at most ``size`` elements or one row."""
        per_block = max(1, size // self.length)
        if per_block >= self.groups:
            step = per_block // self.groups
            for start in range(0, self.channels, step):
                yield slice(start, start + step), slice(None)
        else:
            for channel in range(self.channels):
                for start in range(0, self.groups, per_block):
                    yield slice(channel, channel + 1), slice(start, start + per_block)

    def blocks(self, size: int) -> Iterator[Block]:
        """Blocks of at most ``size`` elements; long rows are cut too."""
        for channels, groups in self.row_blocks(size):
            for start in range(0, self.length, size):
                yield channels, groups, slice(start, start + size)


def layout_of(shape: tuple[int, ...], channel_axis: int | None, group_size: int | None) -> Layout:
    """Check the axis and group size against a shape.

    Raises InputError for an axis that is not there, a group size that does not divide a channel, or no
    elements at all.
    """
    axis, group_size = _integer("channel_axis", channel_axis), _integer("group_size", group_size)
    count = math.prod(shape)
    if count == 0:
        raise InputError(f"shape {shape} has no elements; nothing to quantize")
    channels = 1
    if axis is not None:
        if not -len(shape) <= axis < len(shape):
            raise InputError(f"channel_axis {axis} is not an axis of shape {shape}")
        axis %= len(shape)
        channels = shape[axis]
    per_channel = count // channels
    length = per_channel if group_size is None else group_size
    if length < 1 or per_channel % length:
        kept = "the tensor" if axis is None else f"a channel (axis {axis})"
        raise InputError(
            f"group_size {group_size} does not divide the {per_channel} elements of {kept}, "
            f"shape {shape}; choose a divisor or None"
        )
    return Layout(shape, axis, group_size, channels, per_channel // length, length)


def _integer(word: str, value: int | None) -> int | None:
    try:
        return None if value is None else index(value)
    except TypeError:
        raise InputError(f"{word} is {value!r}; give an integer or None") from None
