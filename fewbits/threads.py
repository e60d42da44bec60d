"""Torch on one thread, for work made of many small operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's operators use one thread inside.

    Its OpenMP threads meet at a barrier after every operator and spin while they wait. Where another process has one
    of the cores, thousands of small operators then take 20 times as long as on one thread (MiniLM: 115 s against 5).
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
