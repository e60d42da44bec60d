"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import (
    EngineSettings,
    Shapes,
    check_feeds,
    check_names,
    engine_error,
    existing_file,
)
from fewbits.errors import EngineError

# Tensor types whose NumPy dtype is not spelled like the type; the rest ("int64", "uint8") are.
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxRuntimeEngine:
    """Runs `.onnx` files; computes in what the file says, so its only precision is f32."""

    name = "onnxruntime"

    @property
    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version("onnxruntime")

    def precisions(self, cpu: Cpu) -> tuple[str, ...]:
        """f32 only: its CPU kernels have no bf16 matrix product, and float16 gains nothing there."""
        return ("f32",)

    def prepare(self) -> None:
        """See `Engine.prepare`."""
        library()

    def check(self, path: str | Path) -> None:
        """See `Engine.check`."""
        literal_session(path, 1)

    def compile(
        self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None
    ) -> OnnxRuntimeSession:
        """See `Engine.compile`.

        The session takes other shapes as well: fixing them gained nothing (MiniLM 10.4 ms and 10.4, ResNet-20
        0.25 and 0.25, Magika 2.6 and 2.6), as it remembers its memory plan per shape.
        """
        path = existing_file(path)
        if settings.precision != "f32":
            raise EngineError(
                f"onnxruntime has no precision {settings.precision!r} on CPUs (asked for {path}); use f32"
            )
        ort = library()
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.log_severity_level = 4  # its errors are raised, and need not be printed as well
        options.add_session_config_entry(*_accuracy(settings))
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise engine_error(self.name, "compile", path, error) from error
        compiled = OnnxRuntimeSession(session, path)
        check_names(static_shapes or {}, compiled.input_names, path)
        return compiled

    def snippet(self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None) -> str:
        """See `EngineSettings.snippet`."""
        return "\n".join(
            (
                "import onnxruntime as ort",
                "options = ort.SessionOptions()",
                f"options.intra_op_num_threads = {settings.threads}",
                f"options.add_session_config_entry{_accuracy(settings)!r}",
                f"session = ort.InferenceSession({str(path)!r}, options, providers=['CPUExecutionProvider'])",
                "outputs = session.run(None, feeds)",
            )
        )


def literal_session(path: str | Path, threads: int) -> OnnxRuntimeSession:
    """A session that runs every operator as the file has it, without fusing or folding: the yardstick for others.

    Raises InputError for a missing file, EngineError where it is refused.
    """
    path = existing_file(path)
    ort = library()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return OnnxRuntimeSession(
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), path
        )
    except Exception as error:
        raise engine_error("onnxruntime", "compile", path, error) from error


def simplify(path: Path) -> None:
    """Rewrite a file as ONNX Runtime's passes from ONNX to ONNX leave it; it stays as it is where they change nothing.

    Constants are folded, changes of layout that cancel out are gone, and what is added to or multiplied with the result
    of a convolution becomes part of its weights. Raises EngineError where ONNX Runtime refuses the file.
    """
    import onnx_ir as ir

    ort = library()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    simpler = path.with_name(f"simpler-{path.name}")
    options.optimized_model_filepath = str(simpler)
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise engine_error("onnxruntime", "simplify", path, error) from error
    model = ir.load(simpler)
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in set(model.opset_imports) - used - {""}:
        del model.opset_imports[domain]
    ir.save(model, path)
    simpler.unlink()


class OnnxRuntimeSession:
    """See `Session`."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._path = path
        self._expected = {node.name: _dtype(node.type) for node in session.get_inputs()}
        self.input_names = tuple(self._expected)
        self.output_names = tuple(node.name for node in session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        check_feeds(feeds, self._expected, self._path)
        try:
            values = self._session.run(None, feeds)
        except Exception as error:
            raise engine_error("onnxruntime", "run", self._path, error) from error
        return dict(zip(self.output_names, values, strict=True))


def library() -> ModuleType:
    """The onnxruntime module, imported so that it neither reports home nor keeps an id and a database there.

    It starts a reporting thread when it is imported, unless this variable is set; the thread would also
    disturb what is measured. A value that the user has set stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"onnxruntime is installed but cannot be imported: {error}") from error
    return onnxruntime


def _accuracy(settings: EngineSettings) -> tuple[str, str]:
    """The session entry for what block-quantized MatMuls multiply in: 4, its default, is int8; 1 is f32."""
    return "session.qdq_matmulnbits_accuracy_level", "4" if settings.activation_group_size else "1"


def _dtype(kind: str) -> np.dtype | None:
    """The NumPy dtype of ONNX Runtime's "tensor(int64)" and the like, None where there is none."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_DTYPES.get(name, name))
    except TypeError:
        return None


ENGINE = OnnxRuntimeEngine()
