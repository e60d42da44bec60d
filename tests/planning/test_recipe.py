"""Recipes: TOML there and back, the first rule that matches wins, and what is refused."""

import fnmatch
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewbits.candidates import AUTO, resolve
from fewbits.errors import InputError
from fewbits.planning.recipe import (
    PRESETS,
    WEIGHT_QTYPES,
    Recipe,
    ResolvedRecipe,
    Rule,
    assign,
    read_recipe,
    write_recipe,
)
from fewbits.planning.scheme import RANGE_KINDS, Scheme
from tests.planning.layers import info, layer, product

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WEIGHTS = st.builds(
    lambda qtype, size, per, symmetric, kind: Scheme(
        qtype, "group" if size else per, size, symmetric=symmetric and kind != "half_quadratic", range=kind
    ),
    st.sampled_from(WEIGHT_QTYPES),
    st.none() | st.integers(1, 1 << 20),
    st.sampled_from(["tensor", "channel"]),
    st.booleans(),
    st.sampled_from(RANGE_KINDS),
)
ACTIVATIONS = st.builds(
    lambda symmetric, kind, dynamic: Scheme("uint8", symmetric=symmetric, range=kind, dynamic=dynamic),
    st.booleans(),
    st.sampled_from([kind for kind in RANGE_KINDS if kind != "half_quadratic"]),
    st.booleans(),
)
RULES = st.lists(
    st.builds(Rule, TEXT, st.none() | WEIGHTS, st.none() | ACTIVATIONS), min_size=1, max_size=5
).map(tuple)
RESOLVED = st.builds(
    ResolvedRecipe,
    st.builds(Recipe, TEXT, RULES, TEXT, st.booleans(), st.booleans()),
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | TEXT,
    st.none() | st.integers(0, 2**63 - 1),
)
INT8, INT4, FP16 = Scheme("int8", "channel"), Scheme("int4", "channel"), Scheme("fp16")
UINT8 = Scheme("uint8", symmetric=False)
AS_IT_COMES = Scheme("uint8", symmetric=False, dynamic=True)


# --- there and back ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(RESOLVED)
@example(ResolvedRecipe(Recipe("a", (Rule("*"),), "two\nlines\r\n\t\"quoted\" 'so' \\ # and \x00\x7f")))
def test_what_is_written_is_read_back_the_same(tmp_path_factory, resolved):
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(write_recipe(resolved), encoding="utf-8")
    assert read_recipe(str(path)) == resolved


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read_by_name_and_as_the_file_it_is_written_to(tmp_path, name):
    preset = read_recipe(name)
    assert preset == ResolvedRecipe(PRESETS[name])
    assert preset.recipe.name == name
    assert preset.recipe.description
    path = tmp_path / "recipe.toml"
    path.write_text(write_recipe(preset), encoding="utf-8")
    assert read_recipe(str(path)) == preset


def test_what_a_file_leaves_out_has_a_default(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text('name = "short"\n[[rules]]\nmatch = "*"\nweights = {qtype = "int8"}\n')
    assert read_recipe(str(path)) == ResolvedRecipe(Recipe("short", (Rule("*", Scheme("int8")),)))


def test_auto_is_presets(tmp_path):
    assert [one.recipe for one in resolve("auto", ())] == [PRESETS[name] for name in AUTO]
    assert resolve("original", ()) == ()


# --- the first rule that matches --------------------------------------------------------------------------------

NAMES = ("encoder.0.fc", "encoder.0.out", "encoder.1.fc", "head", "stem[0]", "Conv")
OPS = ("MatMul", "Gemm", "Conv", "Gather")
PATTERNS = ("*", "encoder.*", "*.fc", "encoder.?.out", "head", "stem[0]", "stem*", "[!e]*", *OPS)
MODELS = st.lists(
    st.builds(layer, st.sampled_from(NAMES), st.sampled_from(OPS)),
    min_size=1,
    unique_by=lambda one: one.name,
)
ORDERED = st.lists(
    st.builds(Rule, st.sampled_from(PATTERNS), st.sampled_from([None, INT8, INT4, FP16])), min_size=1
)


@settings(deadline=None)
@given(MODELS, ORDERED)
def test_the_first_rule_that_matches_decides(layers, rules):
    def matching(rule, one):
        return rule.match in (one.op, one.name) or fnmatch.fnmatchcase(one.name, rule.match)

    recipe = Recipe("mine", tuple(rules))
    unused = [r for r in rules if r.match != "*" and not any(matching(r, one) for one in layers)]
    if unused:
        with pytest.raises(InputError, match="matches no layer") as refused:
            assign(recipe, info(*layers))
        assert repr(unused[0].match) in str(refused.value)
        return
    for a in assign(recipe, info(*layers)):
        first = next((rule for rule in rules if matching(rule, a.layer)), None)
        assert a.weights == (first.weights if first else None)
        assert a.activations is None


def test_a_rule_that_matches_nothing_names_what_is_near():
    model = info(layer("encoder.0.attention"), layer("encoder.0.output"), layer("head", "Gemm"))
    with pytest.raises(InputError, match=r"'encoder\.0\.atention'.*near names: encoder\.0\.attention"):
        assign(Recipe("mine", (Rule("encoder.0.atention", INT8), Rule("*", INT8))), model)
    with pytest.raises(InputError, match="near names: MatMul"):
        assign(Recipe("mine", (Rule("Matmul", INT8),)), model)


def test_a_rule_behind_one_that_takes_all_is_no_error():
    """It matches; that it never decides may be meant, where the first was put there by ``exclude``."""
    assigned = assign(Recipe("mine", (Rule("*", INT8), Rule("head", INT4))), info(layer("head")))
    assert assigned[0].weights == INT8


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_models_that_lack_some_of_their_operators(name):
    preset = PRESETS[name]
    for op, shape in (("Conv", (8, 8, 3, 3)), ("Gather", (128, 128)), ("LSTM", (1, 128, 128))):
        assert assign(preset, info(layer("only", op, shape)))[0].weights is not None


@settings(deadline=None)
@given(MODELS, st.lists(st.sampled_from(PATTERNS), min_size=1), st.sampled_from(["w8", "fp16"]))
def test_excluded_layers_stay_in_float_and_no_others(layers, patterns, name):
    def excluded(one):
        return any(p in (one.op, one.name) or fnmatch.fnmatchcase(one.name, p) for p in patterns)

    recipe = PRESETS[name].excluding(patterns)
    try:
        assigned = assign(recipe, info(*layers))
    except InputError as error:
        assert "matches no layer" in str(error)  # noqa: PT017
        return
    for a in assigned:
        assert (a.weights is None) == excluded(a.layer)
        assert a.activations is None


def test_excluding_is_for_every_recipe_that_auto_tries():
    for one in resolve("auto", ["head"]):
        kept = [
            a.weights for a in assign(one.recipe, info(layer("head", shape=(128, 8)), layer("b", "Conv")))
        ]
        assert kept[0] is None
        assert kept[1] is not None


def test_a_name_with_brackets_is_itself():
    """``blocks[0]`` as a shell pattern would be ``blocks0``."""
    model = info(layer("blocks[0]"), layer("blocks[1]"))
    assigned = assign(PRESETS["w8"].excluding(["blocks[0]"]), model)
    assert [a.weights is None for a in assigned] == [True, False]


# --- activations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "static", "as_it_comes"),
    [
        (layer("conv", "Conv"), True, False),
        (layer("fc", "Gemm"), True, True),
        (layer("table", "Gather"), False, False),
        (replace(layer("lstm", "LSTM"), dynamic=True), False, True),
        (layer("gru", "GRU"), False, False),
        (replace(layer("within", "MatMul"), inside="Loop"), False, True),
        (layer("left", "MatMul", kind="product"), False, False),
        (product("scores"), True, False),
    ],
)
def test_activations_are_quantized_where_kernels_multiply_codes(one, static, as_it_comes):
    for scheme, wanted in ((UINT8, static), (AS_IT_COMES, as_it_comes)):
        (a,) = assign(Recipe("mine", (Rule("*", INT8, scheme),)), info(one))
        assert (a.activations == scheme) == wanted
        assert wanted or a.activations is None
        assert (a.note is None) == wanted


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (None, UINT8),
        (FP16, UINT8),
        (FP16, AS_IT_COMES),
        (INT4, AS_IT_COMES),
        (Scheme("int8", "channel", symmetric=False), AS_IT_COMES),
        (Scheme("int8", "group", 32), AS_IT_COMES),
    ],
)
def test_codes_are_multiplied_with_codes_only(weights, activations):
    with pytest.raises(InputError, match="'fc'"):
        assign(Recipe("mine", (Rule("*", weights, activations),)), info(layer("fc")))


def test_data_is_needed_where_ranges_are_known_in_advance():
    assert [name for name in PRESETS if PRESETS[name].needs_data] == [
        "w8a16",
        "w8a8",
        "w8a8_minmax",
        "w8a8_percentile",
        "w8a8_entropy",
        "w4a8",
        "w4a4",
        "w3a8",
        "w2a8",
        "w2a4",
    ]


# --- groups -----------------------------------------------------------------------------------------------------


def test_every_layer_that_groups_do_not_divide_is_listed():
    grouped = Scheme("int4", "group", 48)
    model = info(layer("a"), layer("b", shape=(96, 8)), layer("c", shape=(100, 8)))
    with pytest.raises(InputError, match=r"of 2 layers: a \(64\), c \(100\)"):
        assign(Recipe("mine", (Rule("*", grouped),)), model)


def test_groups_are_for_weights_of_two_axes():
    with pytest.raises(InputError, match=r"1 layers do not have: c \[8, 8, 3, 3\]"):
        assign(PRESETS["w4_g32"].excluding(["b"]), info(layer("b"))) and assign(
            Recipe("mine", (Rule("*", Scheme("int4", "group", 8)),)), info(layer("c", "Conv", (8, 8, 3, 3)))
        )


# --- nothing to do ----------------------------------------------------------------------------------------------


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="nothing to quantize"):
        assign(PRESETS["w8"], info())


def test_a_model_in_codes_is_refused_unless_something_is_left():
    with pytest.raises(InputError, match=r"quantized already \(layers in integer codes: 5\)"):
        assign(PRESETS["w8"], info(product("scores"), in_codes=5))
    assert assign(PRESETS["w8"], info(layer("head"), in_codes=5))[0].weights is not None
