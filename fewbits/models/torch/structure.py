"""How a module nests its outputs: taken apart into named tensors, and put together again."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fewbits.errors import InputError

OUTPUT = "output"  # the name of an output that has none of its own
KNOWN = ("transformers",)  # packages whose output types are imported when a structure names one


@dataclass(frozen=True)
class Structure:
    """A nest of tuples, lists, dicts and registered types around tensors.

    Attributes:
        tree: the nest, as :mod:`torch.utils._pytree` describes it.
        names: of each leaf, the name of its tensor; None for a leaf that is None.
    """

    tree: Any
    names: tuple[str | None, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors, in order."""
        return tuple(name for name in self.names if name is not None)

    def take_apart(self, outputs: Any) -> dict[str, Any]:
        """The tensors by name.

        Raises:
            InputError: another nest than this one: what it looks like depends on the data.
        """
        from torch.utils import _pytree as pytree

        leaves, tree = pytree.tree_flatten(outputs)
        if tree != self.tree or [leaf is None for leaf in leaves] != [name is None for name in self.names]:
            raise InputError(f"outputs are nested as {tree} now, and were as {self.tree} before")
        return {name: leaf for name, leaf in zip(self.names, leaves, strict=True) if name is not None}

    def put_together(self, tensors: Mapping[str, Any]) -> Any:
        """The nest around these tensors."""
        from torch.utils import _pytree as pytree

        leaves = [None if name is None else tensors[name] for name in self.names]
        return pytree.tree_unflatten(leaves, self.tree)

    def to_json(self) -> str:
        """The structure as text that :meth:`from_json` reads."""
        from torch.utils import _pytree as pytree

        return json.dumps({"tree": json.loads(pytree.treespec_dumps(self.tree)), "names": self.names})

    @classmethod
    def from_json(cls, text: str) -> Structure:
        """The structure that ``text`` holds.

        Raises:
            InputError: a type in it is not known here: the module that defines it has not been imported.
        """
        from torch.utils import _pytree as pytree

        parts = json.loads(text)
        for kind in _types(parts["tree"][1]):
            if kind.partition(".")[0] in KNOWN:
                importlib.import_module(kind.rpartition(".")[0])
        try:
            tree = pytree.treespec_loads(json.dumps(parts["tree"]))
        except NotImplementedError as error:
            raise InputError(
                f"the model's outputs are of a type that is not known here; import the module that defines it, "
                f"then load: {error}"
            ) from error
        return cls(tree, tuple(parts["names"]))


def structure_of(outputs: Any, taken: Collection[str], what: str) -> Structure:
    """The structure of what a forward gave, with a name for each tensor.

    Args:
        outputs: what it gave.
        taken: the inputs' names, which no output may have.
        what: the module, for messages.

    Raises:
        InputError: something in it is no tensor, or it holds none at all.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves, tree = pytree.tree_flatten_with_path(outputs)
    names: list[str | None] = []
    for path, leaf in leaves:
        if leaf is not None and not isinstance(leaf, torch.Tensor):
            where = f"its output{pytree.keystr(path)} is" if path else "it gives"
            raise InputError(
                f"{what}: {where} {type(leaf).__name__}, not a tensor; supported are tensors, and tuples, lists and "
                "dicts of them (a dataclass after torch.export.register_dataclass)"
            )
        names.append(None if leaf is None else _unique(_name(pytree.keystr(path)), {*taken, *names}))
    if all(name is None for name in names):
        raise InputError(f"{what}: its forward gives no tensors")
    return Structure(tree, tuple(names))


def _name(where: str) -> str:
    """A name from a place such as ``['logits'][0]``; what begins with a number is one of the outputs."""
    name = re.sub(r"\W+", "_", where).strip("_")
    return name if re.match(r"[A-Za-z]", name) else "_".join(filter(None, (OUTPUT, name)))


def _unique(name: str, taken: Collection[str | None]) -> str:
    while name in taken:
        name += "_"
    return name


def _types(tree: Mapping[str, Any]) -> list[str]:
    """The names of all types in a dumped tree."""
    inner = [kind for child in tree["children_spec"] for kind in _types(child)]
    return inner if tree["type"] is None else [tree["type"], *inner]
