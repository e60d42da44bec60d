"""PyTorch on the CPU: where modules come from, so that speedups can be told against it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import (
    EngineSettings,
    Shapes,
    check_feeds,
    check_names,
    engine_error,
    existing_file,
)
from fewbits.errors import EngineError

BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


class TorchEngine:
    """Runs exported programs (`.pt2`) operator by operator, in f32, or in bf16 by autocast where the CPU has it."""

    name = "pytorch"

    @property
    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version("torch")

    def precisions(self, cpu: Cpu) -> tuple[str, ...]:
        """f32, and bf16 where the CPU multiplies in it."""
        return ("f32", "bf16") if BF16.intersection(cpu.isa) else ("f32",)

    def prepare(self) -> None:
        """See `Engine.prepare`."""
        import torch.export  # noqa: F401

    def check(self, path: str | Path) -> None:
        """See `Engine.check`."""
        self.compile(path, EngineSettings(self.name, "f32", 1))

    def compile(
        self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None
    ) -> TorchSession:
        """See `Engine.compile`; the shapes stay as the program has them."""
        import torch

        path = existing_file(path)
        if settings.precision not in ("f32", "bf16"):
            raise EngineError(f"pytorch runs in f32 or bf16, not in {settings.precision} (asked for {path})")
        try:
            session = TorchSession(torch.export.load(path), path, settings)
        except Exception as error:
            raise engine_error(self.name, "read", path, error) from error
        check_names(static_shapes or {}, session.input_names, path)
        return session

    def snippet(self, path: str | Path, settings: EngineSettings, static_shapes: Shapes | None = None) -> str:
        """See `EngineSettings.snippet`."""
        bf16 = settings.precision == "bf16"
        return "\n".join(
            (
                "import torch",
                f"torch.set_num_threads({settings.threads})",
                f"module = torch.export.load({str(path)!r}).module()",
                "tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}",
                f"with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled={bf16}):",
                "    outputs = module(**tensors)",
            )
        )


class TorchSession:
    """See `Session`.

    The program's graph is called with plain tensors: nesting and unnesting inputs and outputs and checking their
    shapes each time took longer than a small model itself (a CNN of 60 us: 110; like this 68).
    """

    def __init__(self, program: Any, path: Path, settings: EngineSettings) -> None:
        import torch

        self._path, self._settings = path, settings
        module = program.module(check_guards=False)
        module.graph.set_codegen(torch.fx.graph.CodeGen())
        module.recompile()
        self._module, self._forward = module, type(module).forward
        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        names = program.call_spec.in_spec.children()[1].context  # the graph's own names may differ
        self._expected = {
            name: torch.empty(0, dtype=node.meta["val"].dtype).numpy().dtype
            for name, node in zip(names, nodes, strict=True)
        }
        # An operator that works in place may write into its input, and into what it was made from.
        self._copies = any(
            node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
            for node in module.graph.nodes
        )
        self.input_names = tuple(self._expected)
        leaves = next(node for node in module.graph.nodes if node.op == "output").args[0]
        self._given = [number for number, leaf in enumerate(leaves) if leaf is not None]
        self.output_names = tuple(f"output_{number}" for number in self._given)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        import torch

        check_feeds(feeds, self._expected, self._path)
        tensors = [self._tensor(feeds[name]) for name in self.input_names]
        threads = torch.get_num_threads()
        bf16 = self._settings.precision == "bf16"
        try:
            torch.set_num_threads(self._settings.threads)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                values = self._forward(self._module, *tensors)
        except Exception as error:
            raise engine_error("pytorch", "run", self._path, error) from error
        finally:
            torch.set_num_threads(threads)
        outputs = [_array(values[number]) for number in self._given]
        return dict(zip(self.output_names, outputs, strict=True))

    def _tensor(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array if array.flags.writeable and not self._copies else array.copy())


def _array(tensor: Any) -> np.ndarray:
    import torch

    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    array: np.ndarray = wide.numpy()
    return array


ENGINE = TorchEngine()
