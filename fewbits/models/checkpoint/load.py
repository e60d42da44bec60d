"""A directory that was written, as transformers' model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError, MissingExtraError, VerificationError
from fewbits.models.checkpoint.coded import own_file
from fewbits.models.checkpoint.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    read_json,
    shard_files,
    some,
    without_code,
)
from fewbits.models.checkpoint.layers import silent

if TYPE_CHECKING:
    from torch import nn

INSTALL = 'pip install "fewbits[transformers]"'


def own_files(folder: Path) -> list[Path]:
    """The files in fewbits' own format; none where transformers reads the directory."""
    single, index = folder / own_file(WEIGHTS), folder / own_file(INDEX)
    if single.is_file():
        return [single]
    return [folder / file for file in shard_files(index)] if index.is_file() else []


def load_plain(folder: Path) -> nn.Module:
    """What transformers makes of a directory, in eval mode; code of the directory's own is not run.

    Raises:
        InputError: transformers, or compressed-tensors where it takes that, is not installed, or has no such model.
        VerificationError: transformers does not find all of its weights.
    """
    config = read_json(folder / CONFIG, f"{folder}: a folder without {CONFIG}")
    found = _class(folder, config, ("compressed_tensors",) if "quantization_config" in config else ())
    model, said = found.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    if missing := sorted(said["missing_keys"]):
        raise VerificationError(f"{folder}: transformers does not find {some(missing)}")
    return model.eval()


def skeleton(folder: Path) -> nn.Module:
    """The model of a directory with its parameters on the meta device, in eval mode.

    Raises:
        InputError: transformers or accelerate is not installed, or has no such model.
    """
    config = read_json(folder / CONFIG, f"{folder}: a folder without {CONFIG}")
    found = _class(folder, config, ("accelerate",))
    import accelerate
    import transformers

    if not hasattr(found, "config_class"):
        raise InputError(f"{folder}: its config does not name the class of its model in 'architectures'")
    with silent(), accelerate.init_empty_weights(include_buffers=False):
        model = found(found.config_class.from_dict(without_code(config)))
    model.tie_weights()
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.eval()


def _class(folder: Path, config: Mapping[str, Any], libraries: tuple[str, ...]) -> Any:
    """The class that a config names, with the libraries that loading takes."""
    for library in ("transformers", *libraries):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise MissingExtraError(f"{folder}: loading it needs {error.name}; run: {INSTALL}") from error
    import transformers

    name = str((config.get("architectures") or ["AutoModel"])[0])
    found = getattr(transformers, name, None)
    if not hasattr(found, "from_pretrained"):
        raise InputError(f"{folder}: transformers {transformers.__version__} has no model {name!r}")
    return found
