"""Write a planned checkpoint slice by slice, and read every slice back: codes, scales and what they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewbits.errors import InputError, VerificationError
from fewbits.models.checkpoint.folder import CONFIG, INDEX, Checkpoint
from fewbits.models.checkpoint.form import Form, Part
from fewbits.models.checkpoint.plan import CheckpointPlan, Slice, TensorPlan
from fewbits.models.checkpoint.stored import (
    DTYPES,
    Entry,
    Shard,
    as_bytes,
    create,
    lay_out,
    read_bytes,
    read_header,
    write_bytes,
)

BLOCK = 1 << 19  # elements that are compared at a time
WORD = 8  # bytes
KEPT = (1 << 25) - (1 << 16)  # bytes: below 32 MiB, the most that glibc learns from

Told = Callable[[int, int], None]
"""Called with the bytes read so far, and the bytes to read in all."""


@dataclass(frozen=True)
class Energy:
    """Sums of squares over a weight: of its values, and of what was lost of them."""

    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.signal + other.signal, self.noise + other.noise)


@dataclass(frozen=True)
class WrittenCheckpoint:
    """What lies in the new directory, as it was read back.

    Attributes:
        energy: of every tensor that changed, by name.
        bytes_by_dtype: of the files with weights; codes count under their own format.
        size_bytes: of the files with weights.
    """

    energy: Mapping[str, Energy]
    bytes_by_dtype: Mapping[str, int]
    size_bytes: int


def write(
    checkpoint: Checkpoint, plan: CheckpointPlan, folder: Path, threads: int, told: Told
) -> WrittenCheckpoint:
    """Write the directory, with as many slices at a time as there are threads.

    Raises:
        InputError: a weight holds NaN or infinity or is too large for its new dtype; the disk is full.
        VerificationError: what was read back is not what was written.
    """
    shards = _laid_out(checkpoint, plan, folder)
    try:
        _enough_space(folder, shards)
        for shard in shards.values():
            create(shard)
        energy = _stream(plan, folder, shards, threads, told)
        _beside(checkpoint, plan, folder, shards)
    except OSError as error:
        raise InputError(
            f"{folder.parent}: cannot be written ({error.strerror}); give another --out"
        ) from error
    _read_back_headers(shards)
    size = sum(shard.path.stat().st_size for shard in shards.values())
    return WrittenCheckpoint(energy, _bytes_by_dtype(plan), size)


def _laid_out(checkpoint: Checkpoint, plan: CheckpointPlan, folder: Path) -> dict[Path, Shard]:
    """The new files by their path relative to the directory."""
    metadata = {shard.path: shard.metadata for shard in checkpoint.shards}
    files: dict[Path, list[TensorPlan]] = {}
    for one in plan.tensors:
        files.setdefault(one.target, []).append(one)
    shards = {}
    for target, tensors in files.items():
        parts = {part.name: (part.dtype, part.shape) for one in tensors for part in one.parts}
        held = [one.held for one in tensors if one.scheme is not None]
        more = {} if plan.form is None else plan.form.metadata(held)
        shards[target] = lay_out(folder / target, parts, {**metadata[tensors[0].source], **more})
    return shards


def _enough_space(folder: Path, shards: Mapping[Path, Shard]) -> None:
    needed = sum(entry.nbytes for shard in shards.values() for entry in shard.entries)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder.parent}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; make room, or give "
            "another --out"
        )


def _stream(
    plan: CheckpointPlan, folder: Path, shards: Mapping[Path, Shard], threads: int, told: Told
) -> dict[str, Energy]:
    """Every slice of every tensor; never more of them in memory than there are threads."""
    _keep_freed_memory()
    entries = {entry.name: (shard.path, entry) for shard in shards.values() for entry in shard.entries}
    total = sum(one.entry.nbytes for one in plan.tensors)
    energy: dict[str, Energy] = {}
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[tuple[str, Energy, int]]] = set()
        try:
            for one, part in _work(plan):
                if len(running) >= 2 * threads:  # so that nobody waits for the next one
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    done += _collected(finished, energy)
                    told(done, total)
                running.add(pool.submit(_slice, plan.form, one, part, entries))
            finished, running = wait(running)
            done += _collected(finished, energy)
            told(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return energy


def _keep_freed_memory() -> None:
    """Have slices work in the memory of those before.

    glibc gives large blocks back to the system as soon as they are freed, and the next ones are made of new pages,
    each zeroed at its first use: a third of all time. Once it has seen a block of this size freed it keeps up to
    twice as much (mallopt(3), M_MMAP_THRESHOLD). The block itself is never touched, and other systems ignore it.
    """
    torch.empty(KEPT, dtype=torch.uint8)


def _work(plan: CheckpointPlan) -> Iterator[tuple[TensorPlan, Slice]]:
    for one in plan.tensors:
        for part in one.slices():
            yield one, part


def _collected(finished: set[Future[tuple[str, Energy, int]]], energy: dict[str, Energy]) -> int:
    done = 0
    for future in finished:
        name, found, count = future.result()
        energy[name] = energy.get(name, Energy()) + found
        done += count
    return done


def _slice(
    form: Form | None, one: TensorPlan, part: Slice, entries: Mapping[str, tuple[Path, Entry]]
) -> tuple[str, Energy, int]:
    """Read, change, write and read back one slice."""
    row_bytes = one.entry.nbytes // max(one.rows, 1)
    count = (part.stop - part.start) * row_bytes
    stored = read_bytes(one.source, one.entry.start + part.start * row_bytes, count)
    if one.scheme is None and not one.cast:
        energy = _keep(one, part, stored, entries)
    else:
        shape = (part.stop - part.start, *one.entry.shape[1:]) if one.entry.shape else ()
        values = stored.view(DTYPES[one.entry.dtype]).reshape(shape)
        if one.scheme is None:
            energy = _cast(one, part, values, entries)
        else:
            assert form is not None
            energy = _quantize(form, one, part, values, entries)
    return one.entry.name, energy, count


def _keep(one: TensorPlan, part: Slice, stored: Tensor, entries: Mapping[str, tuple[Path, Entry]]) -> Energy:
    name = one.parts[0].name
    _put(one, part, {name: stored}, entries)
    _same(one, stored, as_bytes(_get(one, part, entries)[name]))
    return Energy()


def _cast(one: TensorPlan, part: Slice, values: Tensor, entries: Mapping[str, tuple[Path, Entry]]) -> Energy:
    dtype = DTYPES[one.parts[0].dtype]
    narrow = values.to(dtype)
    if not bool((narrow.isfinite() | ~values.isfinite()).all()):
        raise InputError(
            f"{one.source}: {one.entry.name!r} has values up to {float(values.abs().max()):.4g}, which {dtype} "
            "does not hold; take the recipe bf16"
        )
    name = one.parts[0].name
    _put(one, part, {name: narrow}, entries)
    again = _get(one, part, entries)[name]
    _same(one, as_bytes(narrow), as_bytes(again))
    return _energy(values, again)


def _quantize(
    form: Form, one: TensorPlan, part: Slice, values: Tensor, entries: Mapping[str, tuple[Path, Entry]]
) -> Energy:
    assert one.layer is not None and one.scheme is not None
    weight = one.layer.weights[0]
    compiled = form.compiled(one.entry.dtype, one.scheme)
    try:
        if compiled is None:
            q = form.round(values, weight, one.entry.dtype, one.scheme)
            parts = form.encode(weight, q)
        else:
            parts = compiled.parts(weight, values)
    except InputError as error:
        raise InputError(f"{one.source}: {error}") from None
    _put(one, part, parts, entries)
    read = _get(one, part, entries)
    for name, piece in read.items():
        _same(one, as_bytes(parts[name]), as_bytes(piece))
    if compiled is not None:
        return Energy(*compiled.energies(weight, values, read))
    again, loaded = form.decode(weight, one.entry.dtype, one.scheme, read, part.stop - part.start)
    _same(one, q.codes, again.codes)
    for word in ("scale", "zero_point", "free_zero_point", "codebook", "tensor_scale"):
        before, after = getattr(q, word), getattr(again, word)
        if before is not None or after is not None:
            _same(one, before, after)
    return _energy(values, loaded)


def _put(
    one: TensorPlan, part: Slice, tensors: Mapping[str, Tensor], entries: Mapping[str, tuple[Path, Entry]]
) -> None:
    """Write what a slice became."""
    for piece, path, first, _ in _places(one, part, entries):
        write_bytes(path, first, tensors[piece.name])


def _get(one: TensorPlan, part: Slice, entries: Mapping[str, tuple[Path, Entry]]) -> dict[str, Tensor]:
    """Read back what a slice became, each part as [rows of the part, ...] in its dtype."""
    whole = part.start == 0 and part.stop == one.rows
    found = {}
    for piece, path, first, count in _places(one, part, entries):
        values = read_bytes(path, first, count).view(DTYPES[piece.dtype])
        once = whole or piece.row_bits is None
        found[piece.name] = values.reshape(piece.shape if once else (-1, *piece.shape[1:]))
    return found


def _places(
    one: TensorPlan, part: Slice, entries: Mapping[str, tuple[Path, Entry]]
) -> Iterator[tuple[Part, Path, int, int]]:
    """Where a slice lies: each part with its file, first byte and number of bytes.

    What is written once goes with the first slice, and only with it: others may be worked on at the same time.
    """
    for piece in one.parts:
        if piece.row_bits is not None or part.start == 0:
            path, entry = entries[piece.name]
            first, count = piece.span(part.start, part.stop, one.rows)
            yield piece, path, entry.start + first, count


def _same(one: TensorPlan, written: Tensor | None, read: Tensor | None) -> None:
    if written is None or read is None or not _equal(written, read):
        raise VerificationError(
            f"{one.entry.name!r} was read back from {one.target} other than it was written"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Byte for byte; in words of 8 bytes where they allow it, which torch compares eight times as fast."""
    first, second = as_bytes(one), as_bytes(other)
    if first.numel() % WORD == 0 and (first.data_ptr() | second.data_ptr()) % WORD == 0:
        first, second = first.view(torch.int64), second.view(torch.int64)
    return torch.equal(first, second)


def _energy(values: Tensor, loaded: Tensor) -> Energy:
    """Of a slice, in float32 block by block, which stay in the processor's cache, and the blocks' sums in float64."""
    total = Energy()
    for before, after in zip(values.reshape(-1).split(BLOCK), loaded.reshape(-1).split(BLOCK), strict=True):
        signal, again = before.float(), after.float()
        noise = again - signal
        total += Energy(float(torch.dot(signal, signal)), float(torch.dot(noise, noise)))
    return total


def _beside(checkpoint: Checkpoint, plan: CheckpointPlan, folder: Path, shards: Mapping[Path, Shard]) -> None:
    """The config, the index, and the files that are copied along."""
    for file in checkpoint.beside:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.path / file, folder / file)
    (folder / CONFIG).write_text(
        json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if checkpoint.index is not None:
        size = sum(entry.nbytes for shard in shards.values() for entry in shard.entries)
        weight_map = {
            entry.name: target.as_posix() for target, shard in shards.items() for entry in shard.entries
        }
        metadata = {**(checkpoint.index.get("metadata") or {}), "total_size": size}
        document = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        index = folder / (INDEX if plan.form is None else plan.form.file(INDEX))
        index.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read_back_headers(shards: Mapping[Path, Shard]) -> None:
    """Every file as it lies there: readable by the safetensors library, with the tensors that were planned."""
    from safetensors import SafetensorError, safe_open

    for shard in shards.values():
        if read_header(shard.path).entries != shard.entries:
            raise VerificationError(f"{shard.path.name}: its header is not the one that was written")
        try:
            with safe_open(shard.path, framework="pt") as file:
                names = set(file.keys())
        except SafetensorError as error:
            raise VerificationError(f"{shard.path.name}: safetensors cannot read it ({error})") from error
        if names != {entry.name for entry in shard.entries}:
            raise VerificationError(f"{shard.path.name}: safetensors reads other tensors than were written")


def _bytes_by_dtype(plan: CheckpointPlan) -> dict[str, int]:
    """Bytes of all tensors; codes and their scales by what they are, not by what they are packed into."""
    found: dict[str, int] = {}
    for one in plan.tensors:
        for number, piece in enumerate(one.parts):
            packed = one.scheme is not None and number == 0
            dtype = one.scheme.qtype if packed and one.scheme else dtype_name(piece.dtype)
            found[dtype] = found.get(dtype, 0) + piece.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def dtype_name(dtype: str) -> str:
    """A dtype of a safetensors header as reports call it."""
    return str(DTYPES[dtype]).removeprefix("torch.")
