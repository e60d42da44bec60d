"""Structured pruning: channels are removed for real, and the module is rebuilt with smaller layers."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewbits.errors import InputError
from fewbits.named import describe
from fewbits.training.dependencies import FIXED, Dependencies, Place, walk
from fewbits.training.loop import moved
from fewbits.training.objective import Objective, call, split, supervised
from fewbits.training.quantized import refuse_quantized

Importance = Literal["l2", "taylor"]


def prune_channels(
    module: nn.Module,
    example: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    importance: Importance = "l2",
    data: Iterable[Any] | None = None,
    objective: Objective | None = None,
    multiple: int = 1,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """A copy of a module with fewer channels, its layers smaller and its forward as it was.

    Channels that have to go together (on both sides of a residual sum, through depthwise convolutions and
    concatenations) go together. What their numbers depend on in ways not known here keeps all of them: inputs
    and outputs, padded channels, grouped convolutions, layer norm, attention.

    Channels are removed in order of what they are worth for what they cost, in multiplications or in parameters, or in
    both while both are too many:

    - ``l2``: the squares of all parameters that would go with them, relative to the mean of their like (after Li et al.
      2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710);
    - ``taylor``: what the loss would change by, to first order and squared, over the parameters that would go and over
      batches of data (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv:1906.10771).

    Args:
        module: a float module without masks that ``torch.export`` takes; it is left alone.
        example: inputs: a tensor, a tuple of arguments or a dict of named ones, with one sample or more.
        macs: the share of the multiplications that may be left, between 0 and 1.
        params: the share of the weights of convolutions and linear layers that may be left; alone or beside ``macs``.
        channels: instead: the share that stays of every kind of channels.
        importance: of channels, see above.
        data: for ``taylor``: batches of (inputs, targets), as ``fit`` takes them.
        objective: for ``taylor``: the loss; cross entropy where None.
        multiple: numbers of channels left are multiples of it, where there were as many: engines compute in blocks.
        exclude: patterns of layer names whose channels all stay.

    Raises:
        InputError: a share out of range, one that would empty a layer (it is named), a module that cannot be exported
            or whose code holds sizes, or that is quantized already, nothing to remove, NaN or infinity in weights or
            data.
    """
    limits = {name: share for name, share in (("macs", macs), ("params", params)) if share is not None}
    if bool(limits) == (channels is not None):
        raise InputError(
            "prune_channels: give macs or params or both, or channels: the share to keep, such as macs=0.5"
        )
    for name, share in {**limits, **({} if channels is None else {"channels": channels})}.items():
        if not 0 < share <= 1:
            raise InputError(
                f"prune_channels: {name} is {share}; give the share to keep, above 0 and at most 1"
            )
    if multiple < 1:
        raise InputError(
            f"prune_channels: multiple is {multiple}; give 1, or the block that an engine computes in"
        )
    if importance not in ("l2", "taylor"):
        raise InputError(f"prune_channels: importance is {importance!r}; allowed are 'l2' and 'taylor'")
    if importance == "taylor" and data is None:
        raise InputError("prune_channels: taylor needs data: batches of (inputs, targets)")
    refuse_quantized(module)
    smaller, example = copy.deepcopy(module).eval(), beside(module, example)
    found = _walked(smaller, example)
    kinds = _kinds(found, exclude)
    if not kinds:
        raise InputError(f"prune_channels: {type(module).__name__} has no channels that can be removed")
    if data is not None and importance == "taylor":
        worth = _taylor(smaller, found, data, objective or supervised())
    else:
        worth = _energy(smaller)
    scores = _scores(found, worth, kinds, relative=importance == "l2")
    unranked = [kind.layer for kind in kinds if not all(math.isfinite(scores[root]) for root in kind.roots)]
    if unranked:
        raise InputError(
            f"prune_channels: channels of layer {unranked[0]!r} cannot be compared: its weights, or the data, hold NaN "
            "or infinity"
        )
    if channels is None:
        gone = _down_to(limits, found, kinds, scores, multiple)
    else:
        gone = _share_of_each(channels, kinds, scores, multiple)
    _rebuild(smaller, found, gone)
    _still_runs(module, smaller, example)
    return smaller.train(module.training)


def load_smaller(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Load the ``state_dict`` of a module whose channels were pruned into one as it was before, in place.

    Args:
        module: as it was before :func:`prune_channels`.
        state: of what came back.

    Raises:
        InputError: names that do not match, or tensors that are larger or of another rank.
    """
    own = module.state_dict()
    if set(own) != set(state):
        names = sorted(set(own) ^ set(state))
        raise InputError(f"load_smaller: {names[0]!r} is in one of module and state, and not in the other")
    for name, value in own.items():
        new = state[name].shape
        if len(new) != value.ndim or any(a > b for a, b in zip(new, value.shape, strict=True)):
            raise InputError(
                f"load_smaller: {name!r} is {list(new)}, which does not come of {list(value.shape)}"
            )
    tensors = _tensors(module)
    _replace(
        module,
        {
            id(tensors[name]): state[name].to(tensors[name].device, copy=True)
            for name in own
            if name in tensors and state[name].shape != tensors[name].shape
        },
    )
    module.load_state_dict(state)
    return module


def count_macs(module: nn.Module, example: Any) -> int:
    """Multiplications of a module's convolutions and linear layers for one sample.

    Raises:
        InputError: the module cannot be exported.
    """
    found = _walked(copy.deepcopy(module).eval(), beside(module, example))
    return _multiplications(found).total(set())


def beside(module: nn.Module, example: Any) -> Any:
    """The example on the module's device."""
    first = next(module.parameters(), None)
    return example if first is None else moved(example, first.device)


def _walked(module: nn.Module, example: Any) -> Dependencies:
    if isinstance(example, Mapping):
        return walk(module, (), dict(example))
    return walk(module, tuple(example) if isinstance(example, (tuple, list)) else (example,), {})


@dataclass(frozen=True)
class _Kind:
    """Channels that go through the same axes of the same parameters.

    Attributes:
        layer: the first that makes them.
        roots: what stands for each of them.
    """

    layer: str
    roots: tuple[int, ...]


def _kinds(found: Dependencies, exclude: Sequence[str]) -> list[_Kind]:
    """The channels that may be removed."""
    layers = {place: place[0].rpartition(".")[0] for place in found.producers}
    for pattern in exclude:
        if not any(fnmatchcase(layer, pattern) for layer in layers.values()):
            raise InputError(f"exclude: {pattern!r} matches no layer; there are {', '.join(layers.values())}")
    through: dict[int, dict[Place, int]] = defaultdict(dict)
    for place, roots in found.roots().items():
        for root in roots:
            through[root][place] = through[root].get(place, 0) + 1
    by_places: dict[frozenset[tuple[Place, int]], list[int]] = defaultdict(list)
    for root, places in through.items():
        makers = [layers[place] for place in places if place in layers]
        kept = any(fnmatchcase(layer, pattern) for layer in makers for pattern in exclude)
        if root != FIXED and makers and not kept:
            by_places[frozenset(places.items())].append(root)
    kinds = []
    for group, roots in by_places.items():
        first = next(place for place in found.producers if place in dict(group))
        kinds.append(_Kind(layers[first], tuple(sorted(roots))))
    return kinds


def _energy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().float().square() for name, value in _parameters(module).items()}


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """By each of their names: torch.export knows one that layers share by the last."""
    return dict(module.named_parameters(remove_duplicate=False))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**_parameters(module), **dict(module.named_buffers(remove_duplicate=False))}


def _taylor(
    module: nn.Module, found: Dependencies, data: Iterable[Any], objective: Objective
) -> dict[str, Tensor]:
    """The squares of weight times gradient, over batches, in eval mode: batch norm would hide the scale of weights."""
    parameters = _parameters(module)
    total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
    device = next(iter(parameters.values())).device
    count = 0
    for batch in data:
        module.zero_grad()
        objective(module, *split(moved(batch, device))).backward()
        for name, value in parameters.items():
            if value.grad is not None:
                total[name] += (value.detach() * value.grad).float().square()
        count += 1
    if not count:
        raise InputError("prune_channels: there is no data: the loader gave no batch")
    module.zero_grad()
    return total


def _scores(
    found: Dependencies, worth: dict[str, Tensor], kinds: Sequence[_Kind], relative: bool
) -> dict[int, float]:
    """What each channel is worth: over all parameters that would go with it."""
    scores: dict[int, float] = defaultdict(float)
    for (name, axis), roots in found.roots().items():
        if name in worth:
            values = worth[name].movedim(axis, 0).flatten(1).sum(1) if worth[name].ndim > 1 else worth[name]
            for root, value in zip(roots, values.tolist(), strict=True):
                scores[root] += value
    if relative:
        for kind in kinds:
            mean = sum(scores[root] for root in kind.roots) / len(kind.roots)
            scores.update({root: scores[root] / max(mean, 1e-30) for root in kind.roots})
    return scores


class _Cost:
    """What layers without some of their channels come to.

    Args:
        counts: by the weight of a layer, how often each of its elements counts.
    """

    def __init__(self, found: Dependencies, counts: Iterable[tuple[str, int]]) -> None:
        roots, self._layers = found.roots(), []
        for weight, count in counts:
            shape = found.shapes[weight]
            axes = [roots.get((weight, axis), ()) for axis in (0, 1)]
            inner = math.prod(
                size for size, lanes in zip(shape, (*axes, *[()] * len(shape)), strict=False) if not lanes
            )
            self._layers.append((count * inner, [lanes for lanes in axes if lanes]))

    def total(self, gone: set[int]) -> int:
        """Without these channels."""
        return sum(
            count * math.prod(sum(lane not in gone for lane in lanes) for lanes in axes)
            for count, axes in self._layers
        )


def _multiplications(found: Dependencies) -> _Cost:
    """For one sample."""
    return _Cost(found, ((product.weight, product.positions) for product in found.products))


def _weights(found: Dependencies) -> _Cost:
    return _Cost(found, {product.weight: 1 for product in found.products}.items())


_COSTS = {"macs": _multiplications, "params": _weights}


def _down_to(
    limits: Mapping[str, float],
    found: Dependencies,
    kinds: Sequence[_Kind],
    scores: Mapping[int, float],
    multiple: int,
) -> set[int]:
    """The channels to remove so that no more than these shares are left: those worth least for what they cost."""
    costs = {name: _COSTS[name](found) for name in limits}
    whole = {name: cost.total(set()) for name, cost in costs.items()}

    def shares(gone: set[int]) -> dict[str, float]:
        return {name: cost.total(gone) / whole[name] for name, cost in costs.items()}

    gone: set[int] = set()
    now = shares(gone)
    left = {kind: sorted(kind.roots, key=lambda root: scores[root], reverse=True) for kind in kinds}
    while over := [name for name, share in limits.items() if now[name] > share]:
        steps = []
        for kind, roots in left.items():
            stay = (len(roots) - 1) // multiple * multiple
            if stay:
                then = shares(gone | set(roots[stay:]))
                saved = sum(now[name] - then[name] for name in over)
                worth = sum(scores[root] for root in roots[stay:]) / max(saved, 1e-12)
                steps.append((worth, kind.layer, kind, stay))
        if not steps:
            narrow = min(left, key=lambda kind: scores[left[kind][0]])
            raise InputError(
                f"prune_channels: {over[0]}={limits[over[0]]} would empty layer {narrow.layer!r}: with "
                f"{len(left[narrow])} channels left there and as few as can be elsewhere it is {now[over[0]]:.3f}; "
                "give at least that"
            )
        _, _, kind, stay = min(steps, key=lambda step: step[:2])
        gone.update(left[kind][stay:])
        left[kind] = left[kind][:stay]
        now = shares(gone)
    return gone


def _share_of_each(
    share: float, kinds: Sequence[_Kind], scores: Mapping[int, float], multiple: int
) -> set[int]:
    gone: set[int] = set()
    for kind in kinds:
        count = len(kind.roots)
        stay = round(count * share / multiple) * multiple if count > multiple else count
        if not stay:
            raise InputError(
                f"prune_channels: channels={share} would empty layer {kind.layer!r}, which has {count}; keep more, or "
                "leave it out with exclude"
            )
        ordered = sorted(kind.roots, key=lambda root: scores[root], reverse=True)
        gone.update(ordered[min(stay, count) :])
    return gone


def _rebuild(module: nn.Module, found: Dependencies, gone: set[int]) -> None:
    """Take channels out of a module's parameters and buffers, in place."""
    tensors = _tensors(module)
    smaller: dict[int, Tensor] = {}
    for (name, axis), roots in found.roots().items():
        if gone.isdisjoint(roots):
            continue
        old = tensors[name]
        kept = torch.tensor([i for i, root in enumerate(roots) if root not in gone], device=old.device)
        smaller[id(old)] = smaller.get(id(old), old.detach()).index_select(axis, kept)
    _replace(module, smaller)


def _replace(module: nn.Module, smaller: Mapping[int, Tensor]) -> None:
    """Put other tensors, by the identity of those that are there, into a module, in place, and tell its layers."""
    made = dict[int, Tensor]()  # what layers share they go on sharing
    for part in module.modules():
        for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(value) in smaller:
                new = smaller[id(value)]
                if isinstance(value, nn.Parameter):
                    new = made.setdefault(id(value), nn.Parameter(new, value.requires_grad))
                setattr(part, name, new)
        _describe_again(part)


def _describe_again(part: nn.Module) -> None:
    """What a layer says of itself, as its tensors are now."""
    if isinstance(part, nn.modules.conv._ConvTransposeNd):
        part.in_channels, part.out_channels = part.weight.shape[0], part.weight.shape[1] * part.groups
    elif isinstance(part, nn.modules.conv._ConvNd):
        if part.groups == part.in_channels > 1:
            several = part.out_channels // part.in_channels
            part.groups = part.weight.shape[0] // several
        part.in_channels, part.out_channels = part.weight.shape[1] * part.groups, part.weight.shape[0]
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.modules.batchnorm._BatchNorm):
        one = part.weight if part.weight is not None else part.running_mean
        if one is not None:
            part.num_features = len(one)
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(part.weight)


def _still_runs(module: nn.Module, smaller: nn.Module, example: Any) -> None:
    """Raises InputError where the smaller module does not give outputs of the shapes that it gave."""

    def shapes(one: nn.Module) -> list[Any]:
        outputs = torch.utils._pytree.tree_leaves(call(one, example))
        return [tuple(value.shape) for value in outputs if isinstance(value, Tensor)]

    training = module.training
    try:
        with torch.no_grad():
            after = shapes(smaller)
            before = shapes(module.eval())
    except Exception as error:
        raise InputError(
            f"prune_channels: {type(module).__name__} does not run with fewer channels: {describe(error)}; where its "
            "code holds sizes, take them from shapes (x.flatten(1), x.shape), or leave layers out with exclude"
        ) from error
    finally:
        module.train(training)
    if before != after:
        raise InputError(
            f"prune_channels: {type(module).__name__} gives {after} instead of {before} with fewer channels; its code "
            "holds sizes: take them from shapes, or leave layers out with exclude"
        )
