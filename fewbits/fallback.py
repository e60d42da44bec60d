"""Static int8 that loses too much: the layers that hurt most go back to a higher precision, a group at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fewbits.candidates import Draft
from fewbits.ending import Ending
from fewbits.figures import Outcome
from fewbits.measure.size import artifact_bytes
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme

HIGHER: tuple[Scheme | None, ...] = (Scheme("fp16"), None)  # 16 bits, then float
GROUPS = 24  # at most, so that deep models do not take a step for each of their layers

Attempt = Callable[[Recipe], Outcome]
"""Writes and scores a recipe in the engine and placement that the fallback is for."""


@dataclass(frozen=True)
class Step:
    """One group of layers raised.

    Attributes:
        layers: the names of those raised in this step.
        to: the format of their weights, ``fp16`` or ``float``; their activations are float.
        error_db: of each of them, the error of the model's outputs when it alone is quantized: energy over that of
            the float outputs, dB.
        score: of the file, by the run's metric; None where it could not be computed.
        size_bytes: of the file.
    """

    layers: tuple[str, ...]
    to: str
    error_db: tuple[float, ...]
    score: float | None
    size_bytes: int


@dataclass(frozen=True)
class Fallback:
    """The way from a file that loses too much to one that does not, or to where no layer was left.

    ``last`` is the file of the last step; ``start`` the one it began with.
    """

    start: Outcome
    last: Outcome
    steps: tuple[Step, ...]


def losing(scored: Sequence[Outcome], drop: Callable[[float], float], most: float) -> Iterator[Outcome]:
    """Of each static recipe and engine of which every file loses over ``most``, the one that loses least in float32.

    ``drop`` gives what a score loses.
    """
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in scored:
        draft = one.candidate.file.draft
        if draft is None or draft.target.integer_only:  # what computes on integers alone stays what it is
            continue
        if draft.recipe.needs_data and one.score is not None and one.error is None:
            groups.setdefault((draft.recipe.name, one.candidate.settings.engine), []).append(one)
    for found in groups.values():
        if all(one.score is not None and drop(one.score) > most for one in found):
            plain = [one for one in found if one.candidate.settings.precision == "f32"] or found
            yield min(plain, key=lambda one: drop(one.score or 0.0))


def alone(draft: Draft, layer: str) -> Draft:
    """The draft with every layer in float but one."""
    kept = tuple(
        a if a.layer.name == layer else replace(a, weights=None, activations=None) for a in draft.assigned
    )
    return replace(draft, assigned=kept)


def raised(recipe: Recipe, layers: Sequence[str], scheme: Scheme | None) -> Recipe:
    """The recipe with these layers' weights in another format, and their activations in float."""
    return replace(recipe, rules=tuple(Rule(name, scheme) for name in layers) + recipe.rules)


def fall_back(
    start: Outcome,
    errors_db: Mapping[str, float],
    attempt: Attempt,
    drop: Callable[[float], float],
    most: float,
    ending: Ending,
) -> Fallback:
    """Raise layers, the one with the largest error first, until the file loses no more than it may.

    Where the run is to end first, the way so far is kept; it may have no step.

    Args:
        start: the file that loses too much.
        errors_db: error of the model's outputs with one layer quantized alone, by layer.
        attempt: writes and scores a recipe.
        drop: what a score loses.
        most: the largest drop that meets the limit.
        ending: when the run is to end.
    """
    draft = start.candidate.file.draft
    assert draft is not None
    order = sorted(errors_db, key=lambda name: -errors_db[name])
    size = max(1, -(-len(order) // GROUPS))
    last, steps = start, []
    with ending.keeping(lambda: True):
        for layers, to, higher in _stairs(draft.recipe, order, size):
            ending.check()
            last = attempt(higher)
            steps.append(
                Step(
                    layers,
                    to,
                    tuple(errors_db[name] for name in layers),
                    last.score,
                    artifact_bytes(last.candidate.file.path),
                )
            )
            if last.error is None and last.score is not None and drop(last.score) <= most:
                break
    return Fallback(start, last, tuple(steps))


def _stairs(recipe: Recipe, order: Sequence[str], size: int) -> Iterator[tuple[tuple[str, ...], str, Recipe]]:
    """Step by step: the layers raised in it, what to, and the recipe with all that are raised by then."""
    for scheme in HIGHER:
        for start in range(0, len(order), size):
            end = min(start + size, len(order))
            higher = raised(recipe, order[:end], scheme)
            how = f"raised {end}"
            if scheme is None:
                how = f"raised {len(order)}, {end} to float"
                higher = raised(higher, order[end:], HIGHER[0]) if end < len(order) else higher
            to = "float" if scheme is None else scheme.qtype
            yield tuple(order[start:end]), to, replace(higher, name=f"{recipe.name} {how}")
