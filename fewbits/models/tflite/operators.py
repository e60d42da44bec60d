"""The operators that LiteRT computes on integer codes, and what each asks of the scales of its inputs and results.

From LiteRT's 8-bit quantization specification and its kernels; every row is run by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scales = Literal["free", "input", "output"]
"""Each tensor has its own scale; results have the first input's; inputs have the result's."""


@dataclass(frozen=True)
class IntegerOperator:
    """One row.

    Attributes:
        scales: what ties the scales of inputs and results together.
        bits: of the activations that it has kernels for.
        range8, range16: where the kernel fixes the scale of the result: the smallest and the largest number that the
            codes of that width stand for.
    """

    scales: Scales = "free"
    bits: tuple[int, ...] = (8, 16)
    range8: tuple[float, float] | None = None
    range16: tuple[float, float] | None = None

    def fixed_range(self, bits: int) -> tuple[float, float] | None:
        """What its result's codes of that width stand for, where the kernel says so."""
        return self.range8 if bits == 8 else self.range16


_EIGHT = (8,)
_UNIT16 = (-32767 / 32768, 32767 / 32768)
_FREE = IntegerOperator()
_FREE_8 = IntegerOperator(bits=_EIGHT)
_AS_INPUT = IntegerOperator("input")
_AS_INPUT_8 = IntegerOperator("input", _EIGHT)
_AS_OUTPUT = IntegerOperator("output")
_AS_OUTPUT_8 = IntegerOperator("output", _EIGHT)

OPERATORS: dict[str, IntegerOperator] = {
    **dict.fromkeys(
        ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"), _FREE
    ),
    **dict.fromkeys(("ADD", "SUB", "MUL", "MEAN", "SUM"), _FREE),
    **dict.fromkeys(("RELU", "RELU6", "LEAKY_RELU"), _FREE),
    **dict.fromkeys(("SQUARED_DIFFERENCE", "RELU_N1_TO_1", "HARD_SWISH"), _FREE_8),
    **dict.fromkeys(("DIV", "PRELU", "ELU", "GELU", "ABS", "EXP", "LOG", "SQRT", "RSQRT"), _FREE_8),
    **dict.fromkeys(("EQUAL", "NOT_EQUAL", "LESS", "GREATER", "LESS_EQUAL", "GREATER_EQUAL"), _FREE_8),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN"), _FREE_8),
    **dict.fromkeys(
        ("AVERAGE_POOL_2D", "MAX_POOL_2D", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE"), _AS_INPUT
    ),
    **dict.fromkeys(("PAD", "PADV2", "SLICE", "STRIDED_SLICE", "SPLIT", "UNPACK", "GATHER"), _AS_INPUT),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REDUCE_MAX", "REDUCE_MIN"), _AS_INPUT),
    **dict.fromkeys(("MIRROR_PAD", "SPLIT_V", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "TILE"), _AS_INPUT_8),
    **dict.fromkeys(("BATCH_TO_SPACE_ND", "SPACE_TO_BATCH_ND", "GATHER_ND", "BROADCAST_TO"), _AS_INPUT_8),
    **dict.fromkeys(("CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "FILL"), _AS_OUTPUT),
    **dict.fromkeys(("SELECT", "SELECT_V2"), _AS_OUTPUT_8),
    "SOFTMAX": IntegerOperator(range8=(0.0, 255 / 256), range16=_UNIT16),
    "LOGISTIC": IntegerOperator(range8=(0.0, 255 / 256), range16=_UNIT16),
    "TANH": IntegerOperator(range8=(-1.0, 127 / 128), range16=_UNIT16),
    "LOG_SOFTMAX": IntegerOperator(bits=_EIGHT, range8=(-255 / 16, 0.0)),
    "L2_NORMALIZATION": IntegerOperator(bits=_EIGHT, range8=(-1.0, 127 / 128)),
}
"""By the operator's name."""

MOVES_NO_FLOATS = frozenset(("SHAPE", "RANK", "CAST", "QUANTIZE", "DEQUANTIZE"))
"""Operators that stay as they are whatever their neighbours become."""
