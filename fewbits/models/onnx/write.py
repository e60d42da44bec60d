"""Write a graph as a file: the lowest opset and IR version that hold what is used, large weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.models.onnx.bodies import all_graphs, all_nodes
from fewbits.models.onnx.load import constants
from fewbits.models.onnx.opset import raise_opset

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCKED_OPSET = 21  # DequantizeLinear with blocks and 4-bit types
PER_AXIS_OPSET = 13  # DequantizeLinear with an axis
DYNAMIC_OPSET = 11  # DynamicQuantizeLinear
IR_OF_OPSET = (
    (22, 11),
    (21, 10),
    (19, 9),
    (15, 8),
    (0, 7),
)  # IR versions that came with, or before, an opset
FILE_LIMIT = (1 << 31) - (1 << 20)  # a protobuf file must stay below 2 GiB


def write(model: ir.Model, path: Path) -> None:
    """Serialize ``model`` (a copy that may be changed) to ``path``, deterministically.

    Raises:
        InputError: the model's opset cannot be raised to what its formats need.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    needed = _needed_opset(model.graph)
    if model.graph.opset_imports[""] < needed:
        raise_opset(model, needed)
    passes.ClearMetadataAndDocStringPass()(model)
    _forget_shapes(model.graph)
    ir.external_data.load_to_model(
        model
    )  # what is still float lies beside the source, not beside the new file
    opset = model.graph.opset_imports[""]
    model.ir_version = next(version for first, version in IR_OF_OPSET if opset >= first)
    size = sum(tensor.nbytes for tensor in constants(model))
    external = f"{path.name}.data" if size > FILE_LIMIT else None
    ir.save(model, path, external_data=external)


def _forget_shapes(graph: ir.Graph) -> None:
    """Types and shapes of what every engine infers, or has beside it: a small net's file is a twentieth smaller."""
    for one in all_graphs(graph):
        computed = [value for node in one for value in node.outputs if not value.is_graph_output()]
        constant = [value for value in one.initializers.values() if not value.is_graph_input()]
        for value in (*computed, *constant):
            value.type = value.shape = None


def _needed_opset(graph: ir.Graph) -> int:
    needed = 0
    for node in all_nodes(graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain == "":
            blocked = "block_size" in node.attributes
            narrow = any(map(_below_a_byte, node.inputs))
            needed = max(needed, BLOCKED_OPSET if blocked or narrow else PER_AXIS_OPSET)
        if node.op_type == "DynamicQuantizeLinear":
            needed = max(needed, DYNAMIC_OPSET)
        if node.op_type == "Cast" and any(_below_a_byte(v) for v in node.inputs):
            needed = max(needed, BLOCKED_OPSET)
        if node.op_type == "Cast" and any(
            v is not None and v.dtype and v.dtype.name == "BFLOAT16" for v in node.inputs
        ):
            needed = max(needed, PER_AXIS_OPSET)
    return needed


def _below_a_byte(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.bitwidth < 8
