"""A Hugging Face directory: its config, its weights in one file or in shards, and what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fewbits.errors import InputError
from fewbits.models.checkpoint.stored import Entry, Shard, read_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMING_CODE = ("auto_map", "attn_implementation", "_attn_implementation", "custom_pipelines")
"""Keys of a config that may name code to fetch or to run; nothing that fewbits builds is told of them."""
OTHER_WEIGHTS = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".pkl", ".ot")
)
"""Endings of files that hold the same weights again, for other readers."""
SHOWN = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a directory holds; nothing but headers was read.

    Attributes:
        path: the directory.
        config: ``config.json``.
        shards: the files with weights.
        index: ``model.safetensors.index.json``, where there are several.
        beside: files to copy along (tokenizer, generation config, ...), relative to the directory.
        left_out: files that are not copied along: the weights once more, for other readers.
        notes: what a user should know.
    """

    path: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None
    beside: tuple[Path, ...]
    left_out: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by name."""
        return {entry.name: entry for shard in self.shards for entry in shard.entries}

    @property
    def size_bytes(self) -> int:
        """Bytes of the files with weights."""
        return sum(shard.path.stat().st_size for shard in self.shards)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a directory's config, index and headers, and check them against each other.

    Raises:
        InputError: no config or no weights in safetensors; a shard that is missing, cut short or outside of the
            directory; a tensor that the index names and no shard holds, or that two shards hold; a checkpoint that is
            quantized already.
    """
    config = read_json(path / CONFIG, f"{path}: a folder without {CONFIG}; give a Hugging Face directory")
    _refuse_quantized(path, config)
    index = None
    if (path / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (path / INDEX).is_file():
        index = read_json(path / INDEX, "")
        files = shard_files(path / INDEX)
    else:
        raise InputError(_no_weights(path))
    shards = tuple(read_header(path / file) for file in files)
    notes = [*_custom_code(config), *_compare(path, shards, index)]
    used = {path / file for file in (CONFIG, INDEX, *files)}
    beside: list[Path] = []
    left_out: list[Path] = []
    for file in _files(path):
        if path / file not in used:
            (left_out if _is_weights(file) else beside).append(file)
    if left_out:
        notes.append(f"not copied, as they hold the weights in float: {some(map(str, left_out))}")
    return Checkpoint(path, config, shards, index, tuple(beside), tuple(left_out), tuple(notes))


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """The object in a JSON file; InputError with the line `missing` where there is no file."""
    if not path.is_file():
        raise InputError(missing)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}; it must be a JSON object")
    return found


def _refuse_quantized(path: Path, config: Mapping[str, Any]) -> None:
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            method = found.get("quant_method", "unknown method") if isinstance(found, dict) else found
            raise InputError(
                f"{path}: is quantized already ({method}); give the float checkpoint that it was made from"
            )


def shard_files(index: Path) -> list[str]:
    """The files that an index names, each once; every one of them is there, in the index' directory.

    Raises:
        InputError: it names none, one outside, one of another kind, or one that is missing.
    """
    weight_map = read_json(index, f"{index}: no such file").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map from tensors to files; download it again")
    files = list(dict.fromkeys(weight_map.values()))
    for file in files:
        # By name alone: a download cache keeps the files elsewhere and links to them.
        inside = isinstance(file, str) and "\\" not in file and ":" not in file
        if not inside or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise InputError(
                f"{index}: its weight_map names {file!r}, which is not in the directory; a shard is a file beside the "
                "index"
            )
        if not file.endswith(".safetensors"):
            raise InputError(f"{index}: its weight_map names {file!r}, which is no .safetensors file")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise InputError(
            f"{index.parent}: {len(missing)} of its {len(files)} shards are missing: {some(missing)}; download them"
        )
    return files


def _no_weights(path: Path) -> str:
    pickles = [file.name for ending in ("*.bin", "*.pt", "*.pth") for file in sorted(path.glob(ending))]
    if pickles:
        return (
            f"{path}: its weights are Python pickles ({some(pickles)}), which can run any code when they are read; "
            "save the model again as safetensors (save_pretrained)"
        )
    return f"{path}: neither {WEIGHTS} nor {INDEX} in it; give a directory with the model's weights"


def _custom_code(config: Mapping[str, Any]) -> list[str]:
    code = config.get("auto_map")
    if not code:
        return []
    named = some(map(str, code.values())) if isinstance(code, dict) else str(code)
    return [f"its config names code of its own ({named}), which fewbits copies and never runs"]


def _compare(path: Path, shards: tuple[Shard, ...], index: Mapping[str, Any] | None) -> list[str]:
    """Hold the shards against the index and each other; what is there beside is a note."""
    homes: dict[str, Path] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in homes:
                raise InputError(
                    f"{path}: tensor {entry.name!r} is in {homes[entry.name].name} and in {shard.path.name}"
                )
            homes[entry.name] = shard.path
    if not homes:
        raise InputError(f"{path}: its files hold no tensors")
    if index is None:
        return []
    weight_map = index["weight_map"]
    lost = [name for name, file in weight_map.items() if homes.get(name) != path / file]
    if lost:
        raise InputError(
            f"{path}: {len(lost)} tensors are not in the shards that {INDEX} names: {some(lost)}; download it again"
        )
    more = [name for name in homes if name not in weight_map]
    return [f"not in {INDEX}, but in its shards, and kept: {some(more)}"] if more else []


def _files(path: Path) -> list[Path]:
    """Every file below that is not hidden; folders that are links are not followed."""
    found = []
    for one in sorted(path.rglob("*")):
        relative = one.relative_to(path)
        if one.is_file() and not any(part.startswith(".") for part in relative.parts):
            found.append(relative)
    return found


def _is_weights(file: Path) -> bool:
    return file.suffix in OTHER_WEIGHTS or file.name.endswith(".index.json") or ".onnx" in file.name


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that names no code."""
    return {key: value for key, value in config.items() if key not in NAMING_CODE}


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
