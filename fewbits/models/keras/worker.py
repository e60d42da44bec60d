"""The process that converts one Keras model; see :mod:`fewbits.models.conversion`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.models.conversion import Refused, first_line, limit_memory, serve

UNKNOWN_DIMS = (32, 8, 64)  # sizes to try for axes that the model leaves open
BATCH = 3


Call = Callable[[list[Any]], Any]
Spec = tuple[str, list[Any], Any]
"""An input's name, its shape with None for open axes, and its dtype."""


def _convert(request: dict[str, Any]) -> None:
    import keras

    rng = np.random.default_rng(request["seed"])
    with tempfile.TemporaryDirectory() as folder:
        if request["kind"] == "saved_model":
            import tensorflow as tf

            limit_memory(request["memory"])
            call, specs = _serving(tf.saved_model.load(request["source"]))
            reference = _reference(keras, call, specs, rng)
            _write_tflite(request["source"], request["target"])
        else:
            limit_memory(request["memory"])
            model = _loaded(keras, request["source"])
            reference = _reference(keras, *_calling(keras, model), rng)
            if request["to"] == "onnx":
                _write_onnx(model, request["target"])
            else:
                _write_tflite(_traced(keras, model, folder), request["target"])
    with open(request["reference"], "wb") as file:
        np.savez(file, **reference)  # type: ignore[arg-type]


def _serving(graph: Any) -> tuple[Call, list[Spec]]:
    serve = graph.signatures["serving_default" if "serving_default" in graph.signatures else "serve"]
    named = serve.structured_input_signature[1]
    specs = [(name, spec.shape.as_list(), spec.dtype.as_numpy_dtype) for name, spec in named.items()]

    def call(arrays: list[Any]) -> Any:
        return serve(**{name: array for (name, _, _), array in zip(specs, arrays, strict=True)})

    return call, specs


def _loaded(keras: Any, path: str) -> Any:
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except MemoryError:
        raise
    except Exception as error:
        raise Refused(
            f"Keras {keras.__version__} cannot load it in safe mode: {first_line(str(error))}"
        ) from error


def _calling(keras: Any, model: Any) -> tuple[Call, list[Spec]]:
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise Refused("it was never built: call it on samples once, and save it again")
    try:
        nest = model.input
    except AttributeError:  # a Sequential one that was not called yet
        nest = inputs if len(inputs) > 1 else inputs[0]

    def call(arrays: list[Any]) -> Any:
        return model(keras.tree.pack_sequence_as(nest, arrays), training=False)

    return call, [(one.name, list(one.shape), np.dtype(one.dtype)) for one in inputs]


def _traced(keras: Any, model: Any, folder: str) -> str:
    """The model as TensorFlow's graph."""
    import functools

    from keras.src.export.export_utils import get_input_signature

    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = get_input_signature(model)
    archive.add_endpoint("serve", functools.partial(model.__call__, training=False), signature)
    archive.write_out(folder, verbose=False)
    return folder


def _write_onnx(model: Any, target: str) -> None:
    import onnx_ir as ir

    try:
        model.export(target, format="onnx", verbose=False)
    except Exception as error:
        raise Refused(
            f"Keras' own export to ONNX cannot write it ({first_line(str(error))[:160]}); compress it to TensorFlow "
            "Lite: --format tflite"
        ) from error
    written = ir.load(target)
    _add_instead(written.graph)
    for number, value in enumerate(written.graph.outputs):
        if value.producer() is not None:
            value.name = f"output_{number}"
    ir.save(written, target)


def _add_instead(graph: Any) -> None:
    """Add the negative of constants that are subtracted, such as means: engines make sums part of convolutions."""
    import onnx_ir as ir

    for number, node in enumerate(graph):
        if node.op_type != "Sub" or (constant := ir.convenience.get_const_tensor(node.inputs[1])) is None:
            continue
        array = constant.numpy()
        if array.dtype.kind == "f":
            value = ir.val(f"negated_{number}", const_value=ir.tensor(-array, name=f"negated_{number}"))
            graph.register_initializer(value)
            node.op_type = "Add"
            node.replace_input_with(1, value)


def _write_tflite(folder: str, target: str) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    try:
        data = converter.convert()
    except Exception as error:
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not missing:
            raise
        raise Refused(
            f"TensorFlow Lite has no operator for {', '.join(missing)}; replace it, or compress to ONNX: --format onnx"
        ) from error
    Path(target).write_bytes(data)


def _reference(keras: Any, call: Call, specs: list[Spec], rng: Any) -> dict[str, np.ndarray]:
    """Random inputs, and what the model gives for them."""
    for unknown in UNKNOWN_DIMS:
        feeds = []
        for _, shape, dtype in specs:
            sizes = [BATCH if not axis and dim is None else dim or unknown for axis, dim in enumerate(shape)]
            numbers = rng.standard_normal(sizes) if np.dtype(dtype).kind == "f" else rng.integers(0, 2, sizes)
            feeds.append(numbers.astype(dtype))
        arrays = {f"in{number}": array for number, array in enumerate(feeds)}
        try:
            outputs = keras.tree.flatten(call([keras.ops.convert_to_tensor(array) for array in feeds]))
        except Exception:  # whatever random inputs of that size come to
            continue
        return {
            **arrays,
            **{f"out{number}": keras.ops.convert_to_numpy(one) for number, one in enumerate(outputs)},
        }
    return arrays


if __name__ == "__main__":
    serve(_convert)
