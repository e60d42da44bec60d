"""A directory that was written, as the model that transformers makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError, MissingExtraError, VerificationError
from fewbits.models.checkpoint.folder import CONFIG, read_json, some

if TYPE_CHECKING:
    from torch import nn

INSTALL = 'pip install "fewbits[transformers]"'


def load_checkpoint(folder: Path) -> nn.Module:
    """The model of a directory, by transformers, in eval mode; code of the directory's own is not run.

    Raises:
        InputError: transformers or compressed-tensors is not installed, or has no such model.
        VerificationError: transformers does not find all of its weights.
    """
    config = read_json(folder / CONFIG, f"{folder}: a folder without {CONFIG}")
    try:
        import transformers

        if "quantization_config" in config:
            import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"{folder}: loading it needs {error.name}; run: {INSTALL}") from error
    name = str((config.get("architectures") or ["AutoModel"])[0])
    found: Any = getattr(transformers, name, None)
    if found is None:
        raise InputError(f"{folder}: transformers {transformers.__version__} has no model {name!r}")
    model, said = found.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    if missing := sorted(said["missing_keys"]):
        raise VerificationError(f"{folder}: transformers does not find {some(missing)}")
    return model.eval()
