"""The schemes that the property tests go through, and arrays to try them on."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from fewbits.numerics import QTensor, quantize_with, quantize_with_codebook, table
from fewbits.numerics.levels import decode_levels

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)  # subnormals and 3e38 among them
SMALLEST = torch.finfo(torch.float32).tiny

INT_ROWS = [row.name for row in table() if row.kind == "int"]
SIGNED = [name for name in INT_ROWS if name.startswith("int")]
UNSIGNED = [name for name in INT_ROWS if name.startswith("uint")]

# A scheme is rows of one kind and the settings they are quantized with.
SCHEMES = {
    "int symmetric": (SIGNED, {"symmetric": True}),
    "int asymmetric": (SIGNED, {"symmetric": False}),
    "uint symmetric": (UNSIGNED, {"symmetric": True}),
    "uint asymmetric": (UNSIGNED, {"symmetric": False}),
    "least error": (INT_ROWS, {"symmetric": False, "search": "mse"}),
    "free zero point": (INT_ROWS, {"symmetric": False, "search": "least_squares"}),
    "float": (["fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fnuz", "fp8_e5m2", "fp8_e5m2fnuz", "fp4_e2m1"], {}),
    "mx": (["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"], {}),
    "nvfp4": (["nvfp4"], {}),
    "fixed levels": (["nf4", "log3", "log4", "log5"], {}),
    "learned codebook": (["codebook2", "codebook3", "codebook4"], {}),
    "binary": (["binary"], {}),
    "ternary": (["ternary"], {}),
}
SYMMETRIC = ("int symmetric", "uint symmetric")
WHOLE_RANGE = (*SYMMETRIC, "int asymmetric", "uint asymmetric")

ROWS, COLUMNS = 4, 8
# Every one of these divides that shape.
GRANULARITIES = {
    "tensor": {},
    "channel": {"channel_axis": 0},
    "last channel": {"channel_axis": 1},
    "group": {"channel_axis": 0, "group_size": 4},
    "flat group": {"group_size": 16},
}


def arrays(*, moderate: bool = False) -> st.SearchStrategy[torch.Tensor]:
    """Matrices of ROWS x COLUMNS finite float32, from bytes: ten times faster than drawn one by one.

    ``moderate`` ones have no magnitude above 1000, and none but zero below 2 ** -20.
    """
    kinds = ["bits", "eighths", "few", "offset"]
    exponents = st.integers(-10, 5) if moderate else st.integers(-149, 120)
    drawn = st.binary(min_size=4 * ROWS * COLUMNS, max_size=4 * ROWS * COLUMNS)
    return st.builds(_matrix, drawn, st.sampled_from(kinds[1:] if moderate else kinds), exponents)


def _matrix(drawn: bytes, kind: str, exponent: int) -> torch.Tensor:
    bits = np.frombuffer(drawn, np.uint32)
    small = (bits & 255).astype(np.float64) - 128
    match kind:
        case "bits":  # any pattern, its exponent made less by one bit where it is no number
            values = np.where(bits & 0x7F800000 == 0x7F800000, bits ^ 0x40000000, bits).view(np.float32)
        case "eighths":  # integers, ties and zeros
            values = np.ldexp(small / 8, exponent)
        case "few":  # up to four values
            values = np.ldexp(small[:4][(bits >> 8) % 4] / 8, exponent)
        case _:  # neighbours far from zero
            values = np.ldexp(16 + small * 2**-16, exponent)
    return torch.from_numpy(values.astype(np.float32).reshape(ROWS, COLUMNS))


def in_shape(scheme: str, x: torch.Tensor) -> torch.Tensor:
    """Block formats have groups of 16 and 32: four rows of eight values become one of 32, with its negative."""
    return torch.stack([x.flatten(), -x.flatten()]) if scheme in ("mx", "nvfp4") else x


def granularities(scheme: str) -> list[dict]:
    return [{}, {"channel_axis": 0}] if scheme in ("mx", "nvfp4") else list(GRANULARITIES.values())


def again(q: QTensor, x: torch.Tensor) -> QTensor:
    """Quantize other values with the parameters of ``q``."""
    words = {"channel_axis": q.channel_axis, "group_size": q.group_size}
    if q.codebook is not None:
        return quantize_with_codebook(x, q.qtype, q.codebook, **words)
    return quantize_with(x, q.qtype, q.scale, q.zero_point, tensor_scale=q.tensor_scale, **words)


def each(q: QTensor, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter of ``q`` as each element has it, in the shape of the tensor."""
    layout = q.layout
    rows = layout.spread(parameter).expand(layout.channels, layout.groups, layout.length)
    return layout.join(rows.contiguous())


def distance_to_levels(q: QTensor, x: torch.Tensor, lowest: int) -> torch.Tensor:
    """How far each value is from the nearest one that the codes from ``lowest`` on can stand for, float64."""
    rows = q.layout.split(x).double()
    if q.codebook is not None:
        books = q.codebook.reshape(q.layout.channels, q.layout.groups, 1, -1).double()
        return q.layout.join((rows.unsqueeze(-1) - books).abs().amin(-1))
    scale = q.layout.spread(q.scale).double()
    if q.qtype.kind == "int":
        zero = q.zero_point if q.free_zero_point is None else q.free_zero_point
        zero = 0 if zero is None else q.layout.spread(zero).double()
        code = (rows / scale + zero).round().clamp(lowest, q.qtype.qmax)
        return q.layout.join(((code - zero) * scale - rows).abs())
    if q.qtype.kind == "binary":
        levels = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    else:
        codes = torch.arange(q.qtype.qmax + 1).to(q.qtype.code_dtype)
        levels = decode_levels(codes, q.qtype).double()
        levels = levels[torch.isfinite(levels)].unique()
    steps = (rows / scale).nan_to_num()  # a binary row of zeros has scale 0
    above = torch.searchsorted(levels, steps.contiguous()).clamp(max=levels.numel() - 1)
    nearest = torch.minimum((levels[above] - steps).abs(), (levels[(above - 1).clamp(min=0)] - steps).abs())
    return q.layout.join(nearest * scale)
