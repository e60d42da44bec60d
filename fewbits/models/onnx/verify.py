"""Read a written file back and hold it against the plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from fewbits.errors import VerificationError
from fewbits.models.onnx.encode import narrow
from fewbits.models.onnx.names import Names, stems
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Plan


def read_back(path: Path, plan: Plan, info: ModelInfo, names: Names) -> dict[str, int]:
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

    def expect(array: np.ndarray, *may_be_called: str) -> None:
        found = [names(name) for name in may_be_called if names(name) in constants]
        if not found:
            raise VerificationError(f"{path}: constant {may_be_called[0]!r} is missing; the plan has it")
        for name in found:
            stored = constants[name].numpy()
            same = stored.size == array.size and any(
                np.array_equal(stored.astype(np.float64).reshape(-1), one.astype(np.float64).reshape(-1))
                for one in (array, array.T)
            )
            if not same:
                raise VerificationError(f"{path}: constant {name!r} differs from the plan")

    stem_of = stems(plan)
    for layer in plan.layers:
        for weight in layer.weights:
            stem, q = stem_of[layer.node, weight.name], weight.codes
            if q is None:
                expect(narrow(weight), f"{stem}_{weight.scheme.qtype}")
                continue
            assert q.scale is not None
            expect(q.codes.numpy(), f"{stem}_codes", f"{stem}_codes_turned")
            expect(q.scale.numpy(), f"{stem}_scale", f"{stem}_step")
            if q.zero_point is not None:
                expect(q.zero_point.numpy(), f"{stem}_zero_point", f"{stem}_offset")
    for activation in plan.activations:
        expect(np.array(activation.scale, np.float32), f"{activation.site.tensor}_scale")
        expect(np.array(activation.zero_point), f"{activation.site.tensor}_zero_point")
    for kind, wanted, got in (
        ("inputs", info.inputs, model.graph.inputs),
        ("outputs", info.outputs, model.graph.outputs),
    ):
        expected, found = [one.name for one in wanted], [value.name for value in got]
        if expected != found:
            raise VerificationError(f"{path}: {kind} are {found}, but the model's are {expected}")
    return bytes_by_dtype(path)


def bytes_by_dtype(path: Path) -> dict[str, int]:
    """Bytes of a file's constants per dtype, by ONNX's name in lower case, the most first."""
    import onnx_ir as ir

    found: Counter[str] = Counter()
    for value in ir.load(path).graph.initializers.values():
        if value.const_value is not None:
            found[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    return dict(found.most_common())
