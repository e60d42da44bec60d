"""Settings that the property tests go through, and arrays to try them on."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
MODERATE = st.floats(-1000, 1000, width=32)

# Every granularity divides these shapes.
ROWS, COLUMNS = 4, 8
GRANULARITIES = {
    "tensor": {},
    "channel": {"channel_axis": 0},
    "last channel": {"channel_axis": 1},
    "group": {"channel_axis": 0, "group_size": 4},
    "flat group": {"group_size": 16},
}


def arrays(elements: st.SearchStrategy[float] = FINITE) -> st.SearchStrategy[torch.Tensor]:
    return hnp.arrays(np.float32, (ROWS, COLUMNS), elements=elements, fill=st.nothing()).map(torch.from_numpy)


def steps(q) -> torch.Tensor:
    """The scale that each element has, in the shape of the tensor."""
    layout = q.layout
    spread = layout.spread(q.scale).expand(layout.channels, layout.groups, layout.length)
    return layout.join(spread.contiguous())
