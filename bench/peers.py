"""What other tools make of the same ONNX file and the same calibration data, with the settings a user takes.

Each function reads `source`, calibrates on `calibration` (an `.npz`) sample by sample, and writes `out`.
They run in processes of their own (see `bench.process`) and take and give JSON values.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import count, stream


def nncf_openvino(source: str, calibration: str, out: str, transformer: bool) -> None:
    """NNCF's post-training int8 on the OpenVINO model read from `source`; `out` is an OpenVINO `.xml`."""
    import openvino

    quantized = _nncf(openvino.Core().read_model(source), calibration, transformer)
    openvino.save_model(quantized, out, compress_to_fp16=False)


def nncf_onnx(source: str, calibration: str, out: str, transformer: bool) -> None:
    """NNCF's post-training int8 on the ONNX model itself; `out` is `.onnx`."""
    import onnx

    onnx.save(_nncf(onnx.load(source), calibration, transformer), out)


def _nncf(model: Any, calibration: str, transformer: bool) -> Any:
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(_Streamed(Path(calibration))),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=count(Path(calibration)),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )


class _Streamed:
    """Samples that can be gone through again and are never all in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return stream(self._path)


def nncf_weights(source: str, out: str) -> None:
    """NNCF's weight-only int8, symmetric per channel; `out` is an OpenVINO `.xml`."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, out, compress_to_fp16=False)


def nncf_int4(source: str, out: str) -> None:
    """NNCF's weight-only int4, symmetric in groups of 128, with its embeddings in int8; `out` is an OpenVINO `.xml`."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128)
    openvino.save_model(compressed, out, compress_to_fp16=False)


def ort_static(source: str, calibration: str, out: str, method: str, operators: list[str] | None) -> None:
    """ONNX Runtime's static quantizer: Q/DQ, uint8 activations, int8 weights per channel.

    `method` names a calibration method ("MinMax", "Entropy", "Percentile"); None in `operators` means all.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples: Iterator[dict[str, np.ndarray]] = stream(Path(calibration))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    with tempfile.TemporaryDirectory() as folder:
        quantize(
            ort_preprocessed(source, folder),
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            op_types_to_quantize=operators,
        )


def ort_dynamic(source: str, out: str) -> None:
    """ONNX Runtime's dynamic quantizer: int8 weights per channel, activations quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(ort_preprocessed(source, folder), out, per_channel=True, weight_type=QuantType.QInt8)


def ort_preprocessed(source: str, folder: str) -> str:
    """What ONNX Runtime tells users to do first, without symbolic shape inference where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    os.chdir(folder)  # it leaves its intermediate files in the working directory
    ready = str(Path(folder) / "preprocessed.onnx")
    try:
        quant_pre_process(source, ready)
    except Exception:
        quant_pre_process(source, ready, skip_symbolic_shape=True)
    return ready
