"""The process that converts one exported program to `.tflite`; see :mod:`fewbits.models.conversion`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewbits.models.conversion import limit_memory, serve


def _convert(request: dict[str, Any]) -> None:
    import litert_torch
    import torch
    import torch.utils._pytree as pytree

    limit_memory(request["memory"])
    program = torch.export.load(request["program"])
    inner = program.module(check_guards=False)

    class Flat(torch.nn.Module):
        """The results one beside the other, without those that are None."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.training = inner, False

        def train(self, mode: bool = True) -> Flat:
            """Exported programs have one mode, the one that they were exported in."""
            return self

        def forward(self, **named: Any) -> tuple[Any, ...]:
            leaves = pytree.tree_leaves(self.inner(**named))
            return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))

    positional, named = program.example_inputs
    assert not positional
    litert_torch.convert(Flat(), sample_kwargs=dict(named)).export(request["target"])
    _name_outputs(Path(request["target"]), request["outputs"])


def _name_outputs(path: Path, names: list[str]) -> None:
    """The converter numbers the results; give them the names that they have elsewhere."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    for signature in model.signatureDefs:
        for entry in signature.outputs:
            entry.name = names[int(entry.name.decode().rpartition("_")[2])].encode()
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))


if __name__ == "__main__":
    serve(_convert)
