"""How much each layer's quantization alone changes the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fewbits.candidates import Candidate, Draft
from fewbits.decide import decide
from fewbits.engines.engine import EngineSettings, get
from fewbits.fallback import alone
from fewbits.feeding import Feeds
from fewbits.models.model import Model
from fewbits.planning.stats import Stats
from fewbits.samples import Samples

SAMPLES, BATCH = 32, 8  # of the calibration data tell which layers hurt most


def sensitivity(
    model: Model,
    candidate: Candidate,
    stats: Stats,
    samples: Samples,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Error of the model's outputs with one layer quantized, for each layer whose activations are: dB, higher is worse.

    Energy of the difference over that of the float outputs, in the engine and with the settings of ``candidate``.

    Args:
        model: what the candidate was made of.
        candidate: a file with static layers.
        stats: what was observed for it.
        samples: of which a few are run.
        folder: for files in between.
        progress: called with the layers done, and their number.
    """
    draft = candidate.file.draft
    assert draft is not None
    batches = samples.some(SAMPLES, BATCH)

    def written(one: Draft) -> Path:
        placement = model.place(one.assigned, one.target)
        path = folder / "alone.onnx"
        model.write(decide(one.recipe, one.assigned, placement, stats, one.target, model.weight), path)
        return path

    expected = outputs_of(model.path, candidate.settings, samples, batches)
    layers = [a.layer.name for a in draft.assigned if a.activations is not None and a.layer.weights]
    found = {}
    for number, layer in enumerate(layers):
        progress(number, len(layers))
        got = outputs_of(written(alone(draft, layer)), candidate.settings, samples, batches)
        found[layer] = error_db(expected, got)
    return found


def outputs_of(
    path: Path, settings: EngineSettings, samples: Samples, batches: Sequence[Feeds]
) -> list[np.ndarray]:
    """What a file gives for some batches in an engine, float64, output by output."""
    session = samples.session(get(settings.engine).compile(path, settings))
    return [array.astype(np.float64) for one in batches for array in session.run(one).values()]


def error_db(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Energy of the difference over that of what was expected, dB."""
    signal = sum(float(np.square(array).sum()) for array in expected)
    noise = sum(float(np.square(a - b).sum()) for a, b in zip(expected, got, strict=True))
    return float(10 * np.log10(max(noise, 1e-30) / max(signal, 1e-30)))
