"""How one tensor is represented."""

from dataclasses import dataclass
from typing import Literal

from fewbits.errors import InputError

Per = Literal["tensor", "channel", "group"]
RangeKind = Literal["minmax", "percentile", "entropy", "mse", "half_quadratic"]

RANGE_KINDS: tuple[RangeKind, ...] = ("minmax", "percentile", "entropy", "mse", "half_quadratic")


@dataclass(frozen=True)
class Scheme:
    """One tensor's representation: its format, what shares a scale, and how the range is found.

    Attributes:
        qtype: a row of the format table, such as ``int8``, ``uint8``, ``int4``, ``fp16``, ``bf16``.
        per: what shares one scale: the whole ``tensor``, a ``channel``, or a ``group`` inside a channel.
        group_size: elements that share a scale along the reduced axis; only with ``per="group"``.
        symmetric: zero point fixed (0 for signed formats); otherwise it is found with the range.
        range: how the clipping range is found: from the extremes, cutting the outermost values, by least information
            lost, by least squared error, or (weights alone) by half-quadratic splitting, which lets zero fall between
            codes.
        dynamic: the scale of an activation is computed at run time from the tensor itself.

    Raises:
        InputError: a group size without ``per="group"``, or the reverse; a symmetric half-quadratic range.
    """

    qtype: str
    per: Per = "tensor"
    group_size: int | None = None
    symmetric: bool = True
    range: RangeKind = "minmax"
    dynamic: bool = False

    def __post_init__(self) -> None:
        if (self.per == "group") != (self.group_size is not None):
            raise InputError(
                f"per={self.per!r} with group_size={self.group_size}: a group size goes with per='group', "
                "and only with it"
            )
        if self.range == "half_quadratic" and self.symmetric:
            raise InputError("range='half_quadratic' finds where zero lies; write symmetric=false")

    @property
    def is_float(self) -> bool:
        """Stored as a narrower float, without a scale."""
        return self.qtype in ("fp16", "bf16", "fp32")

    def __str__(self) -> str:
        where = f"g{self.group_size}" if self.per == "group" else self.per
        if self.is_float:
            return self.qtype
        if self.dynamic:
            return f"{self.qtype} dynamic"
        return f"{self.qtype} per {where}"
