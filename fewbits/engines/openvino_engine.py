"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

# Our word: (OpenVINO's word, its capability, instruction sets of which one makes it faster than f32).
_PRECISIONS = {
    "f32": ("f32", "FP32", frozenset[str]()),
    "bf16": ("bf16", "BF16", frozenset({"avx512_bf16", "amx_bf16"})),
    "f16": ("f16", "FP16", frozenset({"avx512_fp16", "amx_fp16", "fp16"})),
}


class OpenVinoEngine:
    """Runs `.onnx`, OpenVINO IR (`.xml`) and `.tflite` files, in f32 or in a 16-bit float the CPU has."""

    name = "openvino"

    @property
    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version("openvino")

    def precisions(self, cpu: Cpu) -> tuple[str, ...]:
        """f32, and each 16-bit float that both ``cpu`` and the engine's CPU plugin have."""
        capabilities = set(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        return tuple(
            name
            for name, (_, capability, isa) in _PRECISIONS.items()
            if name == "f32" or (capability in capabilities and isa.intersection(cpu.isa))
        )

    def prepare(self) -> None:
        """See `Engine.prepare`; loads the CPU plugin as well."""
        _core().get_versions("CPU")

    def check(self, path: str | Path) -> None:
        """See `Engine.check`."""
        self._read(existing_file(path))

    def _read(self, path: Path) -> Any:
        try:
            return _core().read_model(path)
        except Exception as error:
            raise engine_error(self.name, "read", path, error) from error

    def compile(
        self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None
    ) -> OpenVinoSession:
        """See `Engine.compile`."""
        path = existing_file(path)
        core, model = _core(), self._read(path)
        # Compiling may add names of tensors that were merged with an output; the file's own are known now.
        names = tuple(_result_name(output) for output in model.outputs)
        if static_shapes is not None:
            check_names(static_shapes, [_input_name(port) for port in model.inputs], path)
        try:
            if static_shapes is not None:
                model.reshape({name: list(shape) for name, shape in static_shapes.items()})
            compiled = core.compile_model(model, "CPU", _config(settings))
            computed = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            request = compiled.create_infer_request()
        except Exception as error:
            raise engine_error(self.name, "compile", path, error) from error
        # The plugin answers a precision that the CPU lacks with another one, without a word.
        if computed != settings.precision:
            raise EngineError(
                f"openvino computes in {computed} on this CPU, not in {settings.precision} (asked for {path})"
            )
        return OpenVinoSession(request, compiled, names, path)

    def snippet(self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None) -> str:
        """See `EngineSettings.snippet`."""
        lines = [
            "import openvino as ov",
            f"model = ov.Core().read_model({str(path)!r})",
            f"compiled = ov.compile_model(model, 'CPU', {_config(settings)!r})",
            "outputs = compiled(feeds)",
        ]
        if static_shapes is not None:
            shapes = {name: list(shape) for name, shape in static_shapes.items()}
            lines.insert(2, f"model.reshape({shapes!r})")
        return "\n".join(lines)


class OpenVinoSession:
    """See `Session`."""

    def __init__(self, request: Any, compiled: Any, output_names: tuple[str, ...], path: Path) -> None:
        self._request = request
        self._path = path
        self._expected: dict[str, np.dtype | None] = {
            _input_name(port): np.dtype(port.get_element_type().to_dtype()) for port in compiled.inputs
        }
        self.input_names = tuple(self._expected)
        self.output_names = output_names

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        check_feeds(feeds, self._expected, self._path)
        try:
            # Inputs are lent to the engine for the call, outputs are copied out: as in ONNX Runtime.
            values = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        except Exception as error:
            raise engine_error("openvino", "run", self._path, error) from error
        return {name: values[index] for index, name in enumerate(self.output_names)}


def _config(settings: EngineSettings) -> dict[str, str | int]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISIONS[settings.precision][0],
        "INFERENCE_NUM_THREADS": settings.threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": settings.activation_group_size,
    }


def _input_name(port: Any) -> str:
    """The name the file gives an input, which compiling may give further names: those of merged tensors."""
    name = port.node.friendly_name
    return name if name in port.get_names() else port.get_any_name()


def _result_name(output: Any) -> str:
    """The name the file gives an output: its result node is called "name/sink_port_0"."""
    stem = output.node.friendly_name.rsplit("/sink_port_", 1)[0]
    return stem if stem in output.get_names() else output.get_any_name()


@functools.cache
def _core() -> Any:
    """The one Core of this process, which is never given back.

    The CPU plugin of a Core sets a signal stack of its own for the thread, and puts the one before back when it goes.
    Where an earlier Core had gone by then, that one was unmapped, and the next signal, such as Ctrl-C, was a
    segmentation fault (OpenVINO 2026.4).
    """
    return library().Core()


def library() -> ModuleType:
    """The openvino module, imported so that it neither reports home nor keeps an id there."""
    try:
        with _without("openvino_telemetry"):
            import openvino
    except ImportError as error:
        raise EngineError(f"openvino is installed but cannot be imported: {error}") from error
    return openvino


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let the imports inside find ``module`` missing.

    Importing openvino reports that import to its makers and writes an id into the home directory, unless its
    optional telemetry package is not there.
    """
    kept = {name: found for name, found in sys.modules.items() if name.split(".")[0] == module}
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        sys.modules.update(kept)


ENGINE = OpenVinoEngine()
