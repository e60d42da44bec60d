"""What ``module:name`` on a command line names: imported with the current folder on the path."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewbits.errors import InputError

SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_named(text: str) -> bool:
    """Whether ``text`` has the form ``module:name``, and is no file."""
    return SPEC.fullmatch(text) is not None and not Path(text).exists()


@contextlib.contextmanager
def named(spec: str) -> Iterator[Any]:
    """What ``module:name`` names, with the current folder on the path and printing to standard error inside.

    Raises:
        InputError: there is no such module or name in it, or importing it raises.
    """
    name, _, attribute = spec.partition(":")
    with _current_folder_first(), contextlib.redirect_stdout(sys.stderr):
        found: Any = _imported(spec, name)
        for part in attribute.split("."):
            found = _attribute(spec, found, part)
        yield found


def describe(error: BaseException) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


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
