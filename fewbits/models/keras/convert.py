"""Convert a Keras model in a process of its own: a converter that hangs, crashes or takes all memory is an error."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewbits.errors import InputError
from fewbits.models.keras.archive import check_archive, check_parts

Format = Literal["onnx", "tflite"]

TIME_LIMIT_S = 900.0
MEMORY_LIMIT = 4 << 30  # beyond what TensorFlow takes to be imported; and
MEMORY_TIMES = 16  # this many times the file
NEEDED: dict[Format, tuple[str, ...]] = {"tflite": ("tensorflow", "keras"), "onnx": ("keras",)}
BACKENDS: dict[Format, str] = {"tflite": "tensorflow", "onnx": "torch"}
"""What Keras computes with in the worker: its own export to ONNX is through TensorFlow's or through PyTorch's exporter,
and PyTorch's knows more operators, leaves the batch open as well, and is installed."""


@dataclass(frozen=True)
class Converted:
    """A written file, and what Keras itself gives for some inputs.

    Attributes:
        path: the file.
        feeds: random inputs, in the order of the model's.
        outputs: what the model makes of them, in its order; None where it could not be run on random inputs.
    """

    path: Path
    feeds: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...] | None


def convert(model: Any, to: Format, folder: Path, seed: int = 0) -> Converted:
    """Write a Keras model as an `.onnx` or a float `.tflite` file into ``folder``.

    Args:
        model: the path of a `.keras` file, which is loaded in safe mode; or a model in memory.
        to: what to write.
        folder: for the file; and for what is needed on the way.
        seed: of the random inputs.

    Raises:
        InputError: TensorFlow is not installed; the file is damaged, too large, or holds code of its own; the converter
            cannot convert it, crashes, or takes more time or memory than the limits.
    """
    missing = [name for name in NEEDED[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"converting a Keras model to .{to} needs {' and '.join(missing)}, not installed here; run: "
            "pip install 'fewbits[keras]'"
        )
    source, what, kind = _on_disk(model, to, folder)
    target = folder / f"{Path(what).stem}.{to}"
    request = {"source": str(source), "kind": kind, "to": to, "target": str(target), "seed": seed}
    limit = MEMORY_LIMIT + MEMORY_TIMES * _size(source)
    _run({**request, "memory": limit, "reference": str(folder / "reference.npz")}, what, folder)
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        feeds = tuple(arrays[name] for name in arrays.files if name.startswith("in"))
        outputs = tuple(arrays[name] for name in arrays.files if name.startswith("out"))
    return Converted(target, feeds, outputs or None)


def _on_disk(model: Any, to: Format, folder: Path) -> tuple[Path, str, str]:
    """Where the model lies, what to call it, and how the worker has to read it."""
    if isinstance(model, (str, Path)):
        path = Path(model)
        check_archive(path)
        return path, str(path), "keras"
    import keras

    what = str(model.name)
    config = keras.saving.serialize_keras_object(model)
    try:
        check_parts(what, config)
    except InputError as error:
        if to == "onnx" or keras.backend.backend() != "tensorflow":
            raise InputError(
                f"{what}: it has layers of your own; write it yourself, model.export({to!r}), and give the file"
            ) from error
        # Traced here, where its code is trusted already; what is converted elsewhere is a graph.
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", lambda *args: model(*args, training=False), keras_signature(model))
        archive.write_out(str(folder / "graph"), verbose=False)
        return folder / "graph", what, "saved_model"
    path = folder / f"{what}.keras"
    model.save(path)
    return path, what, "keras"


def keras_signature(model: Any) -> list[Any]:
    """What the model's call takes, as Keras' exporter wants it."""
    from keras.src.export.export_utils import get_input_signature

    return list(get_input_signature(model))


def _run(request: dict[str, Any], what: str, folder: Path) -> None:
    asked, answered, said = (folder / name for name in ("request.json", "answer.json", "said.txt"))
    asked.write_text(json.dumps(request), encoding="utf-8")
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": BACKENDS[request["to"]],
    }
    search = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    command = [sys.executable, "-P", "-m", "fewbits.models.keras.worker", str(asked), str(answered)]
    with said.open("wb") as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **quiet, "PYTHONPATH": search},
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{what}: the converter was not done in {TIME_LIMIT_S:g} s; convert it yourself, and give "
                "the file"
            ) from error
    answer = json.loads(answered.read_text(encoding="utf-8")) if answered.is_file() else {}
    if "error" in answer:
        raise InputError(f"{what}: {answer['error']}")
    if not answer:
        raise InputError(f"{what}: the converter crashed ({_how(done.returncode)}); convert it yourself")


def _how(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def _size(source: Path) -> int:
    files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
