"""Where the benchmark finds its real data and keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "bench" / "cache"
RESULTS = ROOT / "bench" / "results"


class MissingError(Exception):
    """Something a row of the benchmark needs is not on this machine; the message says what."""


def shared(name: str) -> Path:
    """Path of one file of the real-data folder (`FEWBITS_DATA`, or `../shared/data` from the project)."""
    folder = Path(os.environ.get("FEWBITS_DATA") or ROOT.parent / "shared" / "data")
    path = folder / name
    if not path.is_file():
        raise MissingError(f"{name} is not in ../shared/data nor in the folder FEWBITS_DATA names")
    return path


def cached(name: str) -> Path:
    """Path for a file the benchmark makes itself; its folder exists afterwards, the file perhaps not."""
    path = CACHE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
