"""Modules named on a command line: ``package.module:factory``, with weights from a ``.safetensors`` or its own."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError

if TYPE_CHECKING:
    from torch import nn

SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
SHOWN_KEYS = 3


def is_factory(text: str) -> bool:
    """Whether ``text`` has the form ``module:factory``, and is no file."""
    return SPEC.fullmatch(text) is not None and not Path(text).exists()


def make(spec: str) -> nn.Module:
    """Import what ``module:factory`` names, with the current folder on the path, and call it.

    Raises:
        InputError: there is no such module or factory, it raises, or gives no ``nn.Module``.
    """
    if SPEC.fullmatch(spec) is None:
        raise InputError(f"{spec!r}: give module:factory, such as models.vision:make_net")
    name, _, attribute = spec.partition(":")
    with _current_folder_first(), contextlib.redirect_stdout(sys.stderr):
        found: Any = _imported(spec, name)
        for part in attribute.split("."):
            found = _attribute(spec, found, part)
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
    _check_keys(path, name, wanted, stored)
    with torch.no_grad():
        module.load_state_dict(stored, strict=False)
    return module


def describe(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _check_keys(path: Path, arch: str, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Names and shapes are the same; of names for one tensor (tied weights) a file may hold one."""
    tied = {wanted[name].data_ptr() for name in stored if name in wanted and wanted[name].numel()}
    missing = [name for name, value in wanted.items() if name not in stored and value.data_ptr() not in tied]
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


def _imported(spec: str, name: str) -> Any:
    importlib.invalidate_caches()  # the file may have been written just now
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"{spec}: there is no Python module {error.name!r} (looked in {Path.cwd()} and where Python looks)"
            ) from error
        raise InputError(f"{spec}: importing {name!r} raised {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: importing {name!r} raised {describe(error)}") from error


def _attribute(spec: str, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        names = [one for one in vars(owner) if not one.startswith("_")] if hasattr(owner, "__dict__") else []
        near = difflib.get_close_matches(name, names, 3)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise InputError(f"{spec}: {getattr(owner, '__name__', owner)} has no {name!r}{hint}") from None


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
