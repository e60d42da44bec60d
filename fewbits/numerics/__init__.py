"""Number formats and what turns tensors into them; torch is the array library, and no model is known here."""

from fewbits.numerics.affine import scale_zero_point, textbook_scale
from fewbits.numerics.api import cast, quantize, quantize_with, quantize_with_codebook
from fewbits.numerics.bits import NumberBits, bits_of
from fewbits.numerics.files import load, save
from fewbits.numerics.packing import pack, packed_size, unpack
from fewbits.numerics.qtensor import QTensor, QuantizationError
from fewbits.numerics.qtype import QType, find, register, table
from fewbits.numerics.search import (
    SEARCHES,
    Entropy,
    HalfQuadratic,
    LeastSquares,
    LikelyRanges,
    MeanSquare,
    MinMax,
    Percentile,
    Search,
)

__all__ = [
    "SEARCHES",
    "Entropy",
    "HalfQuadratic",
    "LeastSquares",
    "LikelyRanges",
    "MeanSquare",
    "MinMax",
    "NumberBits",
    "Percentile",
    "QTensor",
    "QType",
    "QuantizationError",
    "Search",
    "bits_of",
    "cast",
    "find",
    "load",
    "pack",
    "packed_size",
    "quantize",
    "quantize_with",
    "quantize_with_codebook",
    "register",
    "save",
    "scale_zero_point",
    "table",
    "textbook_scale",
    "unpack",
]
