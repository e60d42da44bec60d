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
    """

    layer: str
    kind: LayerKind
    parts: tuple[Part, ...] = (Part("weight"),)
    also: tuple[str, ...] = ()

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

KINDS = (
    Kind("torch.nn.Linear", "linear", also=("MatMul", "Gemm")),
    Kind("torch.nn.Bilinear", "product"),
    Kind("torch.nn.Conv1d", "conv", also=("Conv",)),
    Kind("torch.nn.Conv2d", "conv", also=("Conv",)),
    Kind("torch.nn.Conv3d", "conv", also=("Conv",)),
    Kind("torch.nn.ConvTranspose1d", "conv", (Part("weight", 1, 0),), ("ConvTranspose",)),
    Kind("torch.nn.ConvTranspose2d", "conv", (Part("weight", 1, 0),), ("ConvTranspose",)),
    Kind("torch.nn.ConvTranspose3d", "conv", (Part("weight", 1, 0),), ("ConvTranspose",)),
    Kind("torch.nn.Embedding", "embedding", also=("Gather",)),
    Kind("torch.nn.EmbeddingBag", "embedding", also=("Gather",)),
    Kind("torch.nn.LSTM", "recurrent", _RECURRENT),
    Kind("torch.nn.GRU", "recurrent", _RECURRENT),
    Kind("torch.nn.RNN", "recurrent", _RECURRENT),
    Kind("torch.nn.LSTMCell", "recurrent", _RECURRENT, ("LSTM",)),
    Kind("torch.nn.GRUCell", "recurrent", _RECURRENT, ("GRU",)),
    Kind("torch.nn.RNNCell", "recurrent", _RECURRENT, ("RNN",)),
    Kind("torch.nn.MultiheadAttention", "linear", _ATTENTION, ("MatMul", "Gemm")),
    Kind("transformers.pytorch_utils.Conv1D", "linear", (Part("weight", 1, 0),), ("MatMul", "Gemm")),
)


def kind_of(layer: nn.Module) -> Kind | None:
    """The row of a layer's class or of the nearest class it is derived from; None where there is none."""
    rows = {found: kind for kind in KINDS if (found := _class(kind.layer)) is not None}
    return next((rows[base] for base in type(layer).__mro__ if base in rows), None)


def _class(path: str) -> type | None:
    """A class by its path; None where its module has not been imported, so that nothing is made of it."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
