"""fewbits takes a trained model and hands back the same model in fewer bits, with proof."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewbits import training
    from fewbits.comparison import compare
    from fewbits.compress import Interrupted, Result, compress
    from fewbits.inspection import inspect
    from fewbits.loaded import load
    from fewbits.looking import compare_modules, look
    from fewbits.modules.files import save
    from fewbits.quantize import quantize, simulate
    from fewbits.remeasure import measure

_HOMES = {
    "compare": "fewbits.comparison",
    "compare_modules": "fewbits.looking",
    "compress": "fewbits.compress",
    "inspect": "fewbits.inspection",
    "load": "fewbits.loaded",
    "look": "fewbits.looking",
    "measure": "fewbits.remeasure",
    "quantize": "fewbits.quantize",
    "save": "fewbits.modules.files",
    "Interrupted": "fewbits.compress",
    "simulate": "fewbits.quantize",
    "Result": "fewbits.compress",
}

__all__ = [
    "Interrupted",
    "Result",
    "__version__",
    "compare",
    "compare_modules",
    "compress",
    "inspect",
    "load",
    "look",
    "measure",
    "quantize",
    "save",
    "simulate",
    "training",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that ``import fewbits`` stays fast."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "training":
        return importlib.import_module("fewbits.training")
    raise AttributeError(f"module 'fewbits' has no attribute {name!r}")


class _Package(ModuleType):
    """Importing a submodule binds its name here, but for those that are public names too: compress, measure."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
