"""Names and shapes of stored weights, held against those of a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewbits.errors import InputError

SHOWN_KEYS = 3


def check_keys(path: Path, arch: str, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Names and shapes are the same; of names for one tensor (tied weights) a file may hold one.

    Raises:
        InputError: names that are missing or unknown, or shapes that differ; the first few of each.
    """
    tied = {_place(wanted[name]) for name in stored if name in wanted and wanted[name].numel()}
    missing = [name for name, value in wanted.items() if name not in stored and _place(value) not in tied]
    unknown = [name for name in stored if name not in wanted]
    differing = [
        f"{name} is {list(stored[name].shape)} in the file and {list(wanted[name].shape)} in the model"
        for name in stored
        if name in wanted and stored[name].shape != wanted[name].shape
    ]
    wrong = [
        f"{what}: {', '.join(names[:SHOWN_KEYS])}{f' and {more} more' if (more := len(names) - SHOWN_KEYS) > 0 else ''}"
        for what, names in (
            ("missing in the file", missing),
            ("not in the model", unknown),
            ("shapes differ", differing),
        )
        if names
    ]
    if wrong:
        raise InputError(f"{path}: its weights are not those of {arch}; {'; '.join(wrong)}")


def _place(value: Any) -> int:
    """Where a tensor's numbers are; of one on the meta device, which has none, which it is."""
    return value.data_ptr() or id(value)
