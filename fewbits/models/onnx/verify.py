"""Read a written file back and hold it against the plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from fewbits.errors import VerificationError
from fewbits.models.onnx.encode import narrow
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Plan


def read_back(path: Path, plan: Plan, info: ModelInfo) -> dict[str, int]:
    """Check that codes, scales, zero points, inputs and outputs are in the file as planned.

    Returns:
        bytes of the file's constants per dtype, by ONNX's name in lower case.

    Raises:
        VerificationError: something differs; the file and the tensor are named.
    """
    import onnx_ir as ir

    model = ir.load(path)
    constants = {
        name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None
    }

    def expect(name: str, array: np.ndarray) -> None:
        if name not in constants:
            raise VerificationError(f"{path}: constant {name!r} is missing; the plan has it")
        stored = constants[name].numpy()
        same = stored.size == array.size and any(
            np.array_equal(stored.astype(np.float64).reshape(-1), one.astype(np.float64).reshape(-1))
            for one in (array, array.T)
        )
        if not same:
            raise VerificationError(f"{path}: constant {name!r} differs from the plan")

    for weight in plan.weights.values():
        if weight.codes is None:
            expect(f"{weight.name}_{weight.scheme.qtype}", narrow(weight))
            continue
        expect(f"{weight.name}_codes", weight.codes.codes.numpy())
        assert weight.codes.scale is not None
        expect(f"{weight.name}_scale", weight.codes.scale.numpy())
        if weight.codes.zero_point is not None:
            expect(f"{weight.name}_zero_point", weight.codes.zero_point.numpy())
    for activation in plan.activations:
        expect(f"{activation.site.tensor}_scale", np.array(activation.scale, np.float32))
        expect(f"{activation.site.tensor}_zero_point", np.array(activation.zero_point))
    for kind, wanted, got in (
        ("inputs", info.inputs, model.graph.inputs),
        ("outputs", info.outputs, model.graph.outputs),
    ):
        names, found = [one.name for one in wanted], [value.name for value in got]
        if names != found:
            raise VerificationError(f"{path}: {kind} are {found}, but the model's are {names}")
    return bytes_by_dtype(path)


def bytes_by_dtype(path: Path) -> dict[str, int]:
    """Bytes of a file's constants per dtype, by ONNX's name in lower case, the most first."""
    import onnx_ir as ir

    found: Counter[str] = Counter()
    for value in ir.load(path).graph.initializers.values():
        if value.const_value is not None:
            found[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    return dict(found.most_common())
