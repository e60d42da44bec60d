"""Blocks of a tensor shared out among threads.

Torch splits each operation among its threads, which then wait for each other: for operations of microseconds
that costs as much as it gains, and many times more on a busy machine. Here each thread does whole blocks, one
after the other, and each operation stays on its thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Block = TypeVar("Block")
Result = TypeVar("Result")

_here = threading.local()


def for_each(
    function: Callable[[Block], Result], blocks: Iterable[Block], device: torch.device
) -> list[Result]:
    """What ``function`` returns for each block, in order; as many threads as torch has on a CPU.

    Runs in the calling thread on other devices, for a single block, and inside another ``for_each``.
    """
    blocks = list(blocks)
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(blocks) == 1 or getattr(_here, "working", False):
        return [function(block) for block in blocks]
    return list(_pool(threads).map(function, blocks))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    started = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fewbits", initializer=_start)
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    # The number of threads is a thread's own, but the last one set is what new threads begin with.
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads


def _start() -> None:
    _here.working = True
    torch.set_num_threads(1)
