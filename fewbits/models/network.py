"""The Network protocol: a float model as a function in torch, with gradients, of which any part can be run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[str, int]
"""An input of a node: the node's name and the input's position."""

Reads = Mapping[Place, Callable[["Tensor"], "Tensor"]]
"""What stands between a tensor and a node that reads it, by place; a function gets the tensor that the model has."""


class UnsupportedError(Exception):
    """A part of a model cannot be run in torch; the message says which, and what of it."""


@dataclass(frozen=True)
class Block:
    """A part of a network that one tensor leads to and one leads out of.

    Attributes:
        begin: the tensor it reads beside the network's inputs; None for the first.
        end: what it computes: one tensor, or the network's outputs.
        nodes: all of its nodes, by name, and those that only it needs of what comes from the inputs.
        layers: its layers among them.
    """

    begin: str | None
    end: tuple[str, ...]
    nodes: frozenset[str]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Norm:
    """A batch norm that is a node of its own, with constants for its statistics.

    Attributes:
        node: its name.
        tensor: what it reads, channels along axis 1.
        mean, variance: names of its constants.
        places: where it reads them.
    """

    node: str
    tensor: str
    mean: str
    variance: str
    places: tuple[Place, Place]


@dataclass(frozen=True)
class Sum:
    """A node that adds two tensors.

    Attributes:
        places: where it reads them.
        results: the tensor it computes, and what a Relu or Clip that alone reads it makes of it.
    """

    places: tuple[Place, Place]
    results: tuple[str, ...]


class Network(Protocol):
    """Runs parts of a model: from the tensors that are given to those that are wanted."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def place(self, node: str, constant: str) -> Place:
        """Where a layer reads that constant: an input of its own, or of a node that reads its result (a bias)."""
        ...

    def blocks(self, layers: Collection[str]) -> tuple[Block, ...]:
        """The network as blocks, each with at least one of these layers (names of nodes), in order.

        They are cut where all that the layers before have computed is one tensor: behind a residual sum, between
        attention and what follows, or between two plain layers. What depends on none of the layers, such as a mask,
        does not count, for it can be computed from the inputs.
        """
        ...

    def norms(self) -> tuple[Norm, ...]:
        """Its batch norms, in order."""
        ...

    def sums(self) -> tuple[Sum, ...]:
        """Its sums of two tensors, in order."""
        ...

    def run(self, given: Mapping[str, Tensor], wanted: Collection[str], reads: Reads) -> dict[str, Tensor]:
        """The tensors of these names, computed from those that are given.

        Raises:
            UnsupportedError: a node on the way is of an operator, or has attributes, that are not run here.
        """
        ...
