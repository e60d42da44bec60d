"""How codes are written: the nodes that turn a stored constant back into the tensor that its reader expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fewbits.errors import InputError
from fewbits.models.onnx.names import Names
from fewbits.planning.plan import ActivationPlan, Scaling, WeightPlan
from fewbits.planning.target import WeightForm

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from fewbits.numerics import QTensor

ONNX_TYPES = {
    "fp16": "FLOAT16",
    "bf16": "BFLOAT16",
    "int2": "INT4",  # ONNX has it since opset 25, which OpenVINO does not read
    "int3": "INT4",
    "int4": "INT4",
    "ternary": "INT4",
    "binary": "INT4",
    "uint4": "UINT4",
    "codebook4": "UINT4",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "uint16": "UINT16",
    "int32": "INT32",
}
"""Our formats in ONNX's words, or the next wider one."""

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's contributed operators."""


class Encoder:
    """Adds constants to a graph, and nodes to it and to the bodies inside it.

    A body reads the graph's constants, but brings them back by nodes of its own: OpenVINO reads no Scan otherwise
    (2026.4), and folds or keeps them there as well as outside.

    Their names derive from the tensor's. What is asked for by the same name again is the same value: names stand for
    one meaning each, and never for a tensor that the graph had before.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = Names(graph)
        self._constants: dict[str, ir.Value] = {}
        self._made: dict[tuple[str, ir.Graph], ir.Value] = {}
        self._dynamic: dict[tuple[ir.Value, ir.Graph], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def constant(
        self, name: str, array: np.ndarray, qtype: str | None = None, graph: ir.Graph | None = None
    ) -> ir.Value:
        """An initializer of that name, of the graph or of a body; ``qtype`` for formats that numpy lacks."""
        import onnx_ir as ir

        name = self._names(name)
        if name in self._constants:
            return self._constants[name]
        dtype = ir.DataType[ONNX_TYPES[qtype]] if qtype else ir.DataType.from_numpy(array.dtype)
        tensor = ir.Tensor(array, dtype=dtype, shape=ir.Shape(array.shape), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
        (graph or self.graph).register_initializer(value)
        self._constants[name] = value
        return value

    def node(
        self,
        op: str,
        inputs: list[ir.Value],
        before: ir.Node,
        name: str,
        like: ir.Value,
        qtype: str | None = None,
        **attributes: int | None,
    ) -> ir.Value:
        """The result, called ``name``, of a new node in front of ``before``.

        It has the shape of ``like``, and its type unless ``qtype`` says another.
        """
        import onnx_ir as ir

        graph = before.graph
        assert graph is not None
        key = (self._names(name), graph)
        if key in self._made:
            return self._made[key]
        name = key[0] if graph is self.graph else self._names(f"{name}_for_{before.name}")
        given = {key: value for key, value in attributes.items() if value is not None}
        kind = ir.TensorType(ir.DataType[ONNX_TYPES[qtype]]) if qtype else like.type
        result = ir.Value(name=name, shape=like.shape, type=kind)
        graph.insert_before(
            before, ir.node(op, inputs, attributes=given, outputs=[result], name=f"{name}_{op}")
        )
        self._made[key] = result
        return result

    def activation(self, plan: ActivationPlan, value: ir.Value, before: ir.Node) -> ir.Value:
        """``value`` quantized and brought back, after it was divided by its smoothing."""
        name = plan.site.tensor
        scale = self.constant(f"{name}_scale", np.asarray(np.float32(plan.scale)))
        zero = self.constant(f"{name}_zero_point", np.array(plan.zero_point, plan.qtype), plan.qtype)
        if plan.smoothing is not None:
            value = self._smoothed(plan, value, before)
        codes = self.node(
            "QuantizeLinear", [value, scale, zero], before, f"{name}_quantized", value, plan.qtype
        )
        return self.node("DequantizeLinear", [codes, scale, zero], before, f"{name}_dequantized", value)

    def scaling(self, plan: Scaling, value: ir.Value, before: ir.Node) -> ir.Value:
        """``value`` divided by the plan's numbers."""
        factor = self.constant(f"{plan.name}_protection", (1 / plan.divisor).astype(np.float32))
        return self.node("Mul", [value, factor], before, f"{plan.name}_protected", value)

    def _smoothed(self, plan: ActivationPlan, value: ir.Value, before: ir.Node) -> ir.Value:
        """``value`` divided by the plan's smoothing; in front of a Relu that only the plan's readers read.

        It is the same there, since the divisor is positive. Behind the Relu it would keep ONNX Runtime from dropping
        that for what QuantizeLinear clips, and a Gemm in front would take the Relu in, and be computed in float.
        """
        name = plan.site.tensor
        assert plan.smoothing is not None
        factor = self.constant(f"{name}_smoothing", (1 / plan.smoothing).astype(np.float32))
        relu = value.producer()
        movable = relu is not None and relu.op_type == "Relu" and not value.is_graph_output()
        if relu is None or not movable or len(value.uses()) != len(plan.site.readers):
            return self.node("Mul", [value, factor], before, f"{name}_smoothed", value)
        source = relu.inputs[0]
        assert source is not None
        relu.replace_input_with(0, self.node("Mul", [source, factor], relu, f"{name}_smoothed", source))
        return value

    def bias(self, name: str, values: np.ndarray, scale: np.ndarray, before: ir.Node) -> ir.Value:
        """A bias, float32 [channels], as int32 codes with the scale of its layer's products, float32 [channels]."""
        codes = self.constant(f"{name}_codes", np.round(values.astype(np.float64) / scale).astype(np.int32))
        step = self.constant(f"{name}_scale", scale.astype(np.float32))
        return self.node("DequantizeLinear", [codes, step], before, f"{name}_f32", step, axis=0)

    def weight(
        self, stem: str, plan: WeightPlan, form: WeightForm, before: ir.Node, like: ir.Value
    ) -> ir.Value:
        """What a weight's reader reads instead of it; the constants' names begin with ``stem``."""
        if plan.codes is None:
            stored = self.constant(f"{stem}_{plan.scheme.qtype}", narrow(plan), plan.scheme.qtype)
            return self.node("Cast", [stored], before, f"{stem}_f32", like, to=_float32())
        if form in ("dequantize", "widen"):
            return self._dequantize(stem, plan.codes, before, like, widen=form == "widen")
        if form == "look_up":
            return self.look_up(stem, plan.codes, before, like)
        return self._cast_mul(stem, plan.codes, before, like, through_int32=form == "cast_twice_mul")

    def dynamic(self, stem: str, plan: WeightPlan, node: ir.Node) -> ir.Value:
        """A linear layer's product with the activation quantized as it comes: float32, without the bias."""
        q, value, like = plan.codes, node.inputs[0], node.outputs[0]
        assert q is not None and q.scale is not None and value is not None
        quantized, scale, zero_point = self._quantize_dynamically(value, node)
        turned = (
            node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        )
        codes = q.codes.numpy().T.copy() if turned else q.codes.numpy()
        stored = self.constant(f"{stem}_codes_turned" if turned else f"{stem}_codes", codes, q.qtype.name)
        name = like.name or ""
        sums = self.node(
            "MatMulInteger", [quantized, stored, zero_point], node, f"{name}_sums", like, "int32"
        )
        wide = self.node("Cast", [sums], node, f"{name}_cast", like, to=_float32())
        step = self.constant(f"{stem}_scale", q.scale.numpy())
        both = self.node("Mul", [scale, step], node, f"{name}_step", step)
        return self.node("Mul", [wide, both], node, f"{name}_f32", like)

    def dynamic_lstm(self, weights: list[tuple[str, WeightPlan]], node: ir.Node) -> ir.Node:
        """The node as one that quantizes what it reads, and its own state, as they come; weights with their stems.

        Source: ``DynamicQuantizeLSTM`` of ONNX Runtime's contributed operators.
        """
        import onnx_ir as ir

        parameters: list[ir.Value | None] = []
        codes: list[ir.Value | None] = []
        for stem, plan in weights:
            q = plan.codes
            assert q is not None and q.scale is not None
            turned = q.codes.numpy().swapaxes(1, 2).copy()
            scale = each_direction(q.scale.numpy(), turned)
            zeros = np.zeros(scale.shape, turned.dtype)
            codes.append(self.constant(f"{stem}_codes_turned", turned, q.qtype.name))
            parameters.append(self.constant(f"{stem}_scale_each", scale))
            parameters.append(self.constant(f"{stem}_zero_each", zeros, q.qtype.name))
        rest = [*node.inputs[3:], *[None] * (8 - len(node.inputs))]
        outputs = [
            ir.Value(name=f"{v.name}_f32" if v.name else "", type=v.type, shape=v.shape) for v in node.outputs
        ]
        made = ir.node(
            "DynamicQuantizeLSTM",
            [node.inputs[0], *codes, *rest, *parameters],
            attributes=node.attributes,
            domain=MICROSOFT,
            outputs=outputs,
            name=f"{node.name}_dynamic",
        )
        assert node.graph is not None
        node.graph.insert_before(node, made)
        self.graph.opset_imports[MICROSOFT] = 1
        return made

    def _quantize_dynamically(self, value: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        import onnx_ir as ir

        graph = before.graph
        assert graph is not None
        if (value, graph) not in self._dynamic:
            name = value.name or ""
            name = name if graph is self.graph else f"{name}_for_{before.name}"
            kinds = [
                ("quantized", "UINT8", value.shape),
                ("scale", "FLOAT", ir.Shape([])),
                ("zero", "UINT8", ir.Shape([])),
            ]
            outputs = [
                ir.Value(name=f"{name}_dynamic_{what}", type=ir.TensorType(ir.DataType[kind]), shape=shape)
                for what, kind, shape in kinds
            ]
            graph.insert_before(
                before, ir.node("DynamicQuantizeLinear", [value], outputs=outputs, name=f"{name}_dynamic")
            )
            self._dynamic[value, graph] = (outputs[0], outputs[1], outputs[2])
        return self._dynamic[value, graph]

    def dynamic_round_trip(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """``value`` quantized as it comes and brought back, literally."""
        name = f"{value.name}_dynamic_dequantized_for_{before.name}"
        return self.node(
            "DequantizeLinear", [*self._quantize_dynamically(value, before)], before, name, value
        )

    def _dequantize(
        self, name: str, q: QTensor, before: ir.Node, like: ir.Value, widen: bool = False
    ) -> ir.Value:
        codes = self.constant(f"{name}_codes", q.codes.numpy(), q.qtype.name, before.graph)
        if widen:
            codes = self.node("Cast", [codes], before, f"{name}_int8", like, "int8", to=_int8())
        inputs = [
            codes,
            self.constant(f"{name}_scale", _parameter(name, q, _scale(name, q)), graph=before.graph),
        ]
        if q.zero_point is not None:
            zero_point = _parameter(name, q, q.zero_point).astype(q.codes.numpy().dtype)
            inputs.append(self.constant(f"{name}_zero_point", zero_point, q.qtype.name, before.graph))
        elif before.op_type == "Gemm" and q.group_size is None:  # ONNX Runtime's QGemm wants one to be there
            zeros = np.zeros(q.scale.shape if q.scale is not None else (), q.codes.numpy().dtype)
            zero_name, qtype = (
                (f"{name}_int8_zero", "int8") if widen else (f"{name}_zero_point", q.qtype.name)
            )
            inputs.append(self.constant(zero_name, zeros, qtype, before.graph))
        axis = q.channel_axis
        if q.group_size is not None:
            axis = _group_axis(name, q)
        return self.node(
            "DequantizeLinear", inputs, before, f"{name}_f32", like, axis=axis, block_size=q.group_size
        )

    def _cast_mul(
        self, name: str, q: QTensor, before: ir.Node, like: ir.Value, through_int32: bool
    ) -> ir.Value:
        blocks = Blocks.of(name, q)
        word = "codes" if blocks is None else "codes_blocks"
        stored = q.codes.numpy() if blocks is None else blocks.split(q.codes.numpy())
        codes = self.constant(f"{name}_{word}", stored, q.qtype.name)
        if through_int32:
            codes = self.node("Cast", [codes], before, f"{name}_int32", like, "int32", to=_int32())
        wide = self.node("Cast", [codes], before, f"{name}_cast", like, to=_float32())
        zero_point = q.zero_point if q.free_zero_point is None else q.free_zero_point

        def spread(parameter: torch.Tensor) -> np.ndarray:
            return _spread(q, parameter) if blocks is None else blocks.spread(parameter.numpy())

        if zero_point is not None:
            zero = self.constant(f"{name}_offset", spread(zero_point).astype(np.float32))
            wide = self.node("Sub", [wide, zero], before, f"{name}_shifted", like)
        step = self.constant(f"{name}_step", spread(_scale(name, q)))
        if blocks is None:
            return self.node("Mul", [wide, step], before, f"{name}_f32", like)
        wide = self.node("Mul", [wide, step], before, f"{name}_blocks_f32", like)
        shape = self.constant(f"{name}_shape", np.array(q.codes.shape, np.int64))
        return self.node("Reshape", [wide, shape], before, f"{name}_f32", like)

    def look_up(
        self, name: str, q: QTensor, before: ir.Node, like: ir.Value, codes: ir.Value | None = None
    ) -> ir.Value:
        """The entries of a codebook that codes stand for: all of the weight's, or those given."""
        if q.codebook is None or q.codebook.dim() != 1:
            raise InputError(
                f"weight {name!r}: a codebook is written to ONNX where it is of the whole weight"
            )
        if codes is None:
            codes = self.constant(f"{name}_codes", q.codes.numpy(), q.qtype.name)
        places = self.node("Cast", [codes], before, f"{codes.name}_int32", like, "int32", to=_int32())
        entries = self.constant(f"{name}_entries", q.codebook.numpy())
        return self.node("Gather", [entries, places], before, f"{codes.name}_f32", like, axis=0)


@dataclass(frozen=True)
class Blocks:
    """A weight of two axes with the one that groups run along cut into groups: an axis more, and another shape."""

    axis: int
    size: int

    @staticmethod
    def of(name: str, q: QTensor) -> Blocks | None:
        """None where the codes are in no groups. Raises InputError for a weight of more than two axes."""
        return None if q.group_size is None else Blocks(_group_axis(name, q), q.group_size)

    def split(self, codes: np.ndarray) -> np.ndarray:
        """Codes [a, b] with that axis as two."""
        shape = list(codes.shape)
        shape[self.axis : self.axis + 1] = [shape[self.axis] // self.size, self.size]
        return codes.reshape(shape)

    def spread(self, parameter: np.ndarray) -> np.ndarray:
        """A parameter [channels, groups] in the shape that meets such codes."""
        turned = parameter if self.axis == 1 else parameter.T
        return np.expand_dims(turned, self.axis + 1)


def each_direction(scale: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The scales of a recurrent layer's channels for each of its directions: [directions, channels]."""
    return np.broadcast_to(scale, (codes.shape[0], codes.shape[2])).astype(np.float32)


def narrow(plan: WeightPlan) -> np.ndarray:
    """The values in the plan's 16-bit float format; what is too large becomes the largest, never infinity."""
    import ml_dtypes

    dtype = np.float16 if plan.scheme.qtype == "fp16" else ml_dtypes.bfloat16
    largest = float(ml_dtypes.finfo(dtype).max)
    return plan.values.clip(-largest, largest).astype(dtype)


def gather_rows(encoder: Encoder, name: str, plan: WeightPlan, node: ir.Node) -> ir.Value:
    """An embedding's rows: the codes are gathered first, so that only the rows asked for are brought back."""
    q = plan.codes
    like, indices = node.outputs[0], node.inputs[1]
    assert indices is not None
    if q is None:
        stored = encoder.constant(f"{name}_{plan.scheme.qtype}", narrow(plan), plan.scheme.qtype)
        rows = encoder.node("Gather", [stored, indices], node, f"{like.name}_rows", like, plan.scheme.qtype)
        return encoder.node("Cast", [rows], node, f"{like.name}_f32", like, to=_float32())
    offset = q.zero_point is not None or q.free_zero_point is not None
    if q.codebook is None and (offset or q.group_size is not None or q.channel_axis != 0):
        raise InputError(
            f"embedding {name!r}: rows are gathered as codes, which needs a symmetric scale per row"
        )
    codes, qtype = encoder.constant(f"{name}_codes", q.codes.numpy(), q.qtype.name), q.qtype.name
    if q.qtype.bits < 8:  # no engine gathers half bytes; they fold this at load
        codes, qtype = encoder.node("Cast", [codes], node, f"{name}_int8", codes, "int8", to=_int8()), "int8"
    rows = encoder.node("Gather", [codes, indices], node, f"{like.name}_rows", like, qtype)
    if q.codebook is not None:
        return encoder.look_up(name, q, node, like, rows)
    wide = encoder.node("Cast", [rows], node, f"{like.name}_cast", like, to=_float32())
    column = encoder.constant(f"{name}_step", _spread(q, _scale(name, q)))
    scale = encoder.node("Gather", [column, indices], node, f"{like.name}_row_step", like)
    scale.shape = None
    return encoder.node("Mul", [wide, scale], node, f"{like.name}_f32", like)


def _float32() -> int:
    import onnx_ir as ir

    return int(ir.DataType.FLOAT)


def _int8() -> int:
    import onnx_ir as ir

    return int(ir.DataType.INT8)


def _int32() -> int:
    import onnx_ir as ir

    return int(ir.DataType.INT32)


def _scale(name: str, q: QTensor) -> torch.Tensor:
    if q.scale is None:
        raise InputError(f"weight {name!r}: {q.qtype.name} codes without a scale cannot be written to ONNX")
    return q.scale


def _parameter(name: str, q: QTensor, parameter: torch.Tensor) -> np.ndarray:
    """A scale or zero point in the shape that DequantizeLinear wants: scalar, [channels], or one axis in blocks."""
    array = parameter.numpy()
    if q.group_size is None:
        return array
    if q.channel_axis is None:
        raise InputError(f"weight {name!r}: groups need a channel axis")
    return array if _group_axis(name, q) == 1 else array.T.copy()


def _group_axis(name: str, q: QTensor) -> int:
    if q.codes.dim() != 2:
        raise InputError(
            f"weight {name!r} has shape {list(q.codes.shape)}: groups are written for two axes only; "
            "use a scale per channel for this layer"
        )
    return 1 - (q.channel_axis or 0)


def _spread(q: QTensor, parameter: torch.Tensor) -> np.ndarray:
    """A per-channel parameter shaped to broadcast against the codes."""
    if q.channel_axis is None:
        return parameter.numpy()
    shape = [1] * q.codes.dim()
    shape[q.channel_axis] = -1
    return parameter.numpy().reshape(shape)
