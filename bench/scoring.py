"""Outputs of a written file over a whole data set, in its engine, at the shape its latency is measured at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.data import stream


def outputs(path: str, settings: dict[str, Any], samples: str, out: str) -> None:
    """Run the file on each row of the `.npz` `samples`, batch 1, and save its only output to `out` (.npy)."""
    from fewbits.engines.engine import EngineSettings, get

    feeds = next(stream(Path(samples)))
    engine_settings = EngineSettings(**settings)
    shapes = {name: array.shape for name, array in feeds.items()}
    session = get(engine_settings.engine).compile(path, engine_settings, shapes)
    rows = []
    for sample in stream(Path(samples)):
        (output,) = session.run(sample).values()
        rows.append(np.array(output))
    np.save(out, np.concatenate(rows))
