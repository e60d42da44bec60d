"""A Keras model as the user gave it: converted, and the file compared with what Keras computes."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewbits.distance import distance
from fewbits.engines.engine import literal_session
from fewbits.engines.onnxruntime_engine import simplify
from fewbits.errors import EngineError, InputError, VerificationError
from fewbits.origin import Origin, Trained
from fewbits.planning.recipe import quantization_aware

FEEDS = 2  # samples by which tensors are found in the file


def is_keras(model: Any) -> bool:
    """Whether it is a `.keras` file or a Keras model; asking does not import Keras."""
    if isinstance(model, (str, Path)):
        return Path(model).suffix == ".keras"
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Model)


def from_keras(model: Any, to: Literal["onnx", "tflite"], folder: Path) -> tuple[Path, Origin]:
    """Convert into ``folder``.

    Raises:
        InputError: as :func:`fewbits.models.keras.convert.convert`; or no engine can run what was written.
        VerificationError: the file does not compute what Keras does.
    """
    from fewbits.models.keras.convert import convert
    from fewbits.training.keras import is_prepared

    if is_prepared(model):
        return _trained(model, to, folder)
    made = convert(model, to, folder)
    what = str(model) if isinstance(model, (str, Path)) else str(model.name)
    if to == "onnx":
        with suppress(EngineError):  # said below, where it is run
            simplify(made.path)
    try:
        session = literal_session(made.path, 1)
    except EngineError as error:
        raise InputError(f"{what}: converted to .{to}, it cannot be run: {error}") from error
    name = Path(what).name
    if made.outputs is None:
        note = "Keras could not be run on random inputs: what was converted is not compared with it"
        return made.path, Origin(name, "keras", None, None, (note,))
    try:
        got = session.run(dict(zip(session.input_names, made.feeds, strict=True)))
    except (EngineError, InputError) as error:
        raise InputError(f"{what}: converted to .{to}, it cannot be run: {error}") from error
    for expected, (output, array) in zip(made.outputs, sorted(got.items(), key=_order), strict=True):
        if (far := distance(expected, array)) is not None:
            raise VerificationError(f"{what}: output {output!r} of the converted file is not Keras': {far}")
    return made.path, Origin(name, "keras", None, None, ())


def _trained(model: Any, to: Literal["onnx", "tflite"], folder: Path) -> tuple[Path, Origin]:
    """A model that was trained with rounding: its weights are levels, and its ranges go along."""
    from fewbits.training.keras import finished

    done = finished(model)
    path, origin = from_keras(done.model, to, folder)
    rng = np.random.default_rng(0)
    inputs = done.model.inputs
    arrays = [rng.standard_normal([dim or FEEDS for dim in one.shape]).astype(one.dtype) for one in inputs]
    session = literal_session(path, 1)
    trained = Trained(
        quantization_aware(done.weight_bits),
        dict(zip(session.input_names, arrays, strict=True)),
        tuple(done.values(arrays)),
        tuple((one.low, one.high) for one in done.learned),
    )
    return path, replace(origin, trained=trained)


def _order(item: tuple[str, Any]) -> list[str | int]:
    """Outputs as Keras lists them: by number, or by key."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item[0])]
