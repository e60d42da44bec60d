"""fewbits takes a trained model and hands back the same model in fewer bits, with proof."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewbits.compress import Result, compress
    from fewbits.loaded import load

_HOMES = {"compress": "fewbits.compress", "Result": "fewbits.compress", "load": "fewbits.loaded"}

__all__ = ["Result", "__version__", "compress", "load"]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that ``import fewbits`` stays fast."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fewbits' has no attribute {name!r}")
