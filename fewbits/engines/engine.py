"""The engines that run a written file: what they promise, which are here, and the settings of a run.

An engine is used in three steps: ``get(name)`` finds it, ``compile`` turns a file into a `Session`, ``run``
maps named arrays to named arrays. The libraries themselves are imported only when an engine is used.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from fewbits.engines.cpu import Cpu
from fewbits.errors import EngineError, InputError

PRECISIONS = ("f32", "bf16", "f16")
ACTIVATION_GROUP_SIZES = (0, 32, 64, 128)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Known:
    """An engine that can be here: where it is, the library it needs and how to get that, the files it reads."""

    module: str
    library: str
    install: str
    format: str


_MODULES = {
    "onnxruntime": _Known("fewbits.engines.onnxruntime_engine", "onnxruntime", "onnxruntime", "onnx"),
    "openvino": _Known("fewbits.engines.openvino_engine", "openvino", "openvino", "onnx"),
    "litert": _Known("fewbits.engines.litert_engine", "ai_edge_litert", "'fewbits[tflite]'", "tflite"),
}
_YARDSTICKS = {"onnx": "onnxruntime", "tflite": "litert"}
"""What runs files of a format as they are written: to observe the original, and to hold other results against."""

FORMATS = tuple(_YARDSTICKS)
"""Of files that are written."""
_FRAMEWORKS = {"pytorch": "fewbits.engines.torch_engine"}
"""What models come from: they run the original, to tell speedups against, and nothing is written for them."""


@dataclass(frozen=True)
class EngineSettings:
    """How a file is run: everything that a latency depends on besides the file and the machine.

    Attributes:
        engine: a name that `get` knows.
        precision: what float layers are computed in: "f32", "bf16" or "f16".
        threads: for one inference, at least 1. An engine may use fewer where the CPU has fewer.
        activation_group_size: whether the engine may round the activations of weight-only layers to int8
            while it runs, and how many elements then share a scale: 0 (they stay float), 32, 64 or 128. Left
            alone, both engines do so, silently, which costs accuracy (about 45 dB) and gains speed. ONNX
            Runtime does it in block-quantized MatMuls, where any size but 0 means the weights' own block;
            OpenVINO does it in every MatMul with integer weights.
    """

    engine: str
    precision: str
    threads: int
    activation_group_size: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; allowed are {', '.join(PRECISIONS)}")
        if self.threads < 1:
            raise InputError(f"threads is {self.threads}; give 1 or more")
        if self.activation_group_size not in ACTIVATION_GROUP_SIZES:
            allowed = ", ".join(map(str, ACTIVATION_GROUP_SIZES))
            raise InputError(f"activation_group_size is {self.activation_group_size}; allowed are {allowed}")

    def snippet(self, path: str | Path, static_shapes: Shapes | None = None) -> str:
        """Python lines that run ``path`` in the plain runtime, without fewbits, under these settings.

        The lines expect ``feeds``, a dict from input name to array, and leave ``outputs``.
        ``static_shapes`` as in `Engine.compile`.
        """
        return get(self.engine).snippet(path, self, static_shapes)


class Session(Protocol):
    """A compiled file. Not safe for calls from several threads at once."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Map every input, by the file's name and with its dtype, to the outputs in the file's order.

        Raises InputError where names or dtypes are not the model's, EngineError where the engine fails.
        """
        ...


class Engine(Protocol):
    """One runtime."""

    name: str
    version: str

    def precisions(self, cpu: Cpu) -> tuple[str, ...]:
        """The compute precisions worth offering on ``cpu``, "f32" first."""
        ...

    def prepare(self) -> None:
        """Import the runtime now, so that the first `compile` is not charged for it."""
        ...

    def check(self, path: str | Path) -> None:
        """Read a file, without compiling it. Raises InputError where there is none, EngineError where it is refused."""
        ...

    def compile(
        self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None
    ) -> Session:
        """Load and optimise a file for inputs of exactly ``static_shapes`` (by name); None keeps them open.

        Raises InputError for a missing file or names that are not inputs, EngineError where the engine
        refuses the file, the shapes or the settings.
        """
        ...

    def snippet(self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None) -> str:
        """See `EngineSettings.snippet`."""
        ...


def available(format: str = "onnx") -> dict[str, Engine]:
    """The installed engines that files of a format are written for, by name; asking imports none of their libraries."""
    found: dict[str, Engine] = {}
    for name, known in _MODULES.items():
        if known.format == format and importlib.util.find_spec(known.library) is not None:
            found[name] = cast(Engine, importlib.import_module(known.module).ENGINE)
    return found


def reads(engine: str) -> str:
    """The format of the files that an engine runs. InputError as in `get`."""
    return _MODULES[written_for(engine).name].format


def installed() -> dict[str, Engine]:
    """All installed engines that files of any format are written for, by name."""
    return {name: engine for format in _YARDSTICKS for name, engine in available(format).items()}


def get(name: str) -> Engine:
    """The engine called ``name``, or the framework; InputError lists what is installed where it is not."""
    if name in _FRAMEWORKS:
        return cast(Engine, importlib.import_module(_FRAMEWORKS[name]).ENGINE)
    return written_for(name)


def written_for(name: str) -> Engine:
    """The engine called ``name``, for which files are written; InputError as in `get`."""
    known = _MODULES.get(name)
    engines = available() if known is None else available(known.format)
    if name in engines:
        return engines[name]
    here = ", ".join(installed()) or "none"
    if known is not None:
        raise InputError(
            f"engine {name!r} is not installed (installed: {here}); run: pip install {known.install}"
        )
    raise InputError(f"engine {name!r} is unknown; installed: {here}")


def engines_for(format: str, engine: str = "auto") -> dict[str, Engine]:
    """The engines to write files of a format for: all that are installed (``auto``), or the one asked for.

    Raises InputError where none is installed, or the one asked for is not, or reads other files.
    """
    if engine != "auto":
        found = written_for(engine)
        if (reads := _MODULES[engine].format) != format:
            readers = ", ".join(name for name, known in _MODULES.items() if known.format == format)
            raise InputError(f"engine {engine!r} runs .{reads} files, and this is a .{format}: use {readers}")
        return {engine: found}
    if not (all_of_them := available(format)):
        wanted = " ".join(known.install for known in _MODULES.values() if known.format == format)
        raise InputError(f"no engine that runs .{format} files is installed; run: pip install {wanted}")
    return all_of_them


def yardstick(format: str) -> Engine:
    """The engine that runs the original of a format for others to be held against. InputError as in `get`."""
    return written_for(_YARDSTICKS[format])


def literal_session(path: str | Path, threads: int) -> Session:
    """A session that runs every operator as the file has it, without fusing or folding: the yardstick for others.

    Raises InputError for a missing file, EngineError where it is refused.
    """
    known = _MODULES[_YARDSTICKS[Path(path).suffix[1:]]]
    return cast(Session, importlib.import_module(known.module).literal_session(path, threads))


def repeated(session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """A call that runs the same feeds each time, in the types that the file itself has, so that it can be timed."""
    own: Callable[[Mapping[str, np.ndarray]], Callable[[], object]] | None = getattr(
        session, "repeated", None
    )
    return (lambda: session.run(feeds)) if own is None else own(feeds)


def check_feeds(feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.dtype | None], path: Path) -> None:
    """Refuse feeds whose names or dtypes are not the model's; engines may run such feeds silently.

    ``expected`` maps each input to its dtype, or to None where NumPy has no word for it.
    """
    if feeds.keys() != expected.keys():
        raise InputError(
            f"{path} has the inputs {', '.join(expected)}; received {', '.join(feeds) or 'none'}"
        )
    for name, dtype in expected.items():
        if dtype is not None and feeds[name].dtype != dtype:
            raise InputError(f"{path}: input {name!r} takes {dtype}, received {feeds[name].dtype}")


def check_names(shapes: Shapes, inputs: Collection[str], path: Path) -> None:
    """Refuse shapes for what is not an input."""
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise InputError(
            f"{path} has the inputs {', '.join(inputs)}; received a shape for {', '.join(unknown)}"
        )


def existing_file(path: str | Path) -> Path:
    """``path`` as a Path; InputError where no such file is."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return path


def engine_error(engine: str, task: str, path: Path, cause: BaseException) -> EngineError:
    """The one-line error for ``engine`` failing at ``task`` ("read", "compile", "run") on ``path``."""
    return EngineError(f"{engine} cannot {task} {path}: {_one_line(str(cause)) or type(cause).__name__}")


def _one_line(message: str, limit: int = 300) -> str:
    """The lines of an engine's message that say something, as one line."""
    lines = (line.strip() for line in message.splitlines())
    # OpenVINO leads with places in its own source: "Exception from file:1", "Check 'x' failed at file:1".
    said = " ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check '")))
    said = said or " ".join(message.split())
    return said if len(said) <= limit else said[: limit - 3] + "..."
