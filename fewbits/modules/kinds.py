"""The layers whose weights can become codes: one row each."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fewbits.planning.model_info import LayerKind


@dataclass(frozen=True)
class Part:
    """A weight of a layer: a shell pattern of its attribute's name, the axis kept and the axis summed over."""

    names: str
    channel_axis: int = 0
    group_axis: int = 1


@dataclass(frozen=True)
class Kind:
    """One class of layers.

    Attributes:
        layer: the class, as it is imported.
        kind: what family it is of.
        parts: its weights.
        also: ONNX operators that it becomes, by which the rules of a recipe may call it.
        not_dynamic: why it has no int8 products with activations quantized as they come; None: it has.
        not_static: why it has none with ranges known in advance; None: it has.
    """

    layer: str
    kind: LayerKind
    parts: tuple[Part, ...] = (Part("weight"),)
    also: tuple[str, ...] = ()
    not_dynamic: str | None = None
    not_static: str | None = None

    @property
    def op(self) -> str:
        """The class's own name, as rules and tables have it."""
        return self.layer.rpartition(".")[2]

    def weights(self, layer: nn.Module) -> Iterator[tuple[str, Part]]:
        """Attributes of a layer that hold its weights."""
        for name, value in layer._parameters.items():
            part = next((part for part in self.parts if fnmatch.fnmatchcase(name, part.names)), None)
            if value is not None and part is not None:
                yield name, part


_RECURRENT = (Part("weight_*"),)
_ATTENTION = (Part("in_proj_weight"), Part("[qkv]_proj_weight"))
_TRANSPOSED = (Part("weight", 1, 0),)
NO_CONVOLUTION = "PyTorch has no int8 convolution that takes activations as they come"
GATHERED = "nothing is multiplied: rows are gathered as codes"
TWO_INPUTS = "a product of two inputs"
LOOPS = "int8 loops round activations as they come"
TURNED = "int8 kernels take weights of [outputs, inputs], as they lie"


def _convolution(name: str) -> Kind:
    return Kind(f"torch.nn.{name}", "conv", also=("Conv",), not_dynamic=NO_CONVOLUTION)


def _transposed(name: str) -> Kind:
    return Kind(f"torch.nn.{name}", "conv", _TRANSPOSED, ("ConvTranspose",), NO_CONVOLUTION)


def _table(name: str) -> Kind:
    return Kind(f"torch.nn.{name}", "embedding", also=("Gather",), not_dynamic=GATHERED, not_static=GATHERED)


def _recurrent(name: str, also: tuple[str, ...] = (), not_dynamic: str | None = None) -> Kind:
    return Kind(f"torch.nn.{name}", "recurrent", _RECURRENT, also, not_dynamic, LOOPS)


KINDS = (
    Kind("torch.nn.Linear", "linear", also=("MatMul", "Gemm")),
    Kind("torch.nn.Bilinear", "product", not_dynamic=TWO_INPUTS, not_static=TWO_INPUTS),
    *(_convolution(name) for name in ("Conv1d", "Conv2d", "Conv3d")),
    *(_transposed(name) for name in ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")),
    *(_table(name) for name in ("Embedding", "EmbeddingBag")),
    _recurrent("LSTM"),
    _recurrent("GRU"),
    _recurrent("RNN", not_dynamic="PyTorch has no int8 loop over its steps"),
    _recurrent("LSTMCell", ("LSTM",)),
    _recurrent("GRUCell", ("GRU",)),
    _recurrent("RNNCell", ("RNN",)),
    Kind("torch.nn.MultiheadAttention", "linear", _ATTENTION, ("MatMul", "Gemm")),
    Kind("transformers.pytorch_utils.Conv1D", "linear", _TRANSPOSED, ("MatMul", "Gemm"), TURNED, TURNED),
)


def kind_of(layer: nn.Module) -> Kind | None:
    """The row of a layer's class or of the nearest class it is derived from; None where there is none."""
    rows = {found: kind for kind in KINDS if (found := _class(kind.layer)) is not None}
    return next((rows[base] for base in type(layer).__mro__ if base in rows), None)


def _class(path: str) -> type | None:
    """A class by its path; None where its module has not been imported, so that nothing is made of it."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
