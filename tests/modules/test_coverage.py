"""The table of what is covered says what is: row by row, by what a layer of that kind computes."""

import copy
from pathlib import Path

import pytest
import torch

import fewbits as fb
from fewbits.modules.coverage import coverage, markdown
from fewbits.modules.files import coded_weights
from tests.modules.layers import LAYERS, made, sqnr

ROWS = {row.layer: row for row in coverage() if row.weight_only is None}
PAGE = Path(__file__).parents[2] / "docs" / "modules.md"
SAME_DB, INT8_DB = 110.0, 25.0


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_the_page_has_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition("<!-- coverage -->\n")[2].partition("<!-- end of coverage -->")[0] == markdown()


def plain(module, small):
    """The module with the numbers that the codes stand for: what is computed where activations stay in float."""
    same = copy.deepcopy(module)
    for weight, names in coded_weights(small).items():
        same.get_parameter(names[0]).copy_(weight.dequantize())
    return same


@pytest.mark.parametrize("layer", ROWS)
def test_each_row(layer):
    assert layer in LAYERS, "a layer of that kind is missing in tests/modules/layers.py"
    module, inputs = made(layer)
    weights = coded_weights(fb.quantize(module, "w8"))
    assert len(weights) == sum(one.dim() > 1 for one in module.parameters())
    ways = {"dynamic": fb.quantize(module, "w8a8_dynamic"), "static": fb.simulate(module, inputs, "w8a8")}
    for way, small in ways.items():
        got = sqnr(plain(module, small)(*inputs), small(*inputs))
        if getattr(ROWS[layer], way) is None:
            assert INT8_DB < got < SAME_DB, f"{way}: activations are not in int8"
        else:
            assert got > 45, f"{way}: activations are not in float"
