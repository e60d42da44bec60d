"""A `.keras` file before anything in it is loaded: is it whole, bounded, and made of Keras' own parts?"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewbits.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MOST_CONFIG = 1 << 26
MOST_EXPANSION = 50  # weights hardly compress: what unpacks to more than this times the file is no model
SMALL = 1 << 26  # whatever the ratio, this much does no harm
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, RecursionError, zipfile.BadZipFile, zlib.error)


def check_archive(path: Path) -> None:
    """Look at a file without loading it.

    Raises:
        InputError: it is missing, not a `.keras` file, cut short, unpacks to more than a model could, or holds code of
            its own (a Lambda, a custom object).
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; MODEL is a path to a .keras file")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            with archive.open(CONFIG) as file:
                config = json.loads(file.read(MOST_CONFIG + 1))
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{path}: not a readable .keras file ({str(error)[:120]}); it may be cut short: save it again with "
            "model.save"
        ) from error
    check_parts(str(path), config)


def check_parts(what: str, config: Any) -> None:
    """Refuse a model's config with code of its own in it. Raises InputError, which names the layer."""
    try:
        found = next(_foreign(config, None), None)
    except RecursionError as error:
        raise InputError(f"{what}: its config is nested without end; save the model again") from error
    if found is not None:
        raise InputError(
            f"{what}: {found}, and code from a file is never run; load the model yourself and give it to fb.compress, "
            "or convert it yourself and give the .tflite or .onnx"
        )


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    total = sum(sizes.values())
    if sizes.get(CONFIG, 0) > MOST_CONFIG or total > max(SMALL, MOST_EXPANSION * path.stat().st_size):
        raise InputError(
            f"{path}: it unpacks to {total} bytes from {path.stat().st_size}, which no model does; it is not loaded"
        )
    for name in (CONFIG, WEIGHTS):
        if name not in sizes:
            raise InputError(f"{path}: not a .keras file ({name} is missing in it); save it with model.save")


def _foreign(node: Any, layer: str | None) -> Iterator[str]:
    """What is not Keras' own in a config, in words."""
    if isinstance(node, list):
        for one in node:
            yield from _foreign(one, layer)
    if not isinstance(node, dict):
        return
    kind, module, registered = (node.get(key) for key in ("class_name", "module", "registered_name"))
    config = node.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    layer = name if isinstance(name, str) else layer
    where = f"layer {layer!r}" if layer else "the model"
    if kind in ("Lambda", "__lambda__"):
        yield f"{where} is a Lambda" if kind == "Lambda" else f"{where} has a lambda"
    elif isinstance(kind, str) and "module" in node:
        root = str(module).split(".")[0] if module is not None else None
        custom = isinstance(registered, str) and ">" in registered
        if custom or root not in ("keras", "builtins", None):
            yield f"{where} is of the class {kind!r} of {module or registered!r}, which is not Keras' own"
        elif root is None and registered is not None:  # of the script that made the model
            yield f"{where} is of the class {kind!r}, which is not Keras' own"
    for key, value in node.items():
        if key != "compile_config":
            yield from _foreign(value, layer)
