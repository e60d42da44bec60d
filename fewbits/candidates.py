"""Which candidates to try: recipes, each written for the engines' targets and run at the precisions they offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewbits.choose import Prefer
from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import Engine, EngineSettings
from fewbits.engines.targets import targets
from fewbits.errors import InputError
from fewbits.models.model import Model
from fewbits.numerics import find
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Plan
from fewbits.planning.recipe import (
    IO_TYPES,
    PRESETS,
    Assignment,
    Recipe,
    ResolvedRecipe,
    assign,
    fitted,
    read_recipe,
)
from fewbits.planning.target import Target

ORIGINAL = "original"
PROMISING: Mapping[Prefer, tuple[str, ...]] = {
    "speed": ("w8a8", "w8", "w8a8_dynamic", "fp16", "w4_g128"),
    "size": ("w4", "w4_g128", "w8", "w8a8", "w8a8_dynamic", "fp16"),
    "quality": ("fp16", "w8", "w8a8", "w8a8_dynamic", "w4_g128"),
}
"""Recipes in the order in which they are tried, by what the result is chosen by."""
AUTO = ("fp16", "w8", "w4", "w4_g128", "w8a8_dynamic", "w8a16", "w8a8")
ACTIVATION_GROUP = (
    32  # an engine that may round activations of weight-only layers shares a scale among this many
)


@dataclass(frozen=True)
class Draft:
    """One file to be written: a recipe for a target, and what its rules say of each layer."""

    recipe: Recipe
    target: Target
    assigned: tuple[Assignment, ...]

    def without_data(self) -> Draft:
        """The same, rounding to nearest."""
        return replace(self, recipe=self.recipe.without_data())


@dataclass(frozen=True)
class Written:
    """A file that exists, with the plan it holds; None for the original.

    ``of_framework`` marks the original as a framework's own program, which runs for comparison only. ``others`` are the
    file's signatures beside the main one that were rounded too, by name and as files of their own. ``model`` is what
    the plan is for: the original, or the same function with channels rescaled.
    """

    path: Path
    draft: Draft | None
    plan: Plan | None
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict)
    of_framework: bool = False
    others: Mapping[str, Written] = field(default_factory=dict)
    model: Model | None = None


@dataclass(frozen=True)
class Candidate:
    """A file in an engine under settings. ``name`` is unique and short."""

    name: str
    file: Written
    settings: EngineSettings

    @property
    def is_original(self) -> bool:
        """The model that came in, unchanged."""
        return self.file.plan is None

    @property
    def in_framework(self) -> bool:
        """The model in the framework it came from: shown to compare with, never handed over."""
        return self.file.of_framework

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return ORIGINAL if self.file.draft is None else self.file.draft.recipe.name


def resolve(
    recipe: str | Recipe, exclude: Sequence[str], io: str | None = None, float_fallback: bool = False
) -> tuple[ResolvedRecipe, ...]:
    """The recipes that a name, a file or ``auto`` stands for, with the excluded layers kept in float.

    ``io`` and ``float_fallback`` as in :class:`fewbits.planning.recipe.Recipe`, where given; among several recipes for
    those that have activations in codes.

    Raises:
        InputError: as :func:`fewbits.planning.recipe.read_recipe`.
    """
    if recipe == "auto":
        resolved = tuple(ResolvedRecipe(PRESETS[name]) for name in AUTO)
    elif recipe == ORIGINAL:
        return ()
    elif isinstance(recipe, Recipe):
        resolved = (ResolvedRecipe(recipe),)
    else:
        resolved = (read_recipe(recipe),)
    if io is not None and io not in IO_TYPES:
        raise InputError(f"io is {io!r}; allowed are {', '.join(IO_TYPES)}")
    changed = []
    for one in resolved:
        asked = one.recipe.excluding(exclude) if exclude else one.recipe
        if io is not None and (asked.needs_data or len(resolved) == 1):
            asked = replace(asked, io=io)
        if float_fallback:
            asked = replace(asked, float_fallback=True)
        changed.append(replace(one, recipe=asked))
    return tuple(changed)


def drafts(
    resolved: Sequence[ResolvedRecipe],
    info: ModelInfo,
    engines: Mapping[str, Engine],
    cpu: Cpu,
    has_data: bool,
) -> tuple[tuple[Draft, ...], tuple[str, ...]]:
    """The files worth writing, and in words what was passed over and why.

    Where one recipe was asked for, what is wrong with it is an error; among several it is passed over.

    Raises:
        InputError: the one recipe asked for needs data and there is none, or does not fit the model, or is for an
            engine, a precision or a placement that is not here.
    """
    found: list[Draft] = []
    passed: list[str] = []
    for one in resolved:
        recipe = one.recipe
        try:
            _check_pins(one, engines, cpu)
            if recipe.needs_data and not has_data:
                raise InputError(f"recipe {recipe.name!r} needs calibration data; give --data FILE (an .npz)")
            if recipe.uses_data and not has_data:
                if one.engine is not None:  # it was resolved with data
                    raise InputError(
                        f"recipe {recipe.name!r} was made with calibration data; give --data FILE"
                    )
                recipe = recipe.without_data()
            able, why_not = _able(one, engines, cpu)
            if not able:
                if len(resolved) == 1:
                    raise InputError(f"recipe {recipe.name!r}: {why_not}")
                continue  # what an engine does not have is no news among several
            recipe = fitted(recipe, info)
            assigned = assign(recipe, info)
            for target in able:
                _check_integers(recipe, target, info)
            if not any(a.weights or a.activations for a in assigned):
                raise InputError(
                    f"recipe {recipe.name!r} keeps every layer in float; there is nothing to compress"
                )
            _check_formats(recipe.name, assigned, tuple(_targets(one, engines, cpu)))
        except InputError as error:
            if len(resolved) == 1:
                raise
            passed.append(str(error))
            continue
        found += [
            Draft(recipe, target, assigned)
            for target in able
            if len(resolved) == 1 or _worth_it(recipe, assigned, target)
        ]
    return tuple(found), tuple(passed)


def _able(
    one: ResolvedRecipe, engines: Mapping[str, Engine], cpu: Cpu
) -> tuple[tuple[Target, ...], str | None]:
    """The targets that can hold what the recipe asks for, and why the first of the others cannot."""
    found, why_not = [], None
    for target in _targets(one, engines, cpu):
        reason = target.cannot(one.recipe)
        if reason is None:
            found.append(replace(target, integer_only=target.integer_only and not one.recipe.float_fallback))
        why_not = why_not or reason
    return tuple(found), why_not


def _check_integers(recipe: Recipe, target: Target, info: ModelInfo) -> None:
    """Where a file is to compute on integers alone, everything in the model has to have a kernel for that."""
    if not (target.integer_only and recipe.needs_data):
        return
    qtypes = {rule.activations.qtype for rule in recipe.rules if rule.activations is not None}
    wanted = {f"int{find(qtype).bits}" for qtype in qtypes}
    bad = [one for one in info.float_only if wanted.intersection(one.qtypes)]
    if bad:
        named = ", ".join(f"{one.op} in layer {one.name!r}" for one in bad[:5])
        more = f", and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InputError(
            f"recipe {recipe.name!r}: {target.engine} has no {' or '.join(sorted(wanted))} kernel for {named}{more}; "
            "leave what has none in float with --float-fallback, or take another recipe"
        )


def _check_pins(one: ResolvedRecipe, engines: Mapping[str, Engine], cpu: Cpu) -> None:
    """What a resolved recipe was resolved for must be here."""
    name = one.recipe.name
    if one.engine is not None and one.engine not in engines:
        raise InputError(f"recipe {name!r} is for the engine {one.engine!r}; used here: {', '.join(engines)}")
    used = [engine for engine in engines if one.engine in (None, engine)]
    precisions = {precision: None for engine in used for precision in engines[engine].precisions(cpu)}
    if one.precision is not None and one.precision not in precisions:
        raise InputError(
            f"recipe {name!r} computes in {one.precision!r}; {' and '.join(used)} here offer: {', '.join(precisions)}"
        )
    placements = {target.placement: None for engine in used for target in targets(engine, cpu)}
    if one.placement is not None and one.placement not in placements:
        raise InputError(
            f"recipe {name!r} has the placement {one.placement!r}; {' and '.join(used)} have: {', '.join(placements)}"
        )


def _check_formats(recipe: str, assigned: Sequence[Assignment], wanted: Sequence[Target]) -> None:
    """Some engine must run weights of every format."""
    for a in assigned:
        if a.weights is not None and all(target.weight_form(a.weights) is None for target in wanted):
            names = " and ".join(dict.fromkeys(target.engine for target in wanted))
            raise InputError(
                f"recipe {recipe!r}: layer {a.layer.name!r} gets {a.weights.qtype} weights, which {names} cannot run; "
                "such recipes are for Hugging Face directories"
            )


def _targets(one: ResolvedRecipe, engines: Mapping[str, Engine], cpu: Cpu) -> Iterator[Target]:
    for name in engines:
        if one.engine in (None, name):
            for number, target in enumerate(targets(name, cpu)):
                wanted = one.placement in (None, target.placement)
                if wanted and (number == 0 or one.placement is not None or one.recipe.needs_data):
                    yield target


def _worth_it(recipe: Recipe, assigned: Sequence[Assignment], target: Target) -> bool:
    """Whether the capability table says that this engine gains by it."""
    dynamic = [a.layer.op for a in assigned if a.activations is not None and a.activations.dynamic]
    if dynamic:
        return any(map(target.takes_dynamic, dynamic))
    if recipe.needs_data:
        return target.activation_qtype is not None
    # An engine that multiplies blocks of int4 takes those.
    return all(
        a.weights is None
        or (
            target.weight_form(a.weights) is not None
            and not (target.blocks and a.weights.qtype == "int4" and a.weights.per != "group")
        )
        for a in assigned
    )


def originals(
    original: Written, precisions: Mapping[str, Sequence[str]], threads: int
) -> tuple[Candidate, ...]:
    """The original in every engine and precision."""
    return tuple(
        Candidate(
            f"{ORIGINAL} {SHORT.get(engine, engine)} {precision}",
            original,
            EngineSettings(engine, precision, threads),
        )
        for engine, offered in precisions.items()
        for precision in offered
    )


def in_order(planned: Sequence[Draft], prefer: Prefer, data_last: bool) -> tuple[Draft, ...]:
    """The most promising first, so that what is tried until somebody stops it holds a good answer.

    Args:
        planned: what is worth writing.
        prefer: what the result is chosen by.
        data_last: what uses calibration data comes after the rest, since calibrating takes longer than there is time.
    """
    ranks = {name: rank for rank, name in enumerate(PROMISING[prefer])}
    return tuple(
        sorted(
            planned,
            key=lambda one: (data_last and one.recipe.uses_data, ranks.get(one.recipe.name, len(ranks))),
        )
    )


def names_and_settings(
    draft: Draft, among: Sequence[Draft], precisions: Mapping[str, Sequence[str]], threads: int
) -> dict[str, EngineSettings]:
    """What the draft's file is to be run under, each way by the name of its candidate.

    Where ``among`` has it for other placements in the same engine, the name says which it is.
    """
    target = draft.target
    twins = [
        one
        for one in among
        if one.recipe.name == draft.recipe.name and one.target.engine == draft.target.engine
    ]
    placement = f" {target.placement}" if len(twins) > 1 else ""
    found = {}
    for precision in precisions[target.engine]:
        name = f"{draft.recipe.name} {SHORT.get(target.engine, target.engine)} {precision}{placement}"
        found[name] = EngineSettings(target.engine, precision, threads)
        if _weight_only_matmul(draft) and target.rounds_activations:
            found[f"{name} a8"] = EngineSettings(target.engine, precision, threads, ACTIVATION_GROUP)
    return found


def in_framework(
    program: Path, engine: str, precisions: Sequence[str], threads: int
) -> tuple[Candidate, ...]:
    """The original as its framework's own program, at every precision."""
    file = Written(program, None, None, of_framework=True)
    return tuple(
        Candidate(f"{ORIGINAL} {SHORT.get(engine, engine)} {one}", file, EngineSettings(engine, one, threads))
        for one in precisions
    )


SHORT = {"onnxruntime": "ort", "openvino": "ov", "pytorch": "torch", "litert": "lite"}
"""Engines' names as they appear in the names of candidates."""


def _weight_only_matmul(draft: Draft) -> bool:
    """Most of the weights are in linear layers whose activations the recipe leaves alone."""
    params = {True: 0, False: 0}
    for a in draft.assigned:
        quantized = a.weights is not None and not a.weights.is_float and a.activations is None
        params[a.layer.kind == "linear" and quantized] += 0 if a.layer.kind == "embedding" else a.layer.params
    return params[True] > params[False]
