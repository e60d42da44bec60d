"""Ordered rules from pattern to scheme; first match wins. Read from and written to TOML."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewbits.errors import InputError
from fewbits.numerics import find
from fewbits.planning.model_info import LayerInfo, ModelInfo
from fewbits.planning.scheme import Per, RangeKind, Scheme

IO = Literal["float", "int8", "uint8", "int16"]
IO_TYPES: tuple[IO, ...] = ("float", "int8", "uint8", "int16")
Effort = Literal["fast", "normal", "high"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
"""How much time may be spent on recipes that learn: none on learning, some, or what it takes."""


@dataclass(frozen=True)
class Rule:
    """Layers whose name is or matches a shell pattern, or whose operator or kind is that word, get these schemes.

    ``@first`` and ``@last`` are the model's first and last convolution or linear layer. ``weights`` and
    ``activations`` both None keep the layer in float.
    """

    match: str
    weights: Scheme | None = None
    activations: Scheme | None = None

    def matches(self, layer: LayerInfo) -> bool:
        """Whether the pattern is the layer's name, operator (or ONNX's word for it) or kind, or fits its name."""
        words = (layer.op, layer.kind, layer.name, *layer.also)
        return self.match in words or fnmatch.fnmatchcase(layer.name, self.match)


@dataclass(frozen=True)
class Recipe:
    """Ordered rules, and where they come from.

    ``equalize`` makes channels between two layers equally large before rounding, where that should at least halve the
    noise; it needs no data, and is better with some.
    ``smooth`` migrates activation outliers into the weights of linear layers before rounding.
    ``compensate`` rounds weights so that they make up for each other's errors, and takes what mean error is left
    out of the bias of static layers. ``learn`` learns codes, steps and biases block by block, so that blocks give what
    they gave in float. These need data.
    ``protect`` multiplies weights of linear layers that large activations meet, and divides the activations, before
    rounding weights alone; it needs data.
    ``share`` gives all layers whose weights have a learned codebook the same one; it is then not learned further.
    ``correct`` takes the mean error of each layer's output out of its bias: with data layer after layer, without where
    a batch norm says what the layer's input is like. With data it estimates statistics of batch norms anew.
    ``io`` is what a file whose operators hand codes to each other takes and gives: floats, or the codes themselves.
    ``float_fallback``: what such a file's engine cannot compute on codes stays in float; otherwise it is an error.
    """

    name: str
    rules: tuple[Rule, ...]
    description: str = ""
    smooth: bool = False
    compensate: bool = False
    learn: bool = False
    io: IO = "float"
    float_fallback: bool = False
    equalize: bool = False
    correct: bool = False
    protect: bool = False
    share: bool = False

    @property
    def needs_data(self) -> bool:
        """Some rule needs ranges of activations that only calibration data can give."""
        return any(rule.activations is not None and not rule.activations.dynamic for rule in self.rules)

    @property
    def uses_data(self) -> bool:
        """It needs data, or is better with some."""
        return self.needs_data or self.compensate or self.learn or self.correct or self.protect

    @property
    def once(self) -> bool:
        """Its numbers are found once, for all targets."""
        return self.learn or self.correct

    def without_data(self) -> "Recipe":
        """The same recipe, rounding to nearest."""
        return replace(self, smooth=False, compensate=False, learn=False, protect=False)

    def excluding(self, patterns: Sequence[str]) -> "Recipe":
        """The same recipe with layers that match any of these patterns kept in float."""
        return replace(self, rules=tuple(Rule(match=p) for p in patterns) + self.rules)


@dataclass(frozen=True)
class Assignment:
    """What a recipe says of one layer; ``note``: why its activations stay in float although the rule says otherwise."""

    layer: LayerInfo
    weights: Scheme | None
    activations: Scheme | None
    note: str | None = None


def assign(recipe: Recipe, info: ModelInfo) -> tuple[Assignment, ...]:
    """Apply the rules to the model's layers, first match wins.

    Raises:
        InputError: the model has no layer to quantize, or is quantized already; a rule matches no layer (near names
            are listed); a group size does not divide a layer's axis (every such layer is listed); a range that the
            weights' format has not; activations and weights that cannot be multiplied.
    """
    if info.in_codes and not any(layer.weights for layer in info.layers):
        raise InputError(
            f"the model is quantized already (layers in integer codes: {info.in_codes}) and no layer has float "
            "weights; give the float model that it was made from"
        )
    if not info.layers:
        raise InputError(
            "the model has nothing to quantize: no convolution, linear, embedding or recurrent layer with weights"
        )
    recipe = fitted(recipe, info)
    for rule in recipe.rules:
        if rule.match != "*" and not any(rule.matches(layer) for layer in info.layers):
            raise InputError(_nothing_matched(recipe.name, rule.match, info.layers))
    assigned = []
    for layer in info.layers:
        rule = next((r for r in recipe.rules if r.matches(layer)), Rule(match=layer.name))
        note = _unusable(rule.activations, layer)
        assigned.append(Assignment(layer, rule.weights, None if note else rule.activations, note))
    _check_groups(recipe.name, assigned)
    _check_ranges(recipe.name, assigned)
    _check_products(recipe.name, assigned)
    return tuple(assigned)


def fitted(recipe: Recipe, info: ModelInfo) -> Recipe:
    """The recipe for this model: ``@first`` and ``@last`` by name, and no rules of a preset's own that fit nothing."""
    recipe = _located(recipe, info)
    known = preset(recipe.name)
    own = known.rules if known is not None else ()
    kept = (
        rule
        for rule in recipe.rules
        if rule not in own or rule.match == "*" or any(rule.matches(layer) for layer in info.layers)
    )
    return replace(recipe, rules=tuple(kept))


def _located(recipe: Recipe, info: ModelInfo) -> Recipe:
    """The recipe with the first and the last layer called by their names."""
    layers = [layer.name for layer in info.layers if layer.kind in ("conv", "linear")]
    if not layers:
        return recipe
    names = {"@first": layers[0], "@last": layers[-1]}
    rules = (replace(rule, match=names.get(rule.match, rule.match)) for rule in recipe.rules)
    return replace(recipe, rules=tuple(rules))


def _unusable(activations: Scheme | None, layer: LayerInfo) -> str | None:
    """Why a layer cannot have its activations quantized, and gets its weights in fewer bits only; None where it can.

    They are where kernels multiply their codes.
    """
    if activations is None:
        return None
    if layer.inside is not None and not activations.dynamic:
        return f"weights only: what it reads is not observed inside {layer.inside}"
    if activations.dynamic:
        usable = layer.kind == "linear" if layer.dynamic is None else layer.dynamic
    else:
        usable = layer.kind in ("conv", "linear", "matmul")
    if usable:
        return None
    if layer.kind == "embedding":
        return "weights only: it looks them up"
    ranges = "taken as they come" if activations.dynamic else "known in advance"
    return f"weights only: no engine here runs such a {layer.op} on codes with ranges {ranges}"


def _nothing_matched(recipe: str, pattern: str, layers: Iterable[LayerInfo]) -> str:
    names = sorted({layer.op for layer in layers}) + [layer.name for layer in layers]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    return f"recipe {recipe!r}: the rule {pattern!r} matches no layer and no operator; near names: {', '.join(near)}"


def _check_products(recipe: str, assigned: Iterable[Assignment]) -> None:
    """Codes are multiplied with codes, and only int8 ones are where activations are quantized as they come."""
    for a in assigned:
        if a.activations is None or not a.layer.weights:
            continue
        if a.weights is None or find(a.weights.qtype).kind not in ("int", "ternary", "binary"):
            raise InputError(
                f"recipe {recipe!r}: layer {a.layer.name!r} gets {a.activations.qtype} activations but "
                f"{a.weights or 'float'} weights; give it integer weights, or no activations"
            )
        if a.weights.range == "half_quadratic":
            raise InputError(
                f"recipe {recipe!r}: layer {a.layer.name!r} gets activations in codes, but weights whose zero lies "
                "between codes (range 'half_quadratic'); take another range, or leave activations out"
            )
        int8 = a.weights.qtype == "int8" and a.weights.symmetric and a.weights.per != "group"
        if a.activations.dynamic and not int8:
            raise InputError(
                f"recipe {recipe!r}: layer {a.layer.name!r} gets dynamic activations with {a.weights.qtype} weights; "
                "they need symmetric int8 weights, per channel or tensor"
            )


def _check_groups(recipe: str, assigned: Iterable[Assignment]) -> None:
    bad, deep = [], []
    for a in assigned:
        if a.weights is None or a.weights.group_size is None:
            continue
        for weight in a.layer.weights:
            if len(weight.shape) != 2:
                deep.append(f"{a.layer.name} {list(weight.shape)}")
            elif weight.shape[weight.group_axis] % a.weights.group_size:
                bad.append(f"{a.layer.name} ({weight.shape[weight.group_axis]})")
    if deep:
        raise InputError(
            f"recipe {recipe!r}: groups are for weights of two axes, which {len(deep)} layers do not have: "
            f"{', '.join(deep)}; give them a scale per channel, or keep them in float with --exclude"
        )
    if bad:
        raise InputError(
            f"recipe {recipe!r}: the group size does not divide the summed axis of {len(bad)} "
            f"layer{'s' if len(bad) > 1 else ''}: "
            f"{', '.join(bad)}; use a size that divides them, or keep them in float with --exclude"
        )


def _check_ranges(recipe: str, assigned: Iterable[Assignment]) -> None:
    """Formats whose levels are not evenly spaced have one plain rule each, and one of least error."""
    for a in assigned:
        scheme = a.weights
        if scheme is None or scheme.range in ("minmax", "mse") or find(scheme.qtype).kind == "int":
            continue
        raise InputError(
            f"recipe {recipe!r}: layer {a.layer.name!r} gets {scheme.qtype} weights by range {scheme.range!r}, which "
            "is for evenly spaced codes; write range = 'minmax' or 'mse'"
        )


INT8_CHANNEL = Scheme("int8", per="channel")
INT8_CHANNEL_MSE = Scheme("int8", per="channel", range="mse")


def _w8a8(name: str, kind: RangeKind, description: str) -> Recipe:
    activations = Scheme("uint8", symmetric=False, range=kind)
    rules = (Rule("Gather", INT8_CHANNEL), Rule("*", INT8_CHANNEL, activations))
    return Recipe(name, rules, description, smooth=True, compensate=True, equalize=True)


def _low(weight_bits: int, activation_bits: int) -> Recipe:
    """Few bits all through, but 8 in the first and the last layer, and learned."""
    weights = Scheme(f"int{weight_bits}", per="channel", range="mse")
    inner = Scheme(f"uint{activation_bits}", symmetric=False, range="mse")
    ends = INT8_CHANNEL_MSE, Scheme("uint8", symmetric=False, range="mse")
    rules = (
        Rule("Gather", weights),
        Rule("@first", *ends),
        Rule("@last", *ends),
        Rule("*", weights, inner),
    )
    bits = f"weights in {weight_bits} bits, activations in {activation_bits}"
    text = f"{bits}, the first and the last layer in 8; learned; needs data"
    name = f"w{weight_bits}a{activation_bits}"
    return Recipe(name, rules, text, smooth=True, compensate=True, learn=True, equalize=True, correct=True)


def _few(bits: int) -> Recipe:
    """Every weight in few bits, a scale per channel, and learned where there is data."""
    rules = (Rule("*", Scheme(f"int{bits}", per="channel", range="mse")),)
    text = f"every weight in {bits} bits, a scale per channel; learned where there is data, and it should have some"
    return Recipe(f"w{bits}", rules, text, compensate=True, learn=True, correct=True)


def _linear4(name: str, weights: Scheme, text: str, protect: bool = False) -> Recipe:
    """Linear layers in 4 bits, the rest in 8."""
    rules = (Rule("MatMul", weights), Rule("Gemm", weights), Rule("*", INT8_CHANNEL))
    # There is nothing to compensate with where zero may lie between codes.
    return Recipe(name, rules, text, protect=protect, compensate=weights.range != "half_quadratic")


def _w4(group_size: int) -> Recipe:
    int4 = Scheme("int4", per="group", group_size=group_size, range="mse")
    text = f"linear layers in 4 bits, groups of {group_size}, the rest in 8; no data needed, closer with some"
    return _linear4(f"w4_g{group_size}", int4, text)


PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp16", (Rule("*", Scheme("fp16")),), "weights stored in 16-bit IEEE floats; half the file"),
        Recipe(
            "bf16", (Rule("*", Scheme("bf16")),), "weights stored in bfloat16; half the file, range of fp32"
        ),
        Recipe(
            "w8",
            (Rule("*", INT8_CHANNEL),),
            "weights in 8 bits per channel; a quarter of the file; no data needed, closer with some",
            compensate=True,
        ),
        _w4(32),
        _w4(128),
        _linear4(
            "w4_g64_hqq",
            Scheme("int4", per="group", group_size=64, symmetric=False, range="half_quadratic"),
            "the same in groups of 64 by half-quadratic splitting, zero between codes; no data needed",
        ),
        _linear4(
            "w4_g128_awq",
            Scheme("int4", per="group", group_size=128, range="mse"),
            "the same in groups of 128, and weights that large activations meet are protected; needs data",
            protect=True,
        ),
        Recipe(
            "w8a8_dynamic",
            (
                Rule("MatMul", INT8_CHANNEL, Scheme("uint8", symmetric=False, dynamic=True)),
                Rule("Gemm", INT8_CHANNEL, Scheme("uint8", symmetric=False, dynamic=True)),
                Rule("recurrent", INT8_CHANNEL, Scheme("uint8", symmetric=False, dynamic=True)),
                Rule("*", INT8_CHANNEL),
            ),
            "int8 linear layers and LSTM, activations quantized as they come; no data needed, closer with some",
            compensate=True,
        ),
        Recipe(
            "w8a16",
            (Rule("Gather", INT8_CHANNEL), Rule("*", INT8_CHANNEL, Scheme("int16"))),
            "int8 weights and 16-bit activations, for .tflite; needs data; between w8a8 and float",
            compensate=True,
        ),
        _w8a8(
            "w8a8", "mse", "int8 weights and activations, ranges of least squared error; needs data; fastest"
        ),
        _w8a8("w8a8_minmax", "minmax", "the same with the observed minimum and maximum"),
        _w8a8("w8a8_percentile", "percentile", "the same with ranges that cut the outermost 0.01 %"),
        _w8a8("w8a8_entropy", "entropy", "the same with ranges of least information lost (KL)"),
        *(_few(bits) for bits in (4, 3, 2)),
        Recipe(
            "w4_codebook",
            (
                Rule("@first", INT8_CHANNEL_MSE),
                Rule("@last", INT8_CHANNEL_MSE),
                Rule("*", Scheme("codebook4", range="mse")),
            ),
            "every weight one of 16 numbers, which each layer learns; the first and the last layer in 8 bits",
            compensate=True,
            learn=True,
            correct=True,
        ),
        *(_low(*bits) for bits in ((4, 8), (4, 4), (3, 8), (2, 8), (2, 4))),
    )
}


def quantization_aware(weight_bits: int) -> Recipe:
    """What training with rounding leads to: the levels of its weights are found again, and nothing is rounded anew."""
    activations = Scheme("uint8", symmetric=False)
    weights = Scheme(f"int{weight_bits}", per="channel")
    text = "as it was trained: weights are levels already, activations have the ranges that were learned"
    return Recipe(f"w{weight_bits}a8_trained", (Rule("*", weights, activations),), text)


STORED: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "fp8",
            (Rule("*", Scheme("fp8_e4m3fn", per="channel")),),
            "weights in 8-bit floats (E4M3) with a scale per channel; for Hugging Face directories",
        ),
    )
}
"""Presets in formats that the engines do not run, for what only stores weights."""


def preset(name: str) -> Recipe | None:
    """The preset of that name, of either table."""
    return PRESETS.get(name) or STORED.get(name)


class _SchemeFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    qtype: str
    per: Per = "tensor"
    group_size: int | None = Field(default=None, gt=0)
    symmetric: bool = True
    range: RangeKind = "minmax"
    dynamic: bool = False


class _RuleFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    match: str
    weights: _SchemeFile | None = None
    activations: _SchemeFile | None = None


class _RecipeFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    description: str = ""
    smooth: bool = False
    compensate: bool = False
    learn: bool = False
    equalize: bool = False
    correct: bool = False
    protect: bool = False
    share: bool = False
    effort: Effort | None = None
    io: IO = "float"
    float_fallback: bool = False
    engine: str | None = None
    precision: str | None = None
    placement: str | None = None
    seed: int | None = None
    rules: list[_RuleFile] = Field(min_length=1)


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with what it was resolved for; None where the file leaves it open.

    Attributes:
        recipe: the rules.
        engine: the engine whose files it writes.
        precision: what that engine computes the float part in.
        placement: which of the engine's ways of placing quantized activations.
        seed: of whatever is drawn at random.
        effort: how much of it is spent on learning.
    """

    recipe: Recipe
    engine: str | None = None
    precision: str | None = None
    placement: str | None = None
    seed: int | None = None
    effort: Effort | None = None


WEIGHT_QTYPES = ("int8", "int4", "int3", "int2", "ternary", "binary", "codebook4", "fp16", "bf16")
ACTIVATION_QTYPES = ("uint8", "uint4", "int16")


def read_recipe(name_or_path: str, weights: Sequence[str] = WEIGHT_QTYPES) -> ResolvedRecipe:
    """A preset by name, or a recipe from a TOML file.

    Args:
        name_or_path: of either.
        weights: formats that a file may give weights.

    Raises:
        InputError: no preset of that name and no such file; TOML that does not parse; unknown keys or formats.
    """
    known = preset(name_or_path)
    if known is not None:
        return ResolvedRecipe(known)
    path = Path(name_or_path)
    if path.suffix != ".toml":
        raise InputError(
            f"recipe {name_or_path!r}: not a preset and not a .toml file; presets: auto, "
            f"{', '.join((*PRESETS, *STORED))}"
        )
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        parsed = _RecipeFile.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {path}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"recipe {path}: {where}: {first['msg']} (got {first['input']!r})") from error
    rules = tuple(
        Rule(
            rule.match,
            _scheme(path, rule.match, rule.weights, weights),
            _scheme(path, rule.match, rule.activations, ACTIVATION_QTYPES),
        )
        for rule in parsed.rules
    )
    for rule in rules:
        if rule.weights is not None and rule.weights.dynamic:
            raise InputError(
                f"recipe {path}: rule {rule.match!r}: dynamic is for activations, not for weights"
            )
        if rule.activations is not None and rule.activations.range == "half_quadratic":
            raise InputError(f"recipe {path}: rule {rule.match!r}: range 'half_quadratic' is for weights")
        if rule.activations is not None and rule.activations.per != "tensor":
            raise InputError(
                f"recipe {path}: rule {rule.match!r}: activations have one scale; write per = 'tensor'"
            )
    recipe = Recipe(
        parsed.name,
        rules,
        parsed.description,
        parsed.smooth,
        parsed.compensate,
        parsed.learn,
        parsed.io,
        parsed.float_fallback,
        parsed.equalize,
        parsed.correct,
        parsed.protect,
        parsed.share,
    )
    return ResolvedRecipe(
        recipe, parsed.engine, parsed.precision, parsed.placement, parsed.seed, parsed.effort
    )


def _scheme(path: Path, match: str, parsed: _SchemeFile | None, allowed: Sequence[str]) -> Scheme | None:
    if parsed is None:
        return None
    if parsed.qtype not in allowed:
        raise InputError(
            f"recipe {path}: rule {match!r}: unknown format {parsed.qtype!r}; allowed here: {', '.join(allowed)}"
        )
    try:
        return Scheme(**parsed.model_dump())
    except InputError as error:
        raise InputError(f"recipe {path}: rule {match!r}: {error}") from error


def write_recipe(resolved: ResolvedRecipe) -> str:
    """The recipe as TOML that :func:`read_recipe` reads back to the same record."""
    import tomlkit

    recipe = resolved.recipe
    document = tomlkit.document()
    document["name"] = recipe.name
    document["description"] = recipe.description
    for key in ("engine", "precision", "placement", "seed", "effort"):
        if getattr(resolved, key) is not None:
            document[key] = getattr(resolved, key)
    document["smooth"] = recipe.smooth
    document["compensate"] = recipe.compensate
    document["learn"] = recipe.learn
    document["equalize"] = recipe.equalize
    document["correct"] = recipe.correct
    document["protect"] = recipe.protect
    document["share"] = recipe.share
    if recipe.io != "float":
        document["io"] = recipe.io
    if recipe.float_fallback:
        document["float_fallback"] = True
    rules = tomlkit.aot()
    for rule in recipe.rules:
        table = tomlkit.table()
        table["match"] = rule.match
        for key, scheme in (("weights", rule.weights), ("activations", rule.activations)):
            if scheme is not None:
                table[key] = _inline(scheme)
        rules.append(table)
    document["rules"] = rules
    return tomlkit.dumps(document)


def _inline(scheme: Scheme) -> Any:
    import tomlkit

    table = tomlkit.inline_table()
    for key, value in vars(scheme).items():
        if value is not None:
            table[key] = value
    return table
