"""What a user gives as inputs of a module, call by call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from fewbits.errors import InputError


def calls(data: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of forward for each call.

    Args:
        data: a tensor, a tuple of positional arguments, a dict of keywords, or an iterable of any of these.

    Raises:
        InputError: something else.
    """
    if isinstance(data, (Tensor, tuple, Mapping)):
        data = (data,)
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise InputError(
            f"data is a {type(data).__name__}; give a tensor, a tuple or dict of arguments, or batches of them"
        )
    for one in data:
        if isinstance(one, Mapping):
            yield (), dict(one)
        else:
            yield (tuple(one) if isinstance(one, (tuple, list)) else (one,)), {}
