"""Samples per second in larger batches, candidates side by side as for latencies."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psutil

from fewbits.ending import Ending
from fewbits.errors import InputError
from fewbits.feeding import Feeds
from fewbits.figures import Outcome, Throughput
from fewbits.measure.latency import Contestant, Latency, measure_latency
from fewbits.samples import Samples

ROUNDS = (
    5  # a batch takes longer than a sample, and a second digit of its throughput is as much as anyone needs
)
SHARE_OF_MEMORY = 8  # of what is free may the inputs of one batch take: every contestant holds a copy of them

Batches = int | str | Sequence[int]


def parse_batches(batch: Batches | None) -> tuple[int, ...]:
    """Batch sizes as the user wrote them, each once, in their order.

    Raises:
        InputError: something else than whole numbers of 1 or more.
    """
    if batch is None:
        return ()
    parts: Any = batch.split(",") if isinstance(batch, str) else [batch] if isinstance(batch, int) else batch
    try:
        sizes = [int(part) if isinstance(batch, str) else _whole(part) for part in parts]
    except (TypeError, ValueError):
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputError(f"batch is {batch!r}; give whole numbers of 1 or more, such as 1,8,32")
    return tuple(dict.fromkeys(sizes))


def check_batches(batches: Sequence[int], samples: Samples, sample: Feeds) -> str | None:
    """What the report has to say of sizes that the model cannot take; None where it takes them all.

    Args:
        batches: the sizes that were asked for.
        samples: what is run.
        sample: what the model takes in one run.

    Raises:
        InputError: a batch whose inputs do not fit into memory.
    """
    if not batches:
        return None
    if (fixed := _only(samples)) is not None:
        others = [size for size in batches if size != fixed]
        why = f"the model takes exactly {fixed} sample{'s' if fixed > 1 else ''} at a time"
        if samples.intake.state:
            why = "samples are steps of a sequence, one at a time"
        return f"no throughput at batch {_listed(others)}: {why}" if others else None
    each = sum(array.nbytes for array in sample.values())
    free = psutil.virtual_memory().available
    if max(batches) * each > free / SHARE_OF_MEMORY:
        raise InputError(
            f"batch {max(batches)}: its inputs alone take {max(batches) * each / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            "are free here; give smaller ones"
        )
    return None


def measure_throughput(
    outcomes: Sequence[Outcome],
    batches: Sequence[int],
    samples: Samples,
    seed: int,
    ending: Ending,
    progress: Callable[[int, int], None],
) -> tuple[list[Outcome], tuple[int, ...]]:
    """Every candidate that has a latency, at every size that the model takes; and the sizes left out at an early end.

    The size that latencies were measured at is not measured again. Where there are fewer samples than a batch needs,
    they are in it several times.
    """
    able = [one for one in outcomes if one.latency is not None]
    contestants = [
        Contestant(one.candidate.name, one.candidate.file.path, one.candidate.settings) for one in able
    ]
    only = _only(samples)
    latencies = {only or 1: [one.latency for one in able if one.latency is not None]}
    sizes = [size for size in batches if only is None and size not in latencies]
    with ending.keeping(lambda: True):
        for number, size in enumerate(sizes):
            ending.check()

            def tell(done: int, total: int, name: str, number: int = number) -> None:
                progress(number * total + done, len(sizes) * total)

            feeds = samples.filled(size)
            latencies[size] = measure_latency(contestants, feeds, rounds=ROUNDS, seed=seed, progress=tell)
    measured = {
        one.candidate.name: tuple(
            _throughput(latencies[size][place], size) for size in batches if size in latencies
        )
        for place, one in enumerate(able)
    }
    found = [replace(one, throughput=measured.get(one.candidate.name, ())) for one in outcomes]
    return found, tuple(size for size in sizes if size not in latencies)


def _only(samples: Samples) -> int | None:
    """The one number of samples that can be run at a time; None where any number can."""
    return 1 if samples.intake.state else samples.batch


def _throughput(latency: Latency, size: int) -> Throughput:
    if latency.error is not None:
        return Throughput(size, None, None, latency.error)
    return Throughput(size, 1000 * size / latency.p50_ms, latency.p50_ms)


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _listed(sizes: Sequence[int]) -> str:
    *front, last = map(str, sizes)
    return f"{', '.join(front)} and {last}" if front else last
