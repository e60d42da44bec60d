"""A plan as data."""

import numpy as np
import pytest
import torch

from fewbits.engines.targets import TARGETS
from fewbits.numerics import quantize
from fewbits.planning.plan import LayerPlan, Plan, WeightPlan
from fewbits.planning.scheme import Scheme

INT8 = Scheme("int8", "channel")
UINT8 = Scheme("uint8", symmetric=False)
AS_IT_COMES = Scheme("uint8", symmetric=False, dynamic=True)


def weight(name):
    values = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    return WeightPlan(name, INT8, quantize(torch.from_numpy(values), "int8", channel_axis=1), values)


@pytest.mark.parametrize(
    ("plan", "words", "static", "dynamic"),
    [
        (LayerPlan("a", "MatMul", "a", (weight("w"),)), "int8 per channel", False, False),
        (
            LayerPlan("a", "MatMul", "a", (weight("w"),), UINT8),
            "int8 per channel, inputs uint8 per tensor",
            True,
            False,
        ),
        (
            LayerPlan("a", "MatMul", "a", (weight("w"),), AS_IT_COMES),
            "int8 per channel, inputs uint8 dynamic",
            False,
            True,
        ),
        (LayerPlan("a", "MatMul", "a", (), UINT8), "inputs uint8 per tensor", True, False),
        (LayerPlan("a", "MatMul", "a", float_reason="because"), "float", False, False),
    ],
)
def test_a_layer_in_words(plan, words, static, dynamic):
    assert (plan.scheme, plan.static, plan.dynamic) == (words, static, dynamic)


def test_the_constants_that_change_by_name():
    recurrent = LayerPlan("a", "LSTM", "a", (weight("wx"), weight("wh")))
    kept = LayerPlan("b", "MatMul", "b", float_reason="because")
    plan = Plan("w8", TARGETS["onnxruntime"][0], (recurrent, kept), ())
    assert list(plan.weights) == ["wx", "wh"]
    assert plan.weights["wh"] is recurrent.weights[1]
    assert not Plan("w8", TARGETS["onnxruntime"][0], (kept,), ()).weights
