"""A module in, a module out: its weights as codes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from fewbits.planning.recipe import Effort, Recipe


STEPS: Mapping[Effort, int | None] = {"fast": None, "normal": 60, "high": 300}
"""What is spent on learning all together; None: nothing is learned."""
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
        data: samples to calibrate with, for recipes that need them; see :func:`fewbits.compress`. ``w4``, ``w3`` and
            ``w2`` are much closer with some (without labels): a tensor, a tuple or dict of forward's arguments, or
            batches of any of these, which may differ in their shapes. Recipes that correct biases (``w4``, ``w3`` and
            ``w2`` do) estimate the statistics of batch norms anew where outputs come closer by it.
        exclude: patterns of layer names or operators to keep in float.
        effort: of these: ``fast`` rounds weights so that they make up for each other; ``normal`` and ``high`` also
            learn weights, norms and biases until the module gives what it gave in float, shortly or for long.
        seed: of the order of batches.
        progress: called with a stage, what is done of it and how much there is.

    Raises:
        InputError: a module that cannot be quantized or is quantized already, a recipe that does not fit it, NaN or
            infinity in a weight (the layer is named), or no data where the recipe needs some.
    """
    from fewbits.modules.batch_norm import reestimate
    from fewbits.modules.convert import converted
    from fewbits.modules.half import halved, whole_dtype
    from fewbits.modules.recipes import recipe_for

    found = recipe_for(recipe, exclude)
    if found.needs_data:
        return _in_engine(module, found, data)
    dtype = whole_dtype(found)
    if dtype is not None:
        return halved(module, dtype)
    if data is None:
        return converted(module, found)
    coded = _learned(module, found, data, effort, seed, progress) if found.learn else converted(module, found)
    if found.correct:
        reestimate(module, coded, data)
    return coded


def _learned(
    module: nn.Module,
    recipe: Recipe,
    data: Any,
    effort: Effort,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> nn.Module:
    """The module with codes that were found against data."""
    from dataclasses import replace

    from fewbits.engines.cpu import cpu
    from fewbits.methods.reconstruction import Spent
    from fewbits.modules.convert import assembled, rounded
    from fewbits.modules.learn import learned
    from fewbits.threads import one_torch_thread

    if effort not in STEPS:
        raise InputError(f"effort is {effort!r}; allowed are {', '.join(STEPS)}")
    steps = STEPS[effort]
    spent = None if steps is None else Spent(steps, pace=PACE)
    narrow = not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu().isa)
    with one_torch_thread():
        plan = rounded(module, recipe)
        found = learned(module, plan.codes, data, spent, narrow=narrow, seed=seed, progress=progress)
    return assembled(module, replace(plan, codes=found.codes), found.floats)


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
