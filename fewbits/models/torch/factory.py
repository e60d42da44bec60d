"""Modules named on a command line: ``package.module:factory``, with weights from a ``.safetensors`` or its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError
from fewbits.keys import check_keys
from fewbits.named import SPEC, describe, named

if TYPE_CHECKING:
    from torch import nn


def make(spec: str) -> nn.Module:
    """Import what ``module:factory`` names, with the current folder on the path, and call it.

    Raises:
        InputError: there is no such module or factory, it raises, or gives no ``nn.Module``.
    """
    if SPEC.fullmatch(spec) is None:
        raise InputError(f"{spec!r}: give module:factory, such as models.vision:make_net")
    with named(spec) as found:
        return call(found, spec)


def call(factory: Any, spec: str) -> nn.Module:
    """What a factory gives; a module is taken as it is. Raises InputError as :func:`make`."""
    from torch import nn

    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise InputError(f"{spec}: is a {type(factory).__name__}; give a callable that returns an nn.Module")
    try:
        module = factory()
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: calling it without arguments raised {describe(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec}: returned {type(module).__name__}; it must return an nn.Module")
    return module


def with_weights(path: Path, arch: str | Callable[[], Any] | None) -> nn.Module:
    """What ``arch`` makes, with exactly the weights that a ``.safetensors`` file holds.

    Raises:
        InputError: no ``arch``; a missing or unreadable file; names or shapes that do not match. See :func:`make`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if arch is None:
        raise InputError(
            f"{path}: holds weights without a model; name a Python callable that returns its nn.Module: "
            "--arch module:factory"
        )
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    module = make(arch) if isinstance(arch, str) else call(arch, getattr(arch, "__name__", str(arch)))
    try:
        stored = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .safetensors file ({error})") from error
    wanted: Mapping[str, torch.Tensor] = module.state_dict()
    name = arch if isinstance(arch, str) else type(module).__name__
    check_keys(path, name, wanted, stored)
    with torch.no_grad():
        module.load_state_dict(stored, strict=False)
    return module
