"""Number formats and what turns tensors into them; torch is the array library, and no model is known here."""

from fewbits.numerics.affine import scale_zero_point, textbook_scale
from fewbits.numerics.api import quantize, quantize_with
from fewbits.numerics.packing import pack, packed_size, unpack
from fewbits.numerics.qtensor import QTensor, QuantizationError
from fewbits.numerics.qtype import QType, find, register, table
from fewbits.numerics.search import SEARCHES, MeanSquare, MinMax

__all__ = [
    "SEARCHES",
    "MeanSquare",
    "MinMax",
    "QTensor",
    "QType",
    "QuantizationError",
    "find",
    "pack",
    "packed_size",
    "quantize",
    "quantize_with",
    "register",
    "scale_zero_point",
    "table",
    "textbook_scale",
    "unpack",
]
