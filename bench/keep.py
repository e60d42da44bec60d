"""Files made once for given bytes, settings and versions, and found again by a name that holds them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from bench.paths import MissingError, cached


def kept(folder: str, stem: str, suffix: str, files: tuple[Path, ...], **settings: Any) -> Path:
    """`bench/cache/FOLDER/STEM-KEYSUFFIX`; the key is over the files' bytes and the settings (JSON)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return cached(f"{folder}/{stem}-{digest.hexdigest()[:12]}{suffix}")


def version(package: str) -> str:
    """The installed version of a package; MissingError where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingError(f"{package} is not installed; run make bench") from error
