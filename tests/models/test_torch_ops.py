"""ONNX operators in torch: every entry of the table against the node cases that ship with onnx."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper

from fewbits.models.network import UnsupportedError
from fewbits.models.onnx.network import OnnxNetwork
from fewbits.models.onnx.torch_ops import OPERATORS

DTYPES = {np.dtype(name) for name in ("float32", "float64", "int32", "int64", "bool")}
FIRST_ONLY = {"LayerNormalization", "MaxPool"}  # give their first output
# Of the cases: auto_pad, an output_shape, rounding up, dilated averages, training, a Split without sizes, wrapping.
SAID_TO_BE_UNSUPPORTED = 28


@lru_cache
def cases() -> dict:
    """The cases of one node of the table, on arrays of the types that models compute with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return {
            case.name: case
            for case in collect_testcases(None)
            if len(case.model.graph.node) == 1
            and case.model.graph.node[0].op_type in OPERATORS
            and all(_plain(array) for one in case.data_sets for arrays in one for array in arrays)
        }


def _plain(array: object) -> bool:
    return _array(array).dtype in DTYPES and _array(array).size > 0


def _array(array: object) -> np.ndarray:
    return numpy_helper.to_array(array) if isinstance(array, TensorProto) else np.array(array)


def results(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    case = cases()[name]
    graph = ir.from_proto(case.model).graph
    found = []
    for inputs, outputs in case.data_sets:
        given = {
            value.name or "": torch.from_numpy(_array(array).copy())
            for value, array in zip(graph.inputs, inputs, strict=True)
        }
        wanted = [value.name or "" for value in graph.outputs]
        wanted = wanted[:1] if graph[0].op_type in FIRST_ONLY else wanted
        got = OnnxNetwork(graph).run(given, wanted, {})
        found += [(a.numpy(), _array(b)) for a, b in zip(got.values(), outputs, strict=False)]
    return found


def test_every_operator_has_cases():
    covered = {case.model.graph.node[0].op_type for case in cases().values()}
    assert set(OPERATORS) == covered


def test_every_case_is_right_or_refused():
    refused = []
    for name in cases():
        try:
            for got, expected in results(name):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=name)
                assert got.dtype == expected.dtype, name
        except UnsupportedError:
            refused.append(name)
    assert len(refused) == SAID_TO_BE_UNSUPPORTED, refused


def test_what_is_unknown_is_named():
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Celu(x) }'
    ).graph
    graph[0].name = "here"
    with pytest.raises(UnsupportedError, match="operator Celu of node 'here'"):
        OnnxNetwork(graph).run({"x": torch.zeros(2)}, ["y"], {})
