"""Weights that two layers share: stored once, whatever the files hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fewbits.models.checkpoint.folder import Checkpoint, some
from fewbits.models.checkpoint.stored import read_bytes

BLOCK = 1 << 24  # bytes compared at a time


def stored_twice(checkpoint: Checkpoint, tied: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Tied tensors that need not be stored, by name with the one that is, and notes.

    transformers ties two stored tensors only where they are equal; others are kept apart, and a note says so.
    """
    homes = {entry.name: (shard.path, entry) for shard in checkpoint.shards for entry in shard.entries}
    dropped, apart = {}, []
    for target, source in tied.items():
        if _equal(homes[target], homes[source]):
            dropped[target] = source
        else:
            apart.append(target)
    notes = []
    if dropped:
        notes.append(f"stored once, as they are tied: {some(dropped)}")
    if apart:
        notes.append(f"tied by the config but stored with other values, and kept: {some(apart)}")
    return dropped, tuple(notes)


def _equal(one: tuple, other: tuple) -> bool:
    (path, entry), (other_path, other_entry) = one, other
    if (entry.dtype, entry.shape) != (other_entry.dtype, other_entry.shape):
        return False
    for start in range(0, entry.nbytes, BLOCK):
        count = min(BLOCK, entry.nbytes - start)
        if not torch.equal(
            read_bytes(path, entry.start + start, count),
            read_bytes(other_path, other_entry.start + start, count),
        ):
            return False
    return True
