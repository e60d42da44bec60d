"""A Hugging Face directory in, the same directory in fewer bits out: open, decide, write, read back, report.

Nothing is run: what its weights lose is told, how fast it is and what it answers is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.candidates import ORIGINAL
from fewbits.choose import parse_size
from fewbits.engines.cpu import cpu
from fewbits.errors import InputError
from fewbits.handover import check_place, replacing
from fewbits.planning.recipe import (
    PRESETS,
    STORED,
    Assignment,
    Recipe,
    ResolvedRecipe,
    Rule,
    assign,
    fitted,
    read_recipe,
)
from fewbits.threads import one_torch_thread

if TYPE_CHECKING:
    from fewbits.models.checkpoint.folder import Checkpoint
    from fewbits.models.checkpoint.form import Form
    from fewbits.models.checkpoint.layers import Layers
    from fewbits.models.checkpoint.plan import CheckpointPlan
    from fewbits.planning.model_info import ModelInfo
    from fewbits.planning.scheme import Scheme
    from fewbits.report.record import Report

Progress = Callable[[str, int, int], None]


def is_checkpoint(model: Any) -> bool:
    """Whether what the user gave as a model is a folder."""
    return isinstance(model, (str, Path)) and Path(model).is_dir()


@dataclass(frozen=True)
class Job:
    """A directory opened, with everything decided and nothing written.

    ``limit`` is the largest size allowed in bytes, ``asked`` that as it was written; ``timings`` are in seconds.
    """

    checkpoint: Checkpoint
    layers: Layers
    plan: CheckpointPlan
    resolved: ResolvedRecipe
    limit: int | None
    asked: str | float | None
    threads: int
    timings: Mapping[str, float]


def open_job(
    path: Path,
    recipe: str,
    exclude: Sequence[str],
    max_size: str | float | None,
    threads: int | None,
    seed: int,
    out: Path | None,
    progress: Progress,
) -> Job:
    """Open a directory and decide what becomes of each of its tensors; nothing of it is run.

    Args:
        path: the directory.
        recipe: a preset or the path of one in TOML.
        exclude: patterns of layers to keep in float.
        max_size: as in :func:`fewbits.compress.compress`.
        threads: slices worked on at a time; the usable physical cores where None.
        seed: goes into the recipe that is written.
        out: the folder that it will be written to, which must not lie in the directory.
        progress: told that it is being opened.

    Raises:
        InputError: what :func:`fewbits.models.checkpoint.folder.open_checkpoint` refuses, or a recipe that does not
            fit.
    """
    from fewbits.models.checkpoint.folder import open_checkpoint
    from fewbits.models.checkpoint.layers import find_layers

    start = time.perf_counter()
    progress("open", 0, 0)
    if out is not None:
        _check_out(path, out)
    checkpoint = open_checkpoint(path)
    resolved = _resolved(recipe)
    layers = find_layers(checkpoint)
    limit = parse_size(max_size, checkpoint.size_bytes)
    plan, exact = _decide(checkpoint, layers, resolved.recipe, exclude, is_file(recipe))
    return Job(
        checkpoint,
        layers,
        plan,
        replace(resolved, recipe=exact, seed=seed),
        limit,
        max_size,
        threads or cpu().physical_cores,
        {"open": time.perf_counter() - start},
    )


def run_job(job: Job, out: Path, progress: Progress) -> Report:
    """Write the directory into ``out``, slice by slice, read it back and report.

    Memory is that of a few slices; of a whole tensor only where all of it shares a scale. ``progress`` is told of the
    MB read.

    Raises:
        InputError: NaN or infinity in a weight, a number that the new dtype does not hold, or a full disk; nothing
            is handed over.
        VerificationError: what was read back is not what was written; nothing is handed over.
    """
    from fewbits.describe_checkpoint import describe_checkpoint
    from fewbits.models.checkpoint.write import write

    def told(done: int, total: int) -> None:
        progress("write, MB", done // 1_000_000, total // 1_000_000)

    start = time.perf_counter()
    with replacing(out) as folder:
        with one_torch_thread():
            written = write(job.checkpoint, job.plan, folder, job.threads, told)
        timings = {**job.timings, "write": time.perf_counter() - start}
        return describe_checkpoint(job, written, timings, folder)


def _check_out(path: Path, out: Path) -> None:
    if path.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out}: lies in the directory that is compressed; give another --out")
    check_place(out)


def _resolved(recipe: str) -> ResolvedRecipe:
    """The recipe, which must be about weights alone."""
    from fewbits.modules.recipes import recipe_for
    from fewbits.numerics import table

    if recipe in ("auto", ORIGINAL):
        able = [one.name for one in (*PRESETS.values(), *STORED.values()) if _why_not(one) is None]
        raise InputError(
            f"a directory is written without being run, so nothing can be chosen by measurement; name a recipe: "
            f"--recipe {', '.join(able)}, w3_g64, w_nf4_g64, ..., or a .toml file"
        )
    if is_file(recipe):
        resolved = read_recipe(recipe, tuple(row.name for row in table()))
    else:
        resolved = ResolvedRecipe(recipe_for(recipe))
    if (why := _why_not(resolved.recipe)) is not None:
        raise InputError(f"recipe {resolved.recipe.name!r} {why}")
    if resolved.engine is not None:
        raise InputError(
            f"recipe {resolved.recipe.name!r} is for files of the engine {resolved.engine!r}; take one without"
        )
    return resolved


def is_file(recipe: str) -> bool:
    """Whether a recipe is given as a file: it is then followed to the letter."""
    return recipe.endswith(".toml")


def _why_not(recipe: Recipe) -> str | None:
    """What a recipe asks for that a directory of weights cannot be given."""
    if recipe.smooth or recipe.protect or any(rule.activations is not None for rule in recipe.rules):
        return "is about activations too; a directory holds weights: take one such as w8"
    if recipe.equalize:
        return "has equalize, which is for .onnx files: a directory has no graph; leave it out"
    if recipe.share:
        return (
            "has share, which is for .onnx files: tensors of a directory are taken one by one; leave it out"
        )
    return None


def _decide(
    checkpoint: Checkpoint, layers: Layers, recipe: Recipe, exclude: Sequence[str], exact: bool
) -> tuple[CheckpointPlan, Recipe]:
    """What becomes of every tensor, and the recipe that says so to the letter."""
    from fewbits.models.checkpoint.plan import CheckpointPlan, new_config, plan_tensors
    from fewbits.models.checkpoint.tied import stored_twice

    dropped, notes = stored_twice(checkpoint, layers.tied)
    info = layers.info
    recipe = fitted(recipe.without_data().excluding(_of_tied(exclude, layers)), info)
    assigned = assign(recipe, info)
    chosen = choose_form(assigned, exact)
    tensors = plan_tensors(checkpoint, layers, assigned, chosen.form, chosen.reasons, dropped)
    plan = CheckpointPlan(
        recipe.name,
        chosen.form,
        tensors,
        dropped,
        new_config(checkpoint.config, tensors, chosen.form),
        (*checkpoint.notes, *layers.notes, *notes, *chosen.notes),
    )
    return plan, recipe.excluding(_in_words(chosen.reasons, info))


def _of_tied(exclude: Sequence[str], layers: Layers) -> list[str]:
    """The patterns, with the layer that holds the weight in place of one that only shares it."""
    found = []
    for pattern in exclude:
        homes = [home for alias, home in layers.aliases.items() if fnmatchcase(alias, pattern)]
        own = any(Rule(pattern).matches(one) for one in layers.info.layers)
        found += [*([pattern] if own or not homes else []), *homes]
    return list(dict.fromkeys(found))


def _in_words(kept: Mapping[str, str], info: ModelInfo) -> list[str]:
    """Patterns for layers by name: the operator, where all of its layers are among them."""
    found = []
    for layer in info.layers:
        if layer.name in kept:
            all_kept = all(other.name in kept for other in info.layers if other.op == layer.op)
            found.append(layer.op if all_kept else layer.name)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Chosen:
    """The format of quantized weights, the layers that it leaves in float with the reason, and notes."""

    form: Form | None
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()


def choose_form(assigned: Sequence[Assignment], exact: bool) -> Chosen:
    """Find the format that holds what the recipe says.

    A recipe by name is a wish for a directory that transformers loads: where compressed-tensors can hold what most of
    the weights get, what it cannot hold beside that stays in float. An ``exact`` one is followed to the letter, if
    need be in fewbits' own format.
    """
    from fewbits.models.checkpoint.coded import Coded
    from fewbits.models.checkpoint.compressed_tensors import CompressedTensors
    from fewbits.modules.files import metadata_of

    wanted = [(a.layer, a.weights) for a in assigned if a.weights is not None and not a.weights.is_float]
    if not wanted:
        return Chosen(None, {})
    form = CompressedTensors()
    params: dict[Scheme, int] = {}
    for layer, scheme in wanted:
        params[scheme] = params.get(scheme, 0) + layer.params
    main = max(params, key=lambda scheme: params[scheme])
    reasons = {}
    for layer, scheme in wanted:
        why = form.why_not(layer, scheme)
        if why is None and scheme != main:
            why = f"would be {scheme}, and transformers reads all weights of {form.name} by one scheme, here {main}"
        if why is not None:
            reasons[layer.name] = why
    holds = any(scheme == main and layer.name not in reasons for layer, scheme in wanted)
    if holds and not (exact and reasons):
        return Chosen(form, reasons)
    name, why = next(iter(reasons.items()))
    return Chosen(
        Coded(metadata_of), {}, (f"written in fewbits' own format, which fb.load loads: {name}: {why}",)
    )
