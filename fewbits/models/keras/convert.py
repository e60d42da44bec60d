"""Convert a Keras model, in a process of its own."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewbits.errors import InputError
from fewbits.models.conversion import convert_apart
from fewbits.models.keras.archive import check_archive, check_parts

Format = Literal["onnx", "tflite"]

NEEDED: dict[Format, tuple[str, ...]] = {
    "tflite": ("tensorflow", "keras", "ai_edge_litert"),
    "onnx": ("keras",),
}
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
            f"converting a Keras model to .{to} needs {', '.join(missing)}, not installed here; run: "
            "pip install 'fewbits[keras]'"
        )
    source, what, kind = _on_disk(model, to, folder)
    target = folder / f"{Path(what).stem}.{to}"
    request = {"source": str(source), "kind": kind, "to": to, "target": str(target), "seed": seed}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": BACKENDS[to]}
    request = {**request, "reference": str(folder / "reference.npz")}
    convert_apart("fewbits.models.keras.worker", request, source, what, folder, quiet)
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
            advice = (
                f"write it yourself, model.export('{what}.onnx', format='onnx'), and give the file"
                if to == "onnx"
                else "Keras can trace them on TensorFlow: KERAS_BACKEND=tensorflow; or write the .tflite yourself"
            )
            raise InputError(f"{what}: it has layers of your own; {advice}") from error
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
