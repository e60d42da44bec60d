"""A module in, a module out: its weights as codes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbits.modules.compensate import Met
    from fewbits.modules.running import Call, State
    from fewbits.planning.recipe import Effort, Recipe


STEPS: Mapping[Effort, int | None] = {"fast": None, "normal": 60, "high": 300}
"""What is spent on learning all together; None: nothing is learned."""
HELD = 128  # calls of the data are looked at where nothing is learned
ROUNDED_ON = 16  # calls tell what meets a weight
PACE = 0.2  # of the usual rates: all of a module's weights learn at once


def quantize(
    module: nn.Module,
    recipe: str | Recipe = "w8",
    data: Any = None,
    *,
    exclude: Sequence[str] = (),
    effort: Effort = "normal",
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> nn.Module:
    """A module that behaves as the one that came in, in fewer bits, without retraining.

    It is a copy with the same class and the same forward; where a Parameter was there are codes with their scales, as
    buffers. With ``fp16`` and ``bf16`` all of it is in 16 bits, inputs are cast to them and outputs back.
    ``state_dict``, ``copy.deepcopy``, ``.to(device)``, ``torch.compile`` and ``generate()`` of transformers work as
    before; :func:`fewbits.save` and :func:`fewbits.load` keep codes as codes.

    A recipe whose activations have ranges known in advance (``w8a8``) is for engines: the module is exported,
    calibrated and measured by :func:`fewbits.compress`, and what comes back runs in the fastest engine.
    :func:`simulate` computes the same in PyTorch.

    Args:
        module: in float, on any device.
        recipe: a preset such as ``w8``, ``w4_g128`` or ``w8a8_dynamic``; another format of weights, such as
            ``w3_g64``, ``w_nf4_g64`` or ``w_ternary``; the path of a ``.toml``; or a Recipe.
        data: samples to calibrate with; see :func:`fewbits.compress`. Recipes that ``compensate`` (most do) round
            weights against it, and ``w4``, ``w3`` and ``w2`` are much closer with some (without labels): a tensor, a
            tuple or dict of forward's arguments, or batches of any of these, which may differ in their shapes. Recipes
            that correct biases estimate the statistics of batch norms anew where outputs come closer by it.
        exclude: patterns of layer names or operators to keep in float.
        effort: of recipes that learn: ``fast`` rounds weights so that they make up for each other; ``normal`` and
            ``high`` also learn weights, norms and biases until the module gives what it gave in float, shortly or for
            long.
        seed: of the order of batches.
        progress: called with a stage, what is done of it and how much there is. Where learning takes more than some
            seconds, the stage says so first (``learning takes about 40 s``).

    Returns:
        The module. :func:`fewbits.look` shows in its ``notes`` what was done otherwise than asked, and why.

    Raises:
        InputError: a module that cannot be quantized or is quantized already, a recipe that does not fit it, NaN or
            infinity in a weight (the layer is named), or no data where the recipe needs some.
    """
    from fewbits.modules.half import NOTES, halved, whole_dtype
    from fewbits.modules.notes import of_recipe
    from fewbits.modules.recipes import recipe_for

    found = recipe_for(recipe, exclude)
    if effort not in STEPS:
        raise InputError(f"effort is {effort!r}; allowed are {', '.join(STEPS)}")
    if found.needs_data:
        return _in_engine(module, found, data)
    dtype = whole_dtype(found)
    if dtype is not None:
        narrow = halved(module, dtype)
        getattr(narrow, NOTES).extend(of_recipe(found, data is not None))
        return narrow
    return _coded(module, found, data, effort, seed, progress)


def _coded(
    module: nn.Module,
    recipe: Recipe,
    data: Any,
    effort: Effort,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> nn.Module:
    """The module with codes for weights, found against data where there is some."""
    from dataclasses import replace
    from itertools import islice

    from fewbits.modules.analytic import corrected
    from fewbits.modules.batch_norm import reestimated
    from fewbits.modules.compensate import share
    from fewbits.modules.convert import assembled, rounded
    from fewbits.modules.half import NOTES
    from fewbits.modules.inputs import calls
    from fewbits.modules.notes import of_data, of_module, of_norms, of_recipe
    from fewbits.modules.running import State

    plan = rounded(module, recipe)
    notes = [*of_recipe(recipe, data is not None), *of_module(module, plan)]
    state = State(module, plan.codes, plan.infos)
    floats: Mapping[str, Tensor] = {}
    shared = share(state) if recipe.share else []
    if data is None:
        if recipe.correct:
            floats, why = corrected(module, state.codes)
            notes += [] if why is None else [why]
        coded = assembled(module, replace(plan, codes=state.codes), floats)
    else:
        # What is an iterator can be read once, and only learning is worth holding all of it.
        most = None if recipe.learn and STEPS[effort] is not None else HELD
        given = list(islice(calls(data), most))
        if recipe.compensate or recipe.learn:
            floats, met = _against(state, recipe, given, frozenset(shared), effort, seed, progress)
            notes += of_data(plan, given, met)
        coded = assembled(module, replace(plan, codes=state.codes), floats)
        if recipe.correct:
            notes += of_norms(reestimated(module, coded, given))
    setattr(coded, NOTES, notes)
    return coded


def _against(
    state: State,
    recipe: Recipe,
    given: Sequence[Call],
    shared: frozenset[str],
    effort: Effort,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Mapping[str, Tensor], Met]:
    """Codes in a state rounded and learned against data, in place; new parameters by name, and what was met."""
    import torch

    from fewbits.engines.cpu import cpu
    from fewbits.methods.reconstruction import Spent
    from fewbits.modules.compensate import compensate
    from fewbits.modules.learn import learned
    from fewbits.modules.running import chosen, pieces, quiet
    from fewbits.threads import one_torch_thread

    calls = list(pieces(given))
    if not calls:
        raise InputError(
            "there is no data in data; give a tensor, a tuple or dict of arguments, or batches of them"
        )
    steps = STEPS[effort] if recipe.learn else None
    narrow = not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu().isa)
    generator = torch.Generator().manual_seed(seed)
    with one_torch_thread(), quiet(state.module):
        few = chosen(calls, ROUNDED_ON, generator)
        met = compensate(state, few, narrow, generator, progress, shared)
        if steps is None:
            return {}, met
        found = learned(
            state,
            met,
            calls,
            Spent(steps, pace=PACE),
            fixed=shared,
            narrow=narrow,
            generator=generator,
            progress=progress,
        )
    state.codes.update(found.codes)
    return found.floats, met


def _in_engine(module: nn.Module, recipe: Recipe, data: Any) -> nn.Module:
    """The module in the engine that runs it fastest with that recipe."""
    from torch import nn

    from fewbits.compress import compress
    from fewbits.modules.survey import check
    from fewbits.planning.recipe import ResolvedRecipe, write_recipe

    check(module)
    if data is None:
        raise InputError(
            f"recipe {recipe.name!r} needs data to calibrate with: fb.quantize(module, {recipe.name!r}, data)"
        )
    with tempfile.TemporaryDirectory(prefix="fewbits-") as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(write_recipe(ResolvedRecipe(recipe)), encoding="utf-8")
        found = compress(module, data, recipe=str(path)).model
    assert isinstance(found, nn.Module)  # a module came in
    return found


def simulate(
    module: nn.Module, data: Any, recipe: str | Recipe = "w8a8", *, exclude: Sequence[str] = ()
) -> nn.Module:
    """A copy of a module that computes in PyTorch what int8 kernels compute with ranges known in advance.

    Where a linear layer or a convolution reads an activation it is rounded to uint8; products are summed in integers.
    The ranges are those of the data in the recipe's way (least squared error, extremes, ...), and for what sigmoid,
    softmax and tanh give the known ones. It is exact and not fast: for looking, and for what an engine cannot export.

    Args:
        module: in float.
        data: calibrates: a tensor, a tuple or dict of forward's arguments, or an iterable of any of these.
        recipe: with static activations, such as ``w8a8`` or ``w8a8_percentile``; see :func:`quantize`. Equalization,
            smoothing and compensation are the main job's, and left out here.
        exclude: patterns of layer names or operators to keep in float.

    Raises:
        InputError: as :func:`quantize`; data that forward does not take, or NaN or infinity that meets a weight.
    """
    from fewbits.modules.convert import converted
    from fewbits.modules.observe import observe
    from fewbits.modules.recipes import recipe_for
    from fewbits.modules.survey import survey

    found = recipe_for(recipe, exclude)
    if not found.needs_data:
        raise InputError(
            f"recipe {found.name!r} has no ranges known in advance; use fb.quantize(module, {found.name!r})"
        )
    names = {id(module.get_parameter(name)): name for name in survey(module).places}
    return converted(module, found, observe(module, names, data))
