"""LiteRT (TensorFlow Lite) on the CPU: its interpreter, with XNNPACK."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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


class LiteRTEngine:
    """Runs `.tflite` files; computes in what the file says, so its only precision is f32."""

    name = "litert"

    @property
    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version("ai-edge-litert")

    def precisions(self, cpu: Cpu) -> tuple[str, ...]:
        """f32 only: the interpreter's Python API does not switch XNNPACK to 16 bits."""
        return ("f32",)

    def prepare(self) -> None:
        """See `Engine.prepare`."""
        _library()

    def check(self, path: str | Path) -> None:
        """See `Engine.check`."""
        literal_session(path, 1)

    def compile(
        self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None
    ) -> LiteRTSession:
        """See `Engine.compile`. The session takes other shapes as well, and is then made ready for them anew."""
        path = existing_file(path)
        if settings.precision != "f32" or settings.activation_group_size:
            raise EngineError(
                f"litert runs in f32 with activations as the file has them (asked for {path}: "
                f"{settings.precision}, activation_group_size {settings.activation_group_size})"
            )
        return _session(path, settings.threads, "AUTO", static_shapes)

    def snippet(self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None) -> str:
        """See `EngineSettings.snippet`; ``feeds`` are in the order of the file's inputs."""
        return "\n".join(
            (
                "from ai_edge_litert.interpreter import Interpreter",
                f"interpreter = Interpreter({str(path)!r}, num_threads={settings.threads})",
                "places = [one['index'] for one in interpreter.get_input_details()]",
                "for place, array in zip(places, feeds.values(), strict=True):",
                "    interpreter.resize_tensor_input(place, array.shape)",
                "interpreter.allocate_tensors()",
                "for place, array in zip(places, feeds.values(), strict=True):",
                "    interpreter.set_tensor(place, array)",
                "interpreter.invoke()",
                "outputs = [interpreter.get_tensor(one['index']) for one in interpreter.get_output_details()]",
            )
        )


def literal_session(path: str | Path, threads: int) -> LiteRTSession:
    """A session that runs every operator as the file has it, without XNNPACK: the yardstick for others.

    Raises InputError for a missing file, EngineError where it is refused.
    """
    return _session(existing_file(path), threads, "BUILTIN_WITHOUT_DEFAULT_DELEGATES", None)


def _session(path: Path, threads: int, kernels: str, shapes: Shapes | None) -> LiteRTSession:
    library = _library()
    try:
        with _quietly():
            interpreter = library.Interpreter(
                model_path=str(path),
                num_threads=threads,
                experimental_op_resolver_type=library.OpResolverType[kernels],
            )
        session = LiteRTSession(interpreter, path)
    except Exception as error:
        raise engine_error("litert", "read", path, error) from error
    check_names(shapes or {}, session.input_names, path)
    if shapes:
        session.make_ready(shapes)
    return session


class LiteRTSession:
    """See `Session`. Inputs and outputs have the names of the file's signature, or their tensors' where it has none.

    Inputs and outputs that the file has as integer codes are numbers here: floats go in and come out.
    """

    def __init__(self, interpreter: Any, path: Path) -> None:
        self._interpreter, self._path = interpreter, path
        inputs, outputs = _signature(interpreter)
        self._inputs = {name: detail["index"] for name, detail in inputs.items()}
        self._outputs = {name: detail["index"] for name, detail in outputs.items()}
        self._expected: dict[str, np.dtype | None] = {
            name: np.dtype(detail["dtype"]) for name, detail in inputs.items()
        }
        self._codes = {
            name: _Codes(detail["quantization"][0], detail["quantization"][1], np.dtype(detail["dtype"]))
            for name, detail in (inputs | outputs).items()
            if detail["quantization"][0]
        }
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self.input_names, self.output_names = tuple(inputs), tuple(outputs)

    def make_ready(self, shapes: Shapes) -> None:
        """Plan the memory for inputs of these shapes. EngineError where the file does not take them."""
        self._shapes = None
        try:
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self._inputs[name], shape, strict=True)
            with _quietly():
                self._interpreter.allocate_tensors()
        except Exception as error:
            given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            cause = engine_error("litert", "compile", self._path, error)
            raise EngineError(f"{cause} (inputs given: {given})") from error
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        outputs = self._run(self._stored(feeds))
        for name in self._codes.keys() & outputs.keys():
            outputs[name] = self._codes[name].numbers(outputs[name])
        return outputs

    def repeated(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """See `repeated`: codes in and codes out, as a program on a device has them."""
        stored = self._stored(feeds)
        return lambda: self._run(stored)

    def _stored(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Floats as the codes that the file takes."""
        return {
            name: self._codes[name].codes(array) if name in self._codes and array.dtype.kind == "f" else array
            for name, array in feeds.items()
        }

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(feeds, self._expected, self._path)
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            self.make_ready(shapes)
        try:
            for name, array in feeds.items():
                self._interpreter.set_tensor(self._inputs[name], array)
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(place) for name, place in self._outputs.items()}
        except Exception as error:
            raise engine_error("litert", "run", self._path, error) from error


@dataclass(frozen=True)
class _Codes:
    scale: float
    zero_point: int
    dtype: np.dtype

    def codes(self, numbers: np.ndarray) -> np.ndarray:
        info = np.iinfo(self.dtype)
        return (np.round(numbers / self.scale) + self.zero_point).clip(info.min, info.max).astype(self.dtype)

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        return ((codes.astype(np.int32) - self.zero_point) * np.float32(self.scale)).astype(np.float32)


def _signature(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Details of inputs and outputs by name, in the order of the graph."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    runners = map(interpreter.get_signature_runner, interpreter.get_signature_list())
    # Other signatures are of other subgraphs, whose tensors have the same numbers; nothing public tells which.
    runner = next((one for one in runners if not one._subgraph_index), None)
    if runner is None:
        return {one["name"]: one for one in inputs}, {one["name"]: one for one in outputs}
    return _ordered(runner.get_input_details(), inputs), _ordered(runner.get_output_details(), outputs)


def _ordered(named: Mapping[str, Any], as_listed: Sequence[Any]) -> dict[str, Any]:
    place = {one["index"]: number for number, one in enumerate(as_listed)}
    return dict(sorted(named.items(), key=lambda item: place.get(item[1]["index"], len(place))))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the line that LiteRT writes to standard error when XNNPACK is first used; errors are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _library() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise EngineError(f"ai-edge-litert is installed but cannot be imported: {error}") from error
    return interpreter


ENGINE = LiteRTEngine()
