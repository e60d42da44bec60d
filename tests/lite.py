"""Tiny TensorFlow Lite models, put together without TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'fewbits[tflite]'")

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

TYPES = {"float32": 0, "int32": 2, "int64": 4, "bool": 6, "int8": 9}
SAME, VALID = 0, 1
RELU = 1


class LiteNet:
    """Built operator by operator; tensors are known by name, and None in a shape is an open axis."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]
        self.names: dict[str, int] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def tensor(self, name: str, shape, dtype: str = "float32", array: np.ndarray | None = None) -> str:
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.hasRank = name.encode(), TYPES[dtype], True
        tensor.shape = [dim or 1 for dim in shape]
        if None in shape:
            tensor.shapeSignature = [-1 if dim is None else dim for dim in shape]
        tensor.buffer = 0
        if array is not None:
            buffer = schema.BufferT()
            buffer.data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.names[name] = len(self.graph.tensors)
        self.graph.tensors.append(tensor)
        return name

    def input(self, name: str, *shape, dtype: str = "float32") -> str:
        self.tensor(name, shape, dtype)
        self.graph.inputs.append(self.names[name])
        return name

    def constant(self, name: str, array) -> str:
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.arrays[name] = array
        return self.tensor(name, array.shape, array.dtype.name, array)

    def weight(self, name: str, *shape) -> str:
        """Normal numbers of variance 1/(elements per output channel)."""
        per_channel = max(1, int(np.prod(shape)) // shape[0])
        return self.constant(name, self.rng.standard_normal(shape) / np.sqrt(per_channel))

    def add(self, op: str, inputs, name: str, *shape, dtype: str = "float32", **options) -> str:
        """An operator with one result; ``options`` as in the schema."""
        self.operator(op, inputs, [self.tensor(name, shape, dtype)], **options)
        return name

    def operator(self, op: str, inputs, outputs, version: int = 1, **options) -> None:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, op)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        kind = _options_of(op)
        if kind is not None:
            operator.builtinOptions = getattr(schema, f"{kind}T")()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            for key, value in options.items():
                assert hasattr(operator.builtinOptions, key), key
                setattr(operator.builtinOptions, key, value)
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs = [-1 if name is None else self.names[name] for name in inputs]
        operator.outputs = [self.names[name] for name in outputs]
        self.graph.operators.append(operator)

    def output(self, *names: str) -> LiteNet:
        self.graph.outputs += [self.names[name] for name in names]
        return self

    def signature(self, inputs, outputs, key: str = "serving_default") -> LiteNet:
        """Names of the user's own for inputs and outputs: pairs of name and tensor."""
        made = schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = key.encode(), 0
        for which, named in (("inputs", inputs), ("outputs", outputs)):
            entries = []
            for name, tensor in named.items():
                entry = schema.TensorMapT()
                entry.name, entry.tensorIndex = name.encode(), self.names[tensor]
                entries.append(entry)
            setattr(made, which, entries)
        self.model.signatureDefs = [made]
        return self

    def bytes(self) -> bytes:
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    def save(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def _options_of(op: str) -> str | None:
    words = {
        "CONV_2D": "Conv2DOptions",
        "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
        "MAX_POOL_2D": "Pool2DOptions",
        "AVERAGE_POOL_2D": "Pool2DOptions",
        "L2_NORMALIZATION": "L2NormOptions",
        "RESIZE_BILINEAR": "ResizeBilinearOptions",
        "BATCH_MATMUL": "BatchMatMulOptions",
        "PADV2": "PadV2Options",
        "GATHER_ND": "GatherNdOptions",
        "MAXIMUM": "MaximumMinimumOptions",
        "MINIMUM": "MaximumMinimumOptions",
        "SELECT_V2": "SelectV2Options",
        "ARG_MAX": "ArgMaxOptions",
        "ARG_MIN": "ArgMinOptions",
        **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), "ReducerOptions"),
    }
    plain = "".join(part.capitalize() for part in op.split("_")) + "Options"
    name = words.get(op, plain)
    return name if hasattr(schema, f"{name}T") else None


def mnist(seed: int = 0) -> LiteNet:
    """The guides' net on 8 x 8 digits: a convolution of 3 x 3, pooling, a dense layer."""
    net = LiteNet(seed)
    net.input("image", None, 8, 8, 1)
    net.weight("net/conv/kernel", 12, 3, 3, 1)
    net.constant("net/conv/bias", net.rng.standard_normal(12) / 10)
    conv = net.add(
        "CONV_2D",
        ["image", "net/conv/kernel", "net/conv/bias"],
        "net/conv/Relu",
        *(None, 6, 6, 12),
        padding=VALID,
        strideW=1,
        strideH=1,
        fusedActivationFunction=RELU,
    )
    pool = net.add(
        "MAX_POOL_2D",
        [conv],
        "net/pool/MaxPool",
        None,
        3,
        3,
        12,
        strideW=2,
        strideH=2,
        filterWidth=2,
        filterHeight=2,
    )
    net.constant("shape", np.array([-1, 108], np.int32))
    flat = net.add("RESHAPE", [pool, "shape"], "net/flatten/Reshape", None, 108)
    net.weight("net/dense/kernel", 10, 108)
    net.constant("net/dense/bias", net.rng.standard_normal(10) / 10)
    net.add("FULLY_CONNECTED", [flat, "net/dense/kernel", "net/dense/bias"], "net/dense/BiasAdd", None, 10)
    net.output("net/dense/BiasAdd")
    return net.signature({"image": "image"}, {"logits": "net/dense/BiasAdd"})
