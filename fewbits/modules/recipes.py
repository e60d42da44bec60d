"""Recipes by name: the presets, and any format of weights of linear layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from fewbits.errors import InputError
from fewbits.numerics import QType, find
from fewbits.numerics.qtype import table
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.recipe import INT8_CHANNEL, PRESETS, STORED, Recipe, Rule, preset, read_recipe
from fewbits.planning.scheme import Per, Scheme

GROUP = 32
FEW = {
    f"w{bits}": Recipe(
        f"w{bits}",
        (Rule("*", Scheme(f"normal{bits}", "group", GROUP, range="mse")),),
        f"every weight in {bits} bits, a scale for {GROUP} of them; learned where there is data",
        compensate=True,
        learn=True,
        correct=True,
    )
    for bits in (4, 3, 2)
}
"""Presets as a module's file can hold them; engines have no such formats, and get others by these names."""

NAME = re.compile(r"w(?:(?P<bits>[2-7])|_(?P<qtype>[a-z]\w*?))(?:_g(?P<group>\d+))?")
PATTERN = "w3_g64, w2_g32, w_nf4_g64, w_codebook4, w_ternary, w_binary, w_fp8_e4m3fn, ..."


def recipe_for(recipe: str | Recipe, exclude: Sequence[str] = ()) -> Recipe:
    """The recipe that is meant, with layers that match ``exclude`` kept in float.

    Args:
        recipe: a recipe; a preset; the path of a ``.toml``; or ``w<bits>`` or ``w_<format>``, with ``_g<size>`` for
            groups: weights of linear layers in that row of the format table, the rest in 8 bits.
        exclude: patterns of layer names or operators.

    Raises:
        InputError: none of these.
    """
    if not isinstance(recipe, Recipe):
        recipe = _named(recipe)
    return recipe.excluding(exclude) if exclude else recipe


def suited(recipe: Recipe, info: ModelInfo) -> Recipe:
    """A preset of few bits for that module: where groups do not divide a weight it has a scale per channel."""
    known = FEW.get(recipe.name)
    if known is None or known.rules[0] not in recipe.rules:
        return recipe
    grouped = known.rules[0]
    assert grouped.weights is not None
    whole = replace(grouped.weights, per="channel", group_size=None)
    others = (
        Rule(layer.name, whole)
        for layer in info.layers
        if any(len(one.shape) != 2 or one.shape[one.group_axis] % GROUP for one in layer.weights)
    )
    at = recipe.rules.index(grouped)
    return replace(recipe, rules=(*recipe.rules[:at], *others, *recipe.rules[at:]))


def _named(name: str) -> Recipe:
    if name in FEW:
        return FEW[name]
    if preset(name) is not None or name.endswith(".toml"):
        return read_recipe(name, tuple(row.name for row in table())).recipe
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"recipe {name!r}: known are {', '.join((*PRESETS, *STORED))}, a .toml file, and {PATTERN}"
        )
    row = find(match["qtype"] or f"int{match['bits']}")
    group = row.group_size or (int(match["group"]) if match["group"] else None)
    linear = Scheme(row.name, _shared(row, group), group, range="mse")
    rules = (Rule("linear", linear), Rule("*", INT8_CHANNEL))
    text = f"weights of linear layers as {linear}; the rest in 8 bits; no data needed, closer with some"
    return Recipe(name, rules, text, compensate=True)


def _shared(row: QType, group: int | None) -> Per:
    """What shares a scale; a learned codebook is as large as dozens of codes, and serves the tensor."""
    if group is not None:
        return "group"
    return "tensor" if row.kind == "codebook" and row.levels is None else "channel"
