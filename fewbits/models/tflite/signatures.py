"""A file of several signatures taken apart into files of one each, and put together again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.models.tflite.load import main_signature, parse
from fewbits.models.tflite.rewrite import copied, finished

if TYPE_CHECKING:
    from ai_edge_litert.schema_py_generated import ModelT, SignatureDefT, SubGraphT


def signatures(model: ModelT) -> tuple[str, ...]:
    """Their names, each of a subgraph of its own, that of the main one first; none where the main one has none."""
    main = main_signature(model)
    if main is None:
        return ()
    found = {0: main.signatureKey.decode()}
    for one in model.signatureDefs:
        found.setdefault(one.subgraphIndex, one.signatureKey.decode())
    return tuple(found.values())


def take_out(path: Path, signature: str, target: Path) -> Path:
    """Write one signature of a file, with what it calls, as a file of its own."""
    one = copied(parse(path.read_bytes(), path))
    chosen = _named(one, signature)
    _keep(one, _reached(one, [chosen.subgraphIndex]))
    chosen.subgraphIndex = 0
    one.signatureDefs = [chosen]
    target.write_bytes(finished(one))
    return target


def put_in(path: Path, parts: Mapping[str, Path]) -> None:
    """Replace signatures of a file by those of files with one each. Constants of the same bytes are stored once."""
    whole = copied(parse(path.read_bytes(), path))
    for signature, part in parts.items():
        _replace(whole, signature, parse(part.read_bytes(), part))
    roots = [0, *(one.subgraphIndex for one in whole.signatureDefs)]
    _share_buffers(whole)
    _keep(whole, _reached(whole, roots))
    path.write_bytes(finished(whole))


def _replace(whole: ModelT, signature: str, part: ModelT) -> None:
    place, first = _named(whole, signature).subgraphIndex, len(whole.subgraphs)
    moved = {number: first + number - 1 for number in range(1, len(part.subgraphs))} | {0: place}
    kinds, buffers = len(whole.operatorCodes), len(whole.buffers)
    whole.operatorCodes += part.operatorCodes
    whole.buffers += part.buffers
    for graph in part.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = tensor.buffer + buffers if tensor.buffer else 0
        for operator in graph.operators or []:
            operator.opcodeIndex += kinds
        _renumber(graph, moved)
    main, *called = part.subgraphs
    whole.subgraphs[place] = main
    whole.subgraphs += called
    theirs = main_signature(part)
    chosen = _named(whole, signature)
    chosen.inputs, chosen.outputs = theirs.inputs, theirs.outputs


def _named(model: ModelT, signature: str) -> SignatureDefT:
    return next(one for one in model.signatureDefs if one.signatureKey.decode() == signature)


def _reached(model: ModelT, roots: list[int]) -> list[int]:
    """Those subgraphs and what they call, in the order in which they are met."""
    order = list(dict.fromkeys(roots))
    for number in order:  # grows as it goes
        for options, name in _calls(model.subgraphs[number]):
            if (called := getattr(options, name)) not in order:
                order.append(called)
    return order


def _keep(model: ModelT, order: list[int]) -> None:
    """Leave out all other subgraphs."""
    moved = {number: place for place, number in enumerate(order)}
    model.subgraphs = [model.subgraphs[number] for number in order]
    for graph in model.subgraphs:
        _renumber(graph, moved)
    kept = [one for one in model.signatureDefs if one.subgraphIndex in moved]
    for one in kept:
        one.subgraphIndex = moved[one.subgraphIndex]
    model.signatureDefs = kept


def _renumber(graph: SubGraphT, moved: Mapping[int, int]) -> None:
    for options, name in _calls(graph):
        setattr(options, name, moved[getattr(options, name)])


def _calls(graph: SubGraphT) -> Iterator[tuple[Any, str]]:
    """Every option of an operator that is the number of a subgraph (of IF, WHILE and their like)."""
    for operator in graph.operators or []:
        for options in (operator.builtinOptions, operator.builtinOptions2):
            for name, value in vars(options).items() if options is not None else ():
                if "subgraph" in name.lower() and isinstance(value, int) and value >= 0:
                    yield options, name


def _share_buffers(model: ModelT) -> None:
    first: dict[bytes, int] = {}
    same: dict[int, int] = {}
    for number, buffer in enumerate(model.buffers):
        if buffer.data is not None and len(buffer.data):
            same[number] = first.setdefault(hashlib.sha256(bytes(buffer.data)).digest(), number)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = same.get(tensor.buffer, tensor.buffer)
