"""Training with fewer bits: quantization-aware training, distillation, mixed precision, and a small loop for them."""

from typing import Any

_HOMES = {
    "Epoch": "loop",
    "Masks": "masks",
    "Objective": "objective",
    "QatModule": "qat_module",
    "count_macs": "channels",
    "distillation": "distil",
    "fit": "loop",
    "keep_zeros": "masks",
    "least_missed_blocks": "blocks",
    "load_smaller": "channels",
    "prune": "masks",
    "prune_blocks": "blocks",
    "prune_channels": "channels",
    "qat": "qat_module",
    "supervised": "objective",
}

__all__ = [
    "Epoch",
    "Masks",
    "Objective",
    "QatModule",
    "count_macs",
    "distillation",
    "fit",
    "keep_zeros",
    "least_missed_blocks",
    "load_smaller",
    "prune",
    "prune_blocks",
    "prune_channels",
    "qat",
    "supervised",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: training a Keras model needs none of them."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
