"""A module exported once: its program, and the ONNX file made from it."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits.errors import InputError
from fewbits.named import describe

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn
    from torch.export import ExportedProgram

BATCH = "batch"  # the name of the first axis of every input
EXTERNAL_BYTES = 1_900_000_000  # more than this does not fit into one ONNX file
OPEN_END = 1 << 40  # a batch axis without an upper limit has at least this one
DATA_DEPENDENT = ("GuardOnDataDependentSymNode", "UserError")


@dataclass(frozen=True)
class Forward:
    """What a module's forward takes.

    Attributes:
        what: the module, for messages.
        names: of its parameters.
        required: those of them without a default.
        more: whether it takes keywords of any name.
    """

    what: str
    names: tuple[str, ...]
    required: tuple[str, ...]
    more: bool

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The inputs that arrays without names are for: the required ones, or the first."""
        return self.required or self.names[:1]

    def in_order(self, given: Sequence[str], data: str) -> tuple[str, ...]:
        """The names of what is given, in forward's order.

        Raises:
            InputError: forward does not take one of them, or needs another.
        """
        unknown = [name for name in given if name not in self.names and not self.more]
        if unknown or set(self.required) - set(given):
            takes = [*self.required, *(f"{name}=..." for name in self.names if name not in self.required)]
            raise InputError(
                f"{data}: has arrays {sorted(given)}, but forward of {self.what} takes ({', '.join(takes)})"
            )
        return (
            *(name for name in self.names if name in given),
            *(name for name in given if name not in self.names),
        )


def forward_of(module: nn.Module, what: str) -> Forward:
    """What the module's forward takes. Raises InputError where its inputs have no names."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not names and not more:
        raise InputError(
            f"{what}: its forward names no inputs; wrap it in a module whose forward does: forward(self, x)"
        )
    return Forward(
        what, tuple(p.name for p in names), tuple(p.name for p in names if p.default is p.empty), more
    )


def check_module(module: nn.Module, what: str) -> None:
    """Refuse what cannot be exported as it is.

    Raises:
        InputError: TorchScript; weights that are not float32 on the CPU, or hold NaN or Inf (the first is named).
    """
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{what}: is TorchScript, which torch.export does not read; give the nn.Module itself"
        )
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.device.type != "cpu":
            raise InputError(f"{what}: {name!r} is on {value.device}; give module.cpu()")
        if not value.is_floating_point():
            continue
        if value.dtype != torch.float32:
            raise InputError(
                f"{what}: {name!r} is {str(value.dtype).removeprefix('torch.')}; give module.float()"
            )
        # Buffers may be masks of minus infinity; of weights nothing sensible is left.
        bad = ~torch.isfinite(value) if isinstance(value, torch.nn.Parameter) else torch.isnan(value)
        if bool(bad.any()):
            index = [int(i) for i in bad.nonzero()[0]]
            raise InputError(
                f"{what}: weight {name!r} has {value[tuple(index)].item()} at index {index} "
                f"({int(bad.sum())} such values in all); a model with NaN or Inf in its weights cannot be compressed"
            )


@contextlib.contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, without gradients, warnings or output; in the end it is as it was before."""
    import torch

    modes = [(one, one.training) for one in module.modules()]
    buffers = [(owner, dict(owner._buffers)) for owner in module.modules()]
    copies = [(value, value.detach().clone()) for value in module.buffers()]
    # A fused encoder layer leaves padded places out; no exporter does.
    shortcuts = torch.backends.mha.get_fastpath_enabled()
    disabled = logging.root.manager.disable
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        logging.disable(logging.CRITICAL)
        module.eval()
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(shortcuts)
        for one, training in modes:
            one.training = training
        with torch.no_grad():
            for value, copy in copies:
                value.copy_(copy)
        for owner, named in buffers:  # a forward may keep tables that it made in new ones
            owner._buffers.clear()
            owner._buffers.update(named)


def run(module: nn.Module, feeds: Mapping[str, np.ndarray]) -> Any:
    """What its forward gives for copies of these arrays, as it gives it."""
    import torch

    return module(**{name: torch.from_numpy(array.copy()) for name, array in feeds.items()})


def changed_buffer(module: nn.Module, before: Mapping[str, Any]) -> str | None:
    """The first buffer that is not what it was; new ones do not count."""
    import torch

    for name, value in module.named_buffers():
        was = before.get(name)
        if was is not None and not torch.equal(value.double().nan_to_num(), was.double().nan_to_num()):
            return name
    return None


def export(
    module: nn.Module, feeds: Mapping[str, np.ndarray], what: str, *, dynamic: bool
) -> ExportedProgram:
    """The module's program for such feeds, any number of samples at a time where ``dynamic`` and it allows that.

    Raises:
        InputError: it cannot be exported; the place in the code is named where there is one.
    """
    import torch
    from torch.export import Dim

    tensors = {name: torch.from_numpy(array.copy()) for name, array in feeds.items()}
    shapes = {name: {0: Dim.AUTO} for name in tensors} if dynamic else None
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it gives up, it prints the graph
            program = torch.export.export(module, (), tensors, dynamic_shapes=shapes)
    except Exception as error:
        raise InputError(_cannot(what, error)) from error
    node = next(node for node in program.graph.nodes if node.op == "output")
    for number, value in enumerate(node.args[0]):
        shape = getattr(getattr(value, "meta", {}).get("val"), "shape", ())
        if re.search(r"\bu\d+", str(tuple(shape))):
            raise InputError(
                f"{what}: the size of output {number} depends on the data, so that no two runs can be compared"
            )
    return program


def takes_any_batch(program: ExportedProgram) -> bool:
    """Whether the first axis of every input is open, without an end."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        size = node.meta["val"].shape[0]
        if isinstance(size, int) or not size.node.expr.is_Symbol:
            return False
        limits = program.range_constraints[size.node.expr]
        if limits.lower > 2 or limits.upper < OPEN_END:
            return False
    return True


def write_onnx(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], what: str
) -> None:
    """The program as an ONNX file with these names.

    Raises:
        InputError: an operator that the exporter cannot translate.
    """
    import torch

    try:
        made = torch.onnx.export(program, (), None, dynamo=True, verbose=False)
        assert made is not None
        _name(made.model, inputs, outputs)
        size = sum(value.nbytes for value in program.state_dict.values())
        made.save(str(path), external_data=size > EXTERNAL_BYTES)
    except Exception as error:
        raise InputError(f"{what}: torch.onnx.export cannot write it: {_untranslated(error)}") from error


def save_program(program: ExportedProgram, path: Path) -> None:
    """The program as a ``.pt2`` file."""
    import torch

    torch.export.save(program, path)


def _name(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name inputs, outputs and the batch axis; the exporter's own names may be taken twice, or be one of these."""
    import onnx_ir as ir

    graph = model.graph
    ends = [*graph.inputs, *graph.outputs]
    inner = [v for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs]
    values = [*graph.inputs, *graph.initializers.values(), *inner]
    symbols = {
        str(value.shape[0]) for value in graph.inputs if value.shape and not isinstance(value.shape[0], int)
    }
    taken = {*inputs, *outputs}
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
        if any(value is end for end in ends):
            continue
        name = value.name or ""
        while name in taken:
            name = f"{name}_"
        if name != value.name:
            value.name = name
        taken.add(name)
    for value, name in zip(ends, (*inputs, *outputs), strict=True):
        value.name = name


def _renamed(dim: Any, symbols: set[str]) -> Any:
    return BATCH if str(dim) in symbols else dim


def _cannot(what: str, error: BaseException) -> str:
    where = _place(error)
    if any(type(one).__name__ in DATA_DEPENDENT for one in _chain(error)):
        return (
            f"{what}: what its forward does depends on the values of its input{where}, and an exported model does the "
            "same for all; write it with torch.where or torch.cond"
        )
    return f"{what}: torch.export cannot read its forward{where}: {describe(error)}"


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _place(error: BaseException) -> str:
    """The line of the user's code that an error comes from, in words."""
    import torch

    ours = (
        str(Path(torch.__file__).parent),
        str(Path(__file__).parents[2]),
        sysconfig.get_path("stdlib"),
        "<",
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        library = "site-packages" in frame.filename
        if library or not frame.filename.startswith(ours):
            if frame.filename.startswith(ours[0]):
                continue
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
    return ""


def _untranslated(error: BaseException) -> str:
    for one in _chain(error):
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(one)):
            return f"ONNX has no translation of {found[1]}"
    return describe(_chain(error)[-1])
