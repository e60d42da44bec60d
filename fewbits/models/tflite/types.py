"""TensorFlow Lite's words for types, in ours."""

from __future__ import annotations

import numpy as np

# The numbers of schema.fbs, TensorType. 4-bit integers are two to a byte and have no NumPy type.
FLOAT32, FLOAT16, INT32, UINT8, INT64, INT16, INT8, INT4 = 0, 1, 2, 3, 4, 7, 9, 17

NUMPY: dict[int, np.dtype] = {
    FLOAT32: np.dtype(np.float32),
    FLOAT16: np.dtype(np.float16),
    INT32: np.dtype(np.int32),
    UINT8: np.dtype(np.uint8),
    INT64: np.dtype(np.int64),
    6: np.dtype(np.bool_),
    INT16: np.dtype(np.int16),
    INT8: np.dtype(np.int8),
    10: np.dtype(np.float64),
    12: np.dtype(np.uint64),
    15: np.dtype(np.uint32),
    16: np.dtype(np.uint16),
}
"""The types that NumPy has too."""

OURS = {"int4": INT4, "int8": INT8, "int16": INT16, "int32": INT32, "int64": INT64, "fp16": FLOAT16}
"""Formats that constants are written in."""

NAMES = {number: dtype.name for number, dtype in NUMPY.items()} | {INT4: "int4"}
"""For reports."""
