"""Raise a graph's opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbits.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir


def raise_opset(model: ir.Model, opset: int) -> None:
    """Rewrite ``model`` in place for a newer opset.

    Raises:
        InputError: some operator of it has no known way there.
    """
    from onnxscript import version_converter

    before = model.graph.opset_imports[""]
    reason = "an operator of it has no known newer form"
    try:
        version_converter.convert_version(model, opset, fallback=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
    # The converter may also give up without a word.
    if model.graph.opset_imports[""] < opset:
        raise InputError(
            f"the model's opset {before} cannot be raised to {opset}, which this recipe needs: {reason}; "
            f"export the model with opset {opset} or newer"
        )
