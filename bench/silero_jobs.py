"""The detector of speech run and quantized step by step, in processes of their own; JSON values in and out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench import peers
from bench.speech import RATE

STATE = np.zeros((2, 1, 128), np.float32)


def one_step(samples: str) -> dict[str, np.ndarray]:
    """What the model reads in the first step."""
    with np.load(samples) as arrays:
        return _feeds(arrays["input"][0], STATE)


def outputs(path: str, settings: dict[str, Any], samples: str, out: str) -> None:
    """Run the file over all steps, each with the state of the one before, and save the probabilities (.npy)."""
    from fewbits.engines.engine import EngineSettings, get

    engine_settings = EngineSettings(**settings)
    shapes = {name: array.shape for name, array in one_step(samples).items()}
    session = get(engine_settings.engine).compile(path, engine_settings, shapes)
    found, state = [], STATE
    with np.load(samples) as arrays:
        for window in arrays["input"]:
            answer = session.run(_feeds(window, state))
            state = answer["stateN"]
            found.append(answer["output"][0, 0])
    np.save(out, np.array(found))


def ort_static(source: str, calibration: str, out: str, method: str) -> None:
    """ONNX Runtime's static quantizer, with the states that the float model has at each step."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])

    def steps() -> Iterator[dict[str, np.ndarray]]:
        state = STATE
        with np.load(calibration) as arrays:
            for window in arrays["input"]:
                feeds = _feeds(window, state)
                yield feeds
                _, state = session.run(None, feeds)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.steps = steps()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.steps, None)

    with tempfile.TemporaryDirectory() as folder:
        quantize(
            peers.ort_preprocessed(source, folder),
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )


def _feeds(window: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": window[None], "state": state, "sr": np.array(RATE)}
