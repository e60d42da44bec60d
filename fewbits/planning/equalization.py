"""Pairs of layers between which channels may be made larger or smaller, and by how much they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Link:
    """Two layers of which the second reads what the first gives, and nothing else does.

    What lies between them treats every channel alone and lets positive factors through.

    Attributes:
        first, second: names of their nodes.
        tensor: what the second reads, by name.
        channels: how many there are between them.
        shiftable: a constant per channel may be moved from the first layer's bias to the second's, where the channel
            always exceeds it.
        bounded: what lies between cuts channels at the top, so each gets a bound of its own.
    """

    first: str
    second: str
    tensor: str
    channels: int
    shiftable: bool = False
    bounded: bool = False


@dataclass(frozen=True)
class Rescaling:
    """What is between two layers becomes ``(x - shift) / divisor``; both float32 [channels], the divisor positive.

    ``gain``: how many times less noise rounding should bring into what the second layer gives.
    """

    link: Link
    divisor: np.ndarray = field(repr=False)
    shift: np.ndarray = field(repr=False)
    gain: float
